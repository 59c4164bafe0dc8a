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
    """Resets a link once its peer has what waits for it now; a peer that takes nothing is cut by its sink's watch."""

    def __init__(self, reactor: Reactor, sink: Sink, transport: Outgoing, reason: str) -> None:
        self._reactor = reactor
        self._sink = sink
        self._transport = transport
        self._reason = reason
        self._goal = sink.sent + sink.dropped + sink.waiting()
        self._timer: TimerHandle | None = None
        self._look()

    def cancel(self) -> None:
        """The link is gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        acknowledged = self._sink.acknowledged()
        if acknowledged is None or acknowledged + self._sink.dropped >= self._goal:
            self._transport.abort(self._reason)
        else:
            self._timer = self._reactor.call_later(_LOOK, self._look)
