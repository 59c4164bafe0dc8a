"""The report: RESULTS.md, the summary that the README shows, and a line for each run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.bench.bars import BARS
from tests.bench.cases import CASES
from tests.bench.peers import PEERS
from tests.bench.plot import draw
from tests.bench.results import Figure, Results, Row

_NONE = "-"


@dataclass(frozen=True)
class Column:
    """A column of a case's table: where the figure stands, in which unit it is shown."""

    heading: str
    path: str
    factor: float = 1.0
    shown: str = "{:.2f}"

    def cell(self, results: Results, case: str, peer: str) -> str:
        """Return the median as it is shown."""
        figure = results.figure(case, peer, self.path)
        return self.shown.format(figure.middle * self.factor) if figure else _NONE


_P50 = Column("p50, µs", "timed.p50_us", shown="{:,.0f}")
_P99 = Column("p99, µs", "timed.p99_us", shown="{:,.0f}")
_BUSY = Column("core used", "relay_busy", shown="{:.0%}")
_RESIDENT = Column("resident, MB", "rss_end", 2**-20, "{:.1f}")
_DEFAULT = (_P50, _P99, _BUSY, _RESIDENT)

_COLUMNS = {
    "bulk-1to1": (_BUSY, _RESIDENT),
    "bulk-100": (_BUSY, _RESIDENT),
    "messages-10000": (_P50, _P99, _BUSY, Column("without clients, MB", "rss_idle", 2**-20, "{:.1f}"), _RESIDENT),
    "stalled": (
        Column("p99 before, µs", "calm.p99_us", shown="{:,.0f}"),
        Column("p99 with half stalled, µs", "timed.p99_us", shown="{:,.0f}"),
        Column("source held up, ms", "timed.late_ms", shown="{:,.1f}"),
        _RESIDENT,
    ),
    "storm": (
        Column("served", "storm.served", shown="{:,.0f}"),
        Column("connected after, s", "storm.connecting"),
        Column("p99 of the running stream, ms", "timed.p99_us", 1e-3),
        Column("worst, ms", "timed.max_us", 1e-3),
        Column("p99 while all are fed, ms", "serving.p99_us", 1e-3),
        _RESIDENT,
    ),
    "unread": (_BUSY, _RESIDENT),
    "read": (_BUSY, _RESIDENT),
}

# What the README's summary shows of each case: the column's unit stands in the first cell.
_SUMMARY: tuple[tuple[str, str, Column], ...] = (
    ("bulk-1to1", "CPU s/GB", Column("", "cpu", shown="{:.2f}")),
    ("latency-1to1", "p50 µs", _P50),
    ("latency-1to1", "p99 µs", _P99),
    ("bulk-100", "CPU s/GB", Column("", "cpu", shown="{:.2f}")),
    ("messages-100", "CPU µs/delivery", Column("", "cpu", shown="{:.1f}")),
    ("messages-1000", "CPU µs/delivery", Column("", "cpu", shown="{:.1f}")),
    ("messages-10000", "CPU µs/delivery", Column("", "cpu", shown="{:.1f}")),
    ("messages-10000", "resident MB", _RESIDENT),
    ("coalesce", "CPU µs/delivery", Column("", "cpu", shown="{:.1f}")),
    ("stalled", "p99 ms of the others", Column("", "timed.p99_us", 1e-3, "{:.1f}")),
    ("storm", "p99 ms of the running stream", Column("", "timed.p99_us", 1e-3, "{:.1f}")),
)
_SUMMARY_PEERS = ("relayd", "floor-splice", "floor-copy", "nginx", "haproxy", "socat", "ncat", "str2str")


def write(results: Results, directory: Path) -> None:
    """Write RESULTS.md, results.svg, and the raw figures in results.json."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "results.json").write_text(json.dumps({"machine": results.machine, "rows": results.rows}))
    drawn = draw(results, directory / "results.svg")
    (directory / "RESULTS.md").write_text(_markdown(results, drawn), "utf-8")


def one_line(row: Row) -> str:
    """Return a run in one line, for those who watch."""
    case, peer = CASES[row["case"]], PEERS[row["peer"]]
    words = [f"{row['round'] + 1}  {case.name:<15} {peer.label:<22}"]
    if row.get("cpu") is not None:
        words.append(f"{row['cpu']:8.3f} {case.unit.value:<12}")
    if "p99_us" in row.get("timed", {}):
        words.append(f"p50 {row['timed']['p50_us']:,.0f} p99 {row['timed']['p99_us']:,.0f} µs")
    if row.get("foreign", 0) > 0.1:
        words.append(f"[others used {row['foreign']:.0%} of a core]")
    return "  ".join([*words, row["trouble"]])


def summary_markdown(results: Results) -> str:
    """Return the cases x programs table."""
    seen = [peer for peer in _SUMMARY_PEERS if any(peer in results.peers(case) for case in results.cases())]
    rows = []
    for case, what, column in _SUMMARY:
        if case in results.cases():
            title = f"{CASES[case].title}: {what}"
            shown = [_stand_in(results, case, peer) for peer in seen]
            rows.append([title, *(_summary_cell(results, case, peer, column) for peer in shown)])
    return _table(["", *(PEERS[peer].label for peer in seen)], rows)


def _stand_in(results: Results, case: str, peer: str) -> str:
    """In the case that is about coalesce, relayd's figure is that with coalesce on, once there is one."""
    with_coalesce = case == "coalesce" and results.figure(case, "relayd-coalesce", "cpu")
    return "relayd-coalesce" if peer == "relayd" and with_coalesce else peer


def _summary_cell(results: Results, case: str, peer: str, column: Column) -> str:
    if peer not in results.peers(case):
        return ""
    cell, trouble = column.cell(results, case, peer), results.trouble(case, peer)
    return f"{'' if cell == _NONE else cell + ' '}({trouble})" if trouble else cell


def _markdown(results: Results, drawn: bool) -> str:
    parts = [
        "# The benchmark's results",
        "Made by `python -m tests.bench`; `tests/bench/__init__.py` says what the figures mean.",
        _table(["", ""], ([name, value] for name, value in results.machine.items())),
    ]
    rounds = 1 + max(row["round"] for row in results.rows)
    parts.append(f"Medians of {rounds} rounds; in brackets the lowest and the highest." if rounds > 1 else "One round.")
    foreign = results.foreign()
    if foreign:
        parts.append(
            f"Besides relay and load, {foreign.middle:.0%} of a core was in use in the median of the runs, "
            f"{foreign.high:.0%} at most. The bars are meant for two idle cores."
        )
    if drawn:
        parts.append("![CPU time of the relay, by case and program](results.svg)")
    bars = [_bar_line(bar.text, bar.limit, bar.seen(results), bar.shown) for bar in BARS]
    parts += ["## Bars", _table(["", "at most", "seen", ""], bars)]
    parts += [part for case in results.cases() for part in _case(results, case)]
    return "\n\n".join(parts) + "\n"


def _bar_line(text: str, limit: float, seen: Figure | None, shown: str) -> list[str]:
    if seen is None:
        return [text, shown.format(limit), "not measured", ""]
    return [text, shown.format(limit), _spread(seen, shown.format), "met" if seen.middle <= limit else "**missed**"]


def _spread(figure: Figure, shown: Callable[[float], str]) -> str:
    if figure.low == figure.high:
        return shown(figure.middle)
    return f"{shown(figure.middle)} ({shown(figure.low)} to {shown(figure.high)})"


def _case(results: Results, name: str) -> list[str]:
    case = CASES[name]
    columns = _COLUMNS.get(name, _DEFAULT)
    rows = []
    for peer in results.peers(name):
        cpu, ratio = results.figure(name, peer, "cpu"), results.ratio(name, peer, "relayd", "cpu")
        rows.append([
            f"**{PEERS[peer].label}**" if peer.startswith("relayd") else PEERS[peer].label,
            _spread(cpu, "{:.3f}".format) if cpu else _NONE,
            f"{ratio.middle:.2f}" if ratio else _NONE,
            *(column.cell(results, name, peer) for column in columns),
            results.trouble(name, peer) or "intact",
        ])  # fmt: skip
    headings = ["", f"CPU, {case.unit.value}", "relayd = 1", *(column.heading for column in columns), "stream"]
    parts = [f"## {case.title} (`{name}`)", _table(headings, rows)]
    return parts


def _table(headings: list[str], rows: Iterable[list[str]]) -> str:
    lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
