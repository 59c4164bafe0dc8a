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

BorderBefore = Callable[[bytes, int], int]


class Outgoing(Protocol):
    """The part of a transport that a sink uses."""

    def send(self, data: Buffer) -> int:
        """See Transport.send."""

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        """See Transport.send_all_of."""

    def watch_writing(self, wanted: bool) -> None:
        """See Transport.watch_writing."""

    def close(self, reason: str) -> None:
        """See Transport.close."""

    def abort(self, reason: str) -> None:
        """See Transport.abort."""


class SinkSettings:
    """What all sinks of one direction of a relay share."""

    __slots__ = ("border_before", "buffer", "kept", "pipeline", "reactor", "relief", "stall_timeout")

    def __init__(
        self, reactor: Reactor, pipeline: Pipeline, border_before: BorderBefore, buffer: int,
        relief: Relief, stall_timeout: float, kept: bool,
    ) -> None:  # fmt: skip
        """`buffer` in bytes; `stall_timeout` in seconds, 0: never; `kept`: outlives its links."""
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
        "_closing", "_ended", "_overflowed", "_progress", "_settings", "_stall_timer", "_transport",
        "dropped", "queue", "repeated", "sent",
    )  # fmt: skip

    def __init__(self, settings: SinkSettings, overflowed: Callable[[int], None] | None = None) -> None:
        """`overflowed(bytes)` is told when the queue was emptied while there was no link to cut."""
        self._settings = settings
        self._overflowed = overflowed
        self._transport: Outgoing | None = None
        self._closing = ""  # the reason, once the link is to be closed when the queue is empty
        self._ended = False  # the one link of a sink that is not kept was closed
        self._stall_timer: TimerHandle | None = None
        self._progress = 0  # `sent` when the stall timer was set
        self.queue = SendQueue(settings.buffer)
        self.sent = 0  # bytes that the kernel took
        self.repeated = 0  # of these, sent again
        self.dropped = 0  # bytes that left the queue unsent

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
        self.dropped += self.queue.clear()
        self._settings.pipeline.release(self)

    def _enqueue(self, chunk: bytes) -> None:
        if self._ended:
            self.dropped += len(chunk)
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
        """A link has come up: what waits goes first."""
        self._transport = transport
        if self.queue.size:
            self._wait_for_room(transport)

    def detach(self) -> None:
        """The link is gone. What it cut is made whole again for the next; with no next, it is dropped."""
        self._let_go()
        self.repeated += self.queue.rewind(self._settings.border_before)
        if self._ended:
            self.drop_queue()

    def finish(self, reason: str) -> None:
        """Close the link once the queue is empty."""
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
            self._set_stall_timer()

    # -- a peer that takes nothing ----------------------------------------------------------------

    def _set_stall_timer(self) -> None:
        self._progress = self.sent
        self._stall_timer = self._settings.reactor.call_later(self._settings.stall_timeout, self._check_stall)

    def _check_stall(self) -> None:
        timer, self._stall_timer = self._stall_timer, None
        assert timer is not None
        if not self.queue.size or self._transport is None:
            return
        late = self._settings.reactor.now - timer.when
        # A timer that comes late tells of our own loop (SIGSTOP, a suspended host), not of the peer.
        if self.sent != self._progress or late > self._settings.stall_timeout / 2:
            self._set_stall_timer()
        else:
            self._transport.abort("stalled")
