"""Is a destination that half-closed still there?

A FIN from a server says either "I shall send nothing, go on" (`ncat -l --recv-only`) or "I am gone"
(a restart).  The kernel can tell them apart only by an answer to new data: a peer that is gone
answers RST, one that is there acknowledges.  So the next bytes are sent on trial, kept until they
are acknowledged, and nothing is lost if they never are.  With nothing to send for a while the link
is given up, because then reconnecting costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.transport import Transport
from relayd.sink import Sink
from relayd.wire.chunk import Chunk

# How often to look for data to try with and for its acknowledgement, in seconds: a round trip.
_LOOK = 0.05


class HalfCloseTrial:
    """Holds a sink back from a half-closed link until the peer has acknowledged something new."""

    def __init__(
        self, reactor: Reactor, sink: Sink, transport: Transport, patience: float, gone: Callable[[], None]
    ) -> None:
        """After `patience` seconds with nothing to try with, `gone()` is called."""
        self._reactor = reactor
        self._sink = sink
        self._transport = transport
        self._patience = patience
        self._gone = gone
        self._began = reactor.now
        self._tried = 0  # bytes sent on trial, and still in the queue
        self._passed = False
        self._timer: TimerHandle | None = None
        self._closing = sink.hold_back()
        self._began_record = sink.queue.offset > 0  # before the trial: the peer has a part of it
        self._on_trial: Chunk | None = None  # what the tried bytes are of
        self._emptied = sink.emptied
        transport.watch_writing(False)
        self._look()

    def cancel(self) -> None:
        """The link is gone; its sink has what was tried."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def finish(self, reason: str) -> None:
        """Close the link once what waits is sent, and what is on trial acknowledged."""
        self._closing = reason
        if not (self._tried or self._passed):
            self.cancel()
            self._pass()

    def _pass(self) -> None:
        """The peer is there, or it no longer matters: the sink goes on where it was held back."""
        if self._is_torn():
            return
        self._passed = True
        self._sink.record_sent(self._tried)
        self._sink.attach(self._transport)
        if self._closing:
            self._sink.finish(self._closing)

    def _is_torn(self) -> bool:
        """Whether the link must not go on: what the peer has half of was dropped, or the queue overflowed."""
        queue = self._sink.queue
        if self._tried:
            torn = queue.front is not self._on_trial
        else:
            torn = self._began_record and not queue.offset
        if torn or self._sink.emptied != self._emptied:
            self._transport.abort("slow")
            return True
        return False

    def _look(self) -> None:
        self._timer = None
        self._transport.check()
        if not self._transport.open:
            return
        if self._is_torn():
            return
        if self._tried and not self._transport.unacknowledged():
            self._pass()
            return
        if not self._tried and self._sink.queue.size:
            self._sink.drop_stale()
            self._on_trial = self._sink.queue.front
            self._tried = self._transport.send(self._sink.queue.buffers(1)[0]) if self._on_trial is not None else 0
        if not self._tried and self._reactor.now - self._began >= self._patience:
            self._gone()
            return
        self._timer = self._reactor.call_later(_LOOK, self._look)
