"""K7: reloads without end, while clients come and go and long streams must not miss a byte."""

from __future__ import annotations

from contextlib import ExitStack

from tests.faults.links import Churner, Links
from tests.faults.oracle import MIB
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Feed, relay
from tests.support import SLOWNESS, Collector, Stopwatch, check_keyed, free_port, wait_until


@row(
    "K7",
    provoked="20 reloads (1,000 in the long form), each of which changes, adds or removes a few of 20 relays (of 50), "
    "under four clients that come and go and 10 long streams (20)",
    required="no reload fails, no client is refused or cut, all streams are whole; 1 MiB of memory more for 1,000 "
    "reloads, at most",
)
def test_k7_reload_storm(rig: Rig) -> None:
    streams = rig.times(10, 20)
    *ports, more, added = [(free_port(), free_port()) for _ in range(rig.times(20, 50) + 2)]
    quiet = range(streams + 1, len(ports))  # those that may be changed in every way

    def relays(changing: dict[int, str]) -> list[str]:
        return [changing.get(number, relay(f"r{number}", *pair)) for number, pair in enumerate(ports)]

    def changed() -> list[str]:
        gone, moved, other = rig.random.sample(quiet, 3)
        limits = rig.random.randrange(streams + 1)  # live: also where a stream flows, or clients come
        found = relays({
            gone: "",
            moved: relay(f"r{moved}", ports[moved][0], [ports[moved][1], more[1]]),
            other: relay(f"r{other}", *ports[other], framing="line", history="64K"),
            limits: relay(f"r{limits}", *ports[limits], buffer=f"{rig.random.randrange(4, 64)}M", stall_timeout="50s"),
        })  # fmt: skip
        return [*found, relay("added", *added)]

    # The oracle's own limit on memory is of the long form: 1 MiB for 1,000 reloads, and what so many relays cost once.
    with rig.daemon(*relays({}), grows=6 * MIB) as site, ExitStack() as stack:
        links = [stack.enter_context(Links(site, f"r{n}", *ports[n])) for n in range(streams + 1)]
        collectors = [Collector(link.clients[0]) for link in links]
        feeds = [Feed(link.source, f"s{number:03}", cells=5, pause=0.02) for number, link in enumerate(links)]
        # One relay more, that clients come to and leave.
        churners = [Churner(ports[streams][1], f"s{streams:03}") for _ in range(4)]
        reloads, slowest, memory, watch = rig.times(20, 1000), 0.0, 0, Stopwatch(site.pid)
        for number in range(reloads):
            site.configure(*(changed() if number % 2 == 0 else relays({})), rig.control_relay)
            watch.start()
            site.reload()
            slowest = max(slowest, watch.seconds())
            if number == reloads // 2:
                memory = site.memory()
        grown = site.memory() - memory
        wait_until(lambda: all(churner.served for churner in churners), "churn")
        served = sum(churner.end() for churner in churners)
        for number, (feed, collector) in enumerate(zip(feeds, collectors, strict=True)):
            total = feed.end()
            check_keyed(f"s{number:03}", collector.wait_for(total), 0)
            assert len(collector.data) == total
        assert grown <= 1 * MIB, f"{grown} bytes more after {reloads // 2} reloads"
        assert len(site.lines("event=reloaded")) == reloads and not site.lines("event=reload_failed")
        rig.saw(f"{reloads} reloads, {served} clients, all {streams} streams whole; slowest {1000 * slowest:.0f} ms")
        assert slowest < 1.0 * SLOWNESS
