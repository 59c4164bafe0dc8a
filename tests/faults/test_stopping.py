"""Stopping: idle, under load, in whatever it is doing, against peers that take nothing, with a reload in between."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.faults.lives import ended, is_refused, stop
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Feed, Site, proc_status, relay, subreaper
from tests.support import (
    PATIENCE,
    ROOT,
    SLOWNESS,
    Collector,
    Namespace,
    Sender,
    blackhole_port,
    bulk,
    check_keyed,
    connect,
    free_port,
    listener,
    receive_all,
    silent_name_server,
    stalled_client,
    wait_until,
)

_SOON = 0.5 * SLOWNESS  # seconds for "at once": 0.2 are relayd's own, the rest is Python's end and the machine's
_MARGIN = 0.5 * SLOWNESS  # seconds that an end may be later than drain_timeout


def was_reset(sock: socket.socket) -> bool:
    """Whether the link ends with a reset, once what is on its way has been read."""
    try:
        receive_all(sock)
    except ConnectionResetError:
        return True
    return False


# -- idle, and under load -------------------------------------------------------------------------


@row("P1", provoked="SIGTERM, SIGINT to an idle daemon", required="it ends within 0.2 s (0.5 s with Python's own end), "
     "status 0; pidfile and sockets are gone")  # fmt: skip
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_p1_idle(rig: Rig, number: int) -> None:
    with subreaper(), rig.site() as site:
        site.start()
        took = stop(site, number)
        assert took < _SOON
        rig.saw(f"{signal.Signals(number).name}: {took:.2f} s")


@row(
    "P2",
    provoked="SIGTERM with 100 streams at work, of which five are taken by nobody",
    required="at once nobody is let in any more (ECONNREFUSED); those who read get all that was read for them and a "
    "clean end; the rest is reset at `drain_timeout`, each with a line of what it did not get; the end is "
    "at most 0.5 s later",
)
def test_p2_a_hundred_streams(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    drain = rig.times(1, 10)
    one = relay("one", source_port, port, buffer="64M")
    with subreaper(), rig.site(one, drain_timeout=f"{drain}s") as site, ExitStack() as stack:
        site.start()
        stuck = [stack.enter_context(stalled_client(port)) for _ in range(5)]
        clients = [stack.enter_context(connect(port)) for _ in range(95)]
        source = stack.enter_context(connect(source_port))
        wait_until(lambda: len(site.relay("one")["destinations"]) == 100, "100 clients")
        readers = [Collector(client) for client in clients]
        feed = Feed(source, "busy", cells=500)
        # More than the kernel takes for a client that does not read, so that relayd has something to lose.
        wait_until(lambda: min(link["queued"] for link in site.relay("one")["destinations"][:5]) > 0, "five queues")
        pid, began = site.pid, time.monotonic()
        site.send(signal.SIGTERM)
        wait_until(lambda: is_refused(port) and is_refused(source_port), "closed doors")
        refused = time.monotonic() - began
        assert refused < _SOON
        data = [reader.wait_end() for reader in readers]
        assert len(set(map(len, data))) == 1, f"some got more than others: {sorted(set(map(len, data)))}"
        check_keyed("busy", data[0], 0)
        assert all(other == data[0] for other in data)
        for client in clients:
            client.close()
        ended(site, pid)
        took = time.monotonic() - began
        assert drain - 0.1 < took < drain + _MARGIN
        assert all(was_reset(client) for client in stuck)
        cut = [line for line in site.lines("event=closed", "reason=stopped", "client=") if " dropped=0 " not in line]
        assert len(cut) == 5, cut
        wait_until(lambda: feed.error, "the end of the source")
        rig.saw(f"refused after {1000 * refused:.0f} ms; 95 got all of {len(data[0])} bytes; end {took - drain:+.2f} s")


# -- in whatever it is doing ----------------------------------------------------------------------

_P3 = {"provoked": "", "required": ""}


def connecting(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    holes = blackhole_port(stack), blackhole_port(stack)
    text = relay("one", *holes, "connect-connect")
    return text, lambda site: wait_until(lambda: site.relay("one")["source"]["state"] == "connecting")


def backing_off(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    text = relay("one", free_port(), free_port(), "connect-connect", reconnect="1h")
    return text, lambda site: site.wait_log("event=connect_failed", times=2)


@row(
    "P3",
    provoked="SIGTERM while it connects, waits for the next attempt or for a name server, reloads, starts",
    required="the end as when idle, status 0; during the start: within it, and nothing is left that keeps the next out",
)
@pytest.mark.parametrize("state", [connecting, backing_off])
def test_p3_waiting(rig: Rig, state: Callable[[ExitStack], tuple[str, Callable[[Site], object]]]) -> None:
    with ExitStack() as stack:
        text, bring = state(stack)
        stack.enter_context(subreaper())
        site = stack.enter_context(rig.site(text))
        site.start()
        bring(site)
        took = stop(site)
        assert took < _SOON
        rig.saw(f"{state.__name__}: {took:.2f} s")


@row("P3", **_P3)
def test_p3_looking_a_name_up(rig: Rig) -> None:
    """The thread that waits for the name server does not hold the process."""
    text = relay("one", "name.example:5000", free_port(), "connect-listen", connect_timeout="1h")
    with Namespace() as namespace, silent_name_server(namespace, rig.folder), subreaper(), rig.site(text) as site:
        site.start(prefix=namespace.enter)
        wait_until(lambda: int(proc_status(site.pid)["Threads"]) > 1, "a look-up")
        took = stop(site)
        assert took < _SOON
        rig.saw(f"looking a name up: {took:.2f} s")


@row("P3", **_P3)
def test_p3_reloading(rig: Rig) -> None:
    """The signal comes at any moment of a reload that opens and closes a hundred ports."""
    relays = [relay(f"r{number}", free_port(), free_port()) for number in range(100)]
    worst = 0.0
    for _ in range(rig.times(3, 40)):
        with subreaper(), rig.site(*relays[:50]) as site:
            site.log.unlink(missing_ok=True)
            site.start()
            site.configure(*relays[50:])
            site.send(signal.SIGHUP)
            time.sleep(rig.random.uniform(0, 0.05))  # the reload takes about so long
            worst = max(worst, stop(site))
    assert worst < _SOON + 0.2 * SLOWNESS  # the signal waits for the end of the reload
    rig.saw(f"reloading: {worst:.2f} s")


@row("P3", **_P3)
@pytest.mark.parametrize("words", [[], ["--foreground"]], ids=["daemon", "foreground"])
def test_p3_starting(rig: Rig, words: list[str]) -> None:
    """While the file is parsed, the daemon detaches, ports are bound: whenever the signal comes."""
    relays = [relay(f"r{number}", free_port(), free_port()) for number in range(50)]
    local = rig.folder / "local.sock"
    worst = 0.0
    with rig.site(*relays, relay("local", free_port(), f"unix:{local}"), log=rig.folder / "relayd.log") as site:
        for _ in range(rig.times(3, 50)):
            command = [*site.program, "--config", str(site.file), *words]
            with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT) as start:
                time.sleep(rig.random.uniform(0, 0.4) * SLOWNESS)  # a start takes about 0.3 s
                worst = max(worst, _terminate_all(site, start))
                assert start.stderr is not None and b"Traceback" not in start.stderr.read()
                assert words == [] or start.returncode in (0, -signal.SIGTERM), start.returncode
        assert worst < 1.0 * SLOWNESS
        with subreaper():
            site.start()
            stop(site)
        assert not local.exists()
        rig.saw(f"starting, {'in the foreground' if words else 'as a daemon'}: {worst:.2f} s")


def _terminate_all(site: Site, start: subprocess.Popen[bytes]) -> float:
    """Send SIGTERM to every process of the site, to each once; return the seconds until there is none."""
    began, told = time.monotonic(), set[int]()
    while start.poll() is None or site.processes():
        assert time.monotonic() < began + PATIENCE, f"{site.processes()} live on"
        for pid in {start.pid, *site.processes()} - told:  # a fork may have come after the look
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            told.add(pid)
        time.sleep(0.005)
    return time.monotonic() - began


# -- against peers that take nothing --------------------------------------------------------------


def closed_window(stack: ExitStack, rig: Rig, drain: str) -> Site:
    """Return a daemon with a client whose window is closed, and that it has something for."""
    source_port, port = free_port(), free_port()
    # Less of the source in the kernel than its Sender has; autotuned it may be all.
    one = relay("one", source_port, port, overflow="block", receive_buffer="64K")
    site = stack.enter_context(rig.site(one, drain_timeout=drain))
    site.start()
    stack.enter_context(stalled_client(port))
    source = stack.enter_context(connect(source_port))
    wait_until(lambda: len(site.relay("one")["destinations"]) == 1, "the client")
    Sender(source, bulk(2_000_000)).wait_stuck()
    assert site.relay("one")["destinations"][0]["queued"] > 0
    return site


def closed_window_of_a_server(stack: ExitStack, rig: Rig, drain: str) -> Site:
    """The same for a destination that relayd has connected to."""
    source_port, server = free_port(), stack.enter_context(listener())
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one = relay("one", source_port, server.getsockname()[1], "listen-connect", receive_buffer="64K")
    site = stack.enter_context(rig.site(one, drain_timeout=drain))
    site.start()
    stack.enter_context(server.accept()[0])
    Sender(stack.enter_context(connect(source_port)), bulk(2_000_000)).wait_stuck()
    return site


@row(
    "P4",
    provoked="a second SIGTERM, or SIGINT, while what waits cannot be sent (`drain_timeout = 1h`)",
    required="it ends within 0.2 s (0.5 s with Python's own end), status 0",
)
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_p4_a_second_signal(rig: Rig, second: int) -> None:
    with subreaper(), ExitStack() as stack:
        site = closed_window(stack, rig, "1h")
        site.send(signal.SIGTERM)
        site.wait_log("event=stopping")
        took = stop(site, second)
        assert took < _SOON
        rig.saw(f"{signal.Signals(second).name}: {took:.2f} s")


@row(
    "P5",
    provoked="SIGTERM while a destination's window is closed, of a client and of a server",
    required="the link is reset at `drain_timeout`, the end is at most 0.5 s later",
)
@pytest.mark.parametrize("state", [closed_window, closed_window_of_a_server])
def test_p5_a_closed_window(rig: Rig, state: Callable[[ExitStack, Rig, str], Site]) -> None:
    drain = rig.times(1, 10)
    with subreaper(), ExitStack() as stack:
        site = state(stack, rig, f"{drain}s")
        began = time.monotonic()
        took = stop(site)  # less than the clock's, where others use the machine
        assert time.monotonic() - began > drain - 0.1
        assert took < drain + _MARGIN
        assert not site.lines("event=closed", "dropped=0")
        rig.saw(f"drain_timeout {took - drain:+.2f} s")


# -- with a reload in between ---------------------------------------------------------------------


@row(
    "P11",
    provoked="SIGHUP and SIGTERM together; SIGHUPs while it drains",
    required="SIGTERM wins: it ends as if there had been no SIGHUP, and opens nothing more",
)
def test_p11_sighup_and_sigterm_together(rig: Rig) -> None:
    worst = 0.0
    for first, *rest in ([signal.SIGHUP, signal.SIGTERM], [signal.SIGTERM, signal.SIGHUP]):
        with subreaper(), rig.site() as site:
            site.start()
            site.send(signal.SIGSTOP)  # so that all are there when it looks
            worst = max(worst, stop(site, first, *rest, signal.SIGHUP, signal.SIGCONT))
    assert worst < _SOON
    rig.saw(f"together: {worst:.2f} s")


@row("P11", provoked="", required="")
def test_p11_sighup_while_it_drains(rig: Rig) -> None:
    drain, port = rig.times(1, 10), free_port()
    with subreaper(), ExitStack() as stack:
        site = closed_window(stack, rig, f"{drain}s")
        site.configure(relay("two", free_port(), port))
        pid, began = site.pid, time.monotonic()
        site.send(signal.SIGTERM)
        site.wait_log("event=stopping")
        while time.monotonic() < began + drain / 2:
            os.kill(pid, signal.SIGHUP)
            assert is_refused(port)
        ended(site, pid)
        assert time.monotonic() - began < drain + _MARGIN
        assert not site.lines("event=reload")
        rig.saw("while it drains: no reload")
