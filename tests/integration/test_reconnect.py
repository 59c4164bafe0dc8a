"""Connecting for ever, to ends that refuse, hang, flap, vanish, or have no address yet."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support import (
    CELL,
    SLOWNESS,
    Collector,
    Namespace,
    Sender,
    blackhole_port,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    needs,
    receive,
    relayd,
    reset_connection,
    silent_name_server,
    stalled_client,
    wait_until,
    write_config,
)

VANISH = (socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: a close without FIN or RST


def test_nobody_listens_at_first() -> None:
    """FAULTS N1: retried, the first attempt included; one log line, not one for each attempt."""
    source_port, destination_port = free_port(), free_port()
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{destination_port}", "--mode", "connect-connect"
    with relayd(*words, "--retry", "0.02") as running, ExitStack() as stack:
        running.wait_log("event=connect_failed", f"127.0.0.1:{source_port}", "refused")
        running.wait_log("event=connect_failed", f"127.0.0.1:{destination_port}", "refused")
        before = running.cpu_seconds()
        wait_until(lambda: running.cpu_seconds() > before, "some dozens of attempts")
        assert len(running.logged("event=connect_failed")) == 2
        source = stack.enter_context(stack.enter_context(listener(source_port)).accept()[0])
        destination = stack.enter_context(stack.enter_context(listener(destination_port)).accept()[0])
        source.sendall(keyed("feed", 0, 100))
        assert check_keyed("feed", receive(destination, 100 * CELL), 0) == range(100)


def test_a_name_that_fails_is_looked_up_anew(tmp_path: Path) -> None:
    """FAULTS N1, D2, D3, D9: no address at first, then the one that /etc/hosts has by now."""
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # where nobody listens
    port = free_port()
    with Namespace() as namespace, ExitStack() as stack:
        namespace.run("mount", "--bind", hosts, "/etc/hosts")
        namespace.run("mount", "--bind", tmp_path / "resolv.conf", "/etc/resolv.conf")
        there, elsewhere = namespace.listener(port), namespace.listener(port, "127.0.0.2")
        stack.enter_context(there)
        stack.enter_context(elsewhere)
        words = f"feed.example:{port}", f"127.0.0.1:{free_port()}", "--retry", "0.05"
        running = stack.enter_context(relayd(*words, prefix=namespace.enter))
        running.wait_log("event=connect_failed", "look-up of feed.example")
        with hosts.open("a") as file:
            file.write("127.0.0.1 feed.example\n")
        there.accept()[0].close()
        hosts.write_text("127.0.0.1 localhost\n127.0.0.2 feed.example\n")
        deadline = time.monotonic() + 20 * SLOWNESS
        there.settimeout(0.01)
        elsewhere.settimeout(0.01)
        while time.monotonic() < deadline:
            try:
                elsewhere.accept()[0].close()
            except TimeoutError:
                with suppress(TimeoutError):
                    there.accept()[0].close()
            else:
                break
        else:
            pytest.fail("the new address is not used")
        assert len(running.logged("event=connect_failed")) == 1


def test_connect_timeout_ends_an_attempt_that_hangs() -> None:
    """FAULTS N2; and the next address is tried (N14)."""
    port = free_port()
    with ExitStack() as stack:
        hole, good = blackhole_port(stack), stack.enter_context(listener())
        sources = f"127.0.0.1:{hole},127.0.0.1:{good.getsockname()[1]}"
        began = time.monotonic()
        stack.enter_context(relayd(sources, f"127.0.0.1:{port}", "-o", "connect_timeout=0.5s"))
        good.accept()[0].close()
        assert 0.5 < time.monotonic() - began < 0.5 + 1.5 * SLOWNESS


def test_connect_timeout_is_told() -> None:
    """FAULTS N2."""
    with ExitStack() as stack:
        hole = blackhole_port(stack)
        words = f"127.0.0.1:{hole}", f"127.0.0.1:{free_port()}", "-o", "connect_timeout=0.3s"
        running = stack.enter_context(relayd(*words))
        running.wait_log("event=connect_failed", "timed out after 0.3 s")


@pytest.mark.parametrize("mode", ["connect-listen", "listen-connect"])
def test_a_peer_that_accepts_and_closes_at_once_is_not_hammered(mode: str) -> None:
    """FAULTS N11."""
    with listener() as flapping:
        ends = [f"127.0.0.1:{flapping.getsockname()[1]}", f"127.0.0.1:{free_port()}"]
        words = (*(ends if mode == "connect-listen" else reversed(ends)), "--mode", mode)
        with relayd(*words, "-o", "reconnect=0.2s..10s", "-o", "linger_timeout=0.1s") as running:
            flapping.accept()[0].close()
            before = running.descriptors()
            connects, end = 0, time.monotonic() + 3
            flapping.settimeout(0.05)
            while time.monotonic() < end:
                try:
                    reset_connection(flapping.accept()[0])
                except TimeoutError:
                    continue
                connects += 1
            assert 2 <= connects <= 5  # after 0.2, 0.4, 0.8, 1.6 s
            assert running.descriptors() <= before


def test_source_addresses_are_tried_in_turn_from_the_first() -> None:
    with ExitStack() as stack:
        first_port, second = free_port(), stack.enter_context(listener())
        sources = f"127.0.0.1:{first_port},127.0.0.1:{second.getsockname()[1]}"
        running = stack.enter_context(relayd(sources, f"127.0.0.1:{free_port()}", "--retry", "0.05"))
        link = stack.enter_context(second.accept()[0])
        running.wait_log(f" source=127.0.0.1:{second.getsockname()[1]}", "event=connected")
        first = stack.enter_context(listener(first_port))
        link.close()
        stack.enter_context(first.accept()[0])
        running.wait_log(f" source=127.0.0.1:{first_port}", "event=connected")


def test_a_silent_source_is_closed_and_reconnected() -> None:
    """FAULTS S24; one that talks is let be."""
    with listener() as source_listener:
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{free_port()}"
        with relayd(*words, "--retry", "0.05", "-o", "source_idle=0.4s") as running:
            began = time.monotonic()
            with source_listener.accept()[0] as talking:
                while time.monotonic() - began < 1.2:
                    talking.sendall(b"x")
                    time.sleep(0.05)
                assert not running.logged("event=closed")
                assert talking.recv(1) == b""
            with source_listener.accept()[0]:
                running.wait_log(" source=", "event=closed", "reason=idle")


def test_a_client_that_vanished_is_found_by_keepalive() -> None:
    """FAULTS S8, VANISH: it went without FIN or RST, and nothing is sent to it."""
    port = free_port()
    words = f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}", "--mode", "listen-listen", "-o", "keepalive=1s/1s/2"
    with relayd(*words) as running, connect(port) as client:
        running.wait_log(" client=", "event=connected")
        try:
            client.setsockopt(*VANISH)
        except PermissionError:
            pytest.skip("TCP_REPAIR needs CAP_NET_ADMIN")
        client.close()
        running.wait_log(" client=", "event=closed")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_client_behind_a_black_hole_is_found(busy: bool) -> None:
    """FAULTS S8: by keepalive when nothing is sent. S9: by stall_timeout while something is."""
    needs("nft")
    source_port, port = free_port(), free_port()
    options = ("-o", "keepalive=1s/1s/2", "-o", "stall_timeout=1s", "-o", "buffer=16M")
    with Namespace() as namespace, ExitStack() as stack:
        words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen"
        running = stack.enter_context(relayd(*words, *options, prefix=namespace.enter))
        source, client = namespace.connect(source_port), namespace.connect(port)
        stack.enter_context(source)
        stack.enter_context(client)
        running.wait_log("event=connected", times=2)
        namespace.run("nft", "add table inet hole")
        namespace.run("nft", "add chain inet hole input { type filter hook input priority 0; }")
        namespace.run("nft", f"add rule inet hole input tcp dport {port} drop")
        namespace.run("nft", f"add rule inet hole input tcp sport {port} drop")
        began = time.monotonic()
        if busy:
            Sender(source, bulk(2_000_000)[: 8 << 20]).wait_end()
        closed = running.wait_log(" client=", "event=closed")
        assert time.monotonic() - began < 6 * SLOWNESS
        assert "reason=stalled" in closed if busy else "reason=timeout" in closed


def test_a_client_that_takes_nothing_is_cut_as_stalled() -> None:
    """FAULTS S10: alive, its window closed; our own timer fires, not the kernel's."""
    source_port, port = free_port(), free_port()
    options = ("-o", "stall_timeout=1s", "-o", "buffer=32M")
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen"
    with relayd(*words, *options) as running, connect(source_port) as source, stalled_client(port):
        running.wait_log("event=connected", times=2)
        began = time.monotonic()
        Sender(source, bulk(2_000_000)[: 8 << 20]).wait_end()
        running.wait_log(" client=", "event=closed", "reason=stalled")
        assert 0.9 < time.monotonic() - began < 3 * SLOWNESS


def test_a_client_that_takes_little_is_not_stalled() -> None:
    """FAULTS S10, the other side of it: 400 KB/s, while the kernel asks for more only once a megabyte is free."""
    source_port, port = free_port(), free_port()
    options = ("-o", "stall_timeout=1s", "-o", "buffer=32M")
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen"
    with relayd(*words, *options) as running, connect(source_port) as source, stalled_client(port) as slow:
        running.wait_log("event=connected", times=2)
        Sender(source, bulk(2_000_000)[: 8 << 20]).wait_end()
        end = time.monotonic() + 4
        while time.monotonic() < end:
            receive(slow, 4096)
            time.sleep(0.01)
            assert not running.logged("event=closed")


def test_names_that_nobody_resolves_delay_nobody(tmp_path: Path) -> None:
    """FAULTS D1: name servers that do not answer, beside a literal address and localhost."""
    ports = [free_port() for _ in range(6)]
    config = write_config(
        tmp_path,
        f"""
[relay dead]
source = dead.example:7001
destination = 127.0.0.1:{ports[0]}
[relay dying]
mode = listen-connect
source = 127.0.0.1:{ports[1]}
destination = one.example:1,two.example:1,three.example:1,four.example:1
[relay literal]
source = 127.0.0.1:{ports[2]}
destination = 127.0.0.1:{ports[3]}
[relay named]
source = localhost:{ports[4]}
destination = 127.0.0.1:{ports[5]}
""",
    )
    with Namespace() as namespace, silent_name_server(namespace, tmp_path), ExitStack() as stack:
        listeners = [stack.enter_context(namespace.listener(ports[index])) for index in (2, 4)]
        began = time.monotonic()
        running = stack.enter_context(relayd("--config", config, "--foreground", prefix=namespace.enter))
        sources = [stack.enter_context(each.accept()[0]) for each in listeners]
        assert time.monotonic() - began < 2 * SLOWNESS
        clients = [stack.enter_context(namespace.connect(ports[index])) for index in (3, 5)]
        running.wait_log(" client=", "event=connected", times=2)
        for first in range(0, 5000, 100):
            for source, client in zip(sources, clients, strict=True):
                sent = time.monotonic()
                source.sendall(keyed("feed", first, 100))
                assert check_keyed("feed", receive(client, 100 * CELL), first)
                assert time.monotonic() - sent < 0.2 * SLOWNESS
        assert not running.logged("event=connect_failed")  # the look-ups still wait


def test_a_source_that_restarts_fifty_times_leaves_nothing_behind() -> None:
    """FAULTS N18, in small."""
    port = free_port()
    with listener() as source_listener, ExitStack() as stack:
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{port}", "-o", "framing=line"
        running = stack.enter_context(relayd(*words, "--retry", "0.01"))
        client = Collector(stack.enter_context(connect(port)))
        running.wait_log(" client=", "event=connected")
        with source_listener.accept()[0]:
            before = running.descriptors()
        for life in range(50):
            with source_listener.accept()[0] as source:
                source.sendall(keyed("feed", life, 1) + b"cut")
        with source_listener.accept()[0]:
            check_keyed("feed", client.wait_for(50 * CELL), 0)
            wait_until(lambda: running.descriptors() <= before, "as few descriptors as before")
