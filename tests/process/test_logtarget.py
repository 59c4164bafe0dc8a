"""The log's target, by what the configuration says."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relayd.config.load import load_command_line
from relayd.config.settings import Config
from relayd.errors import StartError
from relayd.observe.targets import FileTarget, JournalTarget, LogTarget, StreamTarget, SyslogTarget
from relayd.process import logtarget as tested
from relayd.process.logtarget import LogTargets
from tests.fakes import Lines

BASE = load_command_line([("source", "192.0.2.1:1", ""), ("destination", ":2", "")], {})
STDERR: Any = Lines()


def config(**changes: Any) -> Config:
    return replace(BASE, **changes)


@contextlib.contextmanager
def targets(stderr: Any) -> Iterator[LogTargets]:
    """What makes targets, whose sockets do not outlive the test."""
    made = LogTargets(stderr)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Stands where the syslog daemon and the journal listen."""
    for name in ("SYSLOG_SOCKET", "JOURNAL_SOCKET"):
        monkeypatch.setattr(tested, name, str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "log"))
        sock.setblocking(False)
        yield sock


@pytest.mark.parametrize("log", ["", "stderr"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_in_the_foreground_the_terminal_is_the_log(log: str, form: str) -> None:
    lines: Any = Lines()
    with targets(lines) as made:
        target = made.make(config(log=log, log_format=form))
        assert isinstance(target, StreamTarget)
        assert target.emit("info", 0.0, {"event": "x"})
    assert lines.lines[0].startswith("{" if form == "json" else "1970-")


@pytest.mark.parametrize(
    ("log", "form", "stderr", "kind", "begin"),
    [
        ("", "text", None, SyslogTarget, b"<30>relayd["),
        ("syslog", "text", STDERR, SyslogTarget, b"<30>relayd["),
        ("syslog", "json", None, SyslogTarget, b"<30>relayd["),
        ("journal", "text", None, JournalTarget, b"MESSAGE=event=x\nPRIORITY=6\n"),
        ("journal", "json", STDERR, JournalTarget, b"MESSAGE=event=x\n"),
    ],
)
def test_the_systems_own_logs(
    receiver: socket.socket, log: str, form: str, stderr: Any, kind: type[LogTarget], begin: bytes
) -> None:
    with targets(stderr) as made:
        target = made.make(config(log=log, log_format=form))
        assert type(target) is kind
        assert target.emit("info", 0.0, {"event": "x"})
        got = receiver.recv(65536)
        assert got.startswith(begin)
        assert (b'"event": "x"' in got) == (form == "json" and log == "syslog")
        target.close()
        assert made.make(config(log=log, log_format=form)).emit("info", 0.0, {"event": "x"})  # after a reload
        assert receiver.recv(65536) == got


@pytest.mark.parametrize("log", ["syslog", "journal"])
def test_a_reload_from_inside_a_chroot_may_still_go_over_to_them(
    receiver: socket.socket, tmp_path: Path, log: str
) -> None:
    with targets(None) as made:
        (tmp_path / "log").rename(tmp_path / "out of sight")
        assert made.make(config(log=log)).emit("info", 0.0, {"event": "x"})
        assert b"event=x" in receiver.recv(65536)


@pytest.mark.parametrize(
    ("log", "stderr", "cure"),
    [
        ("", None, "log = PATH"),
        ("syslog", None, "log = PATH"),
        ("syslog", STDERR, "log = PATH or stderr"),
        ("journal", STDERR, "log = PATH or stderr"),
    ],
)
def test_that_nobody_sees_what_is_logged_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str, stderr: Any, cure: str
) -> None:
    for name in ("SYSLOG_SOCKET", "JOURNAL_SOCKET"):
        monkeypatch.setattr(tested, name, str(tmp_path / "log"))
    with targets(stderr) as made:
        assert made.absence(config(log=log)) == (
            f"log: no {log or 'syslog'} at {tmp_path}/log: No such file or directory; nothing is logged until there is "
            f"one ({cure} would be seen)"
        )


def test_what_can_be_seen_is_not_absent(receiver: socket.socket, tmp_path: Path) -> None:
    for stderr, log in ((None, ""), (None, "syslog"), (STDERR, "journal"), (STDERR, ""), (None, str(tmp_path / "l"))):
        with targets(stderr) as made:
            assert made.absence(config(log=log)) == ""


def test_a_path_is_a_file(tmp_path: Path) -> None:
    with targets(None) as made:
        target = made.make(config(log=str(tmp_path / "l"), log_format="json"))
    assert isinstance(target, FileTarget)
    target.emit("info", 0.0, {"event": "x"})
    assert (tmp_path / "l").read_text() == '{"time": "1970-01-01T00:00:00.000Z", "level": "info", "event": "x"}\n'
    os.close(target._fd)


def test_a_file_that_cannot_be_had_is_told(tmp_path: Path) -> None:
    path = tmp_path / "no" / "l"
    with targets(None) as made, pytest.raises(StartError) as caught:
        made.make(config(log=str(path)))
    assert caught.value.reasons == (f"cannot write log {path}: No such file or directory",)


def test_a_daemon_has_no_terminal() -> None:
    with (
        targets(None) as made,
        pytest.raises(StartError, match="a daemon has no terminal; choose syslog, journal or a path"),
    ):
        made.make(config(log="stderr"))
