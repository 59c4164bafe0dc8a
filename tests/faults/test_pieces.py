"""Streams in pieces of every size: dripped, in one go, joined late, swapped, out of band, backwards."""

from __future__ import annotations

import random
import socket
import threading
import time

import pytest

from tests.faults.oracle import MIB, cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import check_quiet, discard, ends
from tests.integration.daemons import Feed, proc_status
from tests.support import (
    CELL,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    check_keyed,
    connect,
    keyed,
    receive,
    wait_until,
)


class Flow(threading.Thread):
    """Sends a keyed stream as fast as it is taken, until it is told to end."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self._sock = sock
        self._ending = False
        self.start()

    def run(self) -> None:
        data = bulk(500_000)
        while not self._ending and self.sent < len(data):
            self._sock.sendall(data[self.sent : self.sent + 65_000])  # no multiple of a record
            self.sent = min(self.sent + 65_000, len(data))

    def end(self) -> int:
        """Send no more; return how many bytes were sent."""
        self._ending = True
        self.join()
        return self.sent


@row(
    "S16",
    provoked="clients join a stream as fast as it goes, while another has a backlog",
    required="each gets it from the next record on, whole and from now: nothing of what waits for the other",
)
def test_s16_late_joiners(rig: Rig) -> None:
    joiners, cells = rig.times(10, 200), 250_000
    with ends(rig, framing="line", buffer="64M", send_buffer="64K", grows=12 * MIB) as relayed:
        behind, source = relayed.client(small=True), relayed.source()
        pace = Collector(relayed.client())
        got, joined = [], []
        step = cells // joiners * CELL
        for number in range(joiners):
            part = bulk(cells)[number * step + 7 * (number > 0) : (number + 1) * step + 7]  # in the middle of a record
            Sender(source, part).wait_end()
            pace.wait_for((number + 1) * step)
            joined.append((number + 1) * step // CELL)
            got.append(Collector(relayed.client()))
        source.sendall(bulk(cells)[joiners * step + 7 :] + keyed("bulk", cells, 1))
        last = keyed("bulk", cells, 1)
        for collector, first in zip(got, joined, strict=True):
            wait_until(lambda collector=collector: collector.data.endswith(last), "the newest record")  # type: ignore[misc]
            assert check_keyed("bulk", bytes(collector.data), first).stop == cells + 1
        assert relayed.queued() > cells * CELL // 2, "nobody was behind"
        check_keyed("bulk", receive(behind, 1000 * CELL), 0)
        rig.saw(f"{joiners} joined at a record, and at now")


@row("S16", provoked="", required="")
def test_s16_joining_in_full_flow(rig: Rig) -> None:
    """Where each joins is chance; that it is a record's border, and nothing is missing from there, is not.

    The flow is as fast as those who read it: relayd outruns a dozen threads of a test, which would be cut.
    """
    with ends(rig, framing="line", overflow="block", grows=12 * MIB) as relayed:
        source, pace = relayed.source(), Collector(relayed.client())
        flow = Flow(source)
        got = []
        while len(got) < rig.times(10, 100) and flow.is_alive():
            got.append(Collector(relayed.client()))
        sent = flow.end()
        end = keyed("ends", 0, 1)
        source.sendall(b"\n" * (sent % CELL > 0) + end)
        pace.wait_for(sent)
        for collector in got:
            wait_until(lambda collector=collector: collector.data.endswith(end), "the end")  # type: ignore[misc]
            data = bytes(collector.data).removesuffix(end)
            check_keyed("bulk", data[: len(data) // CELL * CELL])


@row(
    "S17",
    provoked="1 MiB, one byte a packet (TCP_NODELAY)",
    required="intact; 60 µs of CPU a byte at most, in one record of a megabyte too: nothing is copied again and again",
)
@pytest.mark.parametrize("framing", ["raw", "line"])
def test_s17_a_drip(rig: Rig, framing: str) -> None:
    size = rig.times(20_000, MIB)
    data = bulk(size // CELL + 1)[: size - 1].replace(b"\n", b" ") + b"\n"
    with ends(rig, framing=framing, max_record="2M", buffer="4M", grows=8 * MIB) as relayed:
        source, got = relayed.source(), Collector(relayed.client())
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = cpu_seconds(relayed.site.pid)
        began = time.monotonic()
        Sender(source, data, 1).wait_end()
        assert got.wait_for(size) == data
        used = cpu_seconds(relayed.site.pid) - before - 0.015 * (time.monotonic() - began)  # the control client's
        assert used / size < 60e-6 * SLOWNESS
        rig.saw(f"{framing}: {used / size * 1e6:.0f} µs a byte")


@row(
    "S18",
    provoked="writes of 1, 10, 100, 1k, 32k, 64k, 128k and 256k bytes, and one of 1 GiB (64 MiB in short)",
    required="intact, in bulk and through the splice; resident memory flat",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s18_writes_of_all_sizes(rig: Rig, mode: str) -> None:
    block = bulk(MIB // CELL)
    with ends(rig, mode, overflow="block", buffer="1M", grows=6 * MIB) as relayed:
        client, source = relayed.client(), relayed.source()
        for size in (1, 10, 100, 1_000, 32_000, 64_000, 128_000, 256_000):
            part = block[: min(2000 * size, MIB)]
            sender = Sender(source, part, size)
            assert receive(client, len(part)) == part
            sender.wait_end()
        before = relayed.site.memory()
        blocks, most = rig.times(64, 1024), 0
        whole = Whole(client, block, blocks)
        for _ in range(blocks):
            source.sendall(block)
            most = max(most, relayed.site.memory())
        whole.wait_end()
        assert most - before < 4 * MIB
        rig.saw(f"{mode}: {blocks} MiB, {(most - before) / MIB:+.1f} MiB resident")


class Whole(threading.Thread):
    """Reads so many blocks, each of which must be the same."""

    def __init__(self, sock: socket.socket, block: bytes, count: int) -> None:
        super().__init__(daemon=True)
        self._sock, self._block, self._count = sock, block, count
        self._right = 0
        self.start()

    def run(self) -> None:
        for _ in range(self._count):
            if receive(self._sock, len(self._block)) != self._block:
                return
            self._right += 1

    def wait_end(self) -> None:
        """Return when all have come; fail where one was not right."""
        self.join()
        assert self._right == self._count, f"after {self._right} of {self._count} blocks"


@row(
    "S19",
    provoked="clients of a one-way relay flood it backwards",
    required="read, thrown away and counted (`discarded`): nothing reaches the source, nothing is kept, "
    "and the flooding clients get their stream",
)
def test_s19_a_flood_backwards(rig: Rig) -> None:
    size = rig.times(32, 512) * MIB
    with ends(rig) as relayed:
        source, clients = relayed.source(), [relayed.client() for _ in range(3)]
        before = relayed.site.memory()
        garbage = rig.random.randbytes(MIB) * (size // MIB)
        floods = [Sender(client, garbage) for client in clients[:2]]
        for first in range(0, 1000, 100):
            source.sendall(keyed("feed", first, 100))
            for client in clients:
                check_keyed("feed", receive(client, 100 * CELL), first)
        for flood in floods:
            flood.wait_end()
        wait_until(lambda: relayed.totals()["discarded"] == 2 * size, "all of it")
        assert relayed.site.memory() - before < 2 * MIB
        source.setblocking(False)
        with pytest.raises(BlockingIOError):
            source.recv(1)
        rig.saw(f"{2 * size // MIB} MiB discarded")


@row(
    "S20",
    provoked="urgent data (MSG_OOB) both ways, in bulk and between records",
    required="ignored: no spinning, nothing else of the stream is touched",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s20_urgent_data(rig: Rig, mode: str) -> None:
    with ends(rig, mode, grows=4 * MIB) as relayed:
        client, source = relayed.client(), relayed.source()
        got = Collector(client)
        for number in range(4):
            for sock in (client, source):
                sock.send(b"!", socket.MSG_OOB)
            if number % 2:
                check_quiet(rig, relayed.site)
            source.sendall(bulk(4 * MIB // CELL)[number * MIB : (number + 1) * MIB])
            # The kernel knows one urgent byte at a time: of a second one it makes an ordinary byte of the first.
            got.wait_for((number + 1) * MIB)
        assert got.data == bulk(4 * MIB // CELL)
        rig.saw("not a byte of it passed on")


@row(
    "S21",
    provoked="relayd is started by a parent that has SIGPIPE at its default; it sends to fifty clients that have left",
    required="the process ignores SIGPIPE; each link ends with the reason `reset`",
)
def test_s21_sigpipe(rig: Rig) -> None:
    """A client that is gone for good after its FIN answers RST, and the send after that is EPIPE."""
    with ends(rig) as relayed:
        ignored = int(proc_status(relayed.site.pid)["SigIgn"], 16)
        assert ignored >> 12 & 1, f"SIGPIPE (13) is not in {ignored:x}"
        source, clients = relayed.source(), [relayed.client() for _ in range(50)]
        pace = Collector(relayed.client())
        feed = Feed(source, "feed")
        for client in clients:
            client.shutdown(socket.SHUT_WR)
            client.close()
        relayed.closed("reset", times=50)
        check_keyed("feed", pace.wait_for(feed.end()), 0)
        rig.saw("50 of 50")


class Nibbler(threading.Thread):
    """Reads a few bytes at a time, 1 to 700, until it has so many."""

    def __init__(self, sock: socket.socket, count: int, rng: random.Random) -> None:
        super().__init__(daemon=True)
        self.data = bytearray()
        self._sock, self._count, self._random = sock, count, rng
        self.start()

    def run(self) -> None:
        while len(self.data) < self._count:
            data = self._sock.recv(self._random.randrange(1, 700))
            if not data:
                return
            self.data += data


@row(
    "S22",
    provoked="clients with the smallest buffers that there are take a few bytes at a time",
    required="whatever the kernel takes of a record, the rest follows: nothing twice, nothing missing",
)
@pytest.mark.parametrize(
    ("mode", "framing"), [("listen-listen", "line"), ("listen-listen", "raw"), ("listen-connect", "raw")]
)
def test_s22_partial_writes(rig: Rig, mode: str, framing: str) -> None:
    size = rig.times(1, 64) * MIB // 64
    keys = {"framing": framing, "send_buffer": "4K", "overflow": "block", "buffer": "64K"}
    with ends(rig, mode, grows=4 * MIB, **keys) as relayed:
        count = 3 if mode == "listen-listen" else 1
        readers = [Nibbler(relayed.client(small=True), size, random.Random(rig.seed + n)) for n in range(count)]
        Sender(relayed.source(), bulk(64 * MIB // CELL)[:size]).wait_end()
        for reader in readers:
            reader.join()
            assert reader.data == bulk(64 * MIB // CELL)[:size]
        rig.saw(f"{size:,} bytes in pieces of 1 to 700")


@row(
    "S26",
    provoked="sources replace one another in mid-record while data wait for a slow client (`second_source = replace`)",
    required="all records of the older that were whole come before those of the newer, in order; "
    "the one that was cut is thrown away, none is mixed of two",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s26_sources_swap(rig: Rig, mode: str) -> None:
    swaps, cells = rig.times(10, 500), 5_000
    keys = {"framing": "line", "overflow": "block", "send_buffer": "8K", "buffer": "256K", "linger_timeout": "100ms"}
    with ends(rig, mode, grows=4 * MIB, **keys) as relayed:
        client = relayed.client(small=True)
        nibbler = Nibbler(client, swaps * cells * CELL, random.Random(rig.seed))
        sources = []
        for life in range(swaps):
            source = relayed.source()
            # Its last record is cut somewhere; the replacement comes while most of it waits for the client.
            cut = keyed("feed", 10_000_000 + life, 1)[: rig.random.randrange(1, CELL)]
            source.sendall(keyed("feed", life * cells, cells) + cut)
            sources.append(source)
        wait_until(lambda: len(relayed.site.lines("event=closed", "reason=replaced ")) == swaps - 1, "all of them")
        nibbler.join()
        check_keyed("feed", bytes(nibbler.data), 0)
        for source in sources:
            discard(source)
        rig.saw(f"{swaps} sources, {swaps * cells:,} records")


@row("S26", provoked="", required="")
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s26_newcomers_wait_for_room(rig: Rig, mode: str) -> None:
    """What one after the other sends before it gives up would else pile up in relayd, whatever the limits say."""
    count = rig.times(30, 400)
    keys = {"framing": "line", "overflow": "block", "buffer": "256K", "linger_timeout": "100ms"}
    with ends(rig, mode, receive_buffer="64K", **keys) as relayed:
        client, first = relayed.client(small=True), relayed.source()
        sender = Sender(first, bulk(1_000_000))
        sender.wait_stuck()
        before = relayed.queued()
        sources = [relayed.keep(connect(relayed.source_port)) for _ in range(count)]
        for number, source in enumerate(sources):
            source.sendall(keyed("feed", number, 1))
        relayed.site.wait_log("event=accepting_paused", "reason=behind")
        assert relayed.queued() <= before
        got = Collector(client)
        wait_until(lambda: keyed("feed", count - 1, 1) in got.data, "the last one's record")
        came = len(got.data) - count * CELL
        assert got.data[:came] == bulk(1_000_000)[:came]
        assert check_keyed("feed", bytes(got.data[came:]), 0) == range(count)
        rig.saw(f"{count} sources")
