"""Speed: many clients, many messages, one client after the other, a single byte."""

from __future__ import annotations

import selectors
import socket
import time
from contextlib import ExitStack

from tests.faults.oracle import cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import ends
from tests.faults.visitors import come, leave, room_for
from tests.support import CELL, PATIENCE, SLOWNESS, Stopwatch, connect, keyed, receive, reset_connection, wait_until


class Audience:
    """Clients that time each message, in this thread alone: a message is a line with the time it was sent at."""

    SIZE = 200  # bytes of a message

    def __init__(self, crowd: list[socket.socket]) -> None:
        self.waits: list[float] = []
        self._selector = selectors.DefaultSelector()
        for sock in crowd:
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ, bytearray())

    def message(self) -> bytes:
        """Return a message of now."""
        return (b"%017.6f" % time.monotonic()).ljust(self.SIZE - 1, b".") + b"\n"

    def listen(self, until: float) -> None:
        """Receive up to that time."""
        while (rest := until - time.monotonic()) > 0:
            for key, _ in self._selector.select(rest):
                held: bytearray = key.data
                held += key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                now = time.monotonic()
                while len(held) >= self.SIZE:
                    assert held[self.SIZE - 1] == 10 and held[17:18] == b".", f"torn: {held[: self.SIZE]!r}"
                    self.waits.append(now - float(held[:17]))
                    del held[: self.SIZE]

    def close(self) -> None:
        self._selector.close()


@row(
    "R4",
    provoked="10,000 clients, 5 messages of 200 bytes a second (500 clients in the short form)",
    required="every message to every client, whole; p99 below 500 ms",
)
def test_r4_many_clients(rig: Rig) -> None:
    _audience(rig, rig.times(500, 10_000), 5, rig.times(1, 30), 0.5)


@row(
    "R5",
    provoked="1,000 clients, 100 messages of 200 bytes a second (100 clients in the short form)",
    required="every message to every client, whole; p99 below 50 ms",
)
def test_r5_many_messages(rig: Rig) -> None:
    _audience(rig, rig.times(100, 1000), 100, rig.times(1, 30), 0.05)


def _audience(rig: Rig, count: int, rate: int, seconds: int, limit: float) -> None:
    room_for(count)
    keys = {"framing": "line", "max_clients": count, "backlog": 4096, "grows": count * 6 * 1024}
    with ends(rig, **keys) as relayed, ExitStack() as stack:
        crowd = come(stack, relayed.site, relayed.port, count)
        source, audience = relayed.source(), Audience(crowd)
        stack.callback(audience.close)
        began = time.monotonic()
        for number in range(1, rate * seconds + 1):
            source.sendall(audience.message())
            audience.listen(began + number / rate)
        deadline = time.monotonic() + PATIENCE
        while len(audience.waits) < count * rate * seconds and time.monotonic() < deadline:
            audience.listen(time.monotonic() + 0.01)
        assert len(audience.waits) == count * rate * seconds
        p99 = sorted(audience.waits)[int(0.99 * (len(audience.waits) - 1))]
        assert p99 < limit * SLOWNESS, f"p99 {p99:.3f} s"
        rig.saw(f"{count:,} clients x {rate}/s: p99 {p99 * 1000:.0f} ms")
        leave(relayed.site, crowd)


@row(
    "R7",
    provoked="clients connect, get a record (`history`) and close, one after the other",
    required="less than 300 µs of CPU each on two idle cores (twice that in the short form); no timer, no descriptor",
)
def test_r7_connect_rate(rig: Rig) -> None:
    count = rig.times(1000, 50_000)
    with ends(rig, framing="line", history="1r") as relayed:
        source, cell = relayed.source(), keyed("feed", 0, 1)
        source.sendall(cell)
        wait_until(lambda: relayed.totals()["bytes_in"] == CELL, "the record")
        cpu, began = cpu_seconds(relayed.site.pid), time.monotonic()
        for _ in range(count):
            client = connect(relayed.port)
            assert receive(client, CELL) == cell
            reset_connection(client)
        each = (cpu_seconds(relayed.site.pid) - cpu) / count
        took = time.monotonic() - began
        assert each < 0.0006 * SLOWNESS, f"{each * 1e6:.0f} us of CPU each"
        rig.saw(f"{each * 1e6:.0f} µs of CPU each, {count / took:,.0f} a second")


@row(
    "R8",
    provoked="single bytes through an idle relay",
    required="each at once, though small: p50 below 200 µs, p99 below 1 ms on two idle cores (ten times that in the "
    "short form)",
)
def test_r8_latency(rig: Rig) -> None:
    with ends(rig) as relayed:
        client, source = relayed.client(), relayed.source()
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        waits, watch = [], Stopwatch(relayed.site.pid)
        for number in range(rig.times(1000, 100_000)):
            watch.start()
            source.sendall(b"%d" % (number % 10))
            assert client.recv(2) == b"%d" % (number % 10)
            waits.append(watch.seconds())
        waits.sort()
        p50, p99 = waits[len(waits) // 2], waits[int(0.99 * len(waits))]
        assert p50 < 0.002 * SLOWNESS and p99 < 0.01 * SLOWNESS, (p50, p99)
        rig.saw(f"p50 {p50 * 1e6:.0f} µs, p99 {p99 * 1e6:.0f} µs")
