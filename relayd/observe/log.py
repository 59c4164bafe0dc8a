"""The log: one line for each change of state, `time level key=value key=value`.

Nothing a peer sends can forge a line: values with anything but plain characters are quoted and escaped.
An event that may come in bursts is collapsed: its first line is written at once, those that follow are
counted and told as `repeated 41 times` at the end of the interval.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from relayd.observe.targets import Fields, LogTarget, Value
from relayd.observe.writer import Scheduler

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}

# Within this many seconds a burst of one cause is one line, and one more that counts it.
_COLLAPSE = 10.0

WallClock = Callable[[], float]


@dataclass
class _Burst:
    """What is to be told of the lines that were not written, and how many there were."""

    level: str
    fields: Fields
    repeated: int = 0


class EventLog:
    """Where events go. `bind` gives a log whose lines all carry the same fields."""

    def __init__(
        self, scheduler: Scheduler, target: LogTarget, level: str = "info", wall_clock: WallClock = time.time
    ) -> None:
        self._scheduler = scheduler
        self._wall_clock = wall_clock
        self._bursts: dict[Hashable, _Burst] = {}
        self._lost = 0  # lines that the target did not take, since it was last said
        self.target = target
        self.level = level

    def bind(self, **fields: Value) -> BoundLog:
        """Return a log that puts `fields` in front of every line."""
        return BoundLog(self, fields)

    def write(self, level: str, fields: Fields, collapse: Hashable = None, counted: Fields | None = None) -> None:
        """Write a line, or count it where one with the same `collapse` key has just been written.

        `counted` are the fields of the line that tells the count, where they are others.
        """
        if LEVELS[level] < LEVELS[self.level]:
            return
        if collapse is not None:
            if collapse in self._bursts:
                self._bursts[collapse].repeated += 1
                return
            self._bursts[collapse] = _Burst(level, fields if counted is None else counted)
            self._scheduler.call_later(_COLLAPSE, lambda: self._end_burst(collapse))
        self._emit(level, fields)

    def failed(self, error: Exception) -> None:
        """Write an unexpected exception with its traceback, in one line; once a burst."""
        if isinstance(error, MemoryError):  # which says nothing about the place where it came up
            self.write("error", {"event": "out_of_memory"}, collapse="out_of_memory")
            return
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        self.write("error", {"event": "internal_error", "traceback": "".join(lines)}, collapse=repr(error))

    def close(self) -> None:
        """Tell what has been counted so far; no more will come."""
        for collapse in list(self._bursts):
            self._end_burst(collapse)
        self.target.close()

    def _end_burst(self, collapse: Hashable) -> None:
        burst = self._bursts.pop(collapse, None)  # None: `close` was quicker
        if burst is not None and burst.repeated:
            self._emit(burst.level, {**burst.fields, "repeated": burst.repeated})

    def _emit(self, level: str, fields: Fields) -> None:
        now = self._wall_clock()
        lost = self._lost
        if lost and self.target.emit("warning", now, {"event": "log_lost", "lines": lost}, lambda: self._miss(lost)):
            self._lost = 0
        if not self.target.emit(level, now, fields, lambda: self._miss(1)):
            self._miss(1)

    def _miss(self, lines: int) -> None:
        self._lost += lines


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

    def error(self, event: str, **fields: Value) -> None:
        """Write that what somebody has asked for was not done."""
        self._log.write("error", {**self._fields, "event": event, **fields})

    def burst(self, event: str, **fields: Value) -> None:
        """Write a warning of a kind that others can provoke at will: one line for all of the same reason.

        It names the first client; a thousand that fall behind together are one line, and one more that counts them,
        under `client=any`, and without what is true of the first alone.
        """
        whose = tuple(item for item in self._fields.items() if item[0] != "client")
        collapse = (whose, event, fields.get("reason"))
        counted = None
        if "client" in self._fields:
            reason = {"reason": fields["reason"]} if "reason" in fields else {}
            counted = {**self._fields, "client": "any", "event": event, **reason}
        self._log.write("warning", {**self._fields, "event": event, **fields}, collapse, counted)
