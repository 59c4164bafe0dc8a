"""Listening: ports that cannot be had, and one on all addresses of both kinds."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.door import Door, door
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration import daemons
from tests.integration.daemons import relay
from tests.support import Namespace, connect, free_port, needs, reset_connection

FOREIGN = "192.0.2.7"  # documentation's (RFC 5737): no address of this machine


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
