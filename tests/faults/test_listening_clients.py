"""Listening: how many may come in, and who."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from tests.faults.door import Door, door, reset_connection_if_open
from tests.faults.oracle import cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Namespace,
    Stopwatch,
    free_port,
    receive,
    reset_connection,
    spawned,
    wait_until,
)


@row(
    "L10",
    provoked="a limit of 128 descriptors, 256 at most, for 1,000 clients; 300 come",
    required="the soft limit is raised to the hard one, `max_clients` lowered to what leaves 32, with a warning; those "
    "above are reset; with all places taken status, reload and SIGUSR1 work",
)
def test_l10_fewer_descriptors_than_clients(rig: Rig) -> None:
    ports = free_port(), free_port()
    few = ["sh", "-c", 'ulimit -Sn 128 && ulimit -Hn 256 && exec "$@"', "sh"]
    with rig.daemon(relay("one", *ports), prefix=few) as site, ExitStack() as stack:
        site.wait_log("relay=one", "event=max_clients_lowered", "wanted=1000", "to=224")
        found = Door(site, stack, ports)
        assert found.served(found.ask(300)) == 224
        site.hang_up()
        site.reload()
        site.send(signal.SIGUSR1)
        site.wait_log("event=reopened")
        assert not site.lines("event=accepting_paused") and not site.lines("event=control_paused"), site.tail()
        rig.saw("224 are served, 76 reset")


@row("L10", provoked="", required="")
def test_l10_several_relays_and_few_descriptors(rig: Rig) -> None:
    """What is kept for the operator must not be taken by the clients of the second relay."""
    ports = [(free_port(), free_port()) for _ in range(2)]
    few = ["sh", "-c", 'ulimit -n 128 && exec "$@"', "sh"]
    relays = [relay(f"r{number}", *pair) for number, pair in enumerate(ports)]
    with rig.daemon(*relays, prefix=few) as site, ExitStack() as stack:
        for _, port in ports:
            for _ in range(100):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                stack.callback(reset_connection_if_open, sock)
        watch = Stopwatch(site.pid)
        site.reload()  # an answer within the patience of the suite, with all the clients there
        assert watch.seconds() < 1.0 * SLOWNESS
        assert not site.lines("event=control_paused"), site.tail()


@row(
    "L13",
    provoked="`max_clients` 10, and 50 come",
    required="ten are served, each of the others is reset at once, one line of the log; a place that is left is free; "
    "never one that is accepted and forgotten",
)
def test_l13_one_client_too_many(rig: Rig) -> None:
    with door(rig, max_clients=10) as found:
        watch = Stopwatch(found.site.pid)
        clients = found.ask(50)
        assert watch.seconds() < 1.0 * SLOWNESS
        assert found.served(clients) == 10
        inside = [sock for sock in clients if sock.fileno() >= 0]
        assert len(found.site.lines("relay=one", "event=refused", "reason=full")) == 1
        assert found.site.relay("one")["totals"]["refused"] == 40
        for left, client in enumerate(inside[:5], 1):
            reset_connection(client)
            wait_until(lambda left=left: len(found.site.lines(" client=", "event=closed")) == left, "a free place")
        assert found.served([*inside[5:], *found.ask(6)]) == 10
        rig.saw("10 served, 40 reset")


@row(
    "L14",
    provoked="`max_clients_per_ip` 3 of 10 places, and one address asks for 50",
    required="it gets three, the others seven; who may not come in at all takes no place",
)
def test_l14_one_address_wants_all(rig: Rig) -> None:
    with door(rig, max_clients=10, max_clients_per_ip=3, deny="127.0.0.9") as found:
        assert found.served(found.ask(20, "127.0.0.9")) == 0
        greedy = found.ask(50)
        assert found.served(greedy) == 3
        others = [sock for host in ("127.0.0.2", "127.0.0.3", "127.0.0.4") for sock in found.ask(4, host)]
        assert found.served(others) == 7  # 3 + 3 + 1: then all ten places are taken
        inside = [sock for sock in greedy if sock.fileno() >= 0]
        for sock in inside:
            receive(sock, CELL)  # what the others were sent
        reset_connection(inside.pop())
        found.site.wait_log(" client=127.0.0.1:", "event=closed")
        assert found.served([*inside, *found.ask(2)]) == 3
        rig.saw("three of 50, and seven others")


@row(
    "L15",
    provoked="peers that may not come in hammer both ends",
    required="each is reset, with less than 1 ms of CPU; one line of the log for each end and 10 s; who may come in is "
    "served meanwhile",
)
def test_l15_denied_peers_hammer(rig: Rig) -> None:
    ports, times = (free_port(), free_port()), rig.times(500, 20_000)
    keys = {"deny": "127.0.0.2", "source_allow": "127.0.0.1", "framing": "line"}
    with rig.daemon(relay("one", *ports, **keys)) as site, ExitStack() as stack:
        found = Door(site, stack, ports)
        friend = found.ask(1)
        began, before = time.monotonic(), cpu_seconds(site.pid)
        for number in range(times):
            for port in ports:
                assert _is_reset(port, "127.0.0.2")
            if number % 100 == 0:
                assert found.served(friend) == 1
        took, cpu = time.monotonic() - began, cpu_seconds(site.pid) - before
        each = cpu / (2 * times)
        assert each < 0.001, f"{each * 1e6:.0f} us of CPU each"
        bursts = 1 + took // 10
        for end in ("source", "destination"):
            told = len(site.lines("relay=one", f"end={end}", "event=refused", "reason=denied"))
            assert 1 <= told <= 2 * bursts, site.tail()  # the first of a burst, and the one that counts it
        assert site.relay("one")["totals"]["refused"] == 2 * times
        rig.saw(f"{2 * times:,} reset, {each * 1e6:.0f} µs of CPU each")


def _is_reset(port: int, host: str) -> bool:
    with socket.socket() as sock:
        sock.settimeout(PATIENCE)
        sock.bind((host, 0))
        try:
            sock.connect(("127.0.0.1", port))
            sock.recv(1)
        except ConnectionResetError:
            return True
    return False


# Opens the port on [::] for IPv4 as well, as systemd does for ListenStream=PORT, and starts the command with it.
_SOCKET_UNIT = """
import os, socket, sys
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
sock.bind(("::", int(sys.argv[1])))
sock.listen(50)
os.dup2(sock.fileno(), 3)
os.set_inheritable(3, True)  # it may have been 3
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


@row(
    "L16",
    provoked="an IPv4 client that the kernel calls `::ffff:127.0.0.2` (a systemd socket on [::]); a link-local one, "
    "`fe80::1%v0`",
    required="judged as 127.0.0.2, as fe80::1; ::1 is not 127.0.0.1",
)
def test_l16_mapped_addresses(rig: Rig) -> None:
    ports = free_port(), free_port()
    one = relay("one", ports[0], f":{ports[1]}", allow="127.0.0.0/8", deny="127.0.0.2")
    with rig.site(one) as site, ExitStack() as stack:
        words = [sys.executable, "-c", _SOCKET_UNIT, str(ports[1]), *site.program, "--config", str(site.file)]
        process = subprocess.Popen([*words, "--foreground"], stdin=subprocess.DEVNULL)
        stack.callback(process.wait, PATIENCE)
        stack.callback(process.terminate)
        site.wait_log("event=started")
        with ExitStack() as links:
            found = Door(site, links, ports)
            assert found.served(found.ask(3)) == 3
            assert found.served([*found.ask(3, "127.0.0.2"), *found.ask(3, "::1", "::1")]) == 0
    rig.saw("mapped: as IPv4")


# Stays until it is killed, which resets the connection.
_VISITOR = """
import socket, sys
sock = socket.socket(socket.AF_INET6)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")  # however it ends
sock.connect(socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_STREAM)[0][4])
sock.recv(1)
"""


@row("L16", provoked="", required="")
@pytest.mark.parametrize(("network", "comes_in"), [("fe80::1", True), ("fe80::2", False)])
def test_l16_link_local_addresses(rig: Rig, network: str, comes_in: bool) -> None:
    port = free_port()
    with Namespace() as machine:
        machine.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        for end in ("v0", "v1"):
            machine.run("ip", "link", "set", end, "up")
        machine.run("ip", "addr", "add", "fe80::1/64", "dev", "v0", "nodad")
        with rig.daemon(relay("one", free_port(), f"[::]:{port}", allow=network), namespace=machine) as site:
            with spawned(*machine.enter, sys.executable, "-c", _VISITOR, "fe80::1%v0", str(port)):
                parts = (" client=[fe80::1]:", "event=connected") if comes_in else ("event=refused", "=denied")
                site.wait_log("relay=one", *parts)
            rig.saw(f"fe80::1%v0 for {network}: {'let in' if comes_in else 'reset'}")
