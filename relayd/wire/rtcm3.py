"""RTCM 3 messages: corrections for GNSS receivers, as RTCM 10403 frames them.

    0xD3 | 6 reserved bits | 10 bits: bytes of the message, 0 to 1023 | the message | CRC-24Q, 3 bytes

The reserved bits must be zero here.  RTCM 10403 sets them so and has a receiver look past them; gpsd
and pyrtcm take a message only if they are zero, RTKLIB does not look.  No sender is known that sets them,
and to ask for them makes one 0xD3 in noise 64 times less likely to hold back a kilobyte of good data.
A message of no bytes is a filler and goes on as any other.
"""

from __future__ import annotations

import re

from relayd.wire.records import RecordFraming

_POLYNOMIAL = 0x1864CFB
_MARK = re.compile(rb"\xd3(?:[\x00-\x03]|\Z)")

# The checksum is the remainder of a long polynomial over GF(2), and so of a very large int.  As
# x^size leaves the remainder of a few single bits, all that stands above bit `size` can be folded down
# with a few shifts that work on the whole int at once.  These sizes are those with the fewest bits.
# Each fold leaves little more than half, the last one 118 bits, whose bytes are looked up one by one.
FOLDS = (
    (4525, (0, 3, 13, 16, 19)),
    (2661, (0, 10, 12, 15, 22)),
    (1513, (0, 11, 16, 22, 23)),
    (773, (1, 3, 6, 7, 8, 10, 16, 18, 20)),
    (401, (1, 3, 4, 5, 15, 19, 20, 22, 23)),
    (212, (0, 5, 7, 8, 9, 10, 11, 13, 22)),
    (118, (0, 1, 3, 9, 11, 13, 15, 19, 20, 21, 22)),
)
_FOLDED = 15  # bytes


def remainder(number: int) -> int:
    """Return what the polynomial of CRC-24Q leaves, the slow way."""
    while (excess := number.bit_length() - 25) >= 0:
        number ^= _POLYNOMIAL << excess
    return number


def _remainders(place: int) -> list[int]:
    """Return what each byte leaves that stands `place` bytes from the end."""
    table = [0]
    for bit in range(8):
        left = remainder(1 << 8 * place + bit)
        table += [left ^ other for other in table]
    return table


_REMAINDERS = [_remainders(place) for place in reversed(range(_FOLDED))]


def divides(codeword: bytes) -> bool:
    """Return whether at most 1029 bytes, the CRC-24Q behind them included, leave no remainder."""
    number = int.from_bytes(codeword, "big")
    for size, bits in FOLDS:
        high = number >> size
        if high:
            number ^= high << size
            for bit in bits:
                number ^= high << bit
    left = 0
    for byte, remainders in zip(number.to_bytes(_FOLDED, "big"), _REMAINDERS, strict=True):
        left ^= remainders[byte]
    return not left


class Rtcm3Format:
    """How to tell an RTCM 3 message."""

    blind = False
    closing = b""

    def find(self, data: bytes, refused: int) -> int:
        match = _MARK.search(data, refused + 1)
        return match.start() if match else len(data)

    def length(self, data: bytes, begin: int) -> int:
        header = data[begin : begin + 3]
        if header[0] != 0xD3 or (len(header) > 1 and header[1] > 3):
            return -1
        return 6 + (header[1] << 8 | header[2]) if len(header) == 3 else 0

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        return divides(data[begin:end])

    def resume(self, data: bytes) -> int:
        return 0


RTCM3 = RecordFraming("rtcm3", Rtcm3Format())
