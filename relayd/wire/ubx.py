"""UBX messages: the binary protocol of u-blox receivers, from their interface descriptions.

    0xB5 0x62 | class | id | bytes of the payload, little-endian u16 | payload | CK_A | CK_B

CK_A and CK_B are the 8-bit Fletcher checksum (RFC 1145) over everything from the class to the payload.
A false 0xB5 0x62 may claim 64 KiB, and what follows waits until as much has come; a `max_record` of 8K
holds every message that receivers send and bounds that.
"""

from __future__ import annotations

import re
from itertools import accumulate

from relayd.wire.records import RecordFraming

_MARK = re.compile(rb"\xb5(?:\x62|\Z)")
_PERIOD = 256  # bytes: what weighs 257 in CK_B weighs 1, modulo 256
_EVERY_OTHER = int.from_bytes(b"\0\xff" * (257 * _PERIOD // 2), "big")  # over the longest message


def checksum(text: bytes) -> tuple[int, int]:
    """Return CK_A and CK_B of at most 257 * 256 bytes: the sum of the bytes, and of the sums on the way."""
    if len(text) > 2 * _PERIOD:
        text = _folded(text)
    return sum(text) & 0xFF, sum(accumulate(text)) & 0xFF


def _folded(text: bytes) -> bytes:
    """Return 256 bytes of the same checksum: the sums of those that are a multiple of 256 apart.

    Every other byte of one large int is a lane of 16 bits, which holds the sum of 257 bytes.  The upper
    half of the int is added to the lower one, until one period is left.
    """
    number = int.from_bytes(text, "big")
    even, odd = number & _EVERY_OTHER, number >> 8 & _EVERY_OTHER
    bits = 4 << (len(text) - 1).bit_length()
    while bits >= 8 * _PERIOD:
        even += even >> bits
        odd += odd >> bits
        bits >>= 1
    lanes = _EVERY_OTHER & (1 << 8 * _PERIOD) - 1
    return (even & lanes | (odd & lanes) << 8).to_bytes(_PERIOD, "big")


class UbxFormat:
    """How to tell a UBX message."""

    blind = False
    closing = b""

    def find(self, data: bytes, refused: int) -> int:
        match = _MARK.search(data, refused + 1)
        return match.start() if match else len(data)

    def length(self, data: bytes, begin: int) -> int:
        header = data[begin : begin + 6]
        if not header.startswith(b"\xb5\x62"):
            return 0 if header == b"\xb5" else -1
        return 8 + (header[4] | header[5] << 8) if len(header) == 6 else 0

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        return checksum(data[begin + 2 : end - 2]) == (data[end - 2], data[end - 1])

    def resume(self, data: bytes) -> int:
        return 0


UBX = RecordFraming("ubx", UbxFormat())
