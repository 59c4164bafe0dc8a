"""The short form of fuzzing: the inputs of the corpus, and those that hypothesis makes, which are always the same."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS
from tests.config.test_kinds import ADDRESSES, NETWORKS, TEXTS
from tests.config.test_load import EDIT, SYNTAX_EDIT, VALID, mutated
from tests.fuzz import targets
from tests.fuzz.__main__ import CORPUS, NAMES, main
from tests.fuzz.script import Script
from tests.fuzz.targets import KINDS, TARGETS, check

Inputs = st.SearchStrategy[bytes]

FILES = sorted(path for path in CORPUS.glob("*/*"))


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def edited(files: list[Path]) -> Inputs:
    """Return the files' texts with a few things changed."""
    samples = st.sampled_from([path.read_bytes() for path in files])
    return st.tuples(samples, st.lists(EDIT | SYNTAX_EDIT, max_size=4)).map(lambda pair: mutated(*pair))


def seeds(name: str) -> list[Path]:
    return [path for path in FILES if path.parent.name == name]


# Lines of a configuration, most of them right, so that some whole configurations are.
LINES = sorted({line for path in VALID for line in path.read_text("utf-8-sig").splitlines() if " = " in line})
OPTIONS = st.tuples(st.sampled_from(sorted({**RELAY_KEYS, **DAEMON_KEYS})), TEXTS).map(" = ".join)
RELAYS = [
    "[relay a]\nmode = listen-listen\nsource = :1\ndestination = unix:out",
    "[relay b]\nmode = connect-connect\nsource = a.example:1\ndestination = b.example:2",
    "[relay c]\nmode = listen-connect\nsource = [::]:3\ndestination = localhost:1",
]
CONFIGS = st.lists(
    st.sampled_from([*RELAYS, "[relayd]", "[defaults]"]) | st.sampled_from(LINES) | st.sampled_from(LINES) | OPTIONS,
    max_size=8,
).map(lambda lines: as_bytes("\n".join([RELAYS[0], *lines, ""])))

ENDS = st.sampled_from([":1", "a.example:2", "[::1]:3", "unix:out", "replay:f", "a:1,b:2"]) | ADDRESSES
PAIRS = (OPTIONS | st.sampled_from(LINES)).map(lambda line: "-o\0" + line.replace(" = ", "=", 1))
COMMANDS = st.tuples(ENDS, ENDS, st.lists(PAIRS, max_size=3) | st.lists(TEXTS, max_size=2)).map(
    lambda words: as_bytes("\0".join([words[0], words[1], *words[2]]))
)

# A value of a kind, more often than not: a number with any unit would hardly ever be one of its.
DURATIONS = st.tuples(st.integers(0, 5000), st.sampled_from(["", "ms", "s", "m", "h", "d"])).map(
    lambda p: f"{p[0]}{p[1]}"
)
SIZES = st.tuples(st.integers(0, 5000), st.sampled_from(["", "K", "M", "G", "k"])).map(lambda p: f"{p[0]}{p[1]}")
FITTING = {
    "duration": DURATIONS,
    "size": SIZES,
    "duration or low..high": st.tuples(DURATIONS, DURATIONS).map("..".join),
    "idle/interval/probes or off": st.tuples(DURATIONS, DURATIONS, st.integers(0, 200).map(str)).map("/".join),
    "size x files": st.tuples(SIZES, st.integers(0, 1100).map(str)).map(" x ".join),
    "size duration": st.tuples(SIZES, DURATIONS).map(" ".join),
    "size, records or duration": DURATIONS | SIZES | st.integers(0, 5000).map(lambda count: f"{count}r"),
    "addresses": st.lists(ADDRESSES, max_size=3).map(",".join),
    "networks": st.lists(NETWORKS, max_size=3).map(" ".join),
    "framing": st.text("\\xrnt09a;# ", max_size=5).map(lambda text: f"delimiter:{text}")
    | st.tuples(st.sampled_from(["u8", "u16be", "u32le"]), st.integers(0, 9), st.integers(-9, 9)).map(
        lambda field: f"length:{field[0]}@{field[1]}{field[2]:+d}"
    ),
}
VALUES = st.integers(0, len(KINDS) - 1).flatmap(
    lambda number: (FITTING.get(KINDS[number].name, TEXTS) | TEXTS).map(lambda text: bytes([number]) + as_bytes(text))
)

SCRIPTS = st.binary(max_size=150)
INPUTS: dict[str, tuple[Inputs, int]] = {  # and how many of them
    "config": (CONFIGS | edited(VALID + seeds("config")), 300),
    "words": (COMMANDS | edited(seeds("words")), 200),
    "values": (VALUES, 800),
    "addresses": (ADDRESSES.map(as_bytes) | st.text().map(as_bytes) | edited(seeds("addresses")), 500),
    "framers": (SCRIPTS | edited(seeds("framers")), 400),
    "control": (SCRIPTS | edited(seeds("control")), 200),
}


def test_every_target_has_a_corpus_and_inputs() -> None:
    assert sorted(TARGETS) == NAMES == sorted(INPUTS) == sorted({path.parent.name for path in FILES})


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_corpus(path: Path) -> None:
    assert path.stat().st_size < 2048, "a seed is small"
    check(TARGETS[path.parent.name], path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_c22_k11_what_nobody_would_send(name: str) -> None:
    inputs, count = INPUTS[name]

    @settings(
        max_examples=count, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs)
    def each(data: bytes) -> None:
        check(TARGETS[name], data)

    each()


# -- the tools themselves ---------------------------------------------------------------------------


def spend_time(data: bytes) -> None:
    end = time.process_time() + 0.02
    while time.process_time() < end:
        pass


def take_memory(data: bytes) -> None:
    # On top of what the process has had already, of which nothing would be seen.
    assert b"x" * ((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 110 * 1024) * 1024)


def raise_what_is_no_promise(data: bytes) -> None:
    raise KeyError(data)


@pytest.mark.parametrize("target", [spend_time, take_memory, raise_what_is_no_promise])
def test_a_broken_limit_is_a_finding(target: Callable[[bytes], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "SECONDS_MAX", 0.01)
    with pytest.raises((AssertionError, KeyError)):
        check(target, b"x")


def test_a_script_ends_in_zeros_and_nothing() -> None:
    script = Script(b"\5abc\2")
    assert (script.byte(), script.take(2), bool(script)) == (5, b"ab", True)
    assert (script.pick("xyz"), script.piece()) == ("x", b"")  # 99 % 3, and 2 of none
    assert (script.byte(), script.take(2), script.pick("xyz"), script.rest(), bool(script)) == (0, b"", "x", b"", False)
    assert Script(b"\2abc").piece() == b"ab"


def test_a_finding_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finding = tmp_path / "finding"
    finding.write_bytes(b"a:1")
    assert main(["addresses", "--replay", str(finding)]) == 0
    assert capsys.readouterr().out == f"{finding}: nothing is wrong with it\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["adresses"], "invalid choice: 'adresses'"),
        (["--replay", "x"], "--replay needs a TARGET"),
        ([], "pip install atheris"),
    ],
)
def test_wrong_usage_is_told_in_a_line(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert told in capsys.readouterr().err.splitlines()[-1]
