"""Listening: ports that cannot be had, who may come in, and how many."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.oracle import cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.test_reloading import public
from tests.integration import daemons
from tests.integration.daemons import Site, relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Namespace,
    connect,
    free_port,
    keyed,
    needs,
    receive,
    reset_connection,
    spawned,
    wait_until,
)

__all__ = ["public"]  # the fixture


FOREIGN = "192.0.2.7"  # documentation's (RFC 5737): no address of this machine


class Door:
    """A relay that both ends come to, its source, and those who ask to come in."""

    def __init__(self, site: Site, stack: ExitStack, ports: tuple[int, int]) -> None:
        self.site = site
        self.port = ports[1]
        self._stack = stack
        self._asked = self._cells = 0
        self._source = connect(ports[0])
        stack.callback(reset_connection, self._source)

    def ask(self, count: int, host: str = "127.0.0.1", to: str = "127.0.0.1") -> list[socket.socket]:
        """Have so many come from the host; return them, or what is left of them, when relayd has decided on all."""
        found = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            self._stack.callback(reset_connection_if_open, sock)
            sock.settimeout(PATIENCE)
            sock.bind((host, 0))
            try:
                sock.connect((to, self.port))
            except ConnectionResetError:  # it was quick
                sock.close()
            found.append(sock)
        self._asked += count
        deadline = time.monotonic() + PATIENCE
        while self.decided() != self._asked:
            assert time.monotonic() < deadline, f"no decision on {self._asked}"
            time.sleep(0.05)  # a status is work for relayd, with hundreds of links in it
        return found

    def decided(self) -> int:
        """Return how many were let in or turned away."""
        totals = self.site.relay("one")["totals"]
        return int(totals["destination_links"] + totals["refused"])

    def served(self, socks: list[socket.socket]) -> int:
        """Send a cell; return how many of them get it. The others must have been reset."""
        cell = keyed("feed", self._cells, 1)
        self._cells += 1
        self._source.sendall(cell)
        wait_until(lambda: self.site.relay("one")["totals"]["bytes_in"] == self._cells * CELL, "the cell")
        count = 0
        for sock in socks:
            if sock.fileno() < 0:
                continue
            try:
                assert receive(sock, CELL) == cell
                count += 1
            except ConnectionResetError:
                sock.close()
        return count


def reset_connection_if_open(sock: socket.socket) -> None:
    """Close with RST what may be closed already."""
    if sock.fileno() >= 0:
        reset_connection(sock)


@contextmanager
def door(rig: Rig, destination: object = None, **keys: object) -> Iterator[Door]:
    """Run a daemon with one relay, whose source is up."""
    source_port, port = free_port(), free_port()
    one = relay("one", source_port, port if destination is None else f"{destination}:{port}", framing="line", **keys)
    with rig.daemon(one) as site, ExitStack() as stack:
        yield Door(site, stack, (source_port, port))


# -- ports that cannot be had ---------------------------------------------------------------------


@row(
    "L1",
    provoked="a port that somebody has (EADDRINUSE), at the start and at a reload",
    required="exit 1; relay, address and who has it are named; a reload changes nothing, not even the ports it could "
    "have had",
)
def test_l1_a_port_that_is_taken_at_the_start(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with rig.site(relay("one", free_port(), port)) as site:
            done = site.launch()
            assert (done.returncode, done.stdout, site.processes()) == (1, "", [])
            (line,) = done.stderr.splitlines()
            for word in ("[relay one]", f"127.0.0.1:{port}", "Address already in use", f"(pid {os.getpid()})"):
                assert word in line, (word, line)
            assert not site.pidfile.exists() and not site.control.exists()
    rig.saw("at the start: relay, address and pid")


@row("L1", provoked="", required="")
def test_l1_a_port_that_is_taken_at_a_reload(rig: Rig) -> None:
    kept, given_up, wanted = [(free_port(), free_port()) for _ in range(3)]
    with socket.create_server(("127.0.0.1", 0)) as taken, ExitStack() as stack:
        port = taken.getsockname()[1]
        site = stack.enter_context(rig.daemon(relay("one", *kept), relay("two", *given_up)))
        one = stack.enter_context(ExitStack())
        through = Door(site, one, kept)
        clients = through.ask(2)
        before = site.status()["config"]["loaded_at"]
        site.configure(relay("one", *kept, buffer="1M"), relay("three", wanted[0], port), rig.control_relay)
        answer = site.ask("reload")
        assert not answer["ok"] and f"127.0.0.1:{port}" in answer["error"] and "in use" in answer["error"], answer
        assert site.status()["config"]["loaded_at"] == before
        assert [found["name"] for found in site.status()["relays"]] == ["one", "two", "control"]
        assert site.relay("one")["settings"]["buffer"] == "4M"
        assert through.served(clients) == 2
        reset_connection(connect(given_up[1]))
        with socket.create_server(("127.0.0.1", wanted[0])):
            pass  # what could be had was given back
        site.configure(relay("one", *kept), relay("two", *given_up), rig.control_relay)
        rig.saw("at a reload: nothing has changed")


@row(
    "L2",
    provoked="an address that no interface has, or that is tentative (IPv6, duplicate address detection)",
    required="exit 1 and the reason; the same start succeeds as soon as the address is there",
)
def test_l2_an_address_that_is_not_there(rig: Rig) -> None:
    with rig.site(relay("one", free_port(), f"{FOREIGN}:{free_port()}")) as site:
        done = site.launch()
        assert done.returncode == 1 and FOREIGN in done.stderr and "Cannot assign requested" in done.stderr, done


@row("L2", provoked="", required="")
def test_l2_an_address_that_is_tentative(rig: Rig) -> None:
    address = "2001:db8::7"  # documentation's (RFC 3849)
    with Namespace() as machine, rig.site(relay("one", free_port(), f"[{address}]:{free_port()}")) as site:
        machine.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        machine.run("sysctl", "-q", "net.ipv6.conf.v0.dad_transmits=1000")  # a second each
        for end in ("v0", "v1"):
            machine.run("ip", "link", "set", end, "up")
        machine.run("ip", "addr", "add", f"{address}/64", "dev", "v0")
        done = site.launch(prefix=machine.enter)
        assert done.returncode == 1 and address in done.stderr and "(yet)" in done.stderr, done
        machine.run("ip", "addr", "del", f"{address}/64", "dev", "v0")
        machine.run("ip", "addr", "add", f"{address}/64", "dev", "v0", "nodad")
        site.start(prefix=machine.enter)
        site.stop()
    rig.saw("exit 1, and a start when it is there")


@row(
    "L3",
    provoked="two daemons, one port; the second on the same address, on all addresses",
    required="the second exits with 1 and names the pid of the first, which loses no client",
)
def test_l3_two_daemons_one_port(rig: Rig) -> None:
    with door(rig) as first:
        for number, host in enumerate(("127.0.0.1", "")):
            folder = rig.folder / f"second{number}"
            folder.mkdir()
            with daemons.site(folder, relay("two", free_port(), f"{host}:{first.port}")) as second:
                second.program = rig.program
                done = second.launch()
                assert done.returncode == 1 and f"(pid {first.site.pid})" in done.stderr, done
        assert first.served(first.ask(50)) == 50  # with SO_REUSEPORT half of them would be elsewhere
    rig.saw("refused, and names the first")


@row(
    "L4",
    provoked="0.0.0.0 and [::] with one port, by name or as `:port`",
    required="both listen, whatever `net.ipv6.bindv6only` says; IPv4 clients are seen as IPv4",
)
@pytest.mark.parametrize("host", ["0.0.0.0:{0}, [::]:{0}", "[::]:{0}, 0.0.0.0:{0}", ":{0}"])
def test_l4_both_wildcards(rig: Rig, host: str) -> None:
    source_port, port = free_port(), free_port()
    with (
        rig.daemon(relay("one", source_port, host.format(port), allow="127.0.0.1, ::1")) as site,
        ExitStack() as stack,
    ):
        found = Door(site, stack, (source_port, port))
        assert found.served([*found.ask(1), *found.ask(1, "::1", "::1")]) == 2
        peers = {link["peer"].rpartition(":")[0] for link in site.relay("one")["destinations"]}
        assert peers == {"127.0.0.1", "[::1]"}
        rig.saw("both")


def _privileged_port() -> int:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 1024:
        pytest.skip("anybody may have ports below 1024 here")
    return 1023


@row(
    "L5",
    provoked="a port below 1024 without the right to it: at the start, and at a reload as the user that `user` names",
    required="exit 1, or a reload that changes nothing; CAP_NET_BIND_SERVICE and the systemd socket unit are named",
)
def test_l5_a_privileged_port_at_the_start(rig: Rig) -> None:
    needs("setpriv")
    prefix = ["setpriv", "--bounding-set=-net_bind_service", "--"] if os.geteuid() == 0 else []
    with rig.site(relay("one", free_port(), _privileged_port())) as site:
        done = site.launch(prefix=prefix)
        assert done.returncode == 1 and "CAP_NET_BIND_SERVICE or a systemd socket unit" in done.stderr, done
        assert "127.0.0.1:1023: Permission denied" in done.stderr, done


@row("L5", provoked="", required="")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_l5_a_privileged_port_at_a_reload(rig: Rig, public: Path) -> None:
    ports, low = (free_port(), free_port()), _privileged_port()
    with rig.daemon(relay("one", *ports), user="nobody", group="nogroup") as site, ExitStack() as stack:
        found = Door(site, stack, ports)
        clients = found.ask(1)
        site.configure(relay("one", ports[0], [ports[1], low]), rig.control_relay)
        answer = site.ask("reload")
        assert not answer["ok"] and "CAP_NET_BIND_SERVICE or a systemd socket unit" in answer["error"], answer
        assert found.served(clients) == 1
        site.configure(relay("one", *ports), rig.control_relay)
    rig.saw("the cure is named, at the start and at a reload")


# -- how many, and who ----------------------------------------------------------------------------


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
        began = time.monotonic()
        site.reload()  # an answer within the patience of the suite, with all the clients there
        assert time.monotonic() - began < 1.0 * SLOWNESS
        assert not site.lines("event=control_paused"), site.tail()


@row(
    "L13",
    provoked="`max_clients` 10, and 50 come",
    required="ten are served, each of the others is reset at once, one line of the log; a place that is left is free; "
    "never one that is accepted and forgotten",
)
def test_l13_one_client_too_many(rig: Rig) -> None:
    with door(rig, max_clients=10) as found:
        began = time.monotonic()
        clients = found.ask(50)
        assert time.monotonic() - began < 1.0 * SLOWNESS
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
