"""The plot: CPU time of the relay, a panel for each case, a bar for each program."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.cases import CASES
from tests.bench.peers import PEERS
from tests.bench.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _FLOOR, _OTHER, _BAD = "#c0392b", "#2c3e50", "#9aa5b1", "#e5b567"
_PANELS = ("bulk-1to1", "bulk-100", "messages-100", "messages-1000", "messages-10000", "coalesce")


def draw(results: Results, path: Path) -> bool:
    """Draw an SVG; False where matplotlib is not installed, or there is nothing to draw."""
    try:
        import matplotlib
    except ImportError:
        return False
    panels = [case for case in _PANELS if any(cpu for _, cpu in _bars(results, case))]
    if not panels:
        return False
    matplotlib.use("svg")
    # Text stays text, and nothing changes from one drawing of the same figures to the next.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "relayd", "font.size": 9})
    from matplotlib import pyplot

    rows = (len(panels) + 1) // 2
    figure, axes = pyplot.subplots(rows, 2, figsize=(10, 2.1 * rows), layout="constrained", squeeze=False)
    for place, case in zip(axes.flat, panels, strict=False):
        _panel(place, results, case)
    for place in axes.flat[len(panels) :]:
        place.set_visible(False)
    figure.suptitle(f"CPU time of the relay; less is better   ({results.machine['date']})", fontsize=10)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return True


def _bars(results: Results, case: str) -> list[tuple[str, float]]:
    """Return (peer, CPU time), the best first; who could not do the case comes last, with 0."""
    found = [(peer, results.figure(case, peer, "cpu")) for peer in results.peers(case)]
    bars = [(peer, cpu.middle if cpu else 0.0) for peer, cpu in found]
    return sorted(bars, key=lambda bar: bar[1] or float("inf"))


def _panel(place: Axes, results: Results, case: str) -> None:
    bars = _bars(results, case)
    names = [PEERS[peer].label for peer, _ in bars]
    drawn = place.barh(names, [cpu for _, cpu in bars], 0.7, color=[_colour(results, case, peer) for peer, _ in bars])
    figures = [f"{cpu:.2f}  " if cpu else "" for _, cpu in bars]
    labels = [figure + results.trouble(case, peer) for figure, (peer, _) in zip(figures, bars, strict=True)]
    place.bar_label(drawn, labels, padding=3, fontsize=8)
    place.invert_yaxis()
    place.margins(x=0.25)
    place.set_title(f"{CASES[case].title}  ({CASES[case].unit.value})", fontsize=9, loc="left")
    place.xaxis.set_visible(False)  # the figures stand at the bars
    place.spines[["top", "right", "bottom"]].set_visible(False)
    place.tick_params(axis="y", length=0)


def _colour(results: Results, case: str, peer: str) -> str:
    if peer.startswith("relayd"):
        return _OURS
    if results.trouble(case, peer):
        return _BAD
    return _FLOOR if peer.startswith("floor") else _OTHER
