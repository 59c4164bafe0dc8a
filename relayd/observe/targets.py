"""Where log lines go, and in what form.  No target is ever waited for."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Protocol

from relayd.observe.writer import LossyWriter, Lost, close_fd, unheard, write_whole

Value = object
Fields = Mapping[str, Value]
Render = Callable[[str, float, Fields], str]  # level, wall clock, fields -> one line without its end

_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without blank, quote and equals sign

_SEVERITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}  # RFC 5424, table 2
_DAEMON = 3 << 3  # facility "system daemons", RFC 5424, table 1

SYSLOG_SOCKET = "/dev/log"
JOURNAL_SOCKET = "/run/systemd/journal/socket"


class LogTarget(Protocol):
    """Takes events."""

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        """Take an event of the wall clock time `seconds`; whether it was taken. `lost()`: it was, for nothing."""

    def reopen(self) -> None:
        """Go on in a new file of the same name; raises OSError where there is none to be had, and keeps the old one."""

    def close(self) -> None:
        """No more will come."""


def timestamp(seconds: float) -> str:
    """Return a wall clock time in UTC with milliseconds, RFC 3339: 2026-11-22T17:04:18.123Z."""
    text = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def show(value: Value) -> str:
    """Return a value as it stands in a line: what is not plain is quoted and escaped, so it cannot forge one.

    Fractions are seconds, which are never finer than a millisecond.
    """
    text = f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def pairs(fields: Fields) -> str:
    """Return key=value key=value; a `repeated` count closes the line in words."""
    shown = " ".join(f"{key}={show(value)}" for key, value in fields.items() if key != "repeated")
    return shown + (f" repeated {fields['repeated']} times" if "repeated" in fields else "")


def render_text(level: str, seconds: float, fields: Fields) -> str:
    """Return `time level key=value key=value`."""
    return f"{timestamp(seconds)} {level} {pairs(fields)}"


def render_json(level: str, seconds: float, fields: Fields) -> str:
    """Return an object with `time`, `level` and the fields; numbers stay numbers."""
    plain = {key: value if isinstance(value, (int, float)) else str(value) for key, value in fields.items()}
    return json.dumps({"time": timestamp(seconds), "level": level, **plain})


RENDERS: dict[str, Render] = {"text": render_text, "json": render_json}


class StreamTarget:
    """Standard error."""

    def __init__(self, writer: LossyWriter, render: Render) -> None:
        self._writer = writer
        self._render = render

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        return self._writer.write(self._render(level, seconds, fields).encode() + b"\n", lost)

    def reopen(self) -> None:
        """It has no name."""

    def close(self) -> None:
        """It stays open."""


class FileTarget:
    """A file, which is opened when it is made, and by `reopen`; raises OSError then."""

    def __init__(self, path: str, render: Render) -> None:
        self._path = path
        self._render = render
        self._fd = self._open()

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        line = self._render(level, seconds, fields).encode() + b"\n"
        try:
            write_whole(self._fd, line)
        except OSError:
            return False  # a full disk: counted, and told when there is room again
        return True

    def reopen(self) -> None:
        former, self._fd = self._fd, self._open()
        close_fd(former)

    def close(self) -> None:
        close_fd(self._fd)

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        return os.open(self._path, flags, 0o640)


class SyslogTarget:
    """The local syslog daemon; the form is that of RFC 3164, as /dev/log takes it, without the time."""

    def __init__(self, send: Callable[[bytes], bool], render: Render) -> None:
        self._send = send
        self._render = render

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        line = self._render(level, seconds, fields)
        # The text form's time and level are syslog's own business.
        text = line if line.startswith("{") else pairs(fields)
        return self._send(f"<{_DAEMON | _SEVERITY[level]}>relayd[{os.getpid()}]: {text}".encode())

    def reopen(self) -> None:
        """It has no name of ours."""

    def close(self) -> None:
        """The way to it stays open."""


class JournalTarget:
    """The systemd journal with native fields: `journalctl RELAYD_RELAY=ais`; systemd's JOURNAL_NATIVE_PROTOCOL."""

    def __init__(self, send: Callable[[bytes], bool]) -> None:
        self._send = send

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        entry = {"MESSAGE": pairs(fields), "PRIORITY": _SEVERITY[level], "SYSLOG_IDENTIFIER": "relayd"}
        entry |= {f"RELAYD_{key.upper()}": show(value) for key, value in fields.items()}
        return self._send("".join(f"{key}={value}\n" for key, value in entry.items()).encode())

    def reopen(self) -> None:
        """It has no name of ours."""

    def close(self) -> None:
        """The way to it stays open."""
