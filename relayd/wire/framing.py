"""Framers find record borders; they never change a byte.

A framer is fed what was read and hands back one run of whole records, as large as it can be, and
keeps the rest for the next read.  It does not look for the borders inside the run: for lines one
`rfind` finds the last border, whatever the number of records before it.  Only when a run has to be
cut (a link was lost in the middle of one) does anybody look for a border inside, with `border_before`.

Bytes that belong to no record are left out and counted, until `take_unframed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Framer(Protocol):
    """The state of one stream's framing."""

    max_record: int  # bytes of the longest record that is handed on; may be changed between feeds
    records: int  # in the run that `feed` has returned last
    unframed: int  # bytes left out, because they belong to no whole record, since they were last taken

    def feed(self, data: bytes) -> bytes:
        """Take what was read; return the run of whole records that is now complete, or b''."""

    def reset(self) -> None:
        """The stream has ended: throw the record that was cut short away."""

    def skip_record(self) -> None:
        """The stream is in the middle of a record: leave out what comes up to the next border."""

    def take_unframed(self) -> int:
        """Return the bytes left out since the last call."""


class RawFramer:
    """No records: what comes goes on at once, any border will do."""

    def __init__(self, max_record: int) -> None:
        self.max_record = max_record
        self.unframed = 0
        self.records = 0

    def feed(self, data: bytes) -> bytes:
        return data

    def reset(self) -> None:
        """Nothing is kept between reads."""

    def skip_record(self) -> None:
        """There are no records."""

    def take_unframed(self) -> int:
        return 0


class LineFramer:
    """Records end with LF (and so with CR LF): NMEA 0183, AIS, SBS, CSV and most of what is text."""

    def __init__(self, max_record: int) -> None:
        """`max_record` bytes, the LF included, is the longest line that is handed on."""
        self.unframed = 0
        self.records = 0
        self.max_record = max_record
        self._tail = bytearray()
        self._skipping = False  # inside a line that was longer than max_record

    def feed(self, data: bytes) -> bytes:
        run = self._feed(data)
        self.records = run.count(b"\n")
        return run

    def _feed(self, data: bytes) -> bytes:
        end = data.rfind(b"\n") + 1
        if not end:
            self._keep(data)
            return b""
        if self._tail or self._skipping:
            run = self._finish_line(data, end)
        else:
            run = data if end == len(data) else data[:end]
        if end < len(data):
            self._keep(data[end:])
        return run if len(run) <= self.max_record else self._without_long_lines(run)

    def reset(self) -> None:
        self.unframed += len(self._tail)
        self._tail.clear()
        self._skipping = False

    def skip_record(self) -> None:
        self._skipping = True

    def take_unframed(self) -> int:
        unframed, self.unframed = self.unframed, 0
        return unframed

    def _keep(self, data: bytes) -> None:
        if self._skipping:
            self.unframed += len(data)
            return
        self._tail += data
        if len(self._tail) > self.max_record:
            self.unframed += len(self._tail)
            self._tail.clear()
            self._skipping = True

    def _finish_line(self, data: bytes, end: int) -> bytes:
        """Return the lines up to `end`, the one begun in earlier reads in front."""
        if not self._skipping:
            run = b"".join((self._tail, memoryview(data)[:end]))
            self._tail.clear()
            return run
        begin = data.find(b"\n") + 1
        self.unframed += begin
        self._skipping = False
        return data[begin:end]

    def _without_long_lines(self, run: bytes) -> bytes:
        """Leave out the lines over `max_record`, stepping over as many good ones at once as can be."""
        kept = []
        begin = good = 0  # run[begin:good] is whole lines of a right length
        while len(run) - good > self.max_record:
            border = run.rfind(b"\n", good, good + self.max_record) + 1
            if border:
                good = border
                continue
            kept.append(run[begin:good])
            begin = run.find(b"\n", good) + 1
            self.unframed += begin - good
            good = begin
        return run if not begin and not kept else b"".join((*kept, run[begin:]))


class Framing(Protocol):
    text: str
    has_records: bool

    def framer(self, max_record: int) -> Framer: ...
    def next_border(self, run: bytes, border: int) -> int: ...
    def record_at(self, run: bytes, offset: int) -> tuple[int, int]: ...
    def count(self, run: bytes) -> int: ...
    def problem(self, max_record: int) -> str: ...


@dataclass(frozen=True)
class _Raw:
    text: str = "raw"
    has_records: bool = False

    def framer(self, max_record: int) -> Framer:
        return RawFramer(max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return len(run)

    def record_at(self, run: bytes, offset: int) -> tuple[int, int]:
        return offset, offset

    def count(self, run: bytes) -> int:
        return 0

    def problem(self, max_record: int) -> str:
        return ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class _Line:
    text: str = "line"
    has_records: bool = True

    def framer(self, max_record: int) -> Framer:
        return LineFramer(max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return run.find(b"\n", border) + 1

    def record_at(self, run: bytes, offset: int) -> tuple[int, int]:
        return run.rfind(b"\n", 0, offset) + 1, run.find(b"\n", offset) + 1

    def count(self, run: bytes) -> int:
        return run.count(b"\n")

    def problem(self, max_record: int) -> str:
        return ""

    def __str__(self) -> str:
        return self.text
