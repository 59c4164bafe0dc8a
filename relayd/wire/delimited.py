"""Records that end with a mark: lines, and whatever else is closed by a few fixed bytes.

The mark belongs to its record.  One `rfind` finds the last border of a read, whatever the number of
records before it.  A mark that can overlap itself, as CR LF CR LF does, is looked for from the left:
CR LF CR LF CR LF is one mark and half of the next, never half and one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framer, Framing

_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "0": b"\0", "\\": b"\\"}
_SHOWN = {ord("\n"): r"\n", ord("\r"): r"\r", ord("\t"): r"\t", ord("\\"): r"\\"}
_TOKEN = re.compile(r"\\x([0-9A-Fa-f]{2})|\\([nrt0\\])|([ -\[\]-~])")


def _overlaps_itself(delimiter: bytes) -> bool:
    return any(delimiter.endswith(delimiter[:size]) for size in range(1, len(delimiter)))


@dataclass(frozen=True)
class DelimitedFraming(Framing):
    """Records end with `delimiter`."""

    delimiter: bytes
    overlapping: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "overlapping", _overlaps_itself(self.delimiter))

    def framer(self, max_record: int) -> Framer:
        return DelimitedFramer(self.delimiter, max_record)

    def next_border(self, run: bytes, border: int) -> int:
        return run.index(self.delimiter, border) + len(self.delimiter)

    def record_at(self, chunk: Chunk, offset: int) -> tuple[int, int]:
        begin = _last_border(chunk.data, 0, offset, self.delimiter, self.overlapping)
        return begin, self.next_border(chunk.data, begin)

    def records_before(self, chunk: Chunk, border: int) -> int:
        return chunk.data.count(self.delimiter, 0, border)

    def problem(self, max_record: int) -> str:
        if len(self.delimiter) <= max_record:
            return ""
        return f"its delimiter alone is {len(self.delimiter)} bytes, so max_record must be that at least"


def parse_delimiter(text: str) -> Framing:
    r"""Return the framing for printable ASCII and the escapes `\xHH \n \r \t \0 \\`; raises ValueError."""
    delimiter = b""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if not token:
            raise ValueError(f"{text[at : at + 2]!a} cannot stand in a delimiter; write it as " + r"\xHH")
        number, letter, plain = token.groups()
        delimiter += bytes.fromhex(number) if number else _ESCAPES[letter] if letter else plain.encode()
        at = token.end()
    if not delimiter:
        raise ValueError(r"the delimiter is empty; write at least one byte: delimiter:\x00")
    return DelimitedFraming(f"delimiter:{_shown(delimiter)}", delimiter)


def _shown(delimiter: bytes) -> str:
    # A space is escaped, or the end of a configuration line would lose it.
    return "".join(_SHOWN.get(byte) or (chr(byte) if 0x20 < byte < 0x7F else f"\\x{byte:02x}") for byte in delimiter)


def _last_border(data: bytes, begin: int, end: int, delimiter: bytes, overlapping: bool) -> int:
    """Return the last border in data[begin:end], where `begin` is one: `begin` itself if there is no other."""
    if overlapping:
        return end - len(data[begin:end].split(delimiter)[-1])
    at = data.rfind(delimiter, begin, end)
    return begin if at < 0 else at + len(delimiter)


class DelimitedFramer:
    """Finds the records of one stream by the delimiter that ends them."""

    __slots__ = ("_delimiter", "_overlapping", "_seam", "_skipping", "_tail", "max_record", "records", "unframed")

    def __init__(self, delimiter: bytes, max_record: int) -> None:
        """`max_record` bytes, the delimiter included, is the longest record that is handed on."""
        self.max_record = max_record
        self.records = 0
        self.unframed = 0
        self._delimiter = delimiter
        self._overlapping = _overlaps_itself(delimiter)
        self._tail = bytearray()
        self._skipping = False  # inside a record that was too long, or whose beginning was not seen
        self._seam = b""  # the end of what was skipped: a delimiter may have begun in it

    def feed(self, data: bytes) -> bytes:
        if self._tail or self._skipping:
            return self._feed_on(data)
        end = _last_border(data, 0, len(data), self._delimiter, self._overlapping)
        if end == len(data):
            return self._measured(data)
        self._keep(data[end:])
        return self._measured(data[:end])

    def finish(self) -> bytes:
        self.unframed += len(self._tail)
        self._tail.clear()
        self._skipping = False
        self.records = 0
        return b""

    def skip_record(self) -> None:
        if not self._skipping:
            self._skip_tail()

    def take_unframed(self) -> int:
        unframed, self.unframed = self.unframed, 0
        return unframed

    def _feed_on(self, data: bytes) -> bytes:
        """Take what follows on the beginning of a record."""
        first = self._first_border(data)
        if not first:
            self._keep(data)
            self.records = 0
            return b""
        end = _last_border(data, first, len(data), self._delimiter, self._overlapping)
        if self._skipping:
            self.unframed += first
            self._skipping = False
            run = data[first:end]
        else:
            run = b"".join((self._tail, memoryview(data)[:end]))
            self._tail.clear()
        if end < len(data):
            self._keep(data[end:])
        return self._measured(run)

    def _first_border(self, data: bytes) -> int:
        """Return where the record that was begun before ends in `data`, or 0."""
        size = len(self._delimiter)
        if size > 1:
            seam = self._seam if self._skipping else bytes(self._tail[1 - size :])
            at = (seam + data[: size - 1]).find(self._delimiter)
            if at >= 0:
                return at + size - len(seam)
        return data.find(self._delimiter) + size if self._delimiter in data else 0

    def _keep(self, data: bytes) -> None:
        if not self._skipping:
            self._tail += data
            if len(self._tail) > self.max_record:
                self._skip_tail()
            return
        self.unframed += len(data)
        if len(self._delimiter) > 1:
            self._seam = (self._seam + data)[1 - len(self._delimiter) :]

    def _skip_tail(self) -> None:
        self.unframed += len(self._tail)
        if len(self._delimiter) > 1:
            self._seam = bytes(self._tail[1 - len(self._delimiter) :])
        self._tail.clear()
        self._skipping = True

    def _measured(self, run: bytes) -> bytes:
        """Return the run without its over-long records, and count the others."""
        if len(run) > self.max_record:
            run = self._without_long_records(run)
        self.records = run.count(self._delimiter)
        return run

    def _without_long_records(self, run: bytes) -> bytes:
        """Leave out what is over `max_record`, stepping over as many good records at once as can be."""
        kept = []
        begin = good = 0  # run[begin:good] is whole records of a right length
        while len(run) - good > self.max_record:
            border = _last_border(run, good, good + self.max_record, self._delimiter, self._overlapping)
            if border > good:
                good = border
                continue
            kept.append(run[begin:good])
            begin = run.index(self._delimiter, good) + len(self._delimiter)
            self.unframed += begin - good
            good = begin
        return b"".join((*kept, run[begin:])) if kept else run


LINE = DelimitedFraming("line", b"\n")
