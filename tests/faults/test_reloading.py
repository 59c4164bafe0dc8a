"""Reloading: nothing has changed, all has changed, the file is broken, a port is taken, twenty thousand at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.links import Churner, Links, links_of
from tests.faults.lives import is_refused
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Feed, Site, relay, turned_away
from tests.support import (
    PATIENCE,
    Collector,
    check_keyed,
    connect,
    free_port,
    listener,
    receive,
    reset_connection,
    spawned,
    wait_until,
)

# -- what is not changed --------------------------------------------------------------------------


@row(
    "P6",
    provoked="20 SIGHUPs, nothing changed, with four clients that come and go all the time and a long stream",
    required="no client is refused or cut; the long stream is whole; descriptors of listeners and links, and the "
    "counters of links, are the same",
)
def test_p6_unchanged_under_churn(rig: Rig) -> None:
    source_port, port, still_source, still_port = (free_port() for _ in range(4))
    relays = relay("one", source_port, port), relay("still", still_source, still_port)
    with rig.daemon(*relays, grows=4 << 20) as site, ExitStack() as stack:
        still = stack.enter_context(Links(site, "still", still_source, still_port, clients=3))
        links = stack.enter_context(Links(site, "one", source_port, port))
        collector, feed = Collector(links.clients[0]), Feed(links.source, "feed")
        totals, descriptors = site.relay("still")["totals"], site.descriptors()
        lasting = {fd: name for fd, name in descriptors.items() if name.startswith("socket:")}
        lasting = {fd: name for fd, name in lasting.items() if site.descriptors().get(fd) == name}  # askers have gone
        churners = [Churner(port, "feed") for _ in range(4)]
        reloads = rig.times(20, 500)
        for _ in range(reloads):
            site.hang_up()
        wait_until(lambda: all(churner.served > 20 for churner in churners), "churn")
        served = sum(churner.end() for churner in churners)
        total = feed.end()
        check_keyed("feed", collector.wait_for(total), 0)
        assert site.relay("still")["totals"] == totals
        assert lasting.items() <= site.descriptors().items()
        still.carry()
        rig.saw(f"{reloads} reloads, {served} clients, 0 failures")


# -- many at once ---------------------------------------------------------------------------------


@row(
    "P7",
    provoked="20,000 SIGHUPs as fast as they can be sent",
    required="one reload runs and one more is pending, at most; no turn of the loop is longer than 0.1 s; "
    "the stream goes on, and the daemon still listens to signals",
)
def test_p7_a_storm_of_sighups(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    with rig.daemon(relay("one", source_port, port), grows=4 << 20) as site:
        with Links(site, "one", source_port, port) as links:
            collector, feed = Collector(links.clients[0]), Feed(links.source, "feed")
            pid = site.pid
            for _ in range(rig.times(20_000, 1_000_000)):
                os.kill(pid, signal.SIGHUP)
            in_the_storm = len(site.lines("event=reloaded"))
            total = feed.end()
            check_keyed("feed", collector.wait_for(total), 0)
            site.hang_up()
        reloads = len(site.lines("event=reloaded")) - 1
        assert 1 <= reloads <= in_the_storm + 2, f"{in_the_storm} in the storm, {reloads} in all"
        rig.saw(f"{reloads} reloads; longest turn {1000 * site.status()['loop_lag']['max']:.0f} ms")


# -- what cannot be read --------------------------------------------------------------------------


def _broken(file: Path) -> None:
    file.write_text(file.read_text().replace("mode =", "mood =", 1) + "[relay two]\nsource = nonsense\n")


def _missing(file: Path) -> None:
    file.unlink()


def _directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _not_text(file: Path) -> None:
    file.write_bytes(b"[relayd]\nlog = \xff\xfe\0\n")


def _cut(file: Path) -> None:
    """An editor that writes in place, met half way."""
    file.write_text(file.read_text()[:-10])


_BROKEN: dict[str, Callable[[Path], None]] = {
    "broken": _broken, "missing": _missing, "directory": _directory,
    "fifo": _fifo, "not text": _not_text, "half written": _cut,
}  # fmt: skip


@row(
    "P8",
    provoked="SIGHUP with a file that is broken, half written, missing, unreadable, a directory, a FIFO, not text",
    required="nothing changes; every error with its file and line in the log, and the first in `status`; "
    "`relayd --check` and `relayctl reload` give the same texts; the next good file clears it",
)
@pytest.mark.parametrize("kinds", [["broken"], [*_BROKEN][1:]], ids=["broken", "others"])  # not all in one second
def test_p8_files_that_cannot_be_used(rig: Rig, kinds: list[str]) -> None:
    source_port, port = free_port(), free_port()
    with rig.daemon(relay("one", source_port, port)) as site, Links(site, "one", source_port, port) as links:
        text = site.file.read_text()
        for kind in kinds:
            _BROKEN[kind](site.file)
            reasons = _fails_to_reload(site)
            assert kind != "broken" or len(reasons) >= 3, reasons  # all at once: the key, the mode, the address
            links.carry()
            if site.file.is_dir():
                site.file.rmdir()
            site.file.unlink(missing_ok=True)
            site.file.write_text(text)
            site.hang_up()
            assert site.status()["reload"] == {"failed": False, "error": ""}, kind
            links.carry()
        rig.saw(f"{', '.join(kinds)}: nothing changed")


def _fails_to_reload(site: Site) -> list[str]:
    """Reload in both ways; return the errors, which must be the same everywhere."""
    check = subprocess.run(
        [*site.program, "--config", str(site.file), "--check"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (check.returncode, check.stdout) == (2, ""), check
    reasons = [line.removeprefix("relayd: ") for line in check.stderr.splitlines()]
    assert all(reason.startswith(str(site.file)) for reason in reasons), reasons
    before = len(site.lines("event=reload_failed"))
    site.send(signal.SIGHUP)
    site.wait_log("event=reload_failed", times=before + len(reasons))
    assert site.ask("reload")["error"].splitlines() == reasons
    assert site.status()["reload"] == {"failed": True, "error": reasons[0]}
    logged = site.lines("event=reload_failed")[before:]
    for reason, line in zip(2 * reasons, logged, strict=True):
        assert f'error="{reason}"' in line.replace('\\"', '"'), line
    return reasons


@row("P8", provoked="", required="")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody who may not read the file")
def test_p8_a_file_that_became_unreadable(rig: Rig, public: Path) -> None:
    """Readable for root, who has started it, and not for the user that it runs as."""
    with rig.daemon(user="nobody", group="nogroup") as site:
        site.file.chmod(0o600)
        site.send(signal.SIGHUP)
        assert f"{site.file}: " in site.wait_log("event=reload_failed", "Permission denied")
        site.file.chmod(0o644)
        site.hang_up()
        assert not site.status()["reload"]["failed"]
        rig.saw("unreadable: 1 error")


# -- what is changed ------------------------------------------------------------------------------


def _removed(rig: Rig, site: Site, ports: list[int], stack: ExitStack) -> None:
    links = stack.enter_context(Links(site, "other", *ports[:2]))
    _reload(rig, site)
    assert links.source.recv(1) == b"" and links.clients[0].recv(1) == b""
    assert is_refused(ports[0]) and is_refused(ports[1])


def _moved_destination(rig: Rig, site: Site, ports: list[int], stack: ExitStack) -> None:
    servers = [stack.enter_context(listener()) for _ in "ab"]
    others = [relay("other", ports[0], server.getsockname()[1], "listen-connect") for server in servers]
    _reload(rig, site, others[0])
    before = stack.enter_context(servers[0].accept()[0])
    source = stack.enter_context(connect(ports[0]))
    wait_until(lambda: links_of(site, "other") == (True, 1), "the links")
    _reload(rig, site, others[1])
    after = stack.enter_context(servers[1].accept()[0])
    assert before.recv(1) == b""
    wait_until(lambda: links_of(site, "other") == (True, 1), "the new link")
    source.sendall(b"a record\n")  # the source's link is the same
    assert receive(after, 9) == b"a record\n"
    for sock in (source, after):
        reset_connection(sock)


def _moved_listener(rig: Rig, site: Site, ports: list[int], stack: ExitStack) -> None:
    links = stack.enter_context(Links(site, "other", *ports[:2]))
    _reload(rig, site, relay("other", ports[0], ports[2]))
    assert is_refused(ports[1])
    links.clients.append(connect(ports[2]))
    wait_until(lambda: links_of(site, "other") == (True, 2), "a client at the new port")
    links.carry()  # the client that came through the old port as well


def _changed_limits(rig: Rig, site: Site, ports: list[int], stack: ExitStack) -> None:
    links = stack.enter_context(Links(site, "other", *ports[:2], clients=3))
    _reload(rig, site, relay("other", *ports[:2], max_clients=2, buffer="1M", stall_timeout="5s"))
    assert turned_away(ports[1])
    links.carry()


def _renamed(rig: Rig, site: Site, ports: list[int], stack: ExitStack) -> None:
    links = stack.enter_context(Links(site, "other", *ports[:2]))
    _reload(rig, site, relay("another", *ports[:2]))
    assert links.clients[0].recv(1) == b""
    with Links(site, "another", *ports[:2]) as fresh:
        fresh.carry()


_CHANGES = {
    "a relay is removed": _removed, "its destination moves": _moved_destination, "its port moves": _moved_listener,
    "limits change": _changed_limits, "a relay is renamed": _renamed,
}  # fmt: skip


def _reload(rig: Rig, site: Site, *relays: str) -> None:
    site.configure(*relays, rig.control_relay)
    site.hang_up()
    assert not site.status()["reload"]["failed"], site.tail()


@row(
    "P9",
    provoked="a reload that removes a relay, renames it, moves its destination, its port, or changes its limits",
    required="what the README's table says of the key: live, or that end alone is reopened; what goes is drained; "
    "the untouched relay misses nothing",
)
def test_p9_changes(rig: Rig) -> None:
    ports = [free_port() for _ in range(3)]
    before = relay("other", *ports[:2])
    with rig.daemon(before) as site:
        rounds = rig.times(1, 50)
        for change in rounds * list(_CHANGES):
            with ExitStack() as stack:
                _CHANGES[change](rig, site, ports, stack)
            _reload(rig, site, before)
        rig.saw(f"{rounds} x {', '.join(_CHANGES)}: as said")


# -- what cannot be had ---------------------------------------------------------------------------


@row(
    "P10",
    provoked="a reload with one port that another program has, among other changes",
    required="the whole reload is refused with the port's name, nothing of it is done; the old ports never close",
)
def test_p10_a_port_in_use(rig: Rig) -> None:
    ports, fresh = [free_port() for _ in range(2)], [free_port() for _ in range(3)]
    local = rig.folder / "local.sock"
    with rig.daemon(relay("one", *ports, max_clients=3)) as site, listener() as taken, ExitStack() as stack:
        links = stack.enter_context(Links(site, "one", *ports))
        taken_port = taken.getsockname()[1]
        site.configure(
            relay("one", ports[0], [ports[1], fresh[0]], max_clients=1, buffer="1M"),
            relay("local", fresh[1], f"unix:{local}"),
            relay("bad", fresh[2], taken_port),
        )  # and the control relay is to go
        refusals = rig.times(5, 200)
        for _ in range(refusals):
            answer = site.ask("reload")
            said = f"[relay bad] cannot listen on 127.0.0.1:{taken_port}: Address already in use"
            assert answer["error"].startswith(said), answer
            links.carry()
        assert all(map(is_refused, fresh)) and not local.exists()
        assert not any(map(is_refused, (ports[1], rig.control_ports[1])))
        assert [found["name"] for found in site.status()["relays"]] == ["one", "control"]
        wait_until(lambda: links_of(site, "one") == (True, 1), "the end of that probe")
        links.clients.append(connect(ports[1]))  # the limit is the old one
        wait_until(lambda: links_of(site, "one") == (True, 2), "another client")
        links.carry()
        _reload(rig, site, relay("one", *ports, max_clients=3))
        rig.saw(f"{refusals} reloads refused")


# A large server: holds as many descriptors as it may, and listens on a port.
_LARGE = """
import os, resource, socket, sys, time
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
count = min(20_000, hard)
resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
null = os.open(os.devnull, os.O_RDONLY)
for _ in range(count - 20):
    os.dup(null)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print(flush=True)
    time.sleep(1e6)
"""


@row("P10", provoked="", required="")
def test_p10_a_port_of_a_large_program(rig: Rig) -> None:
    """Whose port it is may be said, but no stream waits for that."""
    ports = [free_port() for _ in range(5)]
    with rig.daemon() as site, ExitStack() as stack:
        for port in ports:
            words = sys.executable, "-c", _LARGE, str(port)
            server = stack.enter_context(spawned(*words, stdout=subprocess.PIPE))
            assert server.stdout is not None and server.stdout.readline() == b"\n"
        site.configure(relay("bad", free_port(), ports[-1]), rig.control_relay)
        began = time.monotonic()
        assert f"127.0.0.1:{ports[-1]}: Address already in use" in site.ask("reload")["error"]
        rig.saw(f"refused after {1000 * (time.monotonic() - began):.0f} ms where others have 100,000 descriptors")
