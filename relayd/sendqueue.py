"""What waits for one destination link: a place on the tape, in front of it the chunk that is being sent.

    pipe     bytes that never entered the process (see net/pipe.py); seldom any
    head     a chunk, `offset` bytes of which are sent: the border between what policy may still drop
             and what is committed to the link
    ranges   numbers of chunks on the tape; more than one only where newer ones were left out

What a queue costs of its own does not depend on what waits in it.
"""

from __future__ import annotations

from collections.abc import Sequence

from relayd.net.pipe import Pipe
from relayd.net.transport import Buffer
from relayd.tape import Tape
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing

# Chunks handed to one sendmsg. A thousand small records then go out with sixteen calls, and a turn
# spends bounded time on one link; IOV_MAX is 1024.
BATCH = 64

Lost = tuple[int, int]  # bytes and records that were dropped


class SendQueue:
    """`size` unsent bytes, in order."""

    __slots__ = ("_ranges", "_records", "head", "limit", "offset", "pipe", "size", "tape")

    def __init__(self, tape: Tape, limit: int) -> None:
        """`limit` is the bytes that fit, see `fits`; nothing here enforces it."""
        self.tape = tape
        self.limit = limit
        self.size = 0
        self.head: Chunk | None = None
        self.offset = 0  # bytes of the head that were sent
        self.pipe: Pipe | None = None
        self._records = 0  # of head and ranges; those of the head that were sent are among them
        self._ranges: list[list[int]] = []  # [start, stop)

    def __repr__(self) -> str:
        return f"<SendQueue {self.size} of {self.limit} bytes>"

    @property
    def first(self) -> int:
        """The number of the oldest chunk that is needed of the tape (for the tape)."""
        return self._ranges[0][0]

    @property
    def on_tape(self) -> bool:
        """Whether there is any."""
        return bool(self._ranges)

    @property
    def oldest(self) -> float:
        """When the first byte that waits was read, by the reactor's clock; something must wait."""
        if self.pipe is not None and self.pipe.held:
            return self.pipe.since
        return self.head.at if self.head is not None else self.tape[self._ranges[0][0]].at

    @property
    def front(self) -> object:
        """What stands first, the pipe apart: equal as long as it is the same; None in an empty queue."""
        return self.head if self.head is not None else next((start for start, _ in self._ranges), None)

    # -- in ---------------------------------------------------------------------------------------

    def fits(self, chunk: Chunk) -> bool:
        """Whether the chunk stays within the limit. An empty queue takes any: it could never be sent else."""
        return not self.size or self.size + len(chunk.data) <= self.limit

    def begin(self, chunk: Chunk, sent: int) -> None:
        """An empty queue gets a chunk of which `sent` bytes are sent already."""
        self.head = chunk
        self.offset = sent
        self.size = len(chunk.data) - sent
        self._records = chunk.records

    def append(self, chunk: Chunk) -> None:
        """Queue the newest chunk of the stream."""
        number = self.tape.add(chunk)
        ranges = self._ranges
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] = number + 1
        else:
            ranges.append([number, number + 1])
            if len(ranges) == 1:
                self.tape.joined(self)
        self.size += len(chunk.data)
        self._records += chunk.records

    def replay(self, start: int, offset: int, size: int, records: int) -> None:
        """An empty queue gets what the tape holds from a chunk's `offset` on: so many bytes and records."""
        stop = self.tape.end
        if offset:
            self.head, self.offset = self.tape[start], offset
            start += 1
        if start < stop:
            self._ranges = [[start, stop]]
            self.tape.joined(self)
        self.size, self._records = size, records

    # -- out --------------------------------------------------------------------------------------

    def buffers(self, batch: int = BATCH) -> Sequence[Buffer]:
        """Return what to send next, the pipe apart, without copying it; `batch` buffers at most."""
        buffers: list[Buffer] = []
        if self.head is not None:
            buffers.append(memoryview(self.head.data)[self.offset :])
        for start, stop in self._ranges if batch > len(buffers) else ():
            wanted = batch - len(buffers)
            buffers += [chunk.data for chunk in self.tape.part(start, min(stop, start + wanted))]
            if len(buffers) >= batch:
                break
        return buffers

    def consume(self, count: int) -> None:
        """`count` bytes from the front, the pipe apart, were sent."""
        assert count <= self.size
        self.size -= count
        if self.head is not None:
            left = len(self.head.data) - self.offset
            if count < left:
                self.offset += count
                return
            count -= left
            self._records -= self.head.records
            self.head, self.offset = None, 0
        while count:
            chunk = self._next()
            if count < len(chunk.data):
                self.head, self.offset = chunk, count
                return
            count -= len(chunk.data)
            self._records -= chunk.records

    def rewind(self, framing: Framing) -> int:
        """The link was lost: go back to the border of the record it cut; return the bytes to send again."""
        self.pour()
        if self.head is None:
            return 0
        begin, _ = framing.record_at(self.head.data, self.offset)
        again = self.offset - begin
        self.offset = begin
        self.size += again
        return again

    def pour(self) -> None:
        """Take what is in the pipe out of it, and do without one."""
        pipe, self.pipe = self.pipe, None
        if pipe is None:
            return
        if pipe.held:  # what came after it is on the tape
            self.head, self.offset = Chunk(pipe.pour(), 0, pipe.since), 0
        pipe.close()

    # -- what is dropped --------------------------------------------------------------------------

    def drop_oldest(self, framing: Framing) -> Lost:
        """Drop the oldest chunk but not the record that is being sent; (0, 0) where only that waits."""
        head = self.head
        if head is None:
            return self._drop_next()
        begin, end = framing.record_at(head.data, self.offset)
        kept = self.offset if begin == self.offset else end
        lost = len(head.data) - kept, framing.count(head.data[kept:])
        if not lost[0]:
            return self._drop_next()
        self._records -= head.records
        if kept == self.offset:
            self.head, self.offset = None, 0
        else:
            # A copy of one record: a reference would keep the whole chunk for it.
            self.head, self.offset = Chunk(head.data[begin:end], 1, head.at), self.offset - begin
            self._records += 1
        self.size -= lost[0]
        return lost

    def drop_newest(self) -> Lost:
        """Drop the newest chunk that nothing was sent of; (0, 0) where there is none."""
        if not self._ranges:
            return 0, 0
        newest = self._ranges[-1]
        newest[1] -= 1
        chunk = self.tape[newest[1]]
        if newest[0] == newest[1]:
            self._ranges.pop()
            self._leave_if_done()
        return self._lost(chunk)

    def clear(self, framing: Framing) -> Lost:
        """Drop everything."""
        lost = self.size, self._records
        if self.head is not None:
            begin, _ = framing.record_at(self.head.data, self.offset)
            lost = self.size, self._records - framing.count(self.head.data[:begin])
        if self.pipe is not None:
            self.pipe.close()
        self.pipe = self.head = None
        self.size = self.offset = self._records = 0
        self._ranges = []
        self.tape.left(self)
        return lost

    def _drop_next(self) -> Lost:
        return self._lost(self._next()) if self._ranges else (0, 0)

    def _lost(self, chunk: Chunk) -> Lost:
        self.size -= len(chunk.data)
        self._records -= chunk.records
        return len(chunk.data), chunk.records

    def _next(self) -> Chunk:
        """Take the oldest chunk off the ranges."""
        oldest = self._ranges[0]
        chunk = self.tape[oldest[0]]
        oldest[0] += 1
        if oldest[0] == oldest[1]:
            self._ranges.pop(0)
            self._leave_if_done()
        return chunk

    def _leave_if_done(self) -> None:
        if not self._ranges:
            self.tape.left(self)
