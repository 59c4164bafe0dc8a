"""The bytes that wait for one destination link: references to shared chunks, and one offset.

A thousand stalled clients hold the same chunks; what each costs of its own is a reference per chunk.
The first chunk may be partly sent: that offset is the border between what policy may still drop and
what is committed to the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from relayd.net.transport import Buffer

# Chunks handed to one sendmsg. A thousand small records then go out with sixteen calls, and a turn
# spends bounded time on one link; IOV_MAX is 1024.
_BATCH = 64


class SendQueue:
    """Chunks in order, `size` unsent bytes of them. An idle link's queue owns no list at all."""

    __slots__ = ("_chunks", "limit", "offset", "size")

    def __init__(self, limit: int) -> None:
        """`limit` is the bytes that fit, see `fits`; nothing here enforces it."""
        self.limit = limit
        self.size = 0
        self.offset = 0  # bytes of the first chunk that were sent
        self._chunks: deque[bytes] | None = None

    def __repr__(self) -> str:
        return f"<SendQueue {self.size} of {self.limit} bytes>"

    def fits(self, chunk: bytes) -> bool:
        """Whether the chunk stays within the limit. An empty queue takes any: it could never be sent else."""
        return not self.size or self.size + len(chunk) <= self.limit

    def append(self, chunk: bytes, offset: int = 0) -> None:
        """Queue a chunk; `offset` of its bytes are sent already, which only the first one's can be."""
        if self._chunks is None:
            self._chunks = deque()
            self.offset = offset
        self._chunks.append(chunk)
        self.size += len(chunk) - offset

    def buffers(self) -> Sequence[Buffer]:
        """Return what to send next, without copying it."""
        if self._chunks is None:
            return ()
        first = memoryview(self._chunks[0])[self.offset :]
        return (first, *(self._chunks[index] for index in range(1, min(len(self._chunks), _BATCH))))

    def consume(self, count: int) -> None:
        """`count` bytes from the front were sent."""
        if not count:
            return
        chunks = self._chunks
        assert chunks is not None and count <= self.size
        self.size -= count
        count += self.offset
        while chunks and count >= len(chunks[0]):
            count -= len(chunks.popleft())
        self.offset = count
        if not chunks:
            self._chunks = None

    def rewind(self, border_before: Callable[[bytes, int], int]) -> int:
        """The link was lost: go back to the border of the record it cut; return the bytes to send again."""
        if self._chunks is None or not self.offset:
            return 0
        border = border_before(self._chunks[0], self.offset)
        again = self.offset - border
        self.offset = border
        self.size += again
        return again

    def records(self, count: Callable[[bytes], int]) -> int:
        """Return the records that wait; one that was sent in part is among them."""
        if self._chunks is None:
            return 0
        return sum(map(count, self._chunks)) - count(self._chunks[0][: self.offset])

    def clear(self) -> int:
        """Drop everything; return the bytes dropped."""
        dropped, self.size, self.offset = self.size, 0, 0
        self._chunks = None
        return dropped
