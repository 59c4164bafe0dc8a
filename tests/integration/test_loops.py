"""Streams that would run in a circle are refused, seen before the start or not; chains are not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import (
    CELL,
    Namespace,
    check_keyed,
    free_port,
    keyed,
    listener,
    receive,
    relayd,
    run_relayd,
    wait_until,
    write_config,
)


@pytest.mark.parametrize("mode", ["connect-listen", "listen-connect"])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost"])
def test_a_relay_that_is_its_own_source_is_refused(mode: str, host: str, tmp_path: Path) -> None:
    """FAULTS N8."""
    port = free_port()
    ends = [f"{host}:{port}", f":{port}"]
    source, destination = ends if mode == "connect-listen" else reversed(ends)
    config = write_config(tmp_path, f"[relay loop]\nmode = {mode}\nsource = {source}\ndestination = {destination}\n")
    for words in (("--config", config, "--check"), (source, destination, "--mode", mode)):
        done = run_relayd(*words)
        assert done.returncode == 2
        assert "loop" in done.stderr
        assert len(done.stderr.splitlines()) == 1


OWN = "10.8.0.1"  # an address of this machine that the configuration alone does not betray


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A machine with the address OWN."""
    with Namespace() as made:
        made.run("ip", "address", "add", f"{OWN}/32", "dev", "lo")
        yield made


@pytest.mark.parametrize("mode", ["connect-listen", "listen-connect"])
def test_a_disguised_loop_is_found_at_run_time(mode: str, namespace: Namespace) -> None:
    """FAULTS N8: by another address of this machine."""
    port = free_port()
    ends = [f"{OWN}:{port}", f":{port}"]
    words = ends if mode == "connect-listen" else reversed(ends)
    with relayd(*words, "--mode", mode, "--retry", "0.02", prefix=namespace.enter) as running:
        before = running.descriptors()
        running.wait_log("reason=loop")
        most = 0
        running_since = running.cpu_seconds()

        def watch() -> bool:
            nonlocal most
            most = max(most, running.descriptors())
            return running.cpu_seconds() - running_since > 0.04  # many attempts later

        wait_until(watch)
        assert most <= before + 3
        assert len(running.logged("reason=loop")) <= 3  # not a line for each attempt


def test_others_are_served_by_a_relay_that_tries_to_loop(namespace: Namespace) -> None:
    """FAULTS N8: its listener goes on."""
    port = free_port()
    words = f"{OWN}:{port}", f":{port}", "--retry", "0.02"
    with relayd(*words, prefix=namespace.enter) as running, namespace.connect(port) as client:
        running.wait_log("reason=loop")
        name = "{}:{}".format(*client.getsockname())
        running.wait_log(f" client={name}", "event=connected")
        assert not running.logged(f" client={name}", "event=closed")


CIRCLE = """
[relay one]
source = {host}:{two}
destination = :{one}
[relay two]
source = {host}:{one}
destination = :{two}
"""


def test_a_circle_of_two_relays_is_refused(tmp_path: Path) -> None:
    """FAULTS N9: both relays are named."""
    config = write_config(tmp_path, CIRCLE.format(host="127.0.0.1", one=free_port(), two=free_port()))
    done = run_relayd("--config", config, "--check")
    assert done.returncode == 2
    assert "[relay one]" in done.stderr and "relay two" in done.stderr and "loop" in done.stderr


def test_a_disguised_circle_of_two_relays_is_broken_at_run_time(tmp_path: Path, namespace: Namespace) -> None:
    """FAULTS N9: one of the two links is refused, the other stays; nothing runs in a circle."""
    one, two = free_port(), free_port()
    config = write_config(tmp_path, CIRCLE.format(host=OWN, one=one, two=two))
    with relayd("--config", config, "--foreground", prefix=namespace.enter) as running:
        running.wait_log("reason=loop")
        before = running.descriptors()
        running.wait_log(f" source={OWN}", "event=connected")
        assert running.cpu_share(0.5) < 0.1
        assert running.descriptors() <= before + 3


def test_a_chain_of_two_relays_in_one_process_is_legal(tmp_path: Path) -> None:
    """FAULTS N9, the other side of it: A feeds B, by either of them dialling."""
    with listener() as source_listener, ExitStack() as stack:
        feed, middle, rear, last = source_listener.getsockname()[1], free_port(), free_port(), free_port()
        config = write_config(
            tmp_path,
            f"""
[relay front]
source = 127.0.0.1:{feed}
destination = 127.0.0.1:{middle}
reconnect = 50ms
[relay back]
mode = connect-connect
source = 127.0.0.1:{middle}
destination = 127.0.0.1:{rear}
reconnect = 50ms
[relay rear]
mode = listen-listen
source = 127.0.0.1:{rear}
destination = 127.0.0.1:{last}
""",
        )
        running = stack.enter_context(relayd("--config", config, "--foreground"))
        source = stack.enter_context(source_listener.accept()[0])
        client = stack.enter_context(socket.create_connection(("127.0.0.1", last)))
        for ends in (("relay=front", " client="), ("relay=back", " destination="), ("relay=rear", " client=")):
            running.wait_log(*ends, "event=connected")
        running.wait_log("relay=rear", " source=", "event=connected")
        source.sendall(keyed("feed", 0, 1000))
        assert check_keyed("feed", receive(client, 1000 * CELL), 0) == range(1000)
        assert not running.logged("loop")
