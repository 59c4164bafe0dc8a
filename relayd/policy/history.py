"""How much of the past somebody gets who joins a stream."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HistoryBound:
    """The newest bytes, records or seconds of the stream; one of the three, or none."""

    size: int = 0
    records: int = 0
    seconds: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.size or self.records or self.seconds)
