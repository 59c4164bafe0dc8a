"""The newest part of a stream, kept as long as somebody has still to send it.

One tape belongs to each direction of a relay.  A destination that does not keep up reads it from where
it has stopped; what it owns is that place, so a thousand that have stopped cost what one costs.  Chunks
are numbered in the order in which they were added, and those that no reader needs any more are freed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from relayd.wire.chunk import Chunk

# The readers are asked how far they are each time that the tape has grown by so many bytes. A chunk counts
# for at least what it costs (its objects, the reference), or a tape of tiny ones would be looked at too seldom.
_LOOK_EVERY = 256 * 1024
_CHUNK_COST = 256


class TapeReader(Protocol):
    """Who needs chunks of the tape."""

    tape: Tape

    @property
    def first(self) -> int:
        """The number of the oldest chunk that is still needed."""


class Tape:
    """Chunks by number."""

    __slots__ = ("_chunks", "_first", "_grown", "_readers")

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []
        self._first = 0  # the number of the first of them
        self._grown = 0  # what was added since the readers were last asked
        self._readers: set[TapeReader] = set()

    def __repr__(self) -> str:
        return f"<Tape of {len(self._chunks)} chunks, {len(self._readers)} readers>"

    def __len__(self) -> int:
        return len(self._chunks)

    def __getitem__(self, number: int) -> Chunk:
        return self._chunks[number - self._first]

    @property
    def end(self) -> int:
        """The number that the next chunk will have."""
        return self._first + len(self._chunks)

    def add(self, chunk: Chunk) -> int:
        """Put a chunk on the tape; return its number. The newest one may be added again, by each of its readers."""
        chunks = self._chunks
        if not chunks or chunks[-1] is not chunk:
            self._grown += len(chunk.data) + _CHUNK_COST
            if self._grown >= _LOOK_EVERY:
                self._free()
            chunks.append(chunk)
        return self._first + len(chunks) - 1

    def part(self, start: int, stop: int) -> Sequence[Chunk]:
        """Return the chunks from number `start` to before `stop`."""
        return self._chunks[start - self._first : stop - self._first]

    def joined(self, reader: TapeReader) -> None:
        """Keep what the reader needs."""
        self._readers.add(reader)

    def left(self, reader: TapeReader) -> None:
        """The reader needs nothing more."""
        self._readers.discard(reader)
        if not self._readers:
            self._drop(len(self._chunks))

    def take_over(self, former: Tape) -> None:
        """Go on where another tape ends, for all its readers; this one must not have any yet."""
        assert not self._readers
        self._first, former._first = former._first, former.end
        self._chunks, former._chunks = former._chunks, []
        self._readers, former._readers = former._readers, set()
        for reader in self._readers:
            reader.tape = self

    def _free(self) -> None:
        self._grown = 0
        self._drop(min((reader.first for reader in self._readers), default=self.end) - self._first)

    def _drop(self, count: int) -> None:
        del self._chunks[:count]
        self._first += count
