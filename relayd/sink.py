"""Where a pipeline ends: the send queue and the link, if there is one, of one destination.

The fast path is one call: link up, queue empty, `send(chunk)`, and the kernel took it all.  Only the
rest of a short write is queued, and only then is anything asked of the selector or a timer.

A sink without a link queues.  A listening destination's sink lives as long as its client; a
connected one's outlives its links, and what one link cut is sent again whole on the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.transport import Buffer
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.sendqueue import SendQueue
from relayd.wire.framing import no_records

# How often a stalled link is looked at, as a part of its timeout: so late at most is it cut.
_STALL_STEP = 0.25

BorderBefore = Callable[[bytes, int], int]


class Outgoing(Protocol):
    """The part of a transport that a sink uses."""

    def send(self, data: Buffer) -> int:
        """See Transport.send."""

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        """See Transport.send_all_of."""

    def watch_writing(self, wanted: bool) -> None:
        """See Transport.watch_writing."""

    def unacknowledged(self) -> int:
        """See Transport.unacknowledged."""

    def close(self, reason: str) -> None:
        """See Transport.close."""

    def abort(self, reason: str) -> None:
        """See Transport.abort."""


class SinkSettings:
    """What all sinks of one direction of a relay share."""

    __slots__ = ("border_before", "buffer", "count", "kept", "pipeline", "reactor", "relief", "stall_timeout")

    def __init__(
        self, reactor: Reactor, pipeline: Pipeline, border_before: BorderBefore, buffer: int,
        relief: Relief, stall_timeout: float, kept: bool, count: Callable[[bytes], int] = no_records,
    ) -> None:  # fmt: skip
        """`buffer` in bytes; `stall_timeout` in seconds, 0: never; `kept`: outlives its links.

        `count` counts the records of a chunk.
        """
        self.count = count
        self.reactor = reactor
        self.pipeline = pipeline
        self.border_before = border_before
        self.buffer = buffer
        self.relief = relief
        self.stall_timeout = stall_timeout
        self.kept = kept


class Sink:
    """One destination's way out. At every moment: put == sent - repeated + dropped + queue.size."""

    __slots__ = (
        "_closing", "_ended", "_overflowed", "_progress", "_progress_at", "_settings", "_stall_timer", "_transport",
        "dropped", "dropped_records", "queue", "repeated", "sent",
    )  # fmt: skip

    def __init__(self, settings: SinkSettings, overflowed: Callable[[int], None] | None = None) -> None:
        """`overflowed(bytes)` is told when the queue was emptied while there was no link to cut."""
        self._settings = settings
        self._overflowed = overflowed
        self._transport: Outgoing | None = None
        self._closing = ""  # the reason, once the link is to be closed when the queue is empty
        self._ended = False  # the one link of a sink that is not kept was closed
        self._stall_timer: TimerHandle | None = None
        self._progress = 0  # bytes acknowledged, and since when it is no more
        self._progress_at = 0.0
        self.queue = SendQueue(settings.buffer)
        self.sent = 0  # bytes that the kernel took
        self.repeated = 0  # of these, sent again
        self.dropped = 0  # bytes that left the queue unsent
        self.dropped_records = 0

    # -- the stream -----------------------------------------------------------------------------

    def put(self, chunk: bytes) -> None:
        """Send the chunk, or queue what is not taken at once."""
        queue = self.queue
        transport = self._transport
        if transport is None or queue.size:
            self._enqueue(chunk)
            return
        taken = transport.send(chunk)
        self.sent += taken
        if taken < len(chunk):
            queue.append(chunk, taken)
            self._wait_for_room(transport)

    def flush(self) -> None:
        """Send from the queue as far as the kernel takes it."""
        queue = self.queue
        transport = self._transport
        if transport is None:
            return
        if queue.size:
            self.record_sent(transport.send_all_of(queue.buffers()))
        if queue.size:
            self._wait_for_room(transport)
            return
        transport.watch_writing(False)
        if self._closing:
            transport.close(self._closing)
            self._let_go()

    def record_sent(self, count: int) -> None:
        """Take bytes off the queue that a link has carried away."""
        self.queue.consume(count)
        self.sent += count
        if self.queue.size * 2 <= self.queue.limit:
            self._settings.pipeline.release(self)

    def drop_queue(self) -> None:
        """Drop and count what waits; what was held for it flows again."""
        self.dropped_records += self.queue.records(self._settings.count)
        self.dropped += self.queue.clear()
        self._settings.pipeline.release(self)

    def _enqueue(self, chunk: bytes) -> None:
        if self._ended:
            self.dropped += len(chunk)
            self.dropped_records += self._settings.count(chunk)
            return
        if not self.queue.fits(chunk) and self._transport is not None:
            self.flush()  # there may be room in the kernel that nobody has been told of yet
            if not self.queue.size:
                self.put(chunk)
                return
        if not self.queue.fits(chunk):
            if self._settings.relief is Relief.CUT:
                self._cut()
            else:
                self._settings.pipeline.hold(self)
        self.queue.append(chunk)

    def _cut(self) -> None:
        before = self.dropped
        self.drop_queue()
        if self._transport is not None:
            self._transport.abort("slow")
            self._let_go()
        elif self._overflowed is not None:
            self._overflowed(self.dropped - before)

    # -- the link -------------------------------------------------------------------------------

    def attach(self, transport: Outgoing) -> None:
        """A link has come up: what waits goes first, or the next chunk would find the queue full for no reason."""
        self._transport = transport
        taken = -1
        while self.queue.size and self.sent != taken:
            taken = self.sent
            self.flush()

    def detach(self) -> None:
        """The link is gone. What it cut is made whole again for the next; with no next, it is dropped."""
        self._let_go()
        if self._settings.kept:
            self.repeated += self.queue.rewind(self._settings.border_before)
        else:
            self.drop_queue()

    def hold_back(self) -> str:
        """Send nothing until `attach`, or `detach`: the link is still there, and in the middle of a record perhaps.

        Returns why it was to be closed when the queue is empty, "" where it was not.
        """
        closing = self._closing
        self._let_go()
        return closing

    def move(self, settings: SinkSettings, overflowed: Callable[[int], None] | None) -> None:
        """Leave the pipeline for that of `settings`, with the queue and the link; see Sink()."""
        former = self._settings.pipeline
        former.release(self)
        del former.sinks[self]
        settings.pipeline.sinks[self] = None
        self._settings, self._overflowed = settings, overflowed
        self.queue.limit = settings.buffer
        if settings.relief is Relief.HOLD and self.queue.size > settings.buffer:
            settings.pipeline.hold(self)
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        if self._transport is not None and self.queue.size:
            self._wait_for_room(self._transport)

    def finish(self, reason: str) -> None:
        """Close the link, if there is one, once the queue is empty."""
        if self._transport is not None:
            self._closing = reason
            self.flush()

    def _let_go(self) -> None:
        self._transport = None
        self._closing = ""
        self._ended = not self._settings.kept
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _wait_for_room(self, transport: Outgoing) -> None:
        transport.watch_writing(True)
        if self._settings.stall_timeout and self._stall_timer is None:
            self._set_stall_timer(transport)

    # -- a peer that takes nothing ----------------------------------------------------------------

    def _set_stall_timer(self, transport: Outgoing) -> None:
        self._progress = self._acknowledged(transport)
        self._progress_at = self._settings.reactor.now
        self._look_again()

    def _look_again(self) -> None:
        delay = self._settings.stall_timeout * _STALL_STEP
        self._stall_timer = self._settings.reactor.call_later(delay, self._check_stall)

    def _check_stall(self) -> None:
        timer, self._stall_timer = self._stall_timer, None
        transport = self._transport
        if not self.queue.size or transport is None or timer is None:
            return
        now = self._settings.reactor.now
        timeout = self._settings.stall_timeout
        acknowledged = self._acknowledged(transport)
        # A timer that comes late tells of our own loop (SIGSTOP, a suspended host), not of the peer.
        if acknowledged != self._progress or now - timer.when > timeout / 2:
            self._progress, self._progress_at = acknowledged, now
        if now - self._progress_at >= timeout:
            transport.abort("stalled")
        else:
            self._look_again()

    def _acknowledged(self, transport: Outgoing) -> int:
        """Return what the peer has taken: the kernel takes from us in large steps only, a third of its buffer."""
        return self.sent - transport.unacknowledged()
