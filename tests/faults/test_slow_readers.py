"""Readers that are slow, stopped or gone to sleep: what they cost themselves, the source, and the others."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.faults.oracle import MIB, kernel_memory
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.slowcrowd import FAST, NEVER, SLOW, crowd
from tests.faults.streams import LAG, check_quiet, ends
from tests.integration.daemons import Site, relay
from tests.support import (
    CELL,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    free_port,
    receive,
    spawned,
)

# Reads all that it gets, and says so once something has come.
_READER = """
import socket, sys
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.recv(1), print(flush=True)
while sock.recv(1 << 20): pass
"""

# Small kernel buffers at both ends, so that what waits does so in relayd, where its rules apply.
_SMALL = {"send_buffer": "64K", "receive_buffer": "64K"}


@row(
    "S10",
    provoked="a peer that is alive and takes nothing: a closed window, a process that is stopped",
    required="cut by `stall_timeout`, +25 %, before the kernel's own timeout: `reason=stalled`",
)
@pytest.mark.parametrize("kind", ["window", "stopped"])
def test_s10_takes_nothing(rig: Rig, kind: str) -> None:
    limit = rig.times(1, 10)
    with ends(rig, stall_timeout=f"{limit}s", buffer="32M", grows=12 * MIB, **_SMALL) as relayed, ExitStack() as stack:
        source = relayed.source()
        if kind == "window":
            relayed.client(small=True)
        else:
            words = sys.executable, "-c", _READER, str(relayed.port)
            process = stack.enter_context(spawned(*words, stdout=subprocess.PIPE))
            relayed.site.wait_log("relay=one client=", "event=connected")
            source.sendall(b"x")
            assert process.stdout is not None and process.stdout.readline() == b"\n"
            process.send_signal(signal.SIGSTOP)
        sender, began = Sender(source, bulk(500_000)), time.monotonic()
        relayed.closed("stalled")
        took = time.monotonic() - began
        # It takes what its kernel has room for at first; and up to a quarter of the limit passes until it is looked at.
        assert 0.9 * limit < took < 1.25 * limit + SLOWNESS
        sender.wait_end()
        rig.saw(f"{kind}: {took:.2f} s with {limit}")


@row(
    "S11",
    provoked="a source that floods a 1:1 relay whose destination reads nothing",
    required="`buffer` fills and no more, then the source waits; memory flat, less than 1 % of a core; "
    "nothing is missing when the destination goes on",
)
@pytest.mark.parametrize("framing", ["raw", "line"])
def test_s11_a_flood_that_nobody_reads(rig: Rig, framing: str) -> None:
    with ends(rig, "listen-connect", framing=framing, buffer="1M", grows=4 * MIB, **_SMALL) as relayed:
        server, source = relayed.client(small=True), relayed.source()
        before = relayed.site.memory()
        sender = Sender(source, bulk(500_000))
        sender.wait_stuck()
        (link,) = relayed.site.relay("one")["destinations"]
        assert 0.4 * MIB < link["queued"] <= 1.25 * MIB, link  # the chunk that filled it is taken whole
        for _ in range(rig.times(1, 60)):
            check_quiet(rig, relayed.site)
            assert relayed.site.memory() - before < 3 * MIB
        got = Collector(server)
        sender.wait_end()
        assert got.wait_for(500_000 * CELL) == bulk(500_000)
        rig.saw(f"{framing}: {link['queued'] / MIB:.2f} MiB queued of 1")


@row(
    "S12",
    provoked="10,000 pauses of the source (500 in short): each chunk fills a `buffer` that its reader has just emptied",
    required="each is followed by its resumption: the stream does not stand still, and nothing is missing",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s12_pausing_and_resuming(rig: Rig, mode: str) -> None:
    """A queue of 4 KiB is full with every read, so there is a pause for every 64 KiB at least."""
    pauses = rig.times(500, 10_000)
    size = pauses * 64 * 1024 // MIB * MIB
    keys = {"framing": "line", "overflow": "block", "buffer": "4K", "max_record": "1K", "grows": 4 * MIB, **_SMALL}
    with ends(rig, mode, **keys) as relayed:
        client, source = relayed.client(), relayed.source()
        block = bulk(MIB // CELL)
        sender = Sender(source, block * (size // MIB))
        for number in range(size // MIB):
            assert receive(client, MIB) == block, f"not the stream, in MiB {number}"
            if rig.random.random() < 0.2:
                time.sleep(0.01)  # long enough for everything to stand still
        sender.wait_end()
        rig.saw(f"{mode}: {size // MIB} MiB through a queue of 4 KiB")


def _cut(site: Site, buffer: int) -> float:
    """Return what the one that was cut had waiting, in buffers."""
    line = site.wait_log(" client=", "event=closed", "reason=slow ")
    return int(line.partition(" dropped=")[2].split()[0]) / buffer


@row(
    "S13",
    provoked="one client of a crowd never reads (of 1,000; in short of 50)",
    required="cut with 0.7 to 2 times `buffer` waiting, or at `slow_after` and a quarter of its time; the others' p99 "
    "changes by 10 ms at most; the source is not slowed; reason and bytes are logged and counted",
)
def test_s13_one_never_reads(rig: Rig) -> None:
    fast, buffer, seconds = rig.times(49, 999), MIB // 2, rig.times(1, 10)
    ports = free_port(), free_port()
    keys = {"framing": "line", "buffer": buffer, "max_clients": 1100, **_SMALL}
    rate = 60 * MIB // fast
    changes = []
    with rig.daemon(relay("one", *ports, **keys), grows=6 * MIB, lag=LAG) as site:
        while not changes or (changes[-1] > 0.010 and len(changes) < 3):  # of others who use the machine, too
            p99 = []
            for never in (0, 1):
                with crowd(*ports, fast=fast, slow=0, never=never) as readers:
                    found = readers.send(seconds if not never else max(seconds, 2 * buffer / rate), rate)
                    rest = readers.catch_up()
                    assert not rest["missing"] and not rest["unsent"], rest
                    assert found["sent"] > found["due"] - MIB // 2, "the source was slowed"
                    assert readers.links() == {FAST: fast, SLOW: 0, NEVER: 0}
                    p99.append(found["p99"])
            changes.append(p99[1] - p99[0])
        assert changes[-1] < 0.010 * SLOWNESS, changes
        waiting = _cut(site, buffer)
        assert 0.7 < waiting < 2
        assert site.relay("one")["totals"]["dropped"] >= waiting * buffer
        rig.saw(f"cut at {waiting:.2f} of `buffer`; the others' p99 {changes[-1] * 1000:+.1f} ms")


@row("S13", provoked="", required="")
def test_s13_the_soft_limit(rig: Rig) -> None:
    limit = rig.times(1, 10)
    with ends(rig, framing="line", slow_after=f"256K {limit}s", grows=6 * MIB, **_SMALL) as relayed:
        relayed.client(small=True)
        pace = Collector(relayed.client())
        relayed.source().sendall(bulk(64 * 1024))  # 1 MiB, where `buffer` is four
        began = time.monotonic()
        relayed.closed("slow")
        took = time.monotonic() - began
        assert 0.8 * limit < took < 1.25 * limit + SLOWNESS
        pace.wait_for(MIB)
        rig.saw(f"at the soft limit after {took:.2f} s with {limit}")


@row(
    "S14",
    provoked="the policies compared: one client of a crowd never reads",
    required="`disconnect`, the default where clients come in, and the dropping ones: the others get it all in time; "
    "under `block` nobody gets more once the queue is full",
)
def test_s14_policies_compared(rig: Rig) -> None:
    """All at once, each in a relay of its own, one after the other in the same flow."""
    policies = ["", "drop_oldest", "block"]
    ports = {policy: (free_port(), free_port()) for policy in policies}
    keys = {"framing": "line", "buffer": "256K", "stall_timeout": "0", **_SMALL}
    relays = [
        relay(policy or "default", *ports[policy], **keys, **({"overflow": policy} if policy else {}))
        for policy in policies
    ]
    delivered = {}
    with rig.daemon(*relays, grows=6 * MIB, lag=LAG) as site:
        assert site.relay("default")["settings"]["overflow"] == "disconnect"
        for policy in policies:
            with crowd(*ports[policy], fast=rig.times(10, 200), slow=0, never=1) as readers:
                found = readers.send(rig.times(1, 10), 3 * MIB)
                links = readers.links()
                assert links[NEVER] == (policy != ""), "the one that never reads"
                name = policy or "default"
                assert links[FAST] == rig.times(10, 200)
                delivered[name] = 100 * found["sent"] // found["due"]
                if policy == "block":
                    assert delivered[name] < 50, "nobody was held up"
                    readers.leave(NEVER)
                else:
                    assert delivered[name] > 80, "the source was held up"
                rest = readers.catch_up()
                assert not rest["missing"] and not rest["unsent"], rest
        rig.saw(", ".join(f"{name} {part} %" for name, part in delivered.items()) + " of the stream in its time")


@row(
    "S15",
    provoked="10 % never read, 10 % read 1 KiB/s, 80 % are fast, of 1,000 clients (50 in short), with default settings "
    "but a small `buffer`",
    required="the fast lose nothing; what waits is held once, so memory grows by one `buffer` and 20 %, not by one for "
    "each that is slow; the kernel holds `notsent` and a window for each, not the 2.8 MB it holds by default",
)
def test_s15_a_crowd_with_defaults(rig: Rig) -> None:
    tenth, buffer = rig.times(5, 100), MIB
    ports = free_port(), free_port()
    keys = {"framing": "line", "overflow": "drop_oldest", "buffer": buffer, "max_clients": 1100}
    with (
        rig.daemon(relay("one", *ports, **keys), grows=8 * MIB, lag=LAG) as site,
        crowd(*ports, fast=8 * tenth, slow=tenth, never=tenth) as readers,
    ):
        before, kernel = site.memory(), kernel_memory()
        readers.send(rig.times(2, 600), 120 * MIB // (8 * tenth))
        rest = readers.catch_up()
        assert not rest["missing"] and not rest["unsent"], rest
        grown = site.memory() - before
        assert grown < 1.2 * buffer + 8 * MIB
        held = (kernel_memory() - kernel) / (2 * tenth)
        assert held < MIB, "of the kernel's memory, for each that is slow"
        rig.saw(f"{grown / MIB:+.1f} MiB resident, {held / 1024:.0f} KiB of the kernel's for each slow one")


@row(
    "S25",
    provoked="a source that is faster than all of its clients together",
    required="`block`: it waits, its window closes; else it never waits, and what its clients do not get is counted "
    "for each: dropped records, or their link",
)
@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "block"])
def test_s25_a_source_faster_than_all(rig: Rig, overflow: str) -> None:
    count = 10
    ports = free_port(), free_port()
    keys = {"framing": "line", "overflow": overflow, "buffer": "256K", **_SMALL}
    with (
        rig.daemon(relay("one", *ports, **keys), grows=6 * MIB, lag=LAG) as site,
        crowd(*ports, fast=0, slow=count, never=0) as readers,
    ):
        found = readers.send(rig.times(1, 20), 3 * MIB)
        part = found["sent"] / found["due"]
        links, totals = site.relay("one")["destinations"], site.relay("one")["totals"]
        if overflow == "block":
            assert part < 0.5 and not totals["dropped"]
            assert len(links) == count
        else:
            assert part > 0.8
        if overflow == "disconnect":
            site.wait_log(" client=", "event=closed", "reason=slow ", times=count)
        if overflow.startswith("drop"):
            assert len(links) == count
            for link in links:
                assert link["dropped"] == CELL * link["dropped_records"] > 0
                assert link["sent"] + link["dropped"] + link["queued"] == totals["bytes_in"], link
        rig.saw(f"{overflow}: {100 * part:.0f} % of its rate")
