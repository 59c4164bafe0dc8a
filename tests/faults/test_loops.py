"""Streams that would run in a circle: into oneself, through this process, through another."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Site, daemon, descriptors, relay
from tests.support import (
    CELL,
    Namespace,
    check_keyed,
    connect,
    free_port,
    keyed,
    needs,
    receive,
    reset_connection,
    spawned,
    wait_until,
)

OWN = "10.8.0.1"  # an address of the machine that the configuration alone does not betray
NAME = "myself.example"  # its name in /etc/hosts
WAITS = {"reconnect": "0.1s..0.5s"}


@pytest.fixture
def machine(rig: Rig) -> Iterator[Namespace]:
    """A machine with the addresses OWN and fe80::1, and the name NAME."""
    (rig.folder / "hosts").write_text(f"127.0.0.1 localhost\n{OWN} {NAME}\n")
    with Namespace() as made:
        made.run("ip", "address", "add", f"{OWN}/32", "dev", "lo")
        made.run("ip", "address", "add", "fe80::1/64", "dev", "lo", "nodad")
        made.run("mount", "--bind", rig.folder / "hosts", "/etc/hosts")
        yield made


@contextlib.contextmanager
def few_descriptors(site: Site, more: int) -> Iterator[None]:
    """Fail where the daemon has more than so many descriptors more, at any moment that was looked at."""
    before = len(descriptors(site.pid))
    end, most = time.monotonic() + 1.5, before
    yield
    while time.monotonic() < end:
        most = max(most, len(descriptors(site.pid)))
    assert most <= before + more, site.tail()


@row(
    "N7",
    provoked="a port of the ephemeral range where nobody listens is dialled until the kernel connects the socket to "
    "itself; an even and an odd one (the range is made as small as four ports)",
    required="found at once, closed with an RST, a failed attempt like any other; the port is free for its server",
)
def test_n7_connected_to_oneself(rig: Rig, machine: Namespace) -> None:
    ports = (50000, 50001)
    relays = [relay(f"r{port}", port, f"unix:{port}", "connect-listen", **WAITS) for port in ports]
    with rig.daemon(*relays, namespace=machine) as site:
        for port in ports:  # the kernel begins with ports of the parity of the first
            machine.run("sysctl", "-q", f"net.ipv4.ip_local_port_range={port} {port + 3}")
            site.wait_log(f"relay=r{port}", "event=connect_failed", "loop, connected to itself")
        assert not site.lines("relay=r5", "event=connected"), site.tail()
        machine.run("sysctl", "-q", "net.ipv4.ip_local_port_range=51000 52000")
        for port in ports:
            with machine.socket() as server:  # without SO_REUSEADDR: any socket that is left would be in the way
                wait_until(lambda port=port, server=server: _bound(server, port), "the port")
                server.listen()
                reset_connection(server.accept()[0])
        rig.saw("both found; their servers bind and are connected to")


def _bound(sock: socket.socket, port: int) -> bool:
    with contextlib.suppress(OSError):  # an attempt takes it for some microseconds
        sock.bind(("127.0.0.1", port))
        return True
    return False


# What is dialled, and what is listened on: all the same place, as the configuration alone shows.
_OPEN_LOOPS = [
    ("127.0.0.1", ""), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.2", ""), ("localhost", ""),
    ("localhost", "127.0.0.1"), ("LocalHost.", "localhost"), ("[::1]", ""), ("[::1]", "[::]"),
    ("[::ffff:127.0.0.1]", ""), ("[::ffff:127.0.0.1]", "127.0.0.1"), (socket.gethostname(), ""),
    ("any.example", "any.example"), ("192.0.2.1", "192.0.2.1"),
]  # fmt: skip


@row(
    "N8",
    provoked="a relay's destination is its own source: by number, name, wildcard, IPv4-mapped, Unix path; "
    "or disguised, by another address of this machine or a name of its own",
    required="seen by `--check`, and refused; at run time refused with the reason `loop`, with at most 2 descriptors "
    "more, while other clients are served",
)
def test_n8_an_open_loop_is_refused(rig: Rig) -> None:
    relays = []
    for dialled, listened in _OPEN_LOOPS:
        for mode in ("connect-listen", "listen-connect"):
            port = free_port()
            ends = f"{dialled}:{port}", f"{listened}:{port}"
            relays.append(relay(f"r{len(relays)}", *(ends if mode == "connect-listen" else ends[::-1]), mode))
    relays.append(relay(f"r{len(relays)}", "unix:a.sock", "unix:./x/../a.sock", "connect-listen"))
    with rig.site(*relays) as site:
        done = site.launch("--check")
    named = set(re.findall(r"\[relay (r\d+)\] destination: .*in a loop", done.stderr))
    missing = [section for n, section in enumerate(relays) if f"r{n}" not in named]
    assert done.returncode == 2 and not missing, (missing, done.stderr)
    rig.saw(f"{len(relays)} of {len(relays)} refused")


_DISGUISES = [OWN, NAME, f"[::ffff:{OWN}]", "[fe80::1%lo]"]


@row("N8", provoked="", required="")
@pytest.mark.parametrize("mode", ["connect-listen", "listen-connect"])
def test_n8_a_disguised_loop_is_found(rig: Rig, machine: Namespace, mode: str) -> None:
    relays, ports = [], []
    for disguise in _DISGUISES:
        ports.append(free_port())
        ends = f"{disguise}:{ports[-1]}", f":{ports[-1]}"
        relays.append(relay(f"r{len(relays)}", *(ends if mode == "connect-listen" else ends[::-1]), mode, **WAITS))
    with rig.daemon(*relays, namespace=machine) as site:
        with few_descriptors(site, 2 * len(relays)):
            for n in range(len(relays)):
                wait_until(lambda n=n: site.lines(f"relay=r{n} ", "event=refused") or site.lines(f"relay=r{n} client="))
                assert site.lines(f"relay=r{n} ", "event=refused", "reason=loop"), site.tail()
        accepted = "client" if mode == "connect-listen" else "source"
        assert not site.lines("relay=r", f" {accepted}=", "event=connected"), site.tail()
        with machine.connect(ports[0]) as other:
            site.wait_log("relay=r0 ", f" {accepted}=127.0.0.1:{other.getsockname()[1]}", "event=connected")
            reset_connection(other)
        if mode == "connect-listen":
            rig.saw(f"{len(relays)} disguises refused")


@row(
    "N9",
    provoked="two and three relays of one process feed each other in a circle, openly or by another address or name",
    required="seen by `--check`, and refused; at run time one link of the circle is refused with the reason `loop`, "
    "nothing goes round; a chain passes its data",
)
def test_n9_an_open_circle_is_refused(rig: Rig) -> None:
    for count in (2, 3):
        ports = [free_port() for _ in range(count)]
        relays = [
            relay(f"r{n}", f"localhost:{ports[n - 1]}", ports[n], "connect-listen", **WAITS) for n in range(count)
        ]
        with rig.site(*relays) as site:
            done = site.launch("--check")
        assert done.returncode == 2
        assert set(re.findall(r"\[relay (r\d)\] .*in a loop", done.stderr)) == {f"r{n}" for n in range(count)}


@row("N9", provoked="", required="")
def test_n9_a_disguised_circle_is_broken(rig: Rig, machine: Namespace) -> None:
    """Circles of three relays, of which one dials both of its ends, each in a disguise of its own."""
    relays: list[str] = []
    for n, disguise in enumerate(_DISGUISES):
        one, two, three = free_port(), free_port(), free_port()
        relays += [
            relay(f"a{n}", f"{disguise}:{three}", f":{one}", "connect-listen", **WAITS),
            relay(f"b{n}", f"{disguise}:{one}", f"{disguise}:{two}", "connect-connect", **WAITS),
            relay(f"c{n}", f":{two}", f":{three}", "listen-listen"),
        ]
    with rig.daemon(*relays, namespace=machine) as site:
        with few_descriptors(site, 2 * len(relays)):
            wait_until(lambda: len(site.lines("event=refused", "reason=loop")) >= len(_DISGUISES), "the circles")
        up = dict.fromkeys(range(len(_DISGUISES)), 0)
        for found in site.status()["relays"][:-1]:  # the last is the untouched one
            up[int(found["name"][1:])] += found["source"]["state"] == "up"
            assert not found["totals"]["bytes_in"]
        assert set(up.values()) == {2}, up  # all of a circle's links but one
        rig.saw(f"{len(_DISGUISES)} circles of three broken")


@row("N9", provoked="", required="")
def test_n9_a_chain_is_legal(rig: Rig) -> None:
    feed, middle, rear, last = (free_port() for _ in range(4))
    relays = [
        relay("front", feed, middle, "listen-listen"),
        relay("back", middle, rear, "connect-connect", **WAITS),
        relay("rear", rear, last, "listen-listen"),
    ]
    with rig.daemon(*relays) as site:
        for ends in (("relay=front", " client="), ("relay=back", " destination="), ("relay=rear", " source=")):
            site.wait_log(*ends, "event=connected")
        with connect(feed) as source, connect(last) as client:
            site.wait_log("relay=rear", " client=", "event=connected")
            source.sendall(keyed("feed", 0, 1000))
            check_keyed("feed", receive(client, 1000 * CELL), 0)
            for link in (source, client):
                reset_connection(link)
        assert not site.lines("reason=loop")
        rig.saw("a chain of three passes")


@row(
    "N10",
    provoked="a circle through socat or another relayd, with data that go round in it",
    required="cannot be seen from inside: bounded by `max_clients` and `reconnect`; other relays are served",
)
@pytest.mark.parametrize("through", ["socat", "relayd"])
def test_n10_a_circle_through_another_process(rig: Rig, through: str) -> None:
    """`return = all` at the first relay, so that what a client says goes round for ever."""
    entrance, port = free_port(), free_port()
    keys = {"return": "all", **WAITS}
    one = relay("one", entrance, port, "connect-listen", max_clients=3, **keys)
    with ExitStack() as stack:
        site = stack.enter_context(rig.daemon(one))
        before = len(site.descriptors())
        with ExitStack() as circle:
            if through == "socat":
                needs("socat")
                words = f"TCP-LISTEN:{entrance},fork,reuseaddr,bind=127.0.0.1", f"TCP:127.0.0.1:{port}"
                socat = circle.enter_context(spawned("socat", *words, start_new_session=True))
                circle.callback(os.killpg, socat.pid, signal.SIGKILL)  # and those that it has forked
            else:
                (rig.folder / "other").mkdir()
                circle.enter_context(
                    daemon(rig.folder / "other", relay("two", port, entrance, "connect-listen", **keys))
                )
            site.wait_log("relay=one", " client=", "event=connected")
            site.wait_log("relay=one", " source=", "event=connected")
            with connect(port) as client:
                wait_until(lambda: len(site.relay("one")["destinations"]) == 2, "the client")
                client.sendall(keyed("feed", 0, 100))
                wait_until(lambda: site.relay("one")["totals"]["returned"] > 100 * CELL * 100, "a hundred rounds")
                for _ in range(10):
                    with contextlib.suppress(OSError):
                        reset_connection(connect(port))
                assert len(site.descriptors()) <= before + 1 + 3 + 2  # source, clients, one that comes and the control
                reset_connection(client)
        for link in site.relay("one")["destinations"]:  # what has ended goes on receiving, for all that can be known
            site.relayctl("kick", "one", link["peer"])
        site.wait_log("relay=one", " source=", "event=closed")
        rounds = site.relay("one")["totals"]["returned"] // (100 * CELL)
        rig.saw(f"{through}: {rounds} rounds, descriptors bounded")
