"""SIGTERM and SIGINT: nothing that relayd holds is lost, and the end comes in time."""

from __future__ import annotations

import signal
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import (
    SLOWNESS,
    Collector,
    Namespace,
    Relayd,
    Sender,
    blackhole_port,
    bulk,
    connect,
    free_port,
    listener,
    receive,
    receive_all,
    relayd,
    reset_connection,
    silent_name_server,
    stalled_client,
    wait_until,
    write_config,
)

SOON = 0.5 * SLOWNESS  # seconds; FAULTS P1 asks for 0.2 of relayd itself, Python's own end not counted


def time_to_end(running: Relayd, number: int = signal.SIGTERM) -> float:
    """Send a signal; return the seconds until the exit, which must be with status 0."""
    began = time.monotonic()
    assert running.stop(number) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_idle_ends_at_once(number: int) -> None:
    """FAULTS P1."""
    with relayd(f":{free_port()}", f":{free_port()}", "--mode", "listen-listen") as running:
        assert time_to_end(running, number) < SOON
        assert running.logged("event=stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_with_idle_links_it_ends_as_soon_as_they_close(number: int) -> None:
    """FAULTS P2."""
    source_port, port = free_port(), free_port()
    with relayd(f":{source_port}", f":{port}", "--mode", "listen-listen") as running, ExitStack() as stack:
        links = [stack.enter_context(connect(source_port))]
        links += [stack.enter_context(connect(port)) for _ in range(100)]
        running.wait_log("event=connected", times=101)
        began = time.monotonic()
        running.process.send_signal(number)
        for link in links:
            assert receive_all(link) == b""  # a clean end, no reset
            link.close()
        assert running.wait() == 0
        assert time.monotonic() - began < SOON


def test_streams_are_sent_to_their_end() -> None:
    """FAULTS P2, S2: what relayd has read before SIGTERM reaches every client, however late it reads."""
    source_port, port = free_port(), free_port()
    data = bulk(2_000_000)[: 3 << 20]
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen", "-o", "buffer=8M"
    with relayd(*words) as running, ExitStack() as stack:
        source = stack.enter_context(connect(source_port))
        slow = [stack.enter_context(stalled_client(port)) for _ in range(5)]
        fast = Collector(stack.enter_context(connect(port)))
        running.wait_log("event=connected", times=7)
        Sender(source, data).wait_end()
        fast.wait_for(len(data))
        running.process.send_signal(signal.SIGTERM)
        running.wait_log("event=stopping")
        for client in slow:
            assert receive_all(client) == data
            client.close()
        assert fast.wait_end() == data
        source.close()
        assert running.wait() == 0


@pytest.mark.parametrize("returning", ["none", "all"])
def test_a_client_whose_own_bytes_nobody_reads_receives_all_that_was_sent_to_it(returning: str) -> None:
    """FAULTS S5: a plain close would make the kernel send RST, which overtakes the data."""
    port = free_port()
    data = bulk(2_000_000)[: 2 << 20]
    with listener() as source_listener, ExitStack() as stack:
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{port}", "-o", "buffer=4M"
        running = stack.enter_context(relayd(*words, "-o", f"return={returning}"))
        source = stack.enter_context(source_listener.accept()[0])
        client = stack.enter_context(stalled_client(port))
        running.wait_log("event=connected", times=2)
        talking = Sender(client, bytes(64 << 20))  # with return=all more than the source, which never reads, takes
        if returning == "all":
            talking.wait_stuck()
        witness = Collector(stack.enter_context(connect(port)))
        running.wait_log(" client=", "event=connected", times=2)
        source.sendall(data)
        witness.wait_for(len(data))
        running.process.send_signal(signal.SIGTERM)
        running.wait_log("event=stopping")
        assert receive(client, len(data)) == data
        assert client.recv(1) == b""


def test_a_connected_destination_receives_what_waits_for_it() -> None:
    with listener() as source_listener, listener() as destination_listener, ExitStack() as stack:
        ends = [f"127.0.0.1:{sock.getsockname()[1]}" for sock in (source_listener, destination_listener)]
        running = stack.enter_context(relayd(*ends, "--mode", "connect-connect", "-o", "buffer=1M"))
        source = stack.enter_context(source_listener.accept()[0])
        destination = stack.enter_context(destination_listener.accept()[0])
        sender = Sender(source, bulk(2_000_000))
        sender.wait_stuck()
        running.process.send_signal(signal.SIGTERM)
        running.wait_log("event=stopping")
        got = receive_all(destination)
        destination.close()
        assert running.wait() == 0
        closed = running.wait_log(" destination=", "event=closed")
        assert int(closed.partition(" sent=")[2].split()[0]) == len(got) > 1 << 20
        assert got == bulk(2_000_000)[: len(got)]
        reset_connection(source)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(second: int) -> None:
    """FAULTS P4."""
    source_port, port = free_port(), free_port()
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen", "-o", "buffer=8M"
    with relayd(*words) as running, stalled_client(port), connect(port) as reading, connect(source_port) as source:
        running.wait_log("event=connected", times=3)
        source.sendall(bulk(2_000_000)[: 2 << 20])
        receive(reading, 2 << 20)
        running.process.send_signal(signal.SIGTERM)
        running.wait_log("event=stopping")
        assert running.process.poll() is None
        assert time_to_end(running, second) < SOON


def test_a_closed_window_holds_it_for_drain_timeout_at_most(tmp_path: Path) -> None:
    """FAULTS P5; and while it drains, nobody comes in any more (P2)."""
    source_port, port = free_port(), free_port()
    config = write_config(
        tmp_path,
        f"[relayd]\ndrain_timeout = 1s\n[relay slow]\nmode = listen-listen\n"
        f"source = 127.0.0.1:{source_port}\ndestination = 127.0.0.1:{port}\nbuffer = 8M\n",
    )
    with (
        relayd("--config", config, "--foreground") as running,
        stalled_client(port),
        connect(port) as reading,
        connect(source_port) as source,
    ):
        running.wait_log("event=connected", times=3)
        source.sendall(bulk(2_000_000)[: 2 << 20])
        receive(reading, 2 << 20)
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        running.wait_log("event=stopping")
        for refused in (source_port, port):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", refused))
        assert running.wait() == 0
        assert 0.9 < time.monotonic() - began < 1 + SOON
        assert running.logged(" client=", "event=closed", "reason=stopped")


def test_while_connecting() -> None:
    """FAULTS P3."""
    with ExitStack() as stack:
        source, destination = blackhole_port(stack), blackhole_port(stack)
        words = f"127.0.0.1:{source}", f"127.0.0.1:{destination}", "--mode", "connect-connect"
        with relayd(*words) as running:
            wait_until(lambda: running.descriptors() >= 5)
            assert time_to_end(running) < SOON


def test_while_backing_off() -> None:
    """FAULTS P3."""
    words = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", "--mode", "connect-connect", "--retry", "60"
    with relayd(*words) as running:
        running.wait_log("event=connect_failed", times=2)
        assert time_to_end(running) < SOON


def test_while_looking_a_name_up(tmp_path: Path) -> None:
    """FAULTS P3: with a name server that does not answer."""
    with Namespace() as namespace, silent_name_server(namespace, tmp_path):
        words = "relay.example:7001", f"127.0.0.1:{free_port()}"
        with relayd(*words, prefix=namespace.enter) as running:
            wait_until(lambda: resolving(running), "a thread that looks the name up")
            assert time_to_end(running) < SOON


def resolving(running: Relayd) -> bool:
    return len(list(Path(f"/proc/{running.process.pid}/task").iterdir())) > 1
