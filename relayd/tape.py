"""The newest part of a stream, held once for all who have still to send it.

One tape belongs to each direction of a relay.  It is a row of blocks, each a list of chunks, and knows the
newest block only.  A destination that does not keep up holds the stretch of it that it has still to send:
the blocks, and where to begin in the first and to end in the last.  So a thousand that have stopped cost
what one costs, and what nobody holds any more is freed with the last reference to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from relayd.wire.chunk import Chunk

# When a block is full. A chunk counts for at least what it costs (its objects, a reference), or blocks of
# tiny ones would be long. A stretch keeps at most one block more than it needs; one that is 4 MiB long
# refers to 64 of them.
_BLOCK_SIZE = 64 * 1024
_CHUNK_COST = 64


class Block:
    """Chunks in order; never empty."""

    __slots__ = ("__weakref__", "chunks", "full", "size")

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.size = 0
        self.full = False

    def append(self, chunk: Chunk) -> None:
        """Add a chunk; the block must not be full."""
        self.chunks.append(chunk)
        self.size += len(chunk.data) + _CHUNK_COST
        self.full = self.size >= _BLOCK_SIZE


class Tape:
    """Puts chunks into blocks."""

    __slots__ = ("_newest",)

    def __init__(self) -> None:
        self._newest: Callable[[], Block | None] = lambda: None  # the block, as long as anybody holds it

    def add(self, chunk: Chunk) -> Block:
        """Return the block whose last chunk is this one; it may be added again, by each who is to hold it."""
        block = self._newest()
        if block is not None and block.chunks[-1] is chunk:
            return block
        if block is None or block.full:
            block = Block()
            self._newest = weakref.ref(block)
        block.append(chunk)
        return block

    def follow(self, former: Tape) -> None:
        """Go on where another tape ends: stretches of that one can be extended by what comes here."""
        self._newest = former._newest


class Stretch:
    """Chunks that follow each other on a tape."""

    __slots__ = ("_blocks", "_start", "_stop")

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self._start = 0  # the first chunk's place in the first block
        self._stop = 0  # the place behind the last chunk in the last block

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def extend(self, block: Block) -> bool:
        """Take the last chunk of the block; return False, and do not, where it does not follow on the last here."""
        blocks, stop = self._blocks, len(block.chunks)
        if not blocks:
            self._start = stop - 1
            blocks.append(block)
        elif blocks[-1] is block:
            if self._stop != stop - 1:
                return False
        elif stop == 1 and blocks[-1].full and self._stop == len(blocks[-1].chunks):
            blocks.append(block)
        else:
            return False
        self._stop = stop
        return True

    @property
    def first(self) -> Chunk:
        """The oldest chunk; there must be one."""
        return self._blocks[0].chunks[self._start]

    def pop_first(self) -> Chunk:
        """Take the oldest chunk out; there must be one."""
        blocks, block = self._blocks, self._blocks[0]
        chunk = block.chunks[self._start]
        self._start += 1
        if self._start == (self._stop if len(blocks) == 1 else len(block.chunks)):
            del blocks[0]
            self._start = 0
        return chunk

    def pop_last(self) -> Chunk:
        """Take the newest chunk out; there must be one."""
        blocks = self._blocks
        self._stop -= 1
        chunk = blocks[-1].chunks[self._stop]
        if self._stop == (self._start if len(blocks) == 1 else 0):
            del blocks[-1]
            self._stop = len(blocks[-1].chunks) if blocks else 0
        return chunk

    def oldest(self, count: int) -> list[Chunk]:
        """Return the oldest chunks, `count` of them at most."""
        chunks: list[Chunk] = []
        start = self._start
        for block in self._blocks:
            stop = self._stop if block is self._blocks[-1] else len(block.chunks)
            chunks += block.chunks[start : min(stop, start + count - len(chunks))]
            if len(chunks) == count:
                break
            start = 0
        return chunks

    def copy(self) -> Stretch:
        """Return another one of the same chunks."""
        stretch = Stretch()
        stretch._blocks, stretch._start, stretch._stop = self._blocks.copy(), self._start, self._stop
        return stretch
