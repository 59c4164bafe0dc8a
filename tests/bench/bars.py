"""What relayd has to reach. A bar that is missed is shown as missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.bench.results import Figure, Results

_MB = 2**20

Seen = Callable[[Results], Figure | None]


@dataclass(frozen=True)
class Bar:
    """`seen` must not be above `limit`; `shown` formats both."""

    text: str
    limit: float
    seen: Seen
    shown: str = "{:.2f} x"


def _ratio(case: str, other: str, path: str = "cpu", ours: str = "relayd") -> Seen:
    return lambda results: results.ratio(case, ours, other, path)


def _scaled(figure: Figure | None, factor: float) -> Figure | None:
    return figure and Figure(figure.middle * factor, figure.low * factor, figure.high * factor)


def _value(case: str, path: str, factor: float = 1.0) -> Seen:
    return lambda results: _scaled(results.figure(case, "relayd", path), factor)


def _difference(less: tuple[str, str], more: tuple[str, str], factor: float) -> Seen:
    """Return what relayd's figure `more` is above its figure `less`, both (case, path)."""
    low, high = (less[0], "relayd", less[1]), (more[0], "relayd", more[1])
    return lambda results: _scaled(results.difference(low, high), factor)


def _unserved(results: Results) -> Figure | None:
    return results.difference(("storm", "relayd", "storm.served"), ("storm", "relayd", "storm.count"))


BARS = (
    Bar("1:1 bulk, CPU: to the C splice floor", 1.2, _ratio("bulk-1to1", "floor-splice")),
    Bar("1:1 bulk, CPU: to nginx", 0.6, _ratio("bulk-1to1", "nginx")),
    Bar("1:1 bulk, CPU: to HAProxy", 0.35, _ratio("bulk-1to1", "haproxy")),
    Bar("1:1 bulk, CPU: to socat", 0.35, _ratio("bulk-1to1", "socat")),
    Bar("fan-out bulk to 100, CPU: to the C copying floor", 1.1, _ratio("bulk-100", "floor-copy")),
    Bar("100 clients x 100 B, CPU: to the C copying floor", 1.35, _ratio("messages-100", "floor-copy")),
    Bar("1,000 clients x 100 B, CPU: to the C copying floor", 1.35, _ratio("messages-1000", "floor-copy")),
    Bar("framing=line, fan-out bulk, CPU: to raw", 1.1, _ratio("bulk-100", "relayd", ours="relayd-line")),
    Bar("1:1 at 1,000/s, p50: to nginx", 1.3, _ratio("latency-1to1", "nginx", "timed.p50_us")),
    Bar("1:1 at 1,000/s, p99: to nginx", 2.0, _ratio("latency-1to1", "nginx", "timed.p99_us")),
    Bar("coalesce=5ms, CPU per delivery: to str2str", 1.5, _ratio("coalesce", "str2str", ours="relayd-coalesce")),
    Bar("resident, one relay, no client", 25, _value("messages-100", "rss_idle", 1 / _MB), "{:.1f} MB"),
    Bar(
        "resident for each of 10,000 idle clients", 4,
        _difference(("messages-10000", "rss_idle"), ("messages-10000", "rss_joined"), 1 / 10_000 / 1024), "{:.2f} KB",
    ),
    Bar(
        "1,000 clients that never read, resident: over the same that read", 12,
        _difference(("read", "rss_end"), ("unread", "rss_end"), 1 / _MB), "{:.1f} MB",
    ),
    Bar("15,000 connects at once: not served", 0, _unserved, "{:.0f}"),
    Bar("15,000 connects at once: p99 of the running stream", 100, _value("storm", "timed.p99_us", 1e-3), "{:.1f} ms"),
    Bar("half of the clients stalled: messages the others miss", 0, _value("stalled", "timed.lost"), "{:.0f}"),
    Bar(
        "half of the clients stalled: p99 of the others moves by", 10,
        _difference(("stalled", "calm.p99_us"), ("stalled", "timed.p99_us"), 1e-3), "{:.2f} ms",
    ),
    Bar(
        "half of the clients stalled: the source is held up by (at most)", 10,
        _difference(("stalled", "calm.late_ms"), ("stalled", "timed.late_ms"), 1), "{:.2f} ms",
    ),
)  # fmt: skip
