"""What each framing must find, written the slow and obvious way: no state, no cut, one byte after another."""

from __future__ import annotations

import re
from collections.abc import Callable

from relayd.wire.mavlink_extras import EXTRAS
from tests.wire import streams

# The length of the record at a place, minus the bytes to leave out where none is, None where the end of the
# stream leaves it open: it was cut short there, or it was none and there are some behind its beginning.
LengthAt = Callable[[bytes, int, int], "int | None"]
Records = Callable[[bytes, int], "list[bytes]"]


def walk(length_at: LengthAt, blind: bool = False) -> Records:
    def records(data: bytes, max_record: int) -> list[bytes]:
        found = []
        at = 0
        while at < len(data):
            length = length_at(data, at, max_record)
            if length is None and blind:
                break
            if length is not None and length > 0:
                found.append(data[at : at + length])
            at += 1 if length is None else abs(length)
        return found

    return records


def delimited(delimiter: bytes) -> Records:
    def records(data: bytes, max_record: int) -> list[bytes]:
        found = [record + delimiter for record in data.split(delimiter)[:-1]]
        return [record for record in found if len(record) <= max_record]

    return records


def fixed(size: int) -> Records:
    def length_at(data: bytes, at: int, max_record: int) -> int | None:
        if len(data) - at < size:
            return None
        return size if size <= max_record else -size

    return walk(length_at, blind=True)


def length(width: int, order: str, offset: int, extra: int) -> Records:
    def length_at(data: bytes, at: int, max_record: int) -> int | None:
        field = data[at + offset : at + offset + width]
        if len(field) < width:
            return None
        total = offset + width + int.from_bytes(field, order) + extra  # type: ignore[arg-type]
        if total < offset + width:
            return -(offset + width)
        if total > max_record:
            return -total
        return total if at + total <= len(data) else None

    return walk(length_at, blind=True)


def headed(length_of: Callable[[bytes], int | None], right: Callable[[bytes], bool]) -> Records:
    """Return the records whose header alone tells their length (-1: it is none)."""

    def length_at(data: bytes, at: int, max_record: int) -> int | None:
        size = length_of(data[at:])
        if size is None:
            return None
        if not 0 < size <= max_record:
            return -1
        if at + size > len(data):
            return None
        return size if right(data[at : at + size]) else -1

    return walk(length_at)


def rtcm3_length(rest: bytes) -> int | None:
    if rest[0] != 0xD3 or rest[1:2] > b"\x03":
        return -1
    return 6 + int.from_bytes(rest[1:3], "big") if len(rest) >= 3 else None


def ubx_length(rest: bytes) -> int | None:
    if not b"\xb5\x62".startswith(rest[:2]):
        return -1
    return 8 + int.from_bytes(rest[4:6], "little") if len(rest) >= 6 else None


def mavlink_length(rest: bytes) -> int | None:
    if rest[0] == 0xFE:
        return 8 + rest[1] if len(rest) >= 2 else None
    if rest[0] != 0xFD:
        return -1
    if len(rest) < 3:
        return None
    return {0: 12 + rest[1], 1: 25 + rest[1]}.get(rest[2], -1)


def mavlink_right(record: bytes) -> bool:
    if record[0] == 0xFE:
        number, crc = record[5], 6 + record[1]
    else:
        number, crc = int.from_bytes(record[7:10], "little"), 10 + record[1]
    sent = int.from_bytes(record[crc : crc + 2], "little")
    extras = EXTRAS.get(number, range(256))
    return any(streams.mcrf4xx(record[1:crc] + bytes([extra])) == sent for extra in extras)


def nmea(data: bytes, max_record: int) -> list[bytes]:
    found = []
    for line in data.split(b"\n")[:-1]:
        line += b"\n"
        begin = 0
        while begin < len(line):
            record = line[begin:]
            if len(record) <= max_record and nmea_right(record):
                found.append(record)
                break
            begin += 1
    return found


def nmea_right(record: bytes) -> bool:
    text = record[:-2] if record.endswith(b"\r\n") else record[:-1]
    if any(not 0x20 <= byte < 0x7F for byte in text):
        return False
    if text.startswith(b"\\"):
        block, bar, text = text[1:].partition(b"\\")
        if not bar or not block[:-3] or set(b"$!*") & set(block[:-3]) or not sum_right(block):
            return False
    if text[:1] not in (b"$", b"!") or set(b"$\\") & set(text[1:]):
        return False
    if text[:1] == b"!" and (heard := re.fullmatch(rb"([^*]*\*..)(,[^!*]*)", text)):
        text = heard[1]
    if b"*" not in text:
        return bool(re.match(rb"[$][A-Z][A-Z0-9][A-Z0-9]+(,|$)", text)) and b"!" not in text[1:]
    return text.count(b"*") == 1 and text[1:2] != b"*" and text[1:].count(b"!") <= 3 and sum_right(text[1:])


def sum_right(text: bytes) -> bool:
    body, digits = text[:-3], text[-2:]
    number = 0
    for byte in body:
        number ^= byte
    return text[-3:-2] == b"*" and bool(re.fullmatch(rb"[0-9A-Fa-f]{2}", digits)) and number == int(digits, 16)


BEAST_CONTENTS = {0x31: 9, 0x32: 14, 0x33: 21, 0x34: 21, 0x35: 21, 0x50: 3, 0x57: 1, 0xE4: 36}
BEAST_RECEIVER = {0xE3: 8}


def beast_at(data: bytes, at: int, max_record: int) -> int | None:
    if data[at : at + 2] != b"\x1a\xe3":
        return beast_part_at(data, at, max_record, BEAST_CONTENTS)
    size = beast_part_at(data, at, max_record, BEAST_RECEIVER)
    if size is None or size < 0:
        return size
    if at + size == len(data):
        return None if size < max_record else -2
    rest = beast_part_at(data, at + size, max_record - size, BEAST_CONTENTS)
    return rest if rest is None else size + rest if rest > 0 else -2


def beast_part_at(data: bytes, at: int, max_record: int, contents: dict[int, int]) -> int | None:
    if data[at] != 0x1A:
        return -1
    if at + 1 == len(data):
        return None
    if data[at + 1] not in contents:
        return -2 if data[at + 1] == 0x1A else -1
    end = at + 2
    for _ in range(contents[data[at + 1]]):
        if data[end : end + 1] == b"\x1a":
            if data[end + 1 : end + 2] not in (b"", b"\x1a"):
                return -2  # one that was not doubled
            end += 1
        if end >= len(data):
            return None if len(data) - at <= max_record else -2
        end += 1
    return end - at if end - at <= max_record else -2


RECORDS: dict[str, Records] = {
    "line": delimited(b"\n"),
    r"delimiter:\x00": delimited(b"\0"),
    r"delimiter:\r\n": delimited(b"\r\n"),
    r"delimiter:\r\n\r\n": delimited(b"\r\n\r\n"),
    "delimiter:aa": delimited(b"aa"),
    "fixed:7": fixed(7),
    "fixed:50": fixed(50),
    "length:u8": length(1, "big", 0, 0),
    "length:u16be@2+4": length(2, "big", 2, 4),
    "length:u16le@1-3": length(2, "little", 1, -3),
    "length:u32be": length(4, "big", 0, 0),
    "nmea": nmea,
    "rtcm3": headed(rtcm3_length, lambda record: streams.rtcm3(record[3:-3]) == record),
    "mavlink": headed(mavlink_length, mavlink_right),
    "ubx": headed(ubx_length, lambda record: streams.fletcher(record[2:-2]) == record[-2:]),
    "beast": walk(beast_at),
}
