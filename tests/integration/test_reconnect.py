"""Connecting for ever, to ends that refuse, hang, flap, vanish, or have no address yet."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack
from pathlib import Path

from tests.support import (
    CELL,
    SLOWNESS,
    Namespace,
    Sender,
    Stopwatch,
    blackhole_port,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    relayd,
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
        running.wait_log(f"source=127.0.0.1:{source_port} event=connect_failed", "refused")
        running.wait_log(f"destination=127.0.0.1:{destination_port} event=connect_failed", "refused")
        before = running.cpu_seconds()
        wait_until(lambda: running.cpu_seconds() > before, "some dozens of attempts")
        assert len(running.logged("event=connect_failed")) == 2
        source = stack.enter_context(stack.enter_context(listener(source_port)).accept()[0])
        destination = stack.enter_context(stack.enter_context(listener(destination_port)).accept()[0])
        source.sendall(keyed("feed", 0, 100))
        assert check_keyed("feed", receive(destination, 100 * CELL), 0) == range(100)


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
        watch = Stopwatch(running.process.pid)
        for first in range(0, 5000, 100):
            for source, client in zip(sources, clients, strict=True):
                watch.start()
                source.sendall(keyed("feed", first, 100))
                assert check_keyed("feed", receive(client, 100 * CELL), first)
                assert watch.seconds() < 0.2 * SLOWNESS
        assert not running.logged("event=connect_failed")  # the look-ups still wait
