"""Watches a destination that does not keep up, by its own clock: no timer is touched for a chunk.

Two things can be the matter.  It takes nothing at all for `stall_timeout`, which is measured by what the
peer acknowledges, because the kernel asks for more only in steps of a third of its buffer.  Or it takes
too little, and has more than `slow_after` waiting for too long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relayd.net.reactor import Reactor, TimerHandle
from relayd.policy.overflow import SlowAfter

# How often a slow link is looked at, as a part of its timeouts: so late at most is it acted upon.
_STEP = 0.25


class Slow(Protocol):
    """The one that is watched: a Sink."""

    def waiting(self) -> int:
        """Return the bytes that wait."""

    def acknowledged(self) -> int | None:
        """Return a number that grows with what the peer has taken, None while there is no link."""

    def has_stalled(self) -> None:
        """Nothing was taken for `stall_timeout`."""

    def is_slow(self) -> None:
        """More than `slow_after` has waited for too long."""


class SlownessWatch:
    """From the first byte that has to wait until nothing does."""

    __slots__ = (
        "_ended", "_progress", "_progress_at", "_reactor", "_slow", "_slow_after", "_slow_since", "_stall_timeout",
        "_step", "_timer",
    )  # fmt: skip

    def __init__(
        self, reactor: Reactor, slow: Slow, stall_timeout: float, slow_after: SlowAfter, ended: Callable[[], None]
    ) -> None:
        """Times in seconds, 0: that is not watched for. `ended()`: nothing waits, the watch is over."""
        self._reactor = reactor
        self._slow = slow
        self._stall_timeout = stall_timeout
        self._slow_after = slow_after
        self._ended = ended
        self._step = _STEP * min(seconds for seconds in (stall_timeout, slow_after.seconds) if seconds)
        self._progress = slow.acknowledged()
        self._progress_at = reactor.now
        self._slow_since: float | None = None
        self._timer: TimerHandle = reactor.call_later(self._step, self._look)
        self.size_changed(slow.waiting())

    def size_changed(self, waiting: int) -> None:
        """So many bytes wait now."""
        if waiting <= self._slow_after.size:
            self._slow_since = None
        elif self._slow_since is None:
            self._slow_since = self._reactor.now

    def restart(self) -> None:
        """There is another link: what the one before took says nothing of it."""
        self._progress = self._slow.acknowledged()
        self._progress_at = self._reactor.now

    def cancel(self) -> None:
        """Watch no more."""
        self._timer.cancel()

    def _look(self) -> None:
        waiting = self._slow.waiting()
        if not waiting:
            self._ended()
            return
        now = self._reactor.now
        # A timer that comes late tells of our own loop (SIGSTOP, a suspended host), not of the peer.
        late = now - self._timer.when > 2 * self._step
        self._timer = self._reactor.call_later(self._step, self._look)
        acknowledged = self._slow.acknowledged()
        if acknowledged != self._progress or late:
            self._progress, self._progress_at = acknowledged, now
        if late and self._slow_since is not None:
            self._slow_since = now
        if acknowledged is not None and 0 < self._stall_timeout <= now - self._progress_at:
            self._slow.has_stalled()
        elif self._slow_since is not None and self._is_slow_for(now - self._slow_since):
            self._slow_since = now
            self._slow.is_slow()

    def _is_slow_for(self, seconds: float) -> bool:
        return 0 < self._slow_after.seconds <= seconds
