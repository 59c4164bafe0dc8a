"""Connecting out where the way, the port or the descriptor is missing: made in namespaces, and by limits."""

from __future__ import annotations

import resource
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.oracle import logged_at
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import proc_status, relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Namespace,
    check_keyed,
    free_port,
    keyed,
    listener,
    needs,
    receive,
    reset_connection,
    spawned,
    wait_until,
)


@row("N1", provoked="", required="")
def test_n1_the_waits(rig: Rig, machine: Namespace) -> None:
    """Seen by the kernel's own count of attempts that failed (/proc/net/snmp), in a network that has no others."""
    low, high, seconds, fewest, most = (1, 30, 130, 6, 10) if rig.long else (0.1, 1, 2, 4, 7)
    with rig.daemon(
        relay("one", free_port(), free_port(), "connect-listen", reconnect=f"{low}s..{high}s"), namespace=machine
    ) as site:
        began, first = time.monotonic(), _failed_attempts(site.pid)
        time.sleep(seconds)
        found = _failed_attempts(site.pid)
        took = time.monotonic() - began
        # 0, 0.1, 0.3, 0.7, 1.5, 2.5 s, or 0, 1, 3, 7, 15, 31, 61, 91, 121; each wait ±20 %
        assert fewest <= found, found
        assert found - first <= most + (took - seconds) / low, (first, found)
        rig.saw(f"{found} attempts in {seconds} s")


def _failed_attempts(pid: int) -> int:
    lines = [line.split() for line in Path(f"/proc/{pid}/net/snmp").read_text().splitlines() if line.startswith("Tcp:")]
    return int(dict(zip(*lines, strict=True))["AttemptFails"])


@row("N2", provoked="", required="")
def test_n2_a_firewall_that_drops(rig: Rig, machine: Namespace) -> None:
    needs("nft")
    port, limit = free_port(), rig.times(1, 10)
    _nft(machine, f"tcp dport {port} drop")
    one = relay("one", port, free_port(), "connect-listen", connect_timeout=f"{limit}s", reconnect="0.1s")
    with rig.daemon(one, namespace=machine) as site, machine.listener(port) as server:
        failed = site.wait_log("event=connect_failed", f"timed out after {limit} s")
        took = logged_at(failed) - logged_at(site.wait_log("event=started"))
        assert limit - 0.05 < took < limit + 0.5 * SLOWNESS, failed
        machine.run("nft", "delete table inet t")
        reset_connection(server.accept()[0])


def _nft(machine: Namespace, *rules: str) -> None:
    """Make a firewall of these rules for what comes in."""
    chain = "add chain inet t in { type filter hook input priority 0; }"
    for command in ("add table inet t", chain, *(f"add rule inet t in {rule}" for rule in rules)):
        machine.run("nft", command)


_NOWHERE = "Network is unreachable"

# What makes a way fail, and what the kernel says then. A blackhole's EINVAL is its own.
_WAYS = {
    "none": ("", _NOWHERE),
    "unreachable": ("ip route add unreachable {host}", "No route to host"),
    "prohibit": ("ip route add prohibit {host}", "Permission denied"),
    "blackhole": ("ip route add blackhole {host}", "Invalid argument"),
    "firewall": ("nft ip daddr {host} ip protocol tcp reject with icmp type admin-prohibited", "No route to host"),
    "reset": ("nft ip daddr {host} tcp flags syn reject with tcp reset", "Connection refused"),
    "neighbour": ("ip route add {host} dev v0", "No route to host"),
}


@row(
    "N3",
    provoked="no route; routes `unreachable`, `prohibit`, `blackhole`; a firewall that says no, or resets; a neighbour "
    "that does not answer",
    required="each is a failure with the kernel's name for it, retried like any other: connects when the way is there",
)
def test_n3_no_way(rig: Rig, machine: Namespace) -> None:
    needs("nft")
    port = free_port()
    hosts = {kind: f"10.9.0.{n}" for n, kind in enumerate(_WAYS, 1)}
    # The neighbour's is the only one that takes its time: 3.1 s until the kernel gives up asking for it.
    machine.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    machine.run("ip", "address", "add", "10.8.0.1/32", "dev", "v0")
    for name in ("v0", "v1"):
        machine.run("ip", "link", "set", name, "up")
    _nft(machine)
    for kind, (command, _) in _WAYS.items():
        if command.startswith("nft "):
            machine.run("ip", "address", "add", f"{hosts[kind]}/32", "dev", "lo")
            machine.run("nft", f"add rule inet t in {command[4:].format(host=hosts[kind])}")
        elif command:
            machine.run(*command.format(host=hosts[kind]).split())
    relays = [
        relay(kind, f"{host}:{port}", f"unix:{kind}", "connect-listen", reconnect="0.2s..0.5s")
        for kind, host in hosts.items()
    ]
    with rig.daemon(*relays, namespace=machine) as site:
        for kind, (_, said) in _WAYS.items():
            site.wait_log(f"relay={kind} ", "event=connect_failed", f"{hosts[kind]}:{port}: {said}")
        assert len(site.lines("event=connect_failed")) == len(hosts), site.tail()  # of some twenty attempts
        with machine.listener(port, "0.0.0.0") as server:
            machine.run("nft", "flush chain inet t in")
            for kind, (command, _) in _WAYS.items():
                if not command.startswith("nft "):
                    if command:
                        machine.run("ip", "route", "delete", *command.format(host=hosts[kind]).split()[3:])
                    machine.run("ip", "address", "add", f"{hosts[kind]}/32", "dev", "lo")
            links = [server.accept()[0] for _ in hosts]
        for link in links:
            reset_connection(link)
        rig.saw(f"{len(hosts)} of {len(hosts)}")


_FEW = "50000 50003"  # an even number: the kernel leaves the last of an odd one out


@row(
    "N4",
    provoked="no local port is left (EADDRNOTAVAIL)",
    required="a failure like any other; what is up and other relays are not touched; connects when there is one",
)
def test_n4_no_local_port(rig: Rig, machine: Namespace) -> None:
    port = free_port()
    relays = [relay(f"r{n}", port, f"unix:{n}", "connect-listen", reconnect="0.2s..0.5s") for n in range(6)]
    with rig.daemon(*relays, namespace=machine) as site:
        machine.run("sysctl", "-q", f"net.ipv4.ip_local_port_range={_FEW}")
        with machine.listener(port) as server:
            links = [server.accept()[0] for _ in range(4)]
            site.wait_log("event=connect_failed", "Cannot assign requested address", times=2)
            for n, link in enumerate(links):
                link.sendall(keyed("feed", n, 1))
            wait_until(lambda: sum(r["totals"]["bytes_in"] for r in site.status()["relays"][:6]) == 4 * CELL, "data")
            machine.run("sysctl", "-q", "net.ipv4.ip_local_port_range=32768 60999")
            links += [server.accept()[0] for _ in range(2)]
        for link in links:
            reset_connection(link)
        rig.saw("two of six relays wait; they connect when the range is wide again")


@row(
    "N5",
    provoked="no descriptor is left (the running daemon's limit is lowered); `socket()` is made to fail with EMFILE, "
    "ENFILE, ENOBUFS, ENOMEM",
    required="a failure like any other; links that are up go on; connects when it is over",
)
def test_n5_no_descriptor(rig: Rig) -> None:
    source_port, port, dead = free_port(), free_port(), free_port()
    relays = [
        relay("up", source_port, port, "connect-connect", reconnect="0.2s"),
        relay("one", dead, free_port(), "connect-listen", reconnect="0.2s..0.5s"),
    ]
    with ExitStack() as stack:
        site = stack.enter_context(rig.daemon(*relays))
        with listener(source_port) as near, listener(port) as far:
            source, destination = near.accept()[0], far.accept()[0]
        site.wait_log("relay=up", "event=connected", times=2)
        soft, hard = resource.prlimit(site.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(site.pid, resource.RLIMIT_NOFILE, (4, hard))  # it has all these already
        site.wait_log("relay=one", "event=connect_failed", "Too many open files")
        with listener(dead) as server:
            server.settimeout(1.0)
            with pytest.raises(TimeoutError):
                server.accept()
            source.sendall(keyed("feed", 0, 1000))
            check_keyed("feed", receive(destination, 1000 * CELL), 0)
            resource.prlimit(site.pid, resource.RLIMIT_NOFILE, (soft, hard))
            server.settimeout(PATIENCE)
            reset_connection(server.accept()[0])
        rig.saw("none left: 1,000 cells pass meanwhile")
        for link in (source, destination):
            reset_connection(link)


@row("N5", provoked="", required="")
def test_n5_no_socket(rig: Rig) -> None:
    needs("strace")
    errors = {
        "EMFILE": "Too many open files", "ENFILE": "Too many open files in system",
        "ENOBUFS": "No buffer space available", "ENOMEM": "Cannot allocate memory",
    }  # fmt: skip
    dead = free_port()
    with rig.daemon(relay("one", dead, free_port(), "connect-listen", reconnect="0.1s..0.2s")) as site:
        for name, said in errors.items():
            inject = ["-e", "trace=socket", "-e", f"inject=socket:error={name}"]
            with spawned("strace", "-f", "-qq", "-o", "/dev/null", "-p", str(site.pid), *inject) as strace:
                wait_until(lambda: strace.poll() is not None or proc_status(site.pid)["TracerPid"] == str(strace.pid))
                if strace.poll() is not None:
                    pytest.skip("no process may be traced here")
                site.wait_log("relay=one", "event=connect_failed", f"{dead}: {said}")
                strace.send_signal(signal.SIGTERM)  # so that it lets go in peace
                strace.wait(PATIENCE)
        with listener(dead) as server:
            reset_connection(server.accept()[0])
        rig.saw(", ".join(errors))


def _hosts(machine: Namespace, folder: Path, *lines: str) -> None:
    """Give the machine an /etc/hosts."""
    file = folder / "hosts"
    file.write_text("".join(f"{line}\n" for line in ("127.0.0.1 localhost", *lines)))
    machine.run("mount", "--bind", file, "/etc/hosts")


@row(
    "N14",
    provoked="a name has two addresses; the first never answers, the second is good",
    required="each gets `connect_timeout`, in turn: a receiver's one client must not be two at once",
)
def test_n14_the_first_address_is_a_hole(rig: Rig, machine: Namespace) -> None:
    needs("nft")
    port = free_port()
    _hosts(machine, rig.folder, "127.0.0.2 feed.example", "127.0.0.3 feed.example")
    _nft(machine, "ip daddr 127.0.0.2 drop")
    one = relay("one", f"feed.example:{port}", free_port(), "connect-listen", connect_timeout="1s")
    with machine.listener(port, "0.0.0.0") as server, rig.daemon(one, namespace=machine) as site:
        link = server.accept()[0]
        assert link.getsockname()[0] == "127.0.0.3"
        took = logged_at(site.wait_log("relay=one", "event=connected")) - logged_at(site.wait_log("event=started"))
        assert 0.95 < took < 1 + 0.5 * SLOWNESS
        assert not site.lines("event=connect_failed"), site.tail()
        reset_connection(link)
        rig.saw(f"connected after {took:.2f} s, with `connect_timeout = 1s`")


@row(
    "N15",
    provoked="each address of a name fails in another way",
    required="one line of the log has them all, with the reason of each; it is not said again while nothing changes",
)
def test_n15_each_address_fails_in_another_way(rig: Rig, machine: Namespace) -> None:
    needs("nft")
    port = free_port()
    _hosts(machine, rig.folder, *(f"127.0.0.{n} feed.example" for n in (2, 3, 4)), "10.9.0.1 feed.example")
    _nft(machine, "ip daddr 127.0.0.3 drop", "ip daddr 127.0.0.4 reject with icmp type admin-prohibited")
    keys = {"connect_timeout": "0.2s", "reconnect": "0.1s"}
    one = relay("one", f"feed.example:{port}", free_port(), "connect-listen", **keys)
    with rig.daemon(one, namespace=machine) as site:
        said = site.wait_log("relay=one", "event=connect_failed")
        for host, why in {
            "127.0.0.2": "Connection refused", "127.0.0.3": "timed out after 0.2 s", "127.0.0.4": "No route to host",
            "10.9.0.1": _NOWHERE,
        }.items():  # fmt: skip
            assert f"{host}:{port}: {why}" in said, said
        attempts = _failed_attempts(site.pid)
        wait_until(lambda: _failed_attempts(site.pid) > attempts + 6, "three attempts more")
        assert len(site.lines("event=connect_failed")) == 1, site.tail()
        assert site.relay("one")["source"]["last_error"] in said
        rig.saw("one line with four reasons")


@row(
    "N16",
    provoked="an IPv6 link-local address: without an interface, with one that is not there, with the right one",
    required="without: refused by `--check` with the cure; not there: a failure that is retried, for it may come; "
    "with: connects, and can be listened on",
)
def test_n16_link_local_addresses(rig: Rig, machine: Namespace) -> None:
    feed, middle, late, out = (free_port() for _ in range(4))
    with rig.site(relay("one", feed, f"[fe80::1]:{middle}", "listen-connect")) as site:
        done = site.launch("--check")
        assert done.returncode == 2 and f"[fe80::1%eth0]:{middle}" in done.stderr, done.stderr
    machine.run("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad")
    relays = [
        relay("front", feed, f"[fe80::1%lo]:{middle}", "listen-connect", reconnect="0.2s"),
        relay("back", f"[fe80::1%lo]:{middle}", out, "listen-listen"),
        relay("late", f"[fe80::2%v0]:{late}", free_port(), "connect-listen", reconnect="0.2s"),
    ]
    with rig.daemon(*relays, namespace=machine) as site:
        with machine.connect(feed) as source, machine.connect(out) as client:
            site.wait_log("relay=back", " source=[fe80::1]:", "event=connected")
            site.wait_log("relay=front", f" destination=[fe80::1%lo]:{middle}", "event=connected")
            site.wait_log("relay=back", " client=", "event=connected")
            source.sendall(keyed("feed", 0, 1000))
            check_keyed("feed", receive(client, 1000 * CELL), 0)
            site.wait_log("relay=late", "event=connect_failed", "[fe80::2%v0]")
            for link in (source, client):
                reset_connection(link)
        machine.run("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
        machine.run("ip", "address", "add", "fe80::2/64", "dev", "v0", "nodad")
        for name in ("v0", "v1"):
            machine.run("ip", "link", "set", name, "up")
        site.wait_log("relay=late", "event=connect_failed", f":{late}: Connection refused")
        rig.saw("three of three; a missing interface is `Name or service not known` until it comes")
