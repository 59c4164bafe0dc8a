"""The newest part of a stream, for those who join: a reader of the tape that never sends."""

from __future__ import annotations

from collections.abc import Callable

from relayd.pipeline import Incoming
from relayd.policy.history import HistoryBound
from relayd.sendqueue import SendQueue
from relayd.tape import Tape
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing


class History:
    """Holds at least what `bound` asks for where it has passed, and never more than a chunk over `limit` bytes."""

    def __init__(self, tape: Tape, bound: HistoryBound, limit: int, framing: Framing, now: Callable[[], float]) -> None:
        """`limit` in bytes; `now()` is the reactor's time."""
        self.tape = tape
        self.first = self._next = tape.end
        self._bound = bound
        self._limit = limit
        self._framing = framing
        self._now = now
        self._size = 0
        self._records = 0

    def put(self, chunk: Chunk) -> None:
        """A chunk has passed (for the pipeline, whose first sink this is)."""
        number = self.tape.add(chunk)
        if not self._size or number != self._next:  # else what lies between was not of this stream
            self.first = number
            self._size = self._records = 0
            self.tape.joined(self)
        self._next = number + 1
        self._size += len(chunk.data)
        self._records += chunk.records
        self._forget()

    def splice(self, source: Incoming) -> int:
        """What is to be remembered must be read."""
        return -1

    def fill(self, queue: SendQueue) -> None:
        """Let the empty queue of a new client begin with the past."""
        self._forget()
        if not self._size:
            return
        data = self.tape[self.first].data
        offset = self._too_much(data)
        if offset == len(data):
            if self._size > offset:
                queue.replay(self.first + 1, 0, self._size - offset, self._records - self.tape[self.first].records)
            return
        queue.replay(self.first, offset, self._size - offset, self._records)

    def adopt(self, former: History) -> None:
        """Go on with what another one holds of the same stream."""
        if former.tape is not self.tape:
            self.tape.take_over(former.tape)
        self.first, self._next = former.first, former._next
        self._size, self._records = former._size, former._records
        former._size = former._records = 0
        if self._size:
            self.tape.joined(self)
        self.tape.left(former)

    def _forget(self) -> None:
        """Let go of the chunks that the bound can do without."""
        while self._size:
            chunk = self.tape[self.first]
            if not self._can_go(chunk):
                return
            self.first += 1
            self._size -= len(chunk.data)
            self._records -= chunk.records

    def _can_go(self, chunk: Chunk) -> bool:
        bound = self._bound
        rest = self._size - len(chunk.data)
        return (
            self._size > max(self._limit, len(chunk.data))
            or bool(bound.size and rest >= bound.size)
            or bool(bound.records and self._records - chunk.records >= bound.records)
            or bool(bound.seconds and chunk.at < self._now() - bound.seconds)
        )

    def _too_much(self, data: bytes) -> int:
        """Return the border in the oldest chunk before which it is more than the bound."""
        border = 0
        if self._bound.size and self._size > self._bound.size:
            begin, end = self._framing.record_at(data, self._size - self._bound.size)
            border = begin if begin == self._size - self._bound.size else end
        if self._bound.records:
            for _ in range(self._records - self._bound.records):
                border = self._framing.next_border(data, border)
        return border
