"""When the source of a spliced stream waits for its destination.

Bytes that the destination does not take at once stay in the pipe.  To read on then means to copy, for they
must queue behind it, and a queue that never runs empty means to copy for good.  So the source waits: for a
moment, in which most destinations catch up; for longer only if the buffer has been full before, because
then the source is the faster one and waits anyway.  A destination that takes nothing lets the buffer fill.
"""

from __future__ import annotations

from collections.abc import Callable

from relayd.net.reactor import Reactor, TimerHandle

# How long the source waits for the pipe to run empty, in seconds: what a fast link brings meanwhile fits into
# a socket's buffer.
_MOMENT = 0.02


class Brake:
    """Says whether the source waits for what is in the pipe (`on`)."""

    __slots__ = ("_pressed", "_reactor", "_release", "_since", "_timer", "_waited", "on")

    def __init__(self, reactor: Reactor, release: Callable[[], None]) -> None:
        """`release()` is called when it has waited long enough."""
        self._reactor = reactor
        self._release = release
        self._timer: TimerHandle | None = None
        self._since = 0.0  # when the pipe was last found not to be empty
        self._waited = False  # in vain, since the queue was last empty
        self._pressed = False  # the buffer has been full, and the source has not run dry since
        self.on = False

    def pipe_left(self) -> bool:
        """The link has not taken all that was in the pipe; return whether the source is to wait."""
        if not self._waited and not self.on:
            self.on = True
            self._since = self._reactor.now
            if not self._pressed and self._timer is None:
                self._timer = self._reactor.call_later(_MOMENT, self._look)
        return self.on

    def buffer_full(self) -> None:
        """The buffer is full: whatever waits now waits for a queue that is empty."""
        self._pressed = self.on = True

    def emptied(self) -> None:
        """Nothing waits any more."""
        self.on = self._waited = False

    def ran_dry(self) -> None:
        """The source had no more to say."""
        self._pressed = False

    def link_lost(self) -> None:
        """There is nobody to wait for."""
        self.on = self._waited = self._pressed = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        if not self.on or self._pressed:
            return
        rest = self._since + _MOMENT - self._reactor.now
        if rest > 0:  # it is another wait than the one the timer was set for
            self._timer = self._reactor.call_later(rest, self._look)
            return
        self.on = False
        self._waited = True
        self._release()
