"""The figures of all rounds, and what is made of them: medians, spreads, ratios."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """The median of the rounds, and their extremes."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Figure | None:
        """Return the figure, None without values."""
        return cls(median(values), min(values), max(values)) if values else None


@dataclass(frozen=True)
class Results:
    """Rows have `round`, `case`, `peer`, `trouble`, and where the run came to an end all else (see run.py)."""

    machine: dict[str, str]
    rows: list[Row]

    def cases(self) -> list[str]:
        """Return the names of the cases that were run, in order."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    def peers(self, case: str) -> list[str]:
        """Return who took part in a case, in order."""
        return list(dict.fromkeys(row["peer"] for row in self.rows if row["case"] == case))

    def figure(self, case: str, peer: str, path: str) -> Figure | None:
        """Return what stands at `path` (`cpu`, `timed.p99_us`) of a run."""
        return Figure.of(list(self._by_round(case, peer, path).values()))

    def ratio(self, case: str, peer: str, other: str, path: str) -> Figure | None:
        """Return peer's by other's figure, each round by itself: what disturbed one, disturbed both."""
        ours, theirs = self._by_round(case, peer, path), self._by_round(case, other, path)
        return Figure.of([ours[number] / theirs[number] for number in ours if theirs.get(number)])

    def difference(self, less: tuple[str, str, str], more: tuple[str, str, str]) -> Figure | None:
        """Return `more` minus `less`, each (case, peer, path), round by round."""
        low, high = self._by_round(*less), self._by_round(*more)
        return Figure.of([high[number] - low[number] for number in high if number in low])

    def trouble(self, case: str, peer: str) -> str:
        """Return what a peer did wrong in a case, the round named where it was not so in all."""
        said: dict[str, int] = {}
        rows = [row for row in self.rows if (row["case"], row["peer"]) == (case, peer)]
        for row in rows:
            if row["trouble"]:
                said[row["trouble"]] = said.get(row["trouble"], 0) + 1
        often = sorted(said.items(), key=lambda item: -item[1])
        bad = sum(said.values())
        return "" if not said else often[0][0] + ("" if bad == len(rows) else f" (in {bad} of {len(rows)} runs)")

    def foreign(self, case: str = "") -> Figure | None:
        """Return how much of a core others used during the runs, of one case or of all."""
        return Figure.of([row["foreign"] for row in self.rows if case in ("", row["case"]) and "foreign" in row])

    def _rows(self, case: str) -> Iterator[Row]:
        return (row for row in self.rows if row["case"] == case)

    def _by_round(self, case: str, peer: str, path: str) -> dict[int, float]:
        found = {row["round"]: _at(row, path) for row in self._rows(case) if row["peer"] == peer}
        return {number: value for number, value in found.items() if value is not None}


def _at(row: Row, path: str) -> float | None:
    value: Any = functools.reduce(lambda inner, name: (inner or {}).get(name), path.split("."), row)
    return value
