"""How far behind a destination is, in time, without a time stamp on every chunk."""

from __future__ import annotations

from bisect import bisect_right

# A sample at most this often, in seconds, and so many of them: a lag is known to a tenth of a second,
# and up to some minutes; what is further behind is said to be at least that.
_STEP = 0.1
_SAMPLES_MAX = 2048


class LagMeter:
    """Remembers when the stream had come how far. A link that is N bytes behind is as old as that place."""

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._times: list[float] = []
        self._next = 0.0

    def passed(self, position: int, now: float) -> None:
        """The stream has come to `position` bytes, ever growing."""
        if now < self._next:
            self._positions[-1] = position  # as old as the step it belongs to
            return
        self._next = now + _STEP
        self._positions.append(position)
        self._times.append(now)
        if len(self._times) > _SAMPLES_MAX:
            del self._positions[: _SAMPLES_MAX // 2], self._times[: _SAMPLES_MAX // 2]

    def lag(self, position: int, now: float) -> float:
        """Return how many seconds ago the stream was at `position`, to a tenth or so."""
        index = bisect_right(self._positions, position)
        return max(0.0, now - self._times[index]) if index < len(self._times) else 0.0
