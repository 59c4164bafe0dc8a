"""Records of a known length: always the same one, or told by a field of the record itself.

There is nothing in such a stream to find a border by, other than having counted from its beginning:
after `skip_record` everything is left out until `reset`.  For the same reason a length is believed:
a record over `max_record` is left out as long as it says it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from struct import Struct

from relayd.errors import did_you_mean
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framer, Framing
from relayd.wire.records import RecordFraming

_SIZE = re.compile(r"[0-9]{1,8}")
_LENGTH = re.compile(r"([a-z0-9]+)(?:@([0-9]{1,5}))?([+-][0-9]{1,5})?")
_FIELDS = {
    "u8": Struct("B"),
    "u16be": Struct(">H"),
    "u16le": Struct("<H"),
    "u32be": Struct(">I"),
    "u32le": Struct("<I"),
}


@dataclass(frozen=True)
class FixedFraming(Framing):
    """Records of `size` bytes each, counted from the stream's beginning."""

    size: int = field(compare=False, repr=False)

    def framer(self, max_record: int) -> Framer:
        return FixedFramer(self.size, max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return border + self.size

    def record_at(self, chunk: Chunk, offset: int) -> tuple[int, int]:
        begin = offset - offset % self.size
        return begin, begin + self.size

    def records_before(self, chunk: Chunk, border: int) -> int:
        return border // self.size

    def problem(self, max_record: int) -> str:
        if self.size <= max_record:
            return ""
        return f"every record is {self.size} bytes, so max_record must be that at least"


def parse_fixed(text: str) -> Framing:
    """Return the framing for a number of bytes; raises ValueError."""
    if not _SIZE.fullmatch(text) or not int(text):
        raise ValueError(f"'{text}' is no record size; write a number of bytes: fixed:188")
    return FixedFraming(f"fixed:{int(text)}", int(text))


class FixedFramer:
    """Cuts one stream at multiples of `size`."""

    __slots__ = ("_astray", "_size", "_skip", "_tail", "max_record", "records", "unframed")

    def __init__(self, size: int, max_record: int) -> None:
        self.max_record = max_record
        self.records = 0
        self.unframed = 0
        self._size = size
        self._tail = bytearray()
        self._skip = 0  # bytes up to the next border that are to be left out
        self._astray = False  # nobody knows where a border is

    def feed(self, data: bytes) -> bytes:
        self.records = 0
        if self._astray or self._skip or self._size > self.max_record:
            data = self._without_beginning(data)
        size = len(self._tail) + len(data)
        rest = size % self._size
        end = len(data) - rest  # of the run, in data
        if rest == size:
            self._tail += data
            return b""
        self.records = size // self._size
        if not self._tail and not rest:
            return data
        run = b"".join((self._tail, memoryview(data)[:end]))
        self._tail.clear()
        self._tail += data[end:]
        return run

    def finish(self) -> bytes:
        self.unframed += len(self._tail)
        self._tail.clear()
        self._skip = 0
        self._astray = False
        self.records = 0
        return b""

    def skip_record(self) -> None:
        self.unframed += len(self._tail)
        self._tail.clear()
        self._astray = True

    def take_unframed(self) -> int:
        unframed, self.unframed = self.unframed, 0
        return unframed

    def _without_beginning(self, data: bytes) -> bytes:
        """Leave out what is part of no record, and all of it where records are over-long."""
        left_out = min(self._skip, len(data))
        self._skip -= left_out
        if self._astray or self._size > self.max_record:
            self._skip = -(len(self._tail) + len(data) - left_out - self._skip) % self._size
            left_out = len(data)
            self.unframed += len(self._tail)
            self._tail.clear()
        self.unframed += left_out
        return data[left_out:]


class LengthFormat:
    """Records whose length stands in a field: OFFSET bytes, the field, as many bytes as it says, and EXTRA."""

    blind = True
    closing = b""

    def __init__(self, kind: str, offset: int, extra: int) -> None:
        self._unpack = _FIELDS[kind].unpack_from
        self._offset = offset
        self._extra = extra  # below zero where the field counts the header or a part of it
        self.header = offset + _FIELDS[kind].size

    def find(self, data: bytes, refused: int) -> int:
        return len(data)

    def length(self, data: bytes, begin: int) -> int:
        """A record shorter than its own header is broken; it is taken to be the header alone."""
        if len(data) - begin < self.header:
            return 0
        return self.header + max(0, int(self._unpack(data, begin + self._offset)[0]) + self._extra)

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        return end - begin > self.header or int(self._unpack(data, begin + self._offset)[0]) + self._extra == 0

    def resume(self, data: bytes) -> int:
        return -1


@dataclass(frozen=True)
class LengthFraming(RecordFraming):
    """Records whose length stands in one of their fields."""

    shortest: int = field(compare=False, repr=False)  # bytes of a record whose field says 0

    def problem(self, max_record: int) -> str:
        if self.shortest <= max_record:
            return ""
        return f"the shortest record is {self.shortest} bytes, so max_record must be that at least"


def parse_length(text: str) -> Framing:
    """Return the framing for `u16be@2+4` and the like; raises ValueError."""
    match = _LENGTH.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is no length field; write one like u16be, u8@1 or u32le@4+2 (field, offset, extra)")
    kind, offset, extra = match[1], int(match[2] or 0), int(match[3] or 0)
    if kind not in _FIELDS:
        *most, last = _FIELDS
        near = did_you_mean(kind, _FIELDS)
        raise ValueError(f"'{kind}' is no kind of number; choose {', '.join(most)} or {last}{near}")
    place = f"@{offset}" if offset else ""
    trailer = f"{extra:+d}" if extra else ""
    layout = LengthFormat(kind, offset, extra)
    return LengthFraming(f"length:{kind}{place}{trailer}", layout, layout.header + max(0, extra))
