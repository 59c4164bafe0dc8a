"""The log: one line for each change of state, `time level key=value key=value`.

Nothing a peer sends can forge a line: values with anything but plain characters are quoted and escaped.
An event that may come in bursts is given a `collapse` key: its first line is written at once, those
that follow are counted and told as `repeated 41 times` at the end of the interval.
"""

from __future__ import annotations

import json
import re
import time
import traceback
from collections.abc import Callable, Hashable
from datetime import datetime, timezone

from relayd.observe.writer import LossyWriter, Scheduler

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

# Within this many seconds a burst of one cause is one line, and one more that counts it.
_COLLAPSE = 10.0

_PLAIN = re.compile(r"[!#-<>-~]+")  # printable ASCII without blank, quote and equals sign

Value = object
WallClock = Callable[[], float]


def timestamp(seconds: float) -> str:
    """Return a wall clock time in UTC with milliseconds, RFC 3339: 2026-11-22T17:04:18.123Z."""
    text = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def _show(value: Value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


class EventLog:
    """Where events go. `bind` gives a log whose lines all carry the same fields."""

    def __init__(
        self, scheduler: Scheduler, writer: LossyWriter, level: str = "info", wall_clock: WallClock = time.time
    ) -> None:
        self._scheduler = scheduler
        self._writer = writer
        self._level = LEVELS[level]
        self._wall_clock = wall_clock
        self._bursts: dict[Hashable, int] = {}

    def bind(self, **fields: Value) -> BoundLog:
        """Return a log that puts `fields` in front of every line."""
        return BoundLog(self, fields)

    def write(self, level: str, fields: dict[str, Value], collapse: Hashable = None) -> None:
        """Write a line, or count it where one with the same `collapse` key has just been written."""
        if LEVELS[level] < self._level:
            return
        if collapse is not None:
            if collapse in self._bursts:
                self._bursts[collapse] += 1
                return
            self._bursts[collapse] = 0
            self._scheduler.call_later(_COLLAPSE, lambda: self._end_burst(level, fields, collapse))
        self._line(level, fields)

    def failed(self, error: Exception) -> None:
        """Write an unexpected exception with its traceback, in one line; once a burst."""
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        self.write("error", {"event": "internal_error", "traceback": "".join(lines)}, collapse=repr(error))

    def _end_burst(self, level: str, fields: dict[str, Value], collapse: Hashable) -> None:
        repeated = self._bursts.pop(collapse)
        if repeated:
            self._line(level, fields, f" repeated {repeated} times")

    def _line(self, level: str, fields: dict[str, Value], suffix: str = "") -> None:
        lost = self._writer.take_lost()
        if lost:
            self._emit("warning", f"event=log_lost lines={lost}")
        self._emit(level, " ".join(f"{key}={_show(value)}" for key, value in fields.items()) + suffix)

    def _emit(self, level: str, text: str) -> None:
        self._writer.write(f"{timestamp(self._wall_clock())} {level} {text}\n".encode())


class BoundLog:
    """A log with fields of its own: relay=ais client=10.0.0.7:51344."""

    __slots__ = ("_fields", "_log")

    def __init__(self, log: EventLog, fields: dict[str, Value]) -> None:
        self._log = log
        self._fields = fields

    def bind(self, **fields: Value) -> BoundLog:
        """Return a log with more fields."""
        return BoundLog(self._log, {**self._fields, **fields})

    def debug(self, event: str, **fields: Value) -> None:
        """Write what only somebody who hunts a fault wants to read."""
        self._log.write("debug", {**self._fields, "event": event, **fields})

    def info(self, event: str, **fields: Value) -> None:
        """Write a change of state that belongs to normal life."""
        self._log.write("info", {**self._fields, "event": event, **fields})

    def warning(self, event: str, **fields: Value) -> None:
        """Write something that somebody should look at in the morning."""
        self._log.write("warning", {**self._fields, "event": event, **fields})

    def burst(self, event: str, **fields: Value) -> None:
        """Write a warning of a kind that others can provoke at will: collapsed by everything but the peer."""
        same = tuple((key, value) for key, value in self._fields.items())
        reason = fields.get("reason", "")
        self._log.write("warning", {**self._fields, "event": event, **fields}, (same, event, reason))
