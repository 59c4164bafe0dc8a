"""The walk through a stream whose records begin with a header, whatever the header is.

A `RecordFormat` knows one kind of record: where one may begin, how long it is, whether it is right.
`RecordFramer` does the rest.  At every place where a record may begin, one of four things is true:

    it cannot be told yet           keep everything from here, and wait
    it is whole, and right          it joins the run; go on behind it
    it is broken, or over-long      it was none: leave out one byte, and look for the next place
    no record begins here           likewise

After a broken one the walk goes on one byte further, not at the end that its header claims: what looked
like a header may have been noise, and the good record that stands inside its claim must not be lost
with it.  A format without a mark to look for (`blind`) has no such choice: there the header is believed
and the claim is left out whole.

What it costs.  Each byte is walked over once and copied at most twice, a record is not looked at again
before as much as it needs has come.  A stream made to hurt, of nothing but headers that each claim a
long record, could ask for a check of 64 KiB every few bytes.  So failed checks are paid for: each byte
of the stream pays for `_CHECKED_PER_BYTE` bytes of them, a debt of `_DEBT_MAX` is allowed, and while it is
larger no record over `_ALWAYS_CHECKED` bytes is believed.  Random bytes owe less than one for one.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import Protocol

from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framer, Framing

_CHECKED_PER_BYTE = 16
_DEBT_MAX = 65536  # in bytes of the stream that pay for it: 1 MiB of failed checks
_ALWAYS_CHECKED = 512  # longer than any MAVLink record and than most others


class RecordFormat(Protocol):
    """What one kind of record looks like. It has no state: one serves all streams."""

    blind: bool  # there is no mark to find a border by: lengths are believed
    closing: bytes  # no record is complete before this has come; b"" where no such thing is

    def find(self, data: bytes, refused: int) -> int:
        """Return the first place behind `refused` where a record may begin, len(data) if there is none."""

    def length(self, data: bytes, begin: int) -> int:
        """Return the bytes of the record at `begin`, complete or not; 0: more must come to tell; -1: it is none."""

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        """Return whether data[begin:end], of the length that was told, is a record."""

    def resume(self, data: bytes) -> int:
        """Return how much of a stream that begins inside a record to leave out; -1: all, it is still inside."""


@dataclass(frozen=True)
class RecordFraming(Framing):
    """Records of a format."""

    format: RecordFormat = field(compare=False, repr=False)

    def framer(self, max_record: int) -> Framer:
        return RecordFramer(self.format, max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return border + self.format.length(run, border)

    def record_at(self, chunk: Chunk, offset: int) -> tuple[int, int]:
        ends = self._ends(chunk)
        record = bisect_right(ends, offset)
        return ends[record - 1] if record else 0, ends[record]

    def records_before(self, chunk: Chunk, border: int) -> int:
        return bisect_right(self._ends(chunk), border)

    def _ends(self, chunk: Chunk) -> array[int]:
        if chunk.ends is None:
            chunk.ends = array("I")
            border = 0
            while border < len(chunk.data):
                border = self.next_border(chunk.data, border)
                chunk.ends.append(border)
        return chunk.ends


class RecordFramer:
    """Finds the records of one stream by their headers."""

    __slots__ = (
        "_astray", "_format", "_need", "_paid_at", "_position", "_skip", "_tail", "max_record", "records", "unframed",
    )  # fmt: skip

    def __init__(self, record_format: RecordFormat, max_record: int) -> None:
        self.max_record = max_record
        self.records = 0
        self.unframed = 0
        self._format = record_format
        self._tail = bytearray()  # begins where a record may begin
        self._need = 0  # bytes of the record at its beginning; 0: that cannot be told yet
        self._skip = 0  # bytes of a refused record that are still to come, and to be left out
        self._astray = False  # inside a record whose beginning was not seen
        self._position = 0  # in the stream, of the tail's beginning
        self._paid_at = 0  # the position in the stream at which all failed checks will be paid for

    def feed(self, data: bytes) -> bytes:
        if self._astray or self._skip:
            data = self._without_beginning(data)
        tail = self._tail
        if tail:
            if self._waits(data):
                tail += data
                self.records = 0
                return b""
            data = b"".join((tail, data))
            tail.clear()
        return self._walk(data)

    def finish(self) -> bytes:
        tail = bytes(self._tail)
        self._tail.clear()
        self.records = 0
        run = b""
        if self._format.blind or self._format.closing not in tail:
            self.unframed += len(tail)
        else:
            run = self._walk(tail, ended=True)
        self._astray = False
        self._need = self._skip = self._position = self._paid_at = 0
        return run

    def skip_record(self) -> None:
        self.unframed += len(self._tail)
        self._position += len(self._tail)
        self._tail.clear()
        self._astray = True

    def take_unframed(self) -> int:
        unframed, self.unframed = self.unframed, 0
        return unframed

    def _waits(self, data: bytes) -> bool:
        """Return whether `data` cannot complete the record that the tail begins with."""
        size = len(self._tail) + len(data)
        if self._need:
            return size < self._need <= self.max_record
        closing = self._format.closing
        return bool(closing) and size <= self.max_record and closing not in data

    def _without_beginning(self, data: bytes) -> bytes:
        """Leave out what is known to be no record's beginning."""
        left_out = 0
        if self._skip:
            left_out = min(self._skip, len(data))
            self._skip -= left_out
        if self._astray:
            inside = self._format.resume(data[left_out:])
            self._astray = inside < 0
            left_out = len(data) if inside < 0 else left_out + inside
        self.unframed += left_out
        self._position += left_out
        return data[left_out:]

    def _walk(self, data: bytes, ended: bool = False) -> bytes:
        """Return the whole records in `data`, keep the one cut short at its end: if nothing follows, it is none."""
        length_of, valid, blind = self._format.length, self._format.valid, self._format.blind
        limit = self.max_record
        kept = []
        begin = at = records = 0  # data[begin:at] is whole records
        end = len(data)
        while at < end:
            length = length_of(data, at)
            if 0 < length <= limit and not (self._paid_at and self._in_debt(length, at)):
                stop = at + length
                if stop > end:
                    if not ended:
                        self._need = length
                        break
                elif valid(data, at, stop):
                    records += 1
                    at = stop
                    continue
                else:
                    self._charge(length, at)
            elif length == 0 and not ended and (blind or end - at <= limit):
                self._need = 0
                break
            if begin < at:
                kept.append(data[begin:at])
            begin = at = self._next_place(data, at, length)
        self.records = records
        self._position += at
        if at < end:
            self._tail += data[at:]
        if begin or at < end:
            kept.append(data[begin:at])
            return b"".join(kept)
        return data

    def _in_debt(self, length: int, at: int) -> bool:
        """Return whether too many checks have failed for one of this length."""
        return length > _ALWAYS_CHECKED and self._paid_at - self._position - at > _DEBT_MAX

    def _charge(self, length: int, at: int) -> None:
        """A check of so many bytes has failed."""
        here = self._position + at
        if self._paid_at - here <= _DEBT_MAX:  # what is checked always adds nothing to a full debt
            self._paid_at = max(self._paid_at, here) + length // _CHECKED_PER_BYTE

    def _next_place(self, data: bytes, at: int, length: int) -> int:
        """Leave out what was refused at `at`, and what follows up to the next place for a record."""
        if self._format.blind:
            place = min(at + length, len(data))
            self._skip = at + length - place
        else:
            place = max(at + 1, self._format.find(data, at))
        self.unframed += place - at
        return place
