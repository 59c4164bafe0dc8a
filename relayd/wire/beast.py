"""Mode S Beast: what ADS-B receivers (Beast, Radarcape, dump1090, readsb) hear from aircraft.

    0x1A | type | content

The type tells how long the content is.  An 0x1A in it is sent twice, so one that stands alone begins a
record, wherever it is: a record that holds one was cut short.  Types 1 to 4 are of the Beast's own
description ("Mode-S Beast: Data Output Formats"), the others of readsb, which reads and writes them
(net_io.c).  What a client sends back to the receiver looks alike, with other lengths.

Where readsb is told to say which receiver heard a message, an id (0xE3, 8 bytes) stands before the first message
of another receiver than before.  It is a part of that message's record, so nothing can come between them;
one that no message follows is no record.

There is no checksum; a record is right when its bytes are there.  In a run of 0x1A the pairs are data and
an odd one at the end is a beginning, as far as one can know where the run began.  In a stream that is
joined inside a record one cannot: a run of 0x1A at its very beginning is left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from relayd.wire.framing import Framing
from relayd.wire.records import RecordFraming

_HEARD = {  # type -> bytes of its content; 1 to 3 begin with a time stamp, 6 bytes, and a signal level, 1 byte
    b"1": 9,  # Mode A/C
    b"2": 14,  # a short Mode S frame
    b"3": 21,  # a long one
    b"4": 21,  # the state of a Radarcape
    b"5": 21,  # its position
    b"\xe4": 36,  # the feeder's UUID, as text
    b"W": 1,  # a wish: for pings, or for less
    b"P": 3,  # a ping, or the answer
}
_RECEIVER = b"\xe3", 8
_SETTINGS = {b"1": 1, b"W": 1, b"P": 3}  # '1' sets a switch of the receiver

_BYTE = rb"(?:[^\x1a]|\x1a\x1a)"
_ESCAPES = re.compile(rb"\x1a+")


class BeastFormat:
    """How to tell a Beast record: its types, the bytes of content that each has, and what may stand before it."""

    blind = False
    closing = b""

    def __init__(self, contents: dict[bytes, int], prefix: tuple[bytes, int] | None = None) -> None:
        self._types = b"".join(contents) + (prefix[0] if prefix else b"")
        whole = b"|".join(b"%s%s{%d}" % (kind, _BYTE, size) for kind, size in contents.items())
        cut = b"[%s]%s{0,%d}\x1a?" % (b"".join(contents), _BYTE, max(contents.values()))
        before, cut_before = b"", b"\x1a?"
        if prefix:
            before = b"(?:%s%s{%d}\x1a)?" % (prefix[0], _BYTE, prefix[1])
            cut_before += b"|%s%s{0,%d}\x1a?" % (prefix[0], _BYTE, prefix[1])
        self._record = re.compile(b"\x1a%s(?:%s)" % (before, whole), re.DOTALL)
        self._beginning = re.compile(b"\x1a(?:%s|%s(?:%s)?)\\Z" % (cut_before, before, cut), re.DOTALL)

    def find(self, data: bytes, refused: int) -> int:
        end = refused
        while escapes := _ESCAPES.search(data, end):
            begin, end = escapes.span()
            if end == refused + 1:
                continue  # it is what was refused
            odd = (end - begin) % 2
            if end == len(data):
                return end - 2 + odd  # what comes next decides; of many pairs the last one is enough
            if odd and data[end] in self._types:
                return end - 1
        return len(data)

    def length(self, data: bytes, begin: int) -> int:
        if record := self._record.match(data, begin):
            return record.end() - begin
        return 0 if self._beginning.match(data, begin) else -1

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        return True

    def resume(self, data: bytes) -> int:
        rest = data.lstrip(b"\x1a")
        return len(data) - len(rest) if rest else -1


_BEAST_SETTINGS = RecordFraming("beast settings", BeastFormat(_SETTINGS))


@dataclass(frozen=True)
class BeastFraming(RecordFraming):
    """What a receiver hears; what goes back to it are settings."""

    @property
    def returned(self) -> Framing:
        return _BEAST_SETTINGS


BEAST = BeastFraming("beast", BeastFormat(_HEARD, _RECEIVER))
