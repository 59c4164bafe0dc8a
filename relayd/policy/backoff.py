"""How long to wait before the next attempt to connect."""

from __future__ import annotations

from collections.abc import Callable

FACTOR = 2.0
JITTER = 0.2  # ±20 %: enough that 500 relays that lost one host do not come back in one beat


class Backoff:
    """Waits that grow from `low` to `high` seconds by doubling, each spread by ±20 %.

    With `low == high` the wait is fixed and exact.  The caller says when a link has proved itself
    (`reset`); a peer that accepts and closes at once is therefore not hammered.
    """

    def __init__(self, low: float, high: float, random: Callable[[], float]) -> None:
        """`random` returns a float in [0, 1)."""
        self._low = low
        self._high = high
        self._random = random
        self._next = low

    def next_delay(self) -> float:
        """Return the seconds to wait now, and let the next wait be longer."""
        delay = self._next
        self._next = min(delay * FACTOR, self._high)
        if self._low == self._high:
            return delay
        return delay * (1 - JITTER + 2 * JITTER * self._random())

    def reset(self) -> None:
        """Start over from the shortest wait."""
        self._next = self._low
