"""Coming in: too many, too fast, not allowed, and with no descriptors left."""

from __future__ import annotations

import resource
import socket
from contextlib import ExitStack, suppress

import pytest

from tests.support import (
    CELL,
    SLOWNESS,
    Relayd,
    Stopwatch,
    check_keyed,
    connect,
    free_port,
    keyed,
    receive,
    relayd,
    reset_connection,
    run_relayd,
    wait_until,
)


class Ends:
    """A relay that both ends come to, with its source and one client."""

    def __init__(self, stack: ExitStack, *options: str) -> None:
        source_port, self.port = free_port(), free_port()
        words = f"127.0.0.1:{source_port}", f"127.0.0.1:{self.port}", "--mode", "listen-listen"
        self.running: Relayd = stack.enter_context(relayd(*words, "-o", "framing=line", *options))
        self.source = stack.enter_context(connect(source_port))
        self.client = stack.enter_context(connect(self.port))
        self.running.wait_log("event=connected", times=2)
        self._sent = 0

    def feed(self) -> None:
        """Send a piece of the stream; the client must get it."""
        self.source.sendall(keyed("feed", self._sent, 100))
        assert check_keyed("feed", receive(self.client, 100 * CELL), self._sent)
        self._sent += 100


def is_reset(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a client that comes in from the host is reset."""
    try:
        with socket.create_connection(("127.0.0.1", port), source_address=(host, 0)) as sock:
            sock.settimeout(0.5 * SLOWNESS)
            sock.recv(1)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return False


def test_out_of_descriptors_links_run_on_and_the_listener_recovers() -> None:
    """FAULTS L8: no spinning, one line, nobody who runs is hurt, and those who wait come in later."""
    with ExitStack() as stack:
        ends = Ends(stack)
        pid = ends.running.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        room = ends.running.descriptors() + 5
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, before[1]))
        waiting = [stack.enter_context(connect(ends.port)) for _ in range(30)]
        ends.running.wait_log("event=accepting_paused", "EMFILE")
        ends.feed()
        assert ends.running.cpu_share(2) < 0.05
        ends.feed()
        assert len(ends.running.logged("event=accepting_paused")) == 1
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        ends.running.wait_log(" client=", "event=connected", times=31)
        ends.feed()
        for client in waiting:
            assert check_keyed("feed", receive(client, CELL))
        assert not ends.running.logged("event=closed")


def test_a_burst_of_two_thousand_connections() -> None:
    """FAULTS L11: all are served, and the stream that runs is not held up meanwhile."""
    count = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200:
        pytest.skip(f"only {hard} descriptors are allowed here, ulimit -Hn")
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        ends = Ends(stack, "-o", f"max_clients={count + 10}", "-o", "backlog=4096")
        clients = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", ends.port))
            clients.append(sock)
        worst, watch = 0.0, Stopwatch(ends.running.process.pid)
        while len(ends.running.logged(" client=", "event=connected")) < count + 1:
            watch.start()
            ends.feed()
            worst = max(worst, watch.seconds())
        assert worst < 0.3 * SLOWNESS
        ends.feed()
        for sock in clients:
            sock.settimeout(20)
            assert check_keyed("feed", receive(sock, CELL))


def test_a_thousand_who_come_and_go_leave_nothing_behind() -> None:
    """FAULTS L6, L12: with FIN and with RST, without a byte."""
    with ExitStack() as stack:
        ends = Ends(stack)
        before = ends.running.descriptors()
        memory = ends.running.memory()
        for number in range(1000):
            sock = connect(ends.port)
            if number % 2:
                reset_connection(sock)
            else:
                sock.close()
            if number % 100 == 0:
                ends.feed()
        ends.feed()
        wait_until(lambda: (ends.feed(), ends.running.descriptors() == before)[1], "as many descriptors as before")
        assert ends.running.memory() - memory < 4 << 20


def test_max_clients_resets_one_more_and_says_so_once() -> None:
    """FAULTS L13."""
    with ExitStack() as stack:
        ends = Ends(stack, "-o", "max_clients=2")
        second = stack.enter_context(connect(ends.port))
        ends.running.wait_log(" client=", "event=connected", times=2)
        for _ in range(20):
            assert is_reset(ends.port)
        ends.feed()
        assert len(ends.running.logged("event=refused", "reason=full")) == 1
        second.close()
        wait_until(lambda: (ends.feed(), ends.running.logged(" client=", "event=closed"))[1], "a free place")
        assert not is_reset(ends.port)


def test_max_clients_per_ip() -> None:
    """FAULTS L14."""
    with ExitStack() as stack:
        ends = Ends(stack, "-o", "max_clients_per_ip=1")
        assert is_reset(ends.port)
        other = stack.enter_context(socket.create_connection(("127.0.0.1", ends.port), source_address=("127.0.0.2", 0)))
        ends.running.wait_log(" client=127.0.0.2", "event=connected")
        ends.feed()
        assert check_keyed("feed", receive(other, CELL), 0)


def test_denied_peers_are_reset_at_either_end() -> None:
    """FAULTS L15; the log has one line for a burst, and a burst at one end does not hide the other's."""
    source_port, port = free_port(), free_port()
    words = f"127.0.0.1:{source_port}", f":{port}", "--mode", "listen-listen"
    with relayd(*words, "-o", "deny=127.0.0.0/8", "-o", "source_allow=127.0.0.2") as running:
        for _ in range(20):
            assert is_reset(port)
            assert is_reset(source_port)
        assert len(running.logged("event=refused", "reason=denied")) == 2
        assert running.cpu_share(0.5) < 0.05
        with socket.create_connection(("127.0.0.1", source_port), source_address=("127.0.0.2", 0)):
            running.wait_log(" source=127.0.0.2", "event=connected")


def test_an_ipv4_client_of_a_wildcard_listener_is_judged_as_ipv4() -> None:
    """FAULTS L4, L16."""
    source_port, port = free_port(), free_port()
    words = f":{source_port}", f":{port}", "--mode", "listen-listen", "-o", "allow=127.0.0.1,::1"
    with relayd(*words) as running, ExitStack() as stack:
        clients = [stack.enter_context(connect(port))]
        with suppress(OSError):  # no IPv6 on this host
            clients.append(stack.enter_context(socket.create_connection(("::1", port))))
        running.wait_log(" client=", "event=connected", times=len(clients))
        running.wait_log(" client=127.0.0.1:", "event=connected")
        assert is_reset(port, "127.0.0.2")


def test_an_address_in_use_is_said_at_start() -> None:
    """FAULTS L1, L3."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_relayd(f"127.0.0.1:{free_port()}", address)
    assert done.returncode == 1
    first, *rest = done.stderr.splitlines()
    assert address in first and "in use" in first
    assert not rest, rest  # FAULTS P28: nothing is left open for Python to complain about
