"""MAVLink 1 and 2 packets: drones and what talks to them, from mavlink.io's "Packet Serialization".

    1:  0xFE | bytes of the payload | sequence | system | component | id | payload | CRC, 2 bytes
    2:  0xFD | bytes of the payload | incompatible flags | compatible flags | sequence | system | component |
        id, little-endian, 3 bytes | payload | CRC, 2 bytes | signature, 13 bytes, if flag 0x01 is set

A packet with an incompatible flag other than 0x01 cannot be parsed, says the standard, and is no record.

The checksum is CRC-16/MCRF4XX over everything behind the mark and one byte more that is not sent: the
CRC_EXTRA, a digest of the message's definition.  For the ids of the dialects that pymavlink ships it must
be one that the id has there, or had in a former version.  For any other id it is what makes the checksum
fit, if there is one: of 65536 checksums 256 can be made to fit, so one broken packet of an unknown id in
256 goes on as a good one.
"""

from __future__ import annotations

import re
from binascii import crc_hqx

from relayd.wire.mavlink_extras import EXTRAS
from relayd.wire.records import RecordFraming

_MARK = re.compile(rb"[\xfd\xfe]")
_SIGNED = 0x01
_SIGNATURE = 13
_ANY_EXTRA = range(256)

# MCRF4XX takes the lowest bit of a byte first; the standard library's CRC of the same polynomial takes the
# highest one.  So bytes are reversed before it, and its result stays reversed: it is compared alone.
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_STEP = {crc_hqx(bytes([byte]), 0): byte for byte in range(256)}


def crc_extra(summed: bytes, crc: bytes) -> int:
    """Return the byte that must stand behind the `summed` ones for the CRC to be `crc`; -1 if none can."""
    before = crc_hqx(summed.translate(_REVERSED), 0xFFFF)
    after = int.from_bytes(crc.translate(_REVERSED), "big")
    index = _STEP.get(after ^ (before << 8 & 0xFFFF))
    return -1 if index is None else _REVERSED[index ^ before >> 8]


class MavlinkFormat:
    """How to tell a MAVLink packet."""

    blind = False
    closing = b""

    def find(self, data: bytes, refused: int) -> int:
        match = _MARK.search(data, refused + 1)
        return match.start() if match else len(data)

    def length(self, data: bytes, begin: int) -> int:
        header = data[begin : begin + 3]
        if header[0] == 0xFE:
            return header[1] + 8 if len(header) > 1 else 0
        if header[0] != 0xFD:
            return -1
        if len(header) < 3:
            return 0
        if header[2] > _SIGNED:
            return -1
        return header[1] + 12 + header[2] * _SIGNATURE

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        if data[begin] == 0xFE:
            number = data[begin + 5]
            crc = end - 2
        else:
            number = int.from_bytes(data[begin + 7 : begin + 10], "little")
            crc = begin + 10 + data[begin + 1]
        extra = crc_extra(data[begin + 1 : crc], data[crc : crc + 2])
        return extra in EXTRAS.get(number, _ANY_EXTRA)

    def resume(self, data: bytes) -> int:
        return 0


MAVLINK = RecordFraming("mavlink", MavlinkFormat())
