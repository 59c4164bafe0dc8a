"""Accepting: links that are gone already, errors of accept, no descriptors, storms, silent crowds, closed ports."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.lives import stop_process
from tests.faults.oracle import MIB, cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import Ends, check_quiet, ends
from tests.faults.visitors import clients_of, come, counted, dial, leave, room_for, sent_to_nobody
from tests.integration.daemons import Site, proc_status, relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Stopwatch,
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

# What accept(2) has treated like EAGAIN: errors of the one connection that is gone.
OF_ONE_CONNECTION = (
    "ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
    "EOPNOTSUPP", "ENETUNREACH",
)  # fmt: skip

PAUSE = 1.0  # seconds that relayd does not accept when it has run out of something


@row(
    "L6",
    provoked="connections that are reset before they are accepted (the process stands meanwhile), among living ones",
    required="an ordinary loss: no error of relayd's, and the living ones are served",
)
def test_l6_reset_before_accept(rig: Rig) -> None:
    with ends(rig, framing="line", pauses=True) as relayed, ExitStack() as stack:
        source, site = relayed.source(), relayed.site
        for life in range(rig.times(3, 100)):
            stop_process(site)
            clients = []
            for _ in range(50):
                reset_connection(connect(relayed.port))
                clients.append(stack.enter_context(connect(relayed.port)))
            site.send(signal.SIGCONT)
            wait_until(lambda clients=clients: clients_of(site) == len(clients), "the living ones")
            source.sendall(keyed("feed", life, 1))
            for client in clients:
                check_keyed("feed", receive(client, CELL), life)
                reset_connection(client)
            wait_until(lambda: clients_of(site) == 0, "the end of all")
        assert relayed.totals()["refused"] == 0
        rig.saw(f"{50 * (life + 1)} of them; the living ones are served")


def until_last(sock: socket.socket) -> None:
    """Receive up to the cell that is the last."""
    data = b""
    while not data.endswith(keyed("last", 0, 1)):
        more = sock.recv(1 << 16)
        assert more, f"the stream ended after {data!r}"
        data += more


@contextlib.contextmanager
def accept_fails(site: Site, error: str, when: str) -> Iterator[Path]:
    """Let accept4(2) of the daemon fail; `when`: which of the calls, strace(1). Yield the file that has them all."""
    needs("strace")
    trace = site.folder / f"trace-{error}"
    inject = ["-e", "trace=accept4", "-e", f"inject=accept4:error={error}:when={when}"]
    with spawned("strace", "-f", "-qq", "-o", str(trace), "-p", str(site.pid), *inject) as strace:
        traced = lambda: proc_status(site.pid)["TracerPid"] == str(strace.pid)  # noqa: E731
        wait_until(lambda: strace.poll() is not None or traced(), "a tracer")
        if strace.poll() is not None:
            pytest.skip("no process may be traced here")
        yield trace
        strace.send_signal(signal.SIGTERM)  # so that it lets go in peace
        strace.wait(PATIENCE)


def settled(trace: Path) -> bool:
    """Whether the last call found nobody, and was not made to fail: strace must not let go in the midst of one."""
    last = trace.read_text().rstrip("\n").rpartition("\n")[2]
    return "EAGAIN" in last and last.endswith(")") and "INJECTED" not in last


@row(
    "L7",
    provoked="accept fails for one connection: " + ", ".join(OF_ONE_CONNECTION),
    required="the next is accepted in the same turn; no pause, no line of the log",
)
def test_l7_an_error_of_one_connection(rig: Rig) -> None:
    took = []
    with ends(rig) as relayed:
        for error in OF_ONE_CONNECTION:
            with accept_fails(relayed.site, error, "1+2") as trace:  # every other call
                watch = Stopwatch(relayed.site.pid)
                client = relayed.client()
                took.append(watch.seconds())
                wait_until(lambda trace=trace: settled(trace), "the last accept of the turn")
                assert took[-1] < 0.5 * PAUSE * SLOWNESS, f"{error}: accepted after {took[-1]:.2f} s"
            reset_connection(client)
            wait_until(lambda: clients_of(relayed.site) == 0, "its end")
        assert not relayed.site.lines("event=accepting_paused"), relayed.site.tail()
        rig.saw(f"accepted within {max(took) * 1000:.0f} ms, under strace")


@row(
    "L8",
    provoked="descriptors run out (the limit of the running daemon is lowered to 20 more) under 60 clients",
    required="a pause of 1 s at a time, less than 5 % CPU, one line of the log in 10 s; streams that run go on; the "
    "rest come in within 1.2 s of there being descriptors, and are served",
)
def test_l8_no_descriptors(rig: Rig) -> None:
    with ends(rig, framing="line") as relayed, ExitStack() as stack:
        source, client, site = relayed.source(), relayed.client(), relayed.site
        soft, hard = resource.prlimit(site.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(site.pid, resource.RLIMIT_NOFILE, (len(site.descriptors()) + 20, hard))
        waiting = dial(stack, relayed.port, 60)
        site.wait_log("relay=one", "event=accepting_paused", "reason=EMFILE")
        before, seconds = cpu_seconds(site.pid), rig.times(1, 20)
        for number in range(10 * seconds):
            source.sendall(keyed("feed", number, 1))
            check_keyed("feed", receive(client, CELL), number)
            time.sleep(0.1)
        share = (cpu_seconds(site.pid) - before) / seconds
        assert share < 0.05 * SLOWNESS, f"{share:.1%} of a core"
        paused = len(site.lines("relay=one", "event=accepting_paused"))
        assert paused <= 1 + 2 * (seconds // 10), site.tail()  # the first of a burst, and the one that counts it
        resource.prlimit(site.pid, resource.RLIMIT_NOFILE, (soft, hard))
        watch = Stopwatch(site.pid)
        wait_until(lambda: clients_of(site) == 61, "all of them")
        took = watch.seconds()
        assert took < PAUSE + 0.2 * SLOWNESS, took
        source.sendall(keyed("last", 0, 1))
        for sock in waiting:
            sock.settimeout(PATIENCE)
            until_last(sock)
        rig.saw(f"{share:.1%} CPU, one line; all are in after {took:.2f} s")


@row(
    "L9",
    provoked="accept fails with ENFILE, ENOBUFS, ENOMEM for a while, under 20 clients",
    required="one attempt a second and one line of the log, however many wait; all come in within 1.2 s of its end",
)
@pytest.mark.parametrize("error", ["ENFILE", "ENOBUFS", "ENOMEM"])
def test_l9_no_memory(rig: Rig, error: str) -> None:
    with ends(rig) as relayed, ExitStack() as stack:
        site = relayed.site
        with accept_fails(site, error, "1+") as trace:
            dial(stack, relayed.port, 20)
            site.wait_log("relay=one", "event=accepting_paused", f"reason={error}")
            began = time.monotonic()
            seconds = rig.times(0, 12) + PAUSE / 4  # so that it does not end in the midst of an attempt
            time.sleep(seconds)
            attempts = trace.read_text().count("INJECTED")
            assert attempts <= 2 + (time.monotonic() - began) / PAUSE, f"{attempts} attempts in {seconds:.1f} s"
        watch = Stopwatch(site.pid)
        wait_until(lambda: clients_of(site) == 20, "all of them")
        took = watch.seconds()
        assert took < PAUSE + 0.2 * SLOWNESS, took
        assert len(site.lines("event=accepting_paused")) <= 1 + 2 * (seconds // 10), site.tail()
        rig.saw(f"{error}: {attempts} attempts in {seconds:.1f} s; all in after {took:.2f} s")


@row(
    "L11",
    provoked="a storm: 2,000 connect at once (long form: 15,000, as fast as a backlog of 4,096 takes them)",
    required="all are served; the p99 of a stream that runs stays below 100 ms",
)
def test_l11_a_storm(rig: Rig) -> None:
    count = rig.times(2000, 15_000)
    room_for(count)
    # What a crowd leaves behind is the allocator's, see L17.  How late a stream may be is looked at here: `pauses`.
    keys = {"framing": "line", "max_clients": count + 10, "backlog": 4096}
    with ends(rig, grows=count * 6 * 1024, pauses=True, **keys) as relayed, ExitStack() as stack:
        source, client = relayed.source(), relayed.client()
        crowd: list[socket.socket] = []
        waits, watch, whole = [], Stopwatch(relayed.site.pid), Stopwatch(relayed.site.pid)
        began = time.monotonic()
        while (came := counted(relayed.site, "connected") - 1) < count:
            # No more than the backlog holds: who finds it full may have to wait for ever, with SYN cookies.
            crowd += dial(stack, relayed.port, min(count - len(crowd), 4000 - (len(crowd) - came)))
            for _ in range(10):
                watch.start()
                source.sendall(keyed("feed", len(waits), 1))
                check_keyed("feed", receive(client, CELL), len(waits))
                waits.append(watch.seconds())
                time.sleep(0.005)
        took = time.monotonic() - began
        others = took - whole.seconds()
        p99 = sorted(waits)[int(0.99 * (len(waits) - 1))]
        assert p99 < 0.1 * SLOWNESS, f"p99 {p99:.3f} s, the longest {max(waits):.3f} s"
        # So few waits have hardly a p99; the loop's own figure has every turn in it.
        turn = relayed.site.status()["loop_lag"]["max"]
        assert turn < 0.15 * SLOWNESS + others, f"a turn of {turn} s"
        source.sendall(keyed("last", 0, 1))
        for sock in crowd:
            sock.settimeout(PATIENCE)
            until_last(sock)
        rig.saw(f"{count:,} in {took:.1f} s; p99 of the stream {p99 * 1000:.0f} ms, longest turn {turn * 1000:.0f} ms")


def decided(relayed: Ends) -> int:
    """Return how many have been let in or turned away, at either end."""
    totals = relayed.totals()
    return totals["source_links"] + totals["destination_links"] + totals["refused"]


@row(
    "L12",
    provoked="100,000 (2,000 in the short form) connect and close without a byte, at either end, with FIN or RST",
    required="nothing is left: no descriptor, no timer, less than 2 MiB; a millisecond each at most",
)
def test_l12_connect_and_close(rig: Rig) -> None:
    count = rig.times(2000, 100_000)
    with ends(rig, framing="line") as relayed:
        site = relayed.site
        before, began, cpu = len(site.descriptors()), time.monotonic(), cpu_seconds(site.pid)
        for number in range(count):
            with contextlib.suppress(ConnectionResetError):  # one of many sources that relayd turns away at once
                sock = connect(relayed.source_port if number % 10 in (0, 1) else relayed.port)
                (reset_connection if number % 2 else socket.socket.close)(sock)
            if number % 50 == 49:  # who comes faster than relayd can accept is a storm, see L11
                wait_until(lambda number=number: decided(relayed) > number, "a decision on all")
            if number % 200 == 199:
                # Who has ended its side goes on receiving, as far as relayd can know: the next data tell.
                source = relayed.source()
                wait_until(lambda source=source: sent_to_nobody(source, site), "the end of all")
                reset_connection(source)
        cpu = cpu_seconds(site.pid) - cpu
        took = time.monotonic() - began
        assert cpu / count < 0.001 * SLOWNESS, f"{cpu / count * 1e6:.0f} us of CPU each"
        wait_until(lambda: len(site.descriptors()) <= before, "the descriptors")
        rig.saw(f"{count:,} in {took:.1f} s, {cpu / count * 1e6:.0f} µs of CPU each")


@row(
    "L17",
    provoked="5,000 clients (1,000 in the short form) connect and say nothing for ever",
    required="they stay, for a client that only listens is the rule: 6 KiB of memory each at most, and no CPU",
)
def test_l17_silent_clients(rig: Rig) -> None:
    count = rig.times(1000, 5000)
    room_for(count)
    # What a crowd leaves behind is the allocator's, and serves the next one.
    with ends(rig, max_clients=count, backlog=4096, grows=count * 6 * 1024) as relayed:
        site = relayed.site
        before, most = site.memory(), []
        for _ in range(2):
            with ExitStack() as stack:
                crowd = come(stack, site, relayed.port, count)
                check_quiet(rig, site)
                most.append(site.memory())
                leave(site, crowd)
        each = (most[0] - before) / count
        assert each < 6 * 1024, f"{each:.0f} bytes each"
        assert most[1] - most[0] < MIB, f"a second crowd took {(most[1] - most[0]) / MIB:.1f} MiB more"
        rig.saw(f"{each / 1024:.1f} KiB each; a second crowd {max(0, most[1] - most[0]) / count:.0f} bytes each")


# -- giving a port up -----------------------------------------------------------------------------


class Dialler(threading.Thread):
    """Connects to a port fifty times, or until it is refused or told to end; keeps what was connected."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.links: list[socket.socket] = []
        self.ending = threading.Event()
        self._port = port
        self.start()

    def run(self) -> None:
        while not self.ending.is_set() and len(self.links) < 50:
            sock = socket.socket()
            sock.settimeout(PATIENCE)
            try:
                sock.connect(("127.0.0.1", self._port))
            except ConnectionResetError:
                sock.close()
            except ConnectionRefusedError:
                sock.close()
                return
            else:
                self.links.append(sock)

    def end(self) -> int:
        """Return how many were connected; each of these must be at its end."""
        self.ending.set()
        self.join(PATIENCE)
        for sock in self.links:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            reset_connection(sock)
        return len(self.links)


@row(
    "L18",
    provoked="a relay is taken out, or the daemon is stopped, while four threads connect to it as fast as they can",
    required="after it no accepted socket is left open: each of them is at its end; no descriptor is left",
)
def test_l18_a_relay_is_taken_out_under_connects(rig: Rig) -> None:
    ports = free_port(), free_port()
    on, off = (relay("one", *ports, linger_timeout="200ms", enabled=enabled) for enabled in ("yes", "no"))
    connected = 0
    with rig.daemon(off) as site:
        for _ in range(rig.times(4, 200)):
            site.configure(on, rig.control_relay)
            site.reload()
            diallers = [Dialler(ports[1]) for _ in range(4)]
            time.sleep(rig.random.uniform(0, 0.03))
            site.configure(off, rig.control_relay)
            site.reload()
            connected += sum(dialler.end() for dialler in diallers)
        assert connected
        rig.saw(f"{connected} links, all at their end")


@row("L18", provoked="", required="")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP and SIGTERM"])
def test_l18_a_stop_under_connects(rig: Rig, number: int) -> None:
    port = free_port()
    with rig.site(relay("one", free_port(), port, linger_timeout="200ms")) as site:
        site.start()
        diallers = [Dialler(port) for _ in range(4)]
        wait_until(lambda: any(dialler.links for dialler in diallers), "a link")
        site.send(number)
        site.stop()
        connected = sum(dialler.end() for dialler in diallers)
        site.wait_log("event=stopped")
        assert not site.processes() and not site.pidfile.exists()
        rig.saw(f"stopped under {connected}")
