"""The cases: what the load does, who takes part, and in what the relay's CPU time is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Chain(Enum):
    """Who connects to whom; see the package's docstring."""

    PAIR = "1:1"
    FAN = "fan-out"


class Unit(Enum):
    """What the relay's CPU time is divided by."""

    GIGABYTE = "s/GB"
    DELIVERY = "µs/delivery"
    CONNECT = "µs/connect"


# What --quick leaves out.
SLOW_PEERS = ("haproxy-splice", "socat", "ncat", "str2str")

PAIR_PEERS = ("relayd", "floor-splice", "nginx", "haproxy", "haproxy-splice", "socat")
FAN_PEERS = ("relayd", "floor-copy", "ncat", "str2str")


_SHORTENED = ("seconds", "bytes", "verify")  # by --quick


@dataclass(frozen=True)
class Case:
    """`load` holds load.c's options; `relayd` the keys that relayd needs to do the case at all."""

    name: str
    title: str
    chain: Chain
    bulk: bool
    load: Mapping[str, float]
    peers: tuple[str, ...]
    relayd: Mapping[str, str] = field(default_factory=dict)

    @property
    def unit(self) -> Unit:
        """In bulk bytes are what costs, with messages the calls: one for each and receiver."""
        if "storm" in self.load:
            return Unit.CONNECT
        return Unit.GIGABYTE if self.bulk else Unit.DELIVERY

    @property
    def links(self) -> int:
        """Descriptors that a process needs."""
        return int(self.load.get("count", 1) + self.load.get("storm", 0))

    def load_options(self, quick: bool) -> dict[str, float]:
        """Return load.c's options, for a short look or in full."""
        if not quick or "stall" in self.load or "storm" in self.load:  # whose length is what matters
            return dict(self.load)
        return {**self.load, **{name: self.load[name] / 4 for name in _SHORTENED if name in self.load}}


def _case(
    name: str, title: str, chain: Chain, peers: tuple[str, ...], relayd: Mapping[str, str] | None = None, **load: float
) -> Case:
    return Case(name, title, chain, "bytes" in load, load, peers, relayd or {})


CASES = {
    case.name: case
    for case in (
        _case(
            "bulk-1to1", "1:1, bulk", Chain.PAIR, (*PAIR_PEERS, "relayd-line"),
            size=64 * 1024, bytes=6e9, seconds=2.5, verify=64 * 2**20,
        ),
        _case(
            "latency-1to1", "1:1, 100 B at 1,000/s", Chain.PAIR, PAIR_PEERS,
            size=100, rate=1000, seconds=4,
        ),
        _case(
            "bulk-100", "100 clients, bulk in 64 KiB", Chain.FAN, (*FAN_PEERS, "relayd-line"), {"overflow": "block"},
            count=100, size=64 * 1024, bytes=100e6, seconds=2.5, verify=2 * 2**20,
        ),
        _case(
            "messages-100", "100 clients, 100 B at 500/s", Chain.FAN, FAN_PEERS,
            count=100, size=100, rate=500, seconds=4,
        ),
        _case(
            "messages-1000", "1,000 clients, 100 B at 20/s", Chain.FAN, FAN_PEERS, {"max_clients": "1100"},
            count=1000, size=100, rate=20, seconds=4,
        ),
        _case(
            "messages-10000", "10,000 clients, 200 B at 1/s", Chain.FAN, FAN_PEERS,
            {"max_clients": "10100", "backlog": "4096"},
            count=10_000, size=200, rate=1, seconds=5,
        ),
        _case(
            "coalesce", "20 clients, 1 KB at 2,000/s", Chain.FAN, ("relayd-coalesce", *FAN_PEERS),
            count=20, size=1024, rate=2000, seconds=4,
        ),
        _case(
            "stalled", "30 clients, 4 KB at 500/s, half of them stall", Chain.FAN, FAN_PEERS,
            count=30, size=4096, rate=500, calm=2, seconds=6, stall=15,
        ),
        _case(
            "storm", "15,000 connects at once, beside 10 clients with 100 B at 100/s", Chain.FAN, FAN_PEERS,
            {"max_clients": "16000", "backlog": "4096"},
            count=10, size=100, rate=100, seconds=30, storm=15_000,
        ),
        _case(
            "unread", "1,000 clients that never read, 4 MB sent", Chain.FAN, ("relayd",),
            {"max_clients": "1100", "send_buffer": "64K"},
            count=1000, size=16_000, rate=50, seconds=5, stall=1000,
        ),
        _case(
            "read", "the same, but they read", Chain.FAN, ("relayd",), {"max_clients": "1100", "send_buffer": "64K"},
            count=1000, size=16_000, rate=50, seconds=5,
        ),
    )
}  # fmt: skip
