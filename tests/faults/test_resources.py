"""Resources: what much of something costs, and that nothing of it stays."""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.faults.oracle import MIB
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import Ends, check_quiet, ends
from tests.faults.visitors import come, leave, room_for, sent_to_nobody
from tests.integration.daemons import Feed, Site, descriptors, relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    cells_of,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    reset_connection,
    spawned,
    wait_until,
)


def churn(relayed: Ends, rounds: int) -> None:
    """Have so many sources come, each with a client that gets a cell; all leave, with FIN or RST in turn."""
    for number in range(rounds):
        end = reset_connection if number % 2 else socket.socket.close
        source, client = connect(relayed.source_port), connect(relayed.port)
        cell = keyed("feed", number, 1)
        client.setblocking(False)
        deadline = time.monotonic() + PATIENCE
        while True:  # the client gets what is sent after it was let in
            source.sendall(cell)
            time.sleep(0.001)
            try:
                (found,) = cells_of("feed", client.recv(CELL))
                assert number - 1 <= found <= number, "an old cell"  # the last of the round before may be under way
                break
            except BlockingIOError:
                assert time.monotonic() < deadline, "the client gets nothing"
        end(client)
        end(source)


def gone(relayed: Ends) -> None:
    """Wait until all have left: who has ended its side is known to be gone by the next data."""
    source = relayed.source()
    wait_until(lambda: sent_to_nobody(source, relayed.site), "the end of all")
    reset_connection(source)
    wait_until(lambda: relayed.site.relay("one")["source"]["state"] == "listening", "the end of the source")


@row(
    "R1",
    provoked="100,000 links (1,000 in the short form) come, get a cell and leave, with FIN or RST",
    required="after a tenth of them to warm up: no descriptor, no timer, less than 2 MiB more",
)
def test_r1_churn(rig: Rig) -> None:
    rounds = rig.times(500, 50_000)
    with ends(rig, framing="line") as relayed:
        churn(relayed, rounds // 10)
        gone(relayed)
        before, held = relayed.site.memory(), _held(relayed.site)
        churn(relayed, rounds)
        gone(relayed)
        wait_until(lambda: all(count <= held[name] for name, count in _held(relayed.site).items()), "what was before")
        grown = relayed.site.memory() - before
        assert grown < 2 * MIB, f"{grown / MIB:.1f} MiB more"
        rig.saw(f"{2 * rounds:,} links: {grown / 1024:+.0f} KiB")


def _held(site: Site) -> dict[str, int]:
    return {"descriptors": len(descriptors(site.pid)), **site.status()["loop"]}


@row(
    "R2",
    provoked="a timer of a minute is set again a million times (50,000 in the short form): that of a caller of the "
    "control socket, by each of its requests",
    required="cancelled timers do not pile up: there is one, and less than 2 MiB more",
)
def test_r2_timers_that_are_set_again(rig: Rig) -> None:
    requests, batch = rig.times(50_000, 1_000_000), 500
    with rig.daemon(lag=0.1) as site, socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(PATIENCE)
        caller.connect(str(site.control))
        timers, before = site.status()["loop"]["timers"], site.memory()
        for _ in range(requests // batch):
            caller.sendall(b'{"command": ""}\n' * batch)
            answers = b""
            while answers.count(b"\n") < batch:
                answers += caller.recv(1 << 16)
            assert b'"ok": true' not in answers
        grown = site.memory() - before
        assert grown < 2 * MIB, f"{grown / MIB:.1f} MiB more"
        wait_until(lambda: site.status()["loop"]["timers"] <= timers, "the timers to be as many as before")
        rig.saw(f"{requests:,} times: {grown / 1024:+.0f} KiB")


@row(
    "R3",
    provoked="10,000 idle clients (2,000 in the short form)",
    required="at most 60 MiB for 10,000, the program included; less than 1 % CPU besides what other relays carry",
)
def test_r3_idle_clients(rig: Rig) -> None:
    count = rig.times(2000, 10_000)
    room_for(count)
    with ends(rig, max_clients=count, backlog=4096, grows=count * 4096) as relayed, ExitStack() as stack:
        site = relayed.site
        before = site.memory()
        crowd = come(stack, site, relayed.port, count)
        check_quiet(rig, site)
        each = (site.memory() - before) / count
        resident = (before + 10_000 * each) / MIB
        assert resident < 60, f"{resident:.0f} MiB for 10,000"
        rig.saw(f"{each / 1024:.1f} KiB each, {resident:.0f} MiB for 10,000")
        leave(site, crowd)


# -- for long ---------------------------------------------------------------------------------------


@row(
    "R9",
    provoked="mixed load in rounds: links that come and go, bulk, a client that is cut because it does not read, "
    "sources that are replaced, reloads (10 rounds; 3,000 in the long form)",
    required="resident memory does not rise over the second half of them, by linear regression; descriptors and "
    "threads stay as many",
)
def test_r9_mixed_load(rig: Rig) -> None:
    rounds, ports = rig.times(10, 3000), (free_port(), free_port())
    sections = [relay("one", *ports, framing="line", buffer=size) for size in ("256K", "512K")]
    held: list[tuple[int, int]] = []
    memory: list[float] = []
    with rig.daemon(sections[0]) as site, ExitStack() as stack:
        relayed = Ends(site, stack, "one", *ports, connects=False)
        for number in range(rounds):
            churn(relayed, 20)
            gone(relayed)
            client, stalled, source = relayed.client(), relayed.client(small=True), relayed.source()
            collector = Collector(client)
            for piece in range(1, 17):  # 1 MiB: more than the window and the queue of the one that is stalled
                source.sendall(keyed("bulk", (piece - 1) << 12, 1 << 12))
                collector.wait_for(piece * CELL << 12)
            assert collector.data == bulk(1 << 16)
            wait_until(lambda: len(site.relay("one")["destinations"]) == 1, "the cut")
            other = relayed.source()  # replaces the first
            for sock in (stalled, other, source):
                reset_connection(sock)
            client.shutdown(socket.SHUT_RDWR)
            gone(relayed)
            site.configure(sections[number % 2], rig.control_relay)
            site.reload()
            memory.append(site.memory() / MIB)
            held.append((len(descriptors(site.pid)), len(list(Path(f"/proc/{site.pid}/task").iterdir()))))
        site.configure(sections[0], rig.control_relay)
        site.reload()
        half = memory[rounds // 2 :]
        risen = statistics.linear_regression(range(len(half)), half).slope * len(half)
        assert risen < 0.5, f"{risen:.2f} MiB more in {len(half)} rounds: {memory}"
        assert max(held[rounds // 2 :]) <= max(held[: rounds // 2]), held
        rig.saw(f"{rounds} rounds, {risen:+.2f} MiB over the second half")


@row(
    "R10",
    provoked="Python's garbage collector is switched off; 50,000 links (1,000 in the short form) come and go",
    required="memory is flat: what belongs to a link is freed without it, for there are no cycles",
)
def test_r10_no_cycles(rig: Rig) -> None:
    (rig.folder / "sitecustomize.py").write_text("import gc\ngc.disable()\n")
    ports = free_port(), free_port()
    without = ["env", f"PYTHONPATH={rig.folder}"]
    with rig.daemon(relay("one", *ports, framing="line"), prefix=without) as site, ExitStack() as stack:
        relayed = Ends(site, stack, "one", *ports, connects=False)
        churn(relayed, 50)
        gone(relayed)
        before, rounds = site.memory(), rig.times(500, 25_000)
        churn(relayed, rounds)
        gone(relayed)
        grown = site.memory() - before
        assert grown < MIB, f"{grown / rounds:.0f} bytes more for each"
        rig.saw(f"{2 * rounds:,} links: {grown / 1024:+.0f} KiB")


@row(
    "R11",
    provoked="two busy processes on each core beside it, with a higher priority than its own",
    required="no link is given up, with `keepalive`, `stall_timeout` and `source_idle` of 2 s; no byte is lost",
)
def test_r11_busy_neighbours(rig: Rig) -> None:
    keys = {"keepalive": "1s/1s/2", "stall_timeout": "2s", "source_idle": "2s", "framing": "line"}
    ports, polite = (free_port(), free_port()), ["nice", "-n", "5"]
    # The untouched relay's stream is late like everybody's: `pauses`.
    with rig.daemon(relay("one", *ports, **keys), prefix=polite, pauses=True) as site, ExitStack() as stack:
        relayed = Ends(site, stack, "one", *ports, connects=False)
        clients = [relayed.client() for _ in range(5)]
        collectors, source = [Collector(client) for client in clients], relayed.source()
        for _ in range(2 * (os.cpu_count() or 1)):
            stack.enter_context(spawned(sys.executable, "-c", "while True: pass"))
        feed = Feed(source, "feed")
        time.sleep(rig.times(3, 60))
        sent = feed.end()
        cut = site.lines("relay=one", "event=closed")  # the source is silent from now on
        assert not cut, site.tail()
        for collector in collectors:
            check_keyed("feed", collector.wait_for(sent), 0)
        rig.saw(f"{sent / 1e6:.1f} MB to each of five, none cut")
        for client in clients:
            client.shutdown(socket.SHUT_RDWR)
        reset_connection(source)


# -- the kernel's, and large numbers ------------------------------------------------------------------


@row(
    "R12",
    provoked="twenty clients that never read, with the kernel's own buffers; `notsent` 128K and 0",
    required="what the kernel of this machine holds for each, both ends of it, is capped: 512 KiB at most",
)
def test_r12_kernel_memory(rig: Rig) -> None:
    taken = {}
    for notsent in ("128K", "0"):
        with ends(rig, framing="line", buffer="32M", notsent=notsent, grows=24 * MIB) as relayed:
            clients = [relayed.client() for _ in range(20)]
            source = relayed.source()
            source.sendall(bulk(1 << 20))  # 16 MiB
            wait_until(lambda relayed=relayed: relayed.totals()["bytes_in"] == CELL << 20, "all of it")
            links = relayed.site.relay("one")["destinations"]
            assert len(links) == 20 and all(link["queued"] for link in links), links
            taken[notsent] = max(link["sent"] for link in links)
            for sock in (*clients, source):
                reset_connection(sock)
    assert taken["128K"] < 512 * 1024, taken
    assert taken["0"] > 2 * taken["128K"], f"nothing that had to be capped: {taken}"
    rig.saw(f"{taken['128K'] // 1024} KiB each; with `notsent = 0` {taken['0'] // 1024} KiB")


@row(
    "R13",
    provoked="more than 4 GiB (64 MiB in the short form) through one relay, over links that come and go and a reload",
    required="totals are exact, beyond 2^32 too, and never go backwards",
)
def test_r13_large_counts(rig: Rig) -> None:
    lives, ports = rig.times(4, 260), (free_port(), free_port())
    sections = [relay("one", *ports, "listen-connect", reconnect="1s", stall_timeout=time_) for time_ in ("0", "9s")]
    piece, before = bulk(1 << 20), {"bytes_in": 0}
    with rig.daemon(sections[0]) as site, listener(ports[1]) as server:
        destination = server.accept()[0]
        for life in range(1, lives + 1):
            with connect(ports[0]) as source:
                sender = Sender(source, piece, 1 << 20)
                assert _received(destination, len(piece)) == len(piece)
                sender.wait_end()
            totals = site.relay("one")["totals"]
            assert totals["bytes_in"] == totals["bytes_out"] == life * len(piece), totals
            assert all(totals[name] >= count for name, count in before.items()), (before, totals)
            before = totals
            site.configure(sections[life % 2], rig.control_relay)
            site.reload()
        reset_connection(destination)
        server.close()
        rig.saw(f"{before['bytes_in']:,} bytes, exact")


def _received(sock: socket.socket, count: int) -> int:
    sink, found = bytearray(1 << 20), 0
    while found < count and (size := sock.recv_into(sink)):
        found += size
    return found


@row(
    "R14",
    provoked="4,096 relays in one daemon (256 in the short form)",
    required="for 4,096: a start in 2 s, a reload in 0.5 s, a status in 0.1 s",
)
def test_r14_many_relays(rig: Rig) -> None:
    count = rig.times(256, 4095)  # and the one that nobody touches
    sections = [relay(f"r{n}", f"unix:{n}a", f"unix:{n}b") for n in range(count)]
    room_for(2 * count)
    with rig.site(*sections) as site:
        took = {"start": _seconds(site.start)}
        site.stop()
    # The untouched relay waits for what is done in one turn, as a reload is: `pauses`.
    with rig.daemon(*sections, pauses=True, grows=count * 8192 + 2 * MIB) as site:
        took["status"] = _seconds(site.status)
        site.configure(*sections[1:], rig.control_relay)
        took["reload"] = _seconds(site.reload)
        site.configure(*sections, rig.control_relay)
        took["reload"] = max(took["reload"], _seconds(site.reload))
        for what, limit in {"start": 2.0, "reload": 0.5, "status": 0.1}.items():
            assert took[what] < limit * SLOWNESS, took
        rig.saw(f"{count:,}: " + ", ".join(f"{what} {seconds:.2f} s" for what, seconds in took.items()))


def _seconds(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


@row(
    "R15",
    provoked="descriptors above 1,023, where select(2) ends: 1,100 clients",
    required="they are served like all others: epoll(7) and poll(2) know no limit",
)
def test_r15_high_descriptors(rig: Rig) -> None:
    count = 1100
    room_for(count)
    with ends(rig, framing="line", max_clients=count, backlog=4096, grows=count * 6 * 1024) as relayed:
        with ExitStack() as stack:
            crowd, source = come(stack, relayed.site, relayed.port, count), relayed.source()
            highest = max(relayed.site.descriptors())
            assert highest > 1023
            source.sendall(keyed("feed", 0, 1))
            for sock in crowd:
                sock.settimeout(PATIENCE)
                check_keyed("feed", receive(sock, CELL), 0)
            leave(relayed.site, crowd)
        rig.saw(f"up to {highest}")
