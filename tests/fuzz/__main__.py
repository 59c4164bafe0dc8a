"""python -m tests.fuzz: see the package's docstring."""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support import ROOT

CORPUS = Path(__file__).parent / "corpus"
NAMES = sorted(path.name for path in CORPUS.iterdir())  # the targets must not be imported before atheris

_NO_ATHERIS = "atheris is missing, which guides the long form; with Python 3.11 or newer: pip install atheris"
_TEXT_MAX = 4096  # bytes of a text; longer ones find no more, slower
_SCRIPT_MAX = 200  # bytes of a script, likewise
_HANGS_AFTER = 60  # seconds, after which libFuzzer ends an input that would not end; `check` tells what is slow
_MEMORY_MAX = 1024  # MiB of the process, likewise: what grows with the number of inputs


def main(argv: Sequence[str] | None = None) -> int:
    """Fuzz, or replay; return the exit status, which is not 0 where there is a finding."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description="Feed relayd's parsers, framers and control socket what nobody would, guided by coverage.",
        epilog="Needs atheris: pip install atheris (it has wheels for Python 3.11 and newer); --replay does not.",
    )
    parser.add_argument("target", nargs="?", choices=NAMES, metavar="TARGET", help=f"{', '.join(NAMES)}; without: all")
    parser.add_argument("--seconds", type=int, default=120, help="how long to fuzz each target (120)")
    parser.add_argument("--seed", type=int, default=0, help="a number other than 0, to do the same again (the time)")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="feed the target this file once")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "relayd-fuzz", metavar="DIRECTORY",
        help="where findings and inputs that reached something new are kept (%(default)s)",
    )  # fmt: skip
    arguments = parser.parse_args(argv)
    if arguments.replay:
        if not arguments.target:
            parser.error("--replay needs a TARGET, for which the file was made")
        return _replay(arguments.target, arguments.replay)
    try:
        import atheris  # noqa: F401
    except ImportError:
        parser.error(_NO_ATHERIS)
    if arguments.target:
        _fuzz(arguments.target, arguments.work, arguments.seconds, arguments.seed or time.time_ns() % 2**32)
    # libFuzzer ends its process, so each target has one of its own.
    words = [f"--{name}={getattr(arguments, name)}" for name in ("seconds", "seed", "work")]
    runs = [subprocess.run([sys.executable, "-m", "tests.fuzz", name, *words]) for name in NAMES]
    return int(any(run.returncode for run in runs))


def _replay(name: str, path: Path) -> int:
    from tests.fuzz.targets import TARGETS, check

    check(TARGETS[name], path.read_bytes())
    sys.stdout.write(f"{path}: nothing is wrong with it\n")
    return 0


def _fuzz(name: str, work: Path, seconds: int, seed: int) -> None:
    """Fuzz one target; does not return."""
    import atheris

    with atheris.instrument_imports(include=["relayd"]):
        from tests.fuzz.targets import TARGETS, check
        from tests.fuzz.vocabulary import WORDS

    found, reached = work / "findings" / name, work / "reached" / name
    for directory in (found, reached):
        directory.mkdir(parents=True, exist_ok=True)
    dictionary = work / f"{name}.dict"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS.get(name, ())))

    seeds = [CORPUS / name] + [ROOT / "tests/configs" / kind for kind in ("valid", "invalid") if name == "config"]

    def one_input(data: bytes) -> None:
        try:
            check(TARGETS[name], data)
        except BaseException:
            # libFuzzer writes the file, under this name.
            path = found / f"crash-{hashlib.sha1(data).hexdigest()}"
            sys.stderr.write(f"\nA finding; once more: python -m tests.fuzz {name} --replay {path}\n")
            raise

    dictionary, longest = [], _SCRIPT_MAX
    if name in WORDS:
        longest = _TEXT_MAX
        path = work / f"{name}.words"
        path.write_text("".join(f'"{_escaped(word)}"\n' for word in WORDS[name]))
        dictionary = [f"-dict={path}"]
    sys.stdout.write(f"{name}: {seconds} s with --seed {seed}\n")
    sys.stdout.flush()
    atheris.Setup(
        [
            sys.argv[0], f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={longest}",
            f"-artifact_prefix={found}{os.sep}", f"-timeout={_HANGS_AFTER}", f"-rss_limit_mb={_MEMORY_MAX}",
            "-print_final_stats=1", *dictionary, str(reached), *map(str, seeds),
        ],
        one_input,
    )  # fmt: skip
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    sys.exit(main())
