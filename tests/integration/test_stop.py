"""SIGTERM and SIGINT: nothing that relayd holds is lost, and the end comes in time."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack

import pytest

from tests.support import (
    HELD_UP,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    connect,
    free_port,
    listener,
    receive,
    receive_all,
    relayd,
    reset_connection,
    stalled_client,
)

SOON = 0.5 * SLOWNESS  # seconds; FAULTS P1 asks for 0.2 of relayd itself, Python's own end not counted


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
        running = stack.enter_context(relayd(*ends, *HELD_UP, "--mode", "connect-connect", "-o", "buffer=1M"))
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
