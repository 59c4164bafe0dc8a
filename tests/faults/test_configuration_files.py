"""Configuration files that are none, that change while they are read, that others may write, that are many."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.oracle import MIB, cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.victim import Victim, victim_of
from tests.integration.daemons import Site, relay
from tests.support import SLOWNESS, free_port, needs


@pytest.fixture(scope="module")
def victim(
    program: list[str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Victim]:
    """One daemon for all of these; the longest takes it half a second, and some megabytes for ever."""
    options = request.config
    rig = Rig(
        tmp_path_factory.mktemp("victim"), program, "C1", options.getoption("--seed"), options.getoption("--long")
    )
    with victim_of(rig, pauses=True, grows=16 * MIB) as found:
        yield found


# -- what is no file of a sane size ---------------------------------------------------------------


def missing(path: Path) -> None:
    path.unlink()


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    path.unlink()
    os.mknod(path, stat.S_IFSOCK | 0o600)


def link_to_zero(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def gigabyte(path: Path) -> None:
    os.truncate(path, 1 << 30)


def long_line(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x" * 900_000)


def long_value(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"[relay big]\nsource = " + b"a:1," * 100_000 + b"a:1\n")


def many_keys(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"".join(b"deny%d=\n" % n for n in range(50_000)))


def many_sections(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"".join(b"[relay r%d]\n" % n for n in range(50_000)))


NO_FILES: dict[Callable[[Path], None], str] = {
    missing: "cannot be read: No such file or directory",
    directory: "cannot be read: it is not a regular file",
    fifo: "cannot be read: it is not a regular file",
    unix_socket: "cannot be read: No such device or address",
    link_to_zero: "cannot be read: it is not a regular file",
    link_to_itself: "cannot be read: Too many levels of symbolic links",
    gigabyte: "is larger than 1024 KiB, which is too large",
    long_line: "is neither [section] nor key = value",
    long_value: "'a:1' is named twice",
    many_keys: "unknown key",
    many_sections: "50003 sections, which is too many",
}


@row(
    "C16",
    provoked="the file is missing, a directory, a FIFO, a socket, a link to /dev/zero or to itself, 1 GiB, a line of "
    "900 KB, 50,000 sections or keys",
    required="refused within 2 s of CPU time, with the reason, by the reload and by `--check`",
)
@pytest.mark.parametrize("make", NO_FILES)
def test_c16_no_file(rig: Rig, victim: Victim, make: Callable[[Path], None]) -> None:
    victim.restore()
    make(victim.site.file)
    try:
        before = cpu_seconds(victim.site.pid)
        answer = victim.site.ask("reload")
        took = cpu_seconds(victim.site.pid) - before
        assert any(NO_FILES[make] in line for line in answer["error"].split("\n")), answer["error"][:500]
        assert took < 2 * SLOWNESS, f"it took {took:.1f} s"
        victim.refused()
    finally:
        with contextlib.suppress(IsADirectoryError):
            victim.site.file.unlink(missing_ok=True)
        shutil.rmtree(victim.site.file, ignore_errors=True)
        victim.restore()
    rig.saw(f"{make.__name__}: {1000 * took:.0f} ms")


# -- a file that changes --------------------------------------------------------------------------


@row(
    "C17",
    provoked="the file is replaced by a symlink's swap, by a rename, by a write in place, again and again; reloads",
    required="a reload sees one version whole or refuses what it saw; none leaves half of each; the stream goes on",
)
@pytest.mark.parametrize("how", ["symlink", "rename", "write"])
def test_c17_replaced_while_it_is_read(rig: Rig, how: str) -> None:
    one, two = ("one", free_port(), free_port()), ("two", free_port(), free_port())
    with rig.daemon(relay(*one), relay(*two), log_level="error", lag=0.5) as site:
        good = site.file.read_text()
        ports = free_port(), free_port()
        versions = [good + relay("three", *ports, buffer=size, send_buffer=size) for size in ("64K", "1M")]
        ending = threading.Event()
        writer = threading.Thread(target=_rewrite, args=(site, how, versions, ending))
        writer.start()
        taken, refused = 0, 0
        try:
            for _ in range(rig.times(20, 5000)):
                answer = site.ask("reload")
                taken, refused = taken + answer["ok"], refused + (not answer["ok"])
                assert answer["ok"] or how == "write", answer
                settings = {found["name"]: found["settings"] for found in site.status()["relays"]}
                assert {"one", "two"} <= settings.keys()
                three = settings.get("three", {})
                # In place, a reader may see the file when it has been cut: not all of a section, but never a mixture.
                assert how == "write" or not three or three["buffer"] == three["send_buffer"], three
        finally:
            ending.set()
            writer.join()
            site.file.unlink()
            site.file.write_text(good)
        site.reload()
        rig.saw(f"{how}: {taken} taken, {refused} refused")


def _rewrite(site: Site, how: str, versions: list[str], ending: threading.Event) -> None:
    files = [site.folder / f"version{n}.ini" for n in range(2)]
    for file, text in zip(files, versions, strict=True):
        file.write_text(text)
    fresh = site.folder / "fresh"
    number = 0
    while not ending.wait(0.001):  # or the reader would hardly get a turn
        number = 1 - number
        if how == "write":
            site.file.write_text(versions[number])
        elif how == "rename":
            fresh.write_text(versions[number])
            os.replace(fresh, site.file)
        else:
            fresh.symlink_to(files[number])
            os.replace(fresh, site.file)


# -- many files -----------------------------------------------------------------------------------


def _included(folder: Path, name: str, relay_name: str, *keys: str) -> int:
    """Write a file to include; return the line of its first key that is not an end."""
    text = relay(relay_name, free_port(), free_port()) + "".join(f"{key}\n" for key in keys)
    (folder / name).write_text(text)
    return 5


@row(
    "C19",
    provoked="`include`: 1,000 files, a missing one, itself, a directory, a FIFO, another include, a relay twice; dot "
    "files and `.rpmsave` beside them",
    required="read in the order of their names, what the pattern does not name is let be; what is wrong is refused "
    "with its own file and line; an included file has relays only, so there is no cycle",
)
def test_c19_include(rig: Rig) -> None:
    folder = rig.folder / "conf.d"
    folder.mkdir()
    with rig.daemon(include="conf.d/*.ini", lag=1.0, pauses=True, grows=8 * MIB) as site:
        for name, relay_name in {"20.ini": "b", "10.ini": "a", ".05.ini": "dot", "30.ini.rpmsave": "old"}.items():
            _included(folder, name, relay_name)
        site.reload()
        assert [found["name"] for found in site.status()["relays"]] == ["control", "a", "b"]
        wrong: dict[str, Callable[[Path], object]] = {
            "15.ini": lambda path: path.write_text("[relayd]\ninclude = ../relayd.ini\n"),
            "16.ini": lambda path: path.mkdir(),
            "17.ini": os.mkfifo,
            "18.ini": lambda path: path.symlink_to("nowhere"),
            "19.ini": lambda path: path.symlink_to("../relayd.ini"),
            "21.ini": lambda path: _included(folder, path.name, "a", "bufer = 1"),
        }
        for name, make in wrong.items():
            make(folder / name)
        told = [line.replace(f"{rig.folder}/", "") for line in site.ask("reload")["error"].split("\n")]
        for words in (
            "conf.d/15.ini:1: [relayd] belongs into relayd.ini; an included file has relays",
            "include: conf.d/16.ini cannot be read: it is not a regular file",
            "include: conf.d/17.ini cannot be read: it is not a regular file",
            "include: conf.d/18.ini cannot be read: No such file",
            "include: conf.d/19.ini includes itself",
            "conf.d/21.ini:1: [relay a] stands at conf.d/10.ini:1 already",
        ):
            assert sum(words in line for line in told) == 1, (words, told)
        assert [found["name"] for found in site.status()["relays"]] == ["control", "a", "b"]
        for file in folder.iterdir():
            file.rmdir() if file.is_dir() else file.unlink()
        for number in range(1000):
            (folder / f"{number:04}.ini").write_text(relay(f"r{number}", 1, 2, enabled="no"))
        before = cpu_seconds(site.pid)
        site.reload()
        took = cpu_seconds(site.pid) - before
        assert took < 2 * SLOWNESS
        shutil.rmtree(folder)
        site.configure(rig.control_relay, include=None)
        site.reload()
        rig.saw(f"1,000 files: {took:.2f} s of CPU time")


# -- the environment and secrets ------------------------------------------------------------------

_SECRET = "hunter2.example"


@row(
    "C20",
    provoked="`${NAME}`: unset, empty, with a line break and a section, with `]`, `%`, `@`, another reference; `@FILE` "
    "with a value that is wrong, missing, a FIFO, not UTF-8",
    required="unset is refused; a value is never looked at again; what a secret file holds is shown neither in "
    "settings nor in errors of the file",
)
def test_c20_environment_and_secrets(rig: Rig) -> None:
    values = {"LINES": "x\n[relay evil]\nsource = a:1", "ODD": "a]%(b)s#;@${EMPTY}", "EMPTY": "", "HOST": "127.0.0.1"}
    environ = ["env", *(f"{name}={value}" for name, value in values.items())]
    (rig.folder / "secret").write_text(f"{_SECRET}:5000\n")
    good = relay(
        "two", "@secret", f"${{HOST}}:{free_port()}", "connect-listen", dump_file="/tmp/${ODD}", reconnect="1h"
    )
    with rig.site(good) as site:
        site.start(prefix=environ)
        settings = site.relay("two")["settings"]
        assert (settings["source"], settings["dump_file"]) == ("***", "/tmp/a]%(b)s#;@${EMPTY}")
        os.mkfifo(rig.folder / "fifo")
        (rig.folder / "latin").write_bytes(b"gr\xfc\xdfe")
        wrong = {
            "source = ${NO_SUCH}:1": "${NO_SUCH} is not set in the environment",
            "source = ${EMPTY}": "an address is missing",
            "source = ${LINES}": "what ${LINES} holds has a control character in it",
            "source = @secret,b:1": "No such file or directory",
            "source = @fifo": "it is not a regular file",
            "source = @latin": "is not UTF-8",
            "buffer = @secret": "what the file holds cannot be used here; it is a secret",
            "bind_source = @secret": "it is a secret, so no more is said of it",
        }
        for line, words in wrong.items():
            with site.file.open("a") as file:
                file.write(f"[relay r{rig.random.randrange(10**9)}]\n{line}\n")
            told = site.ask("reload")["error"].split("\n")
            assert any(words in complaint for complaint in told), (line, told)
            checked = site.launch("--check", prefix=environ)
            assert (checked.returncode, checked.stderr.splitlines()) == (2, [f"relayd: {found}" for found in told])
            assert _SECRET not in checked.stderr + checked.stdout
        assert "evil" not in checked.stderr
        site.configure(good, rig.control_relay)
        assert _SECRET not in site.launch("--check", prefix=environ).stdout
        settings = [str(found["settings"]) for found in site.status()["relays"]]
        assert _SECRET not in "".join(settings + site.lines("reload_failed"))
        rig.saw(f"{len(wrong)} refused")


# -- --check --------------------------------------------------------------------------------------


@row(
    "C24",
    provoked="`--check` beside the daemon that runs with the file, watched by strace; a dump file, a Unix socket",
    required="it binds, connects, writes, creates and removes nothing, and the daemon does not notice; status 0",
)
def test_c24_check_has_no_side_effects(rig: Rig) -> None:
    needs("strace")
    local, trace = rig.folder / "local.sock", rig.folder / "trace"
    one = relay("one", free_port(), f"unix:{local}", dump="raw", dump_file="dump")
    two = relay("two", "localhost:1", free_port(), "connect-listen", reconnect="1h")
    with rig.site(one, two) as site:
        site.start()
        site.wait_log("relay=two", "event=connect_failed")

        def state() -> dict[str, object]:
            found = {path.name: (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in rig.folder.iterdir()}
            return {
                "files": found,
                "log": site.log.read_text(),
                "totals": [r["totals"] for r in site.status()["relays"][:2]],
            }

        before = state()
        words = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-o",
            str(trace),
            "-e",
            "trace=%network,%file,kill,fork,vfork,clone,execve",
        ]
        done = site.launch("--check", prefix=[*words, "env", "PYTHONDONTWRITEBYTECODE=1"])
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        calls = trace.read_text()
        trace.unlink()
        assert state() == before
        writing = (
            r"\b(bind|listen|connect|sendto|unlink|unlinkat|rename\w*|mkdir\w*|kill|fork|vfork|clone|chmod|utime\w*)\("
        )
        assert not re.findall(rf".*{writing}.*", calls)
        opened = [call for call in re.findall(r"openat\(.*", calls) if "/dev/null" not in call]
        assert not [call for call in opened if re.search("O_WRONLY|O_RDWR|O_CREAT|O_TRUNC", call)]
        rig.saw(f"{calls.count(chr(10))} calls, none of these")
