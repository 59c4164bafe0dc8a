"""Mode S Beast: what ADS-B receivers (Beast, Radarcape, dump1090, readsb) hear from aircraft.

    0x1A | type | 6 bytes: time stamp | 1 byte: signal level | the message

The type tells the message's length: '1' is Mode A/C, 2 bytes; '2' a short Mode S frame, 7; '3' a long
one, 14; '4' the state of a Radarcape, 14.  An 0x1A in anything behind the type is sent twice, so one
that stands alone begins a record, wherever it is: a record that holds one was cut short.

There is no checksum; a record is right when its bytes are there.  In a run of 0x1A the pairs are data and
an odd one at the end is a beginning, as far as one can know where the run began.  In a stream that is
joined inside a record one cannot: a run of 0x1A at its very beginning is left out.
"""

from __future__ import annotations

import re

from relayd.wire.records import RecordFraming

_BYTE = rb"(?:[^\x1a]|\x1a\x1a)"
_RECORD = re.compile(rb"\x1a(?:1%(b)s{9}|2%(b)s{14}|[34]%(b)s{21})" % {b"b": _BYTE}, re.DOTALL)
_BEGINNING = re.compile(rb"\x1a(?:\x1a?|[1-4]%(b)s{0,21}\x1a?)\Z" % {b"b": _BYTE}, re.DOTALL)
_ESCAPES = re.compile(rb"\x1a+")


class BeastFormat:
    """How to tell a Beast record."""

    blind = False
    closing = b""

    def find(self, data: bytes, refused: int) -> int:
        end = refused
        while escapes := _ESCAPES.search(data, end):
            begin, end = escapes.span()
            if end == refused + 1:
                continue  # it is what was refused
            odd = (end - begin) % 2
            if end == len(data):
                return end - 2 + odd  # what comes next decides; of many pairs the last one is enough
            if odd and data[end] in b"1234":
                return end - 1
        return len(data)

    def length(self, data: bytes, begin: int) -> int:
        if record := _RECORD.match(data, begin):
            return record.end() - begin
        return 0 if _BEGINNING.match(data, begin) else -1

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        return True

    def resume(self, data: bytes) -> int:
        rest = data.lstrip(b"\x1a")
        return len(data) - len(rest) if rest else -1


BEAST = RecordFraming("beast", BeastFormat())
