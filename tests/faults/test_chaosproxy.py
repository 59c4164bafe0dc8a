"""The chaos proxy is a faithful wire without toxics, and with one it does that one's harm and no other."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from tests.faults.chaosproxy import LATENCY_WINDOW, SOCKET_BUFFER, TOXICS, WINDOW, Address, ChaosProxy
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Collector,
    Sender,
    blackhole_port,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    receive_all,
    reset_connection,
    wait_until,
)

KERNEL = 4 * 3 * SOCKET_BUFFER  # bytes, generously: what the sockets on the way take, which the kernel doubles
SOON = 2.0 * SLOWNESS  # seconds: what is not delayed takes less
LONG = 10 * SOON  # seconds of a delay that nobody waits for


class Wire:
    """A proxy and its upstream; `link` makes a connection through it."""

    def __init__(self, stack: contextlib.ExitStack, upstream: Address | None = None, **options: object) -> None:
        self._stack = stack
        if isinstance(upstream, str):
            self._server = stack.enter_context(socket.socket(socket.AF_UNIX))
            self._server.bind(upstream)
            self._server.listen()
            self._server.settimeout(PATIENCE)
        else:
            self._server = stack.enter_context(listener())
            self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        target = upstream or self._server.getsockname()
        self.proxy = stack.enter_context(ChaosProxy(target, **options))  # type: ignore[arg-type]

    def link(self) -> tuple[socket.socket, socket.socket]:
        """Return both ends of a new link, the client's and the upstream's."""
        client = self._stack.enter_context(connect(self.proxy.port))
        server = self.accept()
        for sock in (client, server):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        return client, server

    def accept(self) -> socket.socket:
        """Return the upstream's end of the next link."""
        return self._stack.enter_context(self._server.accept()[0])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as found:
        yield found


@pytest.fixture
def wire(stack: contextlib.ExitStack) -> Wire:
    return Wire(stack)


def until_reset(sock: socket.socket) -> bytes:
    """Return what comes before the reset."""
    collector = Collector(sock)
    collector.join(PATIENCE)
    assert isinstance(collector.error, ConnectionResetError), f"{collector.error!r}, {len(collector.data)} bytes"
    return bytes(collector.data)


def fill(sock: socket.socket) -> Sender:
    """Send 200 000 cells into a link that holds them; return when it is about full."""
    sender = Sender(sock, bulk(200_000))
    wait_until(lambda: sender.sent > WINDOW, "a full link")
    return sender


def seconds_of(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began


# -- a faithful wire ------------------------------------------------------------------------------


def test_both_directions_are_exact(wire: Wire) -> None:
    client, server = wire.link()
    up, down = Collector(server), Collector(client)
    senders = Sender(client, bulk(100_000)), Sender(server, keyed("down", 0, 60_000))
    for sender, sock in zip(senders, (client, server), strict=True):
        sender.wait_end()
        sock.shutdown(socket.SHUT_WR)
    assert check_keyed("bulk", up.wait_end(), 0) == range(100_000)
    assert check_keyed("down", down.wait_end(), 0) == range(60_000)
    wait_until(lambda: wire.proxy.links == 0, "the link's end")


def test_many_links_are_each_exact(wire: Wire) -> None:
    wire.proxy.add("latency", latency=0.02, jitter=0.02)
    wire.proxy.add("slicer", average_size=500, size_variation=400)
    links = [wire.link() for _ in range(40)]
    assert wire.proxy.links == 40
    collectors = [Collector(client) for client, _ in links]
    for number, (_, server) in enumerate(links):
        server.sendall(keyed(f"k{number:03}", number, 1000))
        server.shutdown(socket.SHUT_WR)
    for number, collector in enumerate(collectors):
        assert len(check_keyed(f"k{number:03}", collector.wait_end(), number)) == 1000


def test_unix_sockets_on_both_sides(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    path = str(tmp_path / "proxy")
    wire = Wire(stack, str(tmp_path / "upstream"), listen=path)
    for _ in range(2):
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(path)
        server = wire.accept()
        collector = Collector(server)
        Sender(client, bulk(50_000)).wait_end()
        client.shutdown(socket.SHUT_WR)
        assert check_keyed("bulk", collector.wait_end(), 0) == range(50_000)
        server.sendall(b"answer")
        assert receive(client, 6) == b"answer"
        wire.proxy.cut()  # there is no RST
        assert receive_all(client) == receive_all(server) == b""
        wire.proxy.disable()
        with pytest.raises(ConnectionRefusedError), socket.socket(socket.AF_UNIX) as late:
            late.connect(path)
        wire.proxy.enable()


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_half_closed_link_goes_on(wire: Wire, first: str) -> None:
    client, server = wire.link()
    closing, other = (client, server) if first == "client" else (server, client)
    closing.sendall(b"last words")
    closing.shutdown(socket.SHUT_WR)
    assert receive_all(other) == b"last words"
    other.sendall(bulk(10_000))
    other.shutdown(socket.SHUT_WR)
    assert receive_all(closing) == bulk(10_000)


@pytest.mark.parametrize("first", ["client", "server"])
def test_a_reset_is_passed_on_as_one(wire: Wire, first: str) -> None:
    client, server = wire.link()
    resetting, other = (client, server) if first == "client" else (server, client)
    resetting.sendall(b"last words")
    assert receive(other, 10) == b"last words"
    reset_connection(resetting)
    assert until_reset(other) == b""
    wait_until(lambda: wire.proxy.links == 0, "the link's end")


def test_a_reset_is_seen_while_nothing_is_read(wire: Wire) -> None:
    wire.proxy.add("timeout", timeout=0, stream="upstream")
    client, server = wire.link()
    client.settimeout(0.3)
    with pytest.raises(TimeoutError):
        client.sendall(bulk(200_000))
    reset_connection(client)
    assert until_reset(server) == b""


def test_who_comes_while_nobody_is_upstream_is_reset(stack: contextlib.ExitStack) -> None:
    proxy = stack.enter_context(ChaosProxy(("127.0.0.1", free_port())))
    with pytest.raises(ConnectionResetError), connect(proxy.port) as client:
        client.recv(1)


def test_who_waits_for_a_dead_upstream_can_be_closed(stack: contextlib.ExitStack) -> None:
    proxy = stack.enter_context(ChaosProxy(("127.0.0.1", blackhole_port(stack))))
    client = stack.enter_context(connect(proxy.port))
    client.sendall(b"waits unread, which must not make a reset of the end")
    wait_until(lambda: proxy.links == 1, "the link")
    proxy.disable()
    assert receive_all(client) == b""


def test_a_stalled_reader_holds_up_the_sender(wire: Wire) -> None:
    client, server = wire.link()
    sender = Sender(client, bulk(200_000))
    assert WINDOW < sender.wait_stuck() < WINDOW + KERNEL
    collector = Collector(server)
    sender.wait_end()
    client.close()
    assert check_keyed("bulk", collector.wait_end(), 0) == range(200_000)


def test_a_link_that_waits_takes_no_cpu(wire: Wire) -> None:
    wire.proxy.add("timeout", timeout=0, stream="upstream")
    held, half, idle = wire.link(), wire.link(), wire.link()
    fill(held[0])
    half[1].shutdown(socket.SHUT_WR)
    assert receive_all(half[0]) == b"" and idle
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05  # one that spins needs all it can get


def test_nothing_is_left_behind() -> None:
    def look() -> tuple[int, int]:
        proxies = sum(thread.name == "chaosproxy" for thread in threading.enumerate())
        return len(os.listdir("/proc/self/fd")), proxies

    before = look()
    with contextlib.ExitStack() as stack:
        wire = Wire(stack)
        wire.proxy.add("timeout", timeout=0)
        for _ in range(3):
            wire.link()[1].sendall(b"held")
    assert look() == before


# -- toxics ---------------------------------------------------------------------------------------


def test_latency_delays_data_and_fin_and_not_the_rate(wire: Wire) -> None:
    wire.proxy.add("latency", latency=0.3)
    client, server = wire.link()
    collector = Collector(client)
    began = time.monotonic()
    for number in range(20):
        server.sendall(keyed("late", number * 100, 100))
        time.sleep(0.005)
    server.shutdown(socket.SHUT_WR)
    closed = time.monotonic()
    collector.wait_for(1)
    assert time.monotonic() - began >= 0.3
    assert check_keyed("late", collector.wait_end(), 0) == range(2000)
    assert 0.3 <= time.monotonic() - closed < 0.3 + SOON


def test_latency_holds_what_is_under_way_and_no_more(wire: Wire) -> None:
    toxic = wire.proxy.add("latency", latency=LONG, stream="upstream")
    client, server = wire.link()
    sender = Sender(client, bulk(200_000))
    assert LATENCY_WINDOW < sender.wait_stuck() < LATENCY_WINDOW + KERNEL
    collector = Collector(server)
    wire.proxy.remove(toxic)
    sender.wait_end()
    client.close()
    assert check_keyed("bulk", collector.wait_end(), 0) == range(200_000)


def test_jitter_is_give_or_take() -> None:
    toxic = TOXICS["latency"](latency=0.1, jitter=0.05)
    toxic.begin(0.0, Random(1))
    stays = sorted(toxic.stay(is_fin=False) for _ in range(200))
    assert 0.05 <= stays[0] < 0.06 and 0.14 < stays[-1] <= 0.15


def test_jitter_keeps_the_order(wire: Wire) -> None:
    wire.proxy.add("latency", latency=0.03, jitter=0.03)
    client, server = wire.link()
    collector = Collector(client)
    for number in range(50):
        server.sendall(keyed("jitt", number, 1))
        time.sleep(0.002)
    server.close()
    assert check_keyed("jitt", collector.wait_end(), 0) == range(50)


def test_a_toxic_spoils_its_direction_only(wire: Wire) -> None:
    wire.proxy.add("latency", latency=LONG)
    client, server = wire.link()
    client.sendall(b"up")
    assert seconds_of(lambda: receive(server, 2)) < SOON
    server.sendall(b"down")
    client.settimeout(0.1)
    with pytest.raises(TimeoutError):
        client.recv(1)


def test_bandwidth_is_a_rate_and_others_may_have_theirs(wire: Wire) -> None:
    wire.proxy.add("bandwidth", rate=400_000, stream="upstream")
    client, server = wire.link()
    collector = Collector(server)

    def send_all() -> None:
        Sender(client, bulk(10_000))
        assert collector.wait_for(10_000 * CELL) == bulk(10_000)

    assert 0.35 <= seconds_of(send_all) < 0.4 + SOON  # 160 000 bytes are 0.4 s, less two ticks
    Sender(server, bulk(50_000))
    assert seconds_of(lambda: receive(client, 50_000 * CELL)) < SOON


def test_bandwidth_makes_up_for_one_tick_that_was_overslept() -> None:
    toxic = TOXICS["bandwidth"](rate=1000)
    toxic.begin(0.0, Random(1))
    for now, ready_at in ((0.0, 0.02), (0.03, 0.04), (5.0, 5.0), (5.0, 5.02)):
        toxic.passed(20, now)
        assert toxic.ready_at == pytest.approx(ready_at)


def test_bandwidth_pushes_back(wire: Wire) -> None:
    toxic = wire.proxy.add("bandwidth", rate=1000, stream="upstream")
    client, server = wire.link()
    sender = Sender(client, bulk(200_000))
    collector = Collector(server)
    wait_until(lambda: collector.data, "the first bytes")
    assert len(collector.data) < 1000 and sender.sent < 200_000 * CELL
    wire.proxy.remove(toxic)
    sender.wait_end()
    assert collector.wait_for(200_000 * CELL) == bulk(200_000)


def test_slow_close_delays_the_fin_and_not_the_data(wire: Wire) -> None:
    wire.proxy.add("slow_close", delay=0.4)
    client, server = wire.link()
    began = time.monotonic()
    server.sendall(b"data")
    server.close()
    assert receive(client, 4) == b"data"
    came = time.monotonic() - began
    assert receive_all(client) == b""
    assert came < 0.4 * SLOWNESS and time.monotonic() - began >= 0.4


def test_timeout_stops_everything_and_then_closes(wire: Wire) -> None:
    client, server = wire.link()
    began = time.monotonic()
    wire.proxy.add("timeout", timeout=0.3)
    server.sendall(b"never seen")
    client.sendall(b"seen")
    assert receive_all(client) == b""
    assert 0.3 <= time.monotonic() - began < 0.3 + SOON
    assert receive_all(server) == b"seen"


def test_timeout_0_closes_never_and_loses_nothing(wire: Wire) -> None:
    client, server = wire.link()
    toxic = wire.proxy.add("timeout", timeout=0)
    collector = Collector(client)
    sender = fill(server)
    assert not collector.data and wire.proxy.links == 1
    wire.proxy.remove(toxic)
    sender.wait_end()
    server.close()
    assert check_keyed("bulk", collector.wait_end(), 0) == range(200_000)


def test_reset_peer_resets_both_ends_after_its_timeout(wire: Wire) -> None:
    client, server = wire.link()
    began = time.monotonic()
    wire.proxy.add("reset_peer", timeout=0.2)
    server.sendall(b"until then it works")
    assert until_reset(client) == b"until then it works"
    assert 0.2 <= time.monotonic() - began < 0.2 + SOON
    assert until_reset(server) == b""


def test_reset_peer_at_once_and_for_those_who_come(wire: Wire) -> None:
    wire.proxy.add("reset_peer")
    with pytest.raises(ConnectionResetError), connect(wire.proxy.port) as client:
        client.recv(1)


def test_slices_come_one_by_one(wire: Wire) -> None:
    wire.proxy.add("slicer", average_size=50, size_variation=30, delay=0.01)
    client, server = wire.link()
    client.settimeout(PATIENCE)
    server.sendall(bulk(100))
    server.shutdown(socket.SHUT_WR)
    began, sizes = time.monotonic(), list[int]()
    data = b""
    while part := client.recv(1 << 16):
        sizes.append(len(part))
        data += part
    assert data == bulk(100)
    assert time.monotonic() - began >= 19 * 0.01  # 1600 bytes are 20 slices at least
    assert len(set(sizes)) > 3 and min(sizes) >= 1
    if SLOWNESS == 1:
        assert sorted(sizes)[len(sizes) // 2] <= 80  # where we were held up, some came together


def test_limit_data_is_exact(wire: Wire) -> None:
    wire.proxy.add("limit_data", bytes=100_001)
    client, server = wire.link()
    Sender(server, bulk(50_000))
    assert receive_all(client) == bulk(50_000)[:100_001]
    with contextlib.suppress(ConnectionResetError):  # it had more to say
        assert receive_all(server) == b""
    wait_until(lambda: wire.proxy.links == 0, "the link's end")


def test_limit_data_counts_over_many_writes(wire: Wire) -> None:
    wire.proxy.add("limit_data", bytes=4 * CELL)
    wire.proxy.add("slicer", average_size=5)
    client, server = wire.link()
    for number in range(3):
        server.sendall(keyed("cell", number, 1))
        assert receive(client, CELL) == keyed("cell", number, 1)
    assert wire.proxy.links == 1
    server.sendall(keyed("cell", 3, 1))
    assert receive_all(client) == keyed("cell", 3, 1)


def test_toxics_add_up(wire: Wire) -> None:
    for toxic in ({"kind": "latency", "latency": 0.15}, {"kind": "latency", "latency": 0.15}):
        wire.proxy.add(**toxic)  # type: ignore[arg-type]
    wire.proxy.add("bandwidth", rate=100_000)
    wire.proxy.add("slicer", average_size=700, size_variation=300)
    client, server = wire.link()
    server.sendall(bulk(1000))
    server.shutdown(socket.SHUT_WR)
    began = time.monotonic()
    assert receive_all(client) == bulk(1000)
    assert time.monotonic() - began >= 0.3 + 0.1


def infected(seed: int, toxicity: float, talk: int = 0) -> list[bool]:
    """Return which of 30 links a toxic of this toxicity gets, where each client says so much."""
    with contextlib.ExitStack() as stack:
        wire = Wire(stack, seed=seed)
        wire.proxy.add("latency", latency=0.0, jitter=0.001, stream="upstream")
        wire.proxy.add("limit_data", bytes=1, toxicity=toxicity)
        found = []
        for _ in range(30):
            client, server = wire.link()
            for _ in range(talk):
                client.sendall(b"?")
                receive(server, 1)
            server.sendall(b"xy")
            server.shutdown(socket.SHUT_WR)
            found.append(receive_all(client) == b"x")
        return found


def test_toxicity_is_a_probability_that_the_seed_decides() -> None:
    found = infected(7, 0.5)
    assert 5 < sum(found) < 25
    assert infected(7, 0.5, talk=2) == found != infected(8, 0.5)
    assert not any(infected(7, 0.0))


# -- what is done to the proxy ----------------------------------------------------------------------


def test_toxics_come_and_go_on_a_living_link(wire: Wire) -> None:
    client, server = wire.link()
    for remove in (wire.proxy.remove, lambda _: wire.proxy.clear()):
        server.sendall(b"free")
        assert receive(client, 4) == b"free"
        toxics = [wire.proxy.add("latency", latency=LONG), wire.proxy.add("timeout", timeout=0)]
        server.sendall(b"held")
        client.settimeout(0.1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        for toxic in toxics[: 2 if remove == wire.proxy.remove else 1]:
            remove(toxic)
        assert seconds_of(lambda: receive(client, 4)) < SOON


def test_wrong_words_are_refused(wire: Wire) -> None:
    with pytest.raises(KeyError):
        wire.proxy.add("gremlin")
    with pytest.raises(TypeError):
        wire.proxy.add("latency", rate=3)
    toxic = wire.proxy.add("timeout", timeout=0)
    wire.proxy.remove(toxic)
    with pytest.raises(ValueError):
        wire.proxy.remove(toxic)


def test_cut_resets_all_that_live(wire: Wire) -> None:
    ends = [sock for _ in range(3) for sock in wire.link()]
    wire.proxy.cut()
    assert wire.proxy.links == 0
    for sock in ends:
        assert until_reset(sock) == b""
    client, server = wire.link()
    client.sendall(b"again")
    assert receive(server, 5) == b"again"


def test_down_closes_and_refuses_and_keeps_its_port(wire: Wire) -> None:
    port = wire.proxy.port
    for _ in range(2):
        client, server = wire.link()
        wire.proxy.disable()
        assert receive_all(client) == receive_all(server) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PATIENCE)
        with pytest.raises(OSError, match="in use"), socket.socket() as thief:
            thief.bind(("127.0.0.1", port))
        wire.proxy.enable()
    assert wire.proxy.port == port
