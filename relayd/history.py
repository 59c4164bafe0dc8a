"""The newest part of a stream, for those who join."""

from __future__ import annotations

from collections.abc import Callable

from relayd.pipeline import Incoming
from relayd.policy.history import HistoryBound
from relayd.sendqueue import SendQueue
from relayd.tape import Stretch, Tape
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing


class History:
    """A stretch of the tape: at least what `bound` asks for where it has passed, and at most a chunk over `limit`."""

    def __init__(self, tape: Tape, bound: HistoryBound, limit: int, framing: Framing, now: Callable[[], float]) -> None:
        """`limit` in bytes; `now()` is the reactor's time."""
        self.tape = tape
        self.idle = None
        self.sent = 0  # to nobody
        self._bound = bound
        self._limit = limit
        self._framing = framing
        self._now = now
        self._stretch = Stretch()
        self._size = 0
        self._records = 0
        self._walked: tuple[Chunk | None, int, int] = (None, 0, 0)  # see _border_behind

    def put(self, chunk: Chunk) -> None:
        """A chunk has passed (for the pipeline, whose first sink this is)."""
        block = self.tape.add(chunk)
        if not self._stretch.extend(block):  # what lies between was not of this stream
            self.end()
            self._stretch.extend(block)
        self._size += len(chunk.data)
        self._records += chunk.records
        self._forget()

    def put_rest(self, chunk: Chunk, sent: int) -> None:
        """There is no link, so there is no rest."""

    def splice(self, source: Incoming) -> int:
        """What is to be remembered must be read."""
        return -1

    def fill(self, queue: SendQueue) -> None:
        """Let the empty queue of a new client begin with the past."""
        self._forget()
        if not self._stretch:
            return
        stretch, size, records = self._stretch.copy(), self._size, self._records
        offset = self._too_much(stretch.first)
        if offset == len(stretch.first.data):
            chunk = stretch.pop_first()
            size, records, offset = size - len(chunk.data), records - chunk.records, 0
        queue.replay(stretch, offset, size - offset, records)

    def adopt(self, former: History) -> None:
        """Go on with what another one holds of the same stream."""
        self.tape.follow(former.tape)
        self._stretch, self._size, self._records = former._stretch, former._size, former._records
        former.end()

    def end(self) -> None:
        """Nobody will join any more."""
        self._stretch, self._size, self._records = Stretch(), 0, 0

    def _forget(self) -> None:
        """Let go of the chunks that the bound can do without."""
        while self._stretch and self._can_go(self._stretch.first):
            chunk = self._stretch.pop_first()
            self._size -= len(chunk.data)
            self._records -= chunk.records

    def _can_go(self, chunk: Chunk) -> bool:
        bound = self._bound
        rest = self._size - len(chunk.data)
        return (
            rest >= self._limit
            or bool(bound.size and rest >= bound.size)
            or bool(bound.records and self._records - chunk.records >= bound.records)
            or bool(bound.seconds and chunk.at < self._now() - bound.seconds)
        )

    def _too_much(self, chunk: Chunk) -> int:
        """Return the border in the oldest chunk before which it is more than the bound, or the limit."""
        border = self._border_behind(chunk, self._records - self._bound.records) if self._bound.records else 0
        size = min(self._bound.size or self._limit, self._limit)
        excess = self._size - size
        if excess <= border:
            return border
        begin, end = self._framing.record_at(chunk, excess)
        if begin == excess:
            return begin
        # A single record that is longer than the limit goes all the same: it is the newest there is.
        alone = end == self._size and not self._bound.size
        return begin if alone else end

    def _border_behind(self, chunk: Chunk, count: int) -> int:
        """Return the border behind so many records of the oldest chunk.

        How far the last search went is kept: hundreds who join at once would each walk over thousands of records.
        """
        known, walked, border = self._walked
        if known is not chunk or walked > count:
            walked, border = 0, 0
        for _ in range(count - walked):
            border = self._framing.next_border(chunk.data, border)
        self._walked = (chunk, max(count, 0), border)
        return border
