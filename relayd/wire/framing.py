"""A framing says what a record is; a framer finds the borders in one stream.  Neither changes a byte.

A framer is fed what was read and hands back one run of whole records, as large as it can be, and
keeps the rest for the next read.  How the stream was cut into reads makes no difference to what comes
out.  Inside a run nobody looks for borders, unless it has to be cut: a link was lost in the middle of
one, or a client gets the newest records alone.  That is what `next_border`, `record_at` and
`records_before` are for; they trust the run and look at headers alone.

Bytes that belong to no record are left out and counted, until `take_unframed`: every byte fed is in
a run, kept for the next one, or counted, and in one of them only.

    framing.py      the two faces, and raw, which knows no records
    delimited.py    line, delimiter      records.py   the walk through every other stream, its checks and
    measured.py     fixed, length                     what it does with noise
    nmea.py rtcm3.py mavlink.py ubx.py beast.py       where a record may begin, how long it is, is it right
    framings.py     the table that the configuration chooses from
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

from relayd.wire.chunk import Chunk


class Framer(Protocol):
    """The state of one stream's framing."""

    max_record: int  # bytes of the longest record that is handed on; may be changed between feeds
    records: int  # in the run that `feed` returned last; 0 where there are none
    unframed: int  # bytes left out, because they belong to no whole record, since they were last taken

    def feed(self, data: bytes) -> bytes:
        """Take what was read; return the run of whole records that is now complete, or b''."""

    def finish(self) -> bytes:
        """The stream has ended: throw the record that was cut short away; what is fed next begins another.

        Return the whole records behind a beginning that was none after all, or b''; `records` is of these.
        """

    def skip_record(self) -> None:
        """The stream is in the middle of a record: leave out what comes up to the next border."""

    def take_unframed(self) -> int:
        """Return the bytes left out since the last call."""


def mostly_noise(framer: Framer, data: bytes) -> bool:
    """Whether most of what was fed last was left out: it may have cost a hundred times what records cost."""
    return framer.unframed * 2 > len(data)


@dataclass(frozen=True)
class Framing(ABC):
    """One choice for `framing`: a value, equal to another of the same text.

    Every `run` is one that a framer of this framing returned, every chunk holds one; offsets lie inside it.
    """

    text: str  # as the configuration writes it

    def __str__(self) -> str:
        return self.text

    @property
    def has_records(self) -> bool:
        """Whether a stream may be cut at some places only."""
        return True

    @property
    def returned(self) -> Framing:
        """The framing of what goes the other way, back to the source."""
        return self

    @abstractmethod
    def framer(self, max_record: int) -> Framer:
        """Return a framer for a new stream; no record over `max_record` bytes is handed on."""

    @abstractmethod
    def next_border(self, run: bytes, border: int) -> int:
        """Return the end of the record that begins at `border`."""

    @abstractmethod
    def record_at(self, chunk: Chunk, offset: int) -> tuple[int, int]:
        """Return begin and end of the record that holds the byte at `offset`."""

    @abstractmethod
    def records_before(self, chunk: Chunk, border: int) -> int:
        """Return the number of records that end at a border or before it."""

    def problem(self, max_record: int) -> str:
        """Return why no record can be handed on with that `max_record`, or an empty string."""
        return ""


@dataclass(frozen=True)
class RawFraming(Framing):
    """No records: any place is a border, and the stream goes on at the first byte that was not sent."""

    text: str = "raw"

    @property
    def has_records(self) -> bool:
        return False

    def framer(self, max_record: int) -> Framer:
        return RawFramer(max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return len(run)

    def record_at(self, chunk: Chunk, offset: int) -> tuple[int, int]:
        return offset, offset

    def records_before(self, chunk: Chunk, border: int) -> int:
        return 0


class RawFramer:
    """What comes goes on at once."""

    __slots__ = ("max_record", "records", "unframed")

    def __init__(self, max_record: int) -> None:
        self.max_record = max_record
        self.records = 0
        self.unframed = 0

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        """Nothing is kept between reads."""
        return b""

    def skip_record(self) -> None:
        """There are no records."""

    def take_unframed(self) -> int:
        return 0
