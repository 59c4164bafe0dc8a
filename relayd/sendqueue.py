"""What waits for one destination link, in the order in which it goes out:

pipe      bytes that never entered the process (see net/pipe.py); seldom any
head      a chunk, `offset` bytes of which are sent: the border between what policy may still drop
          and what is committed to the link
stretch   of the tape: what it costs does not depend on its length
loose     chunks after one that was left out, which are on no stretch; seldom any
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from relayd.net.pipe import Pipe
from relayd.net.transport import Buffer
from relayd.tape import Stretch, Tape
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing

# Chunks handed to one sendmsg. A thousand small records then go out with sixteen calls, and a turn
# spends bounded time on one link; IOV_MAX is 1024.
BATCH = 64

Lost = tuple[int, int]  # bytes and records that were dropped


class SendQueue:
    """`size` unsent bytes, in order."""

    __slots__ = ("_loose", "_records", "_stretch", "head", "limit", "offset", "pipe", "size", "tape")

    def __init__(self, tape: Tape, limit: int) -> None:
        """`limit` is the bytes that fit, see `fits`; nothing here enforces it."""
        self.tape = tape
        self.limit = limit
        self.size = 0
        self.head: Chunk | None = None
        self.offset = 0  # bytes of the head that were sent
        self.pipe: Pipe | None = None
        self._records = 0  # of all chunks; those of the head that were sent are among them
        self._stretch: Stretch | None = None
        self._loose: deque[Chunk] | None = None

    def __repr__(self) -> str:
        return f"<SendQueue {self.size} of {self.limit} bytes>"

    @property
    def front(self) -> Chunk | None:
        """The chunk that stands first, the pipe apart."""
        if self.head is not None:
            return self.head
        if self._stretch:
            return self._stretch.first
        return self._loose[0] if self._loose else None

    @property
    def oldest(self) -> float:
        """When the first byte that waits was read, by the reactor's clock; something must wait."""
        if self.pipe is not None and self.pipe.held:
            return self.pipe.since
        assert self.front is not None
        return self.front.at

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
        if self._stretch is None:
            self._stretch = Stretch()
        if self._loose:
            self._loose.append(chunk)
        elif not self._stretch.extend(self.tape.add(chunk)):
            self._loose = deque((chunk,))
        self.size += len(chunk.data)
        self._records += chunk.records

    def replay(self, stretch: Stretch, offset: int, size: int, records: int) -> None:
        """An empty queue gets a stretch of the past, from its first chunk's `offset` on: so many bytes and records."""
        self._stretch = stretch
        if offset:
            self.head, self.offset = stretch.pop_first(), offset
        self.size, self._records = size, records

    # -- out --------------------------------------------------------------------------------------

    def buffers(self, batch: int = BATCH) -> Sequence[Buffer]:
        """Return what to send next, the pipe apart, without copying it; `batch` buffers at most."""
        buffers: list[Buffer] = []
        if self.head is not None:
            buffers.append(memoryview(self.head.data)[self.offset :])
        if self._stretch and len(buffers) < batch:
            buffers += [chunk.data for chunk in self._stretch.oldest(batch - len(buffers))]
        if self._loose and len(buffers) < batch:
            # One by one: a thousand of them are not copied to send a few.
            count = min(len(self._loose), batch - len(buffers))
            buffers += [self._loose[place].data for place in range(count)]
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
        begin, _ = framing.record_at(self.head, self.offset)
        again = self.offset - begin
        self.offset = begin
        self.size += again
        return again

    def pour(self) -> None:
        """Take what is in the pipe out of it, and do without one."""
        pipe, self.pipe = self.pipe, None
        if pipe is None:
            return
        if pipe.held:  # there is no head: what came after it was never begun
            self.head, self.offset = Chunk(pipe.pour(), 0, pipe.since), 0
        pipe.close()

    # -- what is dropped --------------------------------------------------------------------------

    def drop_oldest(self, framing: Framing) -> Lost:
        """Drop the oldest chunk but not the record that is being sent; (0, 0) where only that waits."""
        lost = self._drop_head(framing)
        return lost if lost[0] or not self._waits else self._dropped(self._next())

    def drop_older(self, framing: Framing, than: float) -> Lost:
        """Drop the chunks that were read before a time, but not the record that is being sent."""
        size = records = 0
        if self.head is not None and self.head.at < than:
            size, records = self._drop_head(framing)
        while self._waits and self._first.at < than:
            lost = self._dropped(self._next())
            size, records = size + lost[0], records + lost[1]
        return size, records

    def drop_newest(self) -> Lost:
        """Drop the newest chunk that nothing was sent of; (0, 0) where there is none."""
        if self._loose:
            return self._dropped(self._loose.pop())
        return self._dropped(self._stretch.pop_last()) if self._stretch else (0, 0)

    def clear(self, framing: Framing) -> Lost:
        """Drop everything."""
        lost = self.size, self._records
        if self.head is not None:
            begin, _ = framing.record_at(self.head, self.offset)
            lost = self.size, self._records - framing.records_before(self.head, begin)
        if self.pipe is not None:
            self.pipe.close()
        self.pipe = self.head = self._stretch = self._loose = None
        self.size = self.offset = self._records = 0
        return lost

    def _drop_head(self, framing: Framing) -> Lost:
        """Drop the head but the record that is being sent; (0, 0) where there is nothing to drop."""
        head = self.head
        if head is None:
            return 0, 0
        begin, end = framing.record_at(head, self.offset)
        kept = self.offset if begin == self.offset else end
        lost = len(head.data) - kept, head.records - framing.records_before(head, kept)
        if not lost[0]:
            return 0, 0
        self._records -= head.records
        if kept == self.offset:
            self.head, self.offset = None, 0
        else:
            # A copy of one record: a reference would keep the whole chunk for it.
            self.head, self.offset = Chunk(head.data[begin:end], 1, head.at), self.offset - begin
            self._records += 1
        self.size -= lost[0]
        return lost

    def _dropped(self, chunk: Chunk) -> Lost:
        self.size -= len(chunk.data)
        self._records -= chunk.records
        return len(chunk.data), chunk.records

    # -- behind the head --------------------------------------------------------------------------

    @property
    def _waits(self) -> bool:
        return bool(self._stretch or self._loose)

    @property
    def _first(self) -> Chunk:
        if self._stretch:
            return self._stretch.first
        assert self._loose
        return self._loose[0]

    def _next(self) -> Chunk:
        if self._stretch:
            return self._stretch.pop_first()
        assert self._loose
        return self._loose.popleft()
