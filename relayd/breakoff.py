"""The end of a link after an error elsewhere, which must not look like the end of the stream.

A FIN says that this was all.  Where the source broke, that would be a lie, so the destination gets RST.  But an
RST overtakes what the kernel has still to send, and drops it: first comes all that waits, then its
acknowledgement, then the reset.
"""

from __future__ import annotations

from relayd.net.reactor import Reactor, TimerHandle
from relayd.sink import Outgoing, Sink

# How often to look whether all is acknowledged, in seconds: a round trip.
_LOOK = 0.02


class BreakOff:
    """Resets a link once its peer has what waits for it now.

    A peer that takes nothing is cut by its sink's watch, and by this one once the kernel has all that waits.
    """

    def __init__(self, reactor: Reactor, sink: Sink, transport: Outgoing, reason: str, patience: float) -> None:
        """`patience`: seconds that a peer is waited for that acknowledges nothing more of what the kernel has."""
        self._reactor = reactor
        self._sink = sink
        self._transport = transport
        self._reason = reason
        self._patience = patience
        self._goal = sink.sent + sink.waiting()
        self._acknowledged = 0
        self._acknowledged_at = reactor.now
        self._timer: TimerHandle | None = None
        self._look()

    def cancel(self) -> None:
        """The link is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        sink, now = self._sink, self._reactor.now
        self._goal = min(self._goal, sink.sent + sink.waiting())  # what was dropped meanwhile is not waited for
        # Asked of the link itself: the sink may have let go of it, which says nothing of what the peer has.
        acknowledged = sink.sent - self._transport.unacknowledged()
        if acknowledged != self._acknowledged:
            self._acknowledged, self._acknowledged_at = acknowledged, now
        gives_up = not sink.waiting() and now - self._acknowledged_at >= self._patience
        if acknowledged >= self._goal or gives_up:
            self._transport.abort(self._reason)
        else:
            self._timer = self._reactor.call_later(_LOOK, self._look)
