r"""NMEA 0183 (IEC 61162-1) sentences: GNSS, AIS and the other instruments of a ship.

    \TAG block*hh\ $ADDRESS,field,field*hh CR LF

The TAG block of NMEA 4.10 may be missing; `!` stands for `$` before encapsulated data, such as AIS.  hh
is the exclusive or of the bytes between the mark and `*`.  A sentence of a wrong checksum is broken
and left out.  One without a checksum is passed, as old talkers send none, if it begins with `$` and a
proper address: a letter, then capitals and digits, three of them at least. `!` came to the standard
later than checksums did: without one, it stands in a text.  A TAG block must have its own,
or the sentence goes on without the block.

Taken from what devices do: CR may be missing; a sentence may be longer than 82 bytes, `max_record` bounds it; `!`
may occur in a text (three times), though the standard keeps it for beginnings.  `$` may not: where
one stands inside a sentence, the sentence before it was cut short.  Behind the checksum of one that begins with
`!` receivers of AIS say who heard it and when: `*hh,rSTATION,SECONDS`, the extended form of the US Coast Guard.
"""

from __future__ import annotations

import re

from relayd.wire.records import RecordFraming

_DIGITS = "0123456789ABCDEFabcdef"
_HEX = {(high + low).encode(): int(high + low, 16) for high in _DIGITS for low in _DIGITS}

_TEXT = rb'[ "#%-)+-\[\]-~]'  # printable ASCII but $ ! * \
_SUMMED = rb"%(text)s*(?:!%(text)s*){0,3}" % {b"text": _TEXT}
_UNCHECKED = rb"\$[A-Z][A-Z0-9]{2,}(?:,%s*)?" % _TEXT
_SUM = rb"\*[0-9A-Fa-f]{2}"
_PARTS = {
    b"text": _TEXT,
    b"summed": _SUMMED,
    b"unchecked": _UNCHECKED,
    b"sum": _SUM,
    b"heard": rb"(?:,%s*)?" % _TEXT,
    b"block": rb"\\%s+%s\\" % (_TEXT, _SUM),
}
_SENTENCE = re.compile(
    rb"(?:%(block)s)?(?:(?=[$!][^*])(?:\$%(summed)s%(sum)s|!%(summed)s%(sum)s%(heard)s)|%(unchecked)s)\r?\n" % _PARTS
)
# All that is not ruled out yet, for data that end before LF.
_BEGINNING = re.compile(
    rb"(?:\\%(text)s*(?:\*[0-9A-Fa-f]{0,2})?\Z"
    rb"|(?:%(block)s)?(?:\Z|[$!]%(summed)s(?:\*[0-9A-Fa-f]{0,2})?\r?\Z|!%(summed)s%(sum)s%(heard)s\r?\Z))" % _PARTS
)
_MARK = re.compile(rb"[$!\\]")


def checksum(text: bytes) -> int:
    """Return the exclusive or of all bytes of a text that is not empty."""
    number = int.from_bytes(text, "little")
    # Fold the upper half onto the lower one, down to one byte; what is above is not looked at again.
    bits = 4 << (len(text) - 1).bit_length()
    while bits > 4:
        number ^= number >> bits
        bits >>= 1
    return number & 0xFF


class NmeaFormat:
    """How to tell an NMEA 0183 sentence."""

    blind = False
    closing = b"\n"

    def find(self, data: bytes, refused: int) -> int:
        match = _MARK.search(data, refused + 1)
        return match.start() if match else len(data)

    def length(self, data: bytes, begin: int) -> int:
        sentence = _SENTENCE.match(data, begin)
        if sentence:
            return sentence.end() - begin
        return 0 if _BEGINNING.match(data, begin) else -1

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        if data[begin] == 0x5C:
            block = data.index(b"\\", begin + 1)
            if checksum(data[begin + 1 : block - 3]) != _HEX[data[block - 2 : block]]:
                return False
            begin = block + 1
        star = data.find(b"*", begin, end)
        return star < 0 or checksum(data[begin + 1 : star]) == _HEX[data[star + 1 : star + 3]]

    def resume(self, data: bytes) -> int:
        return data.find(b"\n") + 1 or -1


NMEA = RecordFraming("nmea", NmeaFormat())
