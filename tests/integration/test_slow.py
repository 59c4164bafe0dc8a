"""Ends that are slow, stalled, flooding or half gone, and what they may cost: nothing of the others."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress

import pytest

from tests.support import (
    CELL,
    HELD_UP,
    PATIENCE,
    SLOWNESS,
    Collector,
    Relayd,
    Sender,
    Stopwatch,
    bulk,
    cells_of,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    relayd,
    stalled_client,
    wait_until,
)

MIB = 1 << 20


@pytest.mark.parametrize("mode", ["connect-listen", "connect-connect"])
def test_block_pauses_the_source_while_the_destination_stalls(mode: str) -> None:
    """FAULTS S11: memory flat, the processor idle, and nothing is lost when it goes on."""
    port, data = free_port(), bulk(2_000_000)
    with listener() as source_listener, ExitStack() as stack:
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{port}", "--mode", mode
        if mode == "connect-connect":
            destination_listener = stack.enter_context(listener(port))
        running = stack.enter_context(relayd(*words, *HELD_UP, "-o", "overflow=block", "-o", "buffer=1M"))
        source = stack.enter_context(source_listener.accept()[0])
        if mode == "connect-connect":
            destination = stack.enter_context(destination_listener.accept()[0])
        else:
            destination = stack.enter_context(connect(port))
        running.wait_log("event=connected", times=2)
        before = running.memory()
        sender = Sender(source, data)
        sender.wait_stuck()
        assert running.memory() - before < 4 * MIB
        assert running.cpu_share(0.5) < 0.05
        got = Collector(destination)
        sender.wait_end()
        assert got.wait_for(len(data)) == data
        assert running.memory() - before < 6 * MIB


def test_a_half_closed_connected_destination_costs_nothing() -> None:
    """FAULTS S3, with data that waits for a destination which does not read."""
    with listener() as source_listener, listener() as destination_listener, ExitStack() as stack:
        ends = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (source_listener, destination_listener)]
        running = stack.enter_context(relayd(*ends, *HELD_UP, "--mode", "connect-connect", "-o", "buffer=1M"))
        source = stack.enter_context(source_listener.accept()[0])
        destination = stack.enter_context(destination_listener.accept()[0])
        running.wait_log("event=connected", times=2)
        destination.shutdown(socket.SHUT_WR)
        sender = Sender(source, bulk(2_000_000))
        sender.wait_stuck()
        assert running.cpu_share() < 0.05
        got = Collector(destination)
        sender.wait_end()
        assert got.wait_for(32_000_000) == bulk(2_000_000)


def test_a_client_that_reads_slowly_but_fast_enough_is_not_cut() -> None:
    source_port, port = free_port(), free_port()
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen", "-o", "buffer=4M"
    with relayd(*words) as running, stalled_client(port) as client, connect(source_port) as source:
        running.wait_log("event=connected", times=2)
        sender = Sender(source, bulk(2_000_000)[: 3 * MIB])
        got = bytearray()
        began = time.monotonic()
        while len(got) < 256 * 1024:
            got += client.recv(4096)
            time.sleep(0.002)
        assert time.monotonic() - began > 0.1
        got += receive(client, 3 * MIB - len(got))
        sender.wait_end()
        assert got == bulk(2_000_000)[: 3 * MIB]
        wait_until(lambda: not running.logged("event=closed"))


# -- many that never read -------------------------------------------------------------------------


class Crowd:
    """A relay whose clients have small buffers, so that what waits does so where relayd counts it."""

    def __init__(self, stack: ExitStack, clients: int, *options: str) -> None:
        source_port, self.port = free_port(), free_port()
        words = f"127.0.0.1:{source_port}", f"127.0.0.1:{self.port}", "--mode", "listen-listen", "-o", "framing=line"
        small = "-o", "send_buffer=8K", "-o", "notsent=4K", "-o", "max_clients=1100"
        settings = [word for option in options for word in ("-o", option)]
        self.running: Relayd = stack.enter_context(relayd(*words, *small, *settings))
        self.clients = [stack.enter_context(stalled_client(self.port)) for _ in range(clients)]
        self.pace = stack.enter_context(connect(self.port))
        self.source = stack.enter_context(connect(source_port))
        self.running.wait_log("event=connected", times=clients + 2)

    def send(self, piece: bytes, times: int) -> None:
        """Send a piece so often, each when somebody has the one before: so each is read by itself."""
        for _ in range(times):
            self.source.sendall(piece)
            assert receive(self.pace, len(piece)) == piece


class Readers(threading.Thread):
    """Reads all of the sockets and keeps nothing; `behind` says who has less than `wanted`."""

    def __init__(self, socks: Iterable[socket.socket]) -> None:
        super().__init__(daemon=True)
        self._selector = selectors.DefaultSelector()
        self.got = dict.fromkeys(socks, 0)
        self._ended = False
        for sock in self.got:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self.start()

    def run(self) -> None:
        while not self._ended:
            for key, _ in self._selector.select(0.05):
                with suppress(BlockingIOError):
                    self.got[key.fileobj] += len(key.fileobj.recv(1 << 16))  # type: ignore[index, union-attr]

    def wait_for(self, count: int) -> None:
        wait_until(lambda: min(self.got.values()) >= count, f"{count} bytes at each")
        self._ended = True
        self.join(PATIENCE)
        self._selector.close()


@pytest.mark.parametrize(("clients", "size"), [(1000, 64 * 1024), (100, 100)])
def test_those_who_never_read_share_what_waits(clients: int, size: int) -> None:
    """All together cost the memory of one queue more than those who read: the buffer, and 8 MiB."""
    piece = b"x" * (size - 1) + b"\n"
    times = 4 * MIB * 15 // 16 // size
    grown = []
    for reads in (True, False):
        with ExitStack() as stack:
            crowd = Crowd(stack, clients, "buffer=4M")
            crowd.send(piece, 2)
            before = crowd.running.memory()
            if reads:
                readers = Readers(crowd.clients)
                crowd.send(piece, min(times, MIB // 2 // size))
                readers.wait_for(size * min(times, MIB // 2 // size))
            else:
                crowd.send(piece, times - 2)
            grown.append(crowd.running.memory() - before)
            assert not crowd.running.logged("event=closed")
    assert grown[1] - grown[0] < 4 * MIB + 8 * MIB, [f"{one / MIB:.1f}" for one in grown]


@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest"])
def test_half_of_a_hundred_stalled_are_no_matter_of_the_others(overflow: str) -> None:
    """The others miss nothing, the source never waits long, and what the stalled ones miss is counted."""
    data = bulk(2_000_000)[: 4 * MIB]
    with ExitStack() as stack:
        crowd = Crowd(stack, 50, f"overflow={overflow}", "buffer=1M")
        healthy = [Collector(stack.enter_context(connect(crowd.port))) for _ in range(49)]
        healthy.append(Collector(crowd.pace))
        crowd.running.wait_log("event=connected", times=101)
        waits, watch = [], Stopwatch(crowd.running.process.pid)
        for begin in range(0, len(data), 64 * 1024):
            watch.start()
            crowd.source.sendall(data[begin : begin + 64 * 1024])
            waits.append(watch.seconds())
            for client in healthy:
                client.wait_for(begin - MIB // 4)
        for client in healthy:
            assert client.wait_for(len(data)) == data
        assert sorted(waits)[-3] < 0.5 * SLOWNESS, sorted(waits)[-3:]
        if overflow == "disconnect":
            crowd.running.wait_log(" client=", "event=closed", "reason=slow", times=50)
            return
        assert not crowd.running.logged("event=closed")
        crowd.running.wait_log("event=dropping", "reason=slow")
        assert len(crowd.running.logged("event=dropping")) == 1, "fifty at once are one line"
        gaps = {}
        for number, client in enumerate(crowd.clients[:5]):
            got = Collector(client)
            closing = "{}:{}".format(*client.getsockname())
            crowd.source.sendall(keyed("mark", number, 1))
            mark = keyed("mark", number, 1)
            wait_until(lambda got=got, mark=mark: mark in got.data, "the newest record")  # type: ignore[misc]
            told = bytes(got.data[: got.data.rindex(b"bulk:") + CELL])
            numbers = cells_of("bulk", told)
            assert numbers == sorted(set(numbers))
            missed = len(data) // CELL - len(numbers)
            assert missed > 0
            gaps[closing] = missed * CELL
        crowd.running.wait_log("event=caught_up", "dropped_records=")
        crowd.running.stop()
        for peer, missed in gaps.items():
            assert f" dropped={missed} " in crowd.running.wait_log(f"client={peer} ", "event=closed")
