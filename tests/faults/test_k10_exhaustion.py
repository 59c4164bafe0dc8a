"""Exhaustion: no descriptors, no local ports, no disk, no place in the backlog, no memory; one by one and together."""

from __future__ import annotations

import contextlib
import errno
import itertools
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults.lives import stop_process
from tests.faults.oracle import forgive
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import discard
from tests.integration.daemons import Site, proc_status, relay
from tests.support import CELL, SLOWNESS, Namespace, free_port, keyed, reset_connection, wait_until

DIALLING = 4  # relays that dial one server; two of them more than there are ports

RECOVERED = 2.0  # seconds after which there is full service again

_FEW_PORTS, _ALL_PORTS = "50000 50001", "32768 60999"


class Plight:
    """A daemon in a machine of its own, its peers, and what can be taken away from it."""

    def __init__(self, site: Site, machine: Namespace, stack: ExitStack, ports: tuple[int, int, int]) -> None:
        self.site = site
        self._machine = machine
        self._stack = stack
        self._source_port, self._port, server_port = ports
        self._disk = _inside(machine, site.folder / "disk")
        site.log = self._disk / "relayd.log"
        self._server = stack.enter_context(machine.listener(server_port))
        self._server.setblocking(False)
        self._dialled: list[socket.socket] = []

    # -- what is taken away -----------------------------------------------------------------------

    @contextlib.contextmanager
    def no_descriptors(self) -> Iterator[None]:
        """Not one is free."""
        pid = self.site.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        held = self.site.descriptors()
        lowest = next(number for number in itertools.count() if number not in held)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, hard))
        yield
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))

    @contextlib.contextmanager
    def two_ports(self) -> Iterator[None]:
        """Two local ports for all that dial."""
        self._machine.run("sysctl", "-q", f"net.ipv4.ip_local_port_range={_FEW_PORTS}")
        yield
        self._machine.run("sysctl", "-q", f"net.ipv4.ip_local_port_range={_ALL_PORTS}")

    @contextlib.contextmanager
    def no_disk(self) -> Iterator[None]:
        """The 64 KiB where the log is are full."""
        filler = self._disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(256))
        yield
        filler.unlink()

    @contextlib.contextmanager
    def full_backlog(self) -> Iterator[None]:
        """The process stands, and more connect than the kernel holds for it."""
        stop_process(self.site)
        clients = self._connect(20)
        time.sleep(0.2)
        yield
        self.site.send(signal.SIGCONT)
        for sock in clients:
            discard(sock)

    @contextlib.contextmanager
    def no_memory(self) -> Iterator[None]:
        """The address space is as large as it will get."""
        size = int(proc_status(self.site.pid)["VmSize"].split()[0]) * 1024
        soft, hard = resource.prlimit(self.site.pid, resource.RLIMIT_AS)
        resource.prlimit(self.site.pid, resource.RLIMIT_AS, (size, hard))
        yield
        resource.prlimit(self.site.pid, resource.RLIMIT_AS, (soft, hard))

    # -- what it has to bear meanwhile --------------------------------------------------------------

    def want(self, seconds: float) -> None:
        """Want all that there is not: many come, what is dialled is reset, a source sends more than can be stored."""
        clients = self._connect(20)
        stalled, source = self._connect(1, small=True)[0], self._machine.socket()
        source.setblocking(False)
        source.connect_ex(("127.0.0.1", self._source_port))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.cut()
            with contextlib.suppress(OSError):
                source.send(bytes(1 << 18))
            time.sleep(0.05)
        for sock in (*clients, stalled, source):
            discard(sock)

    def _connect(self, count: int, small: bool = False) -> list[socket.socket]:
        """Have so many on their way, as far as there are ports for them."""
        found = []
        for _ in range(count):
            sock = self._machine.socket()
            self._stack.callback(discard, sock)
            sock.setblocking(False)
            if small:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            assert sock.connect_ex(("127.0.0.1", self._port)) in (0, errno.EINPROGRESS, errno.EADDRNOTAVAIL)
            found.append(sock)
        return found

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._dialled.append(self._server.accept()[0])

    def cut(self) -> None:
        """Reset what relayd has dialled."""
        self._accept()
        for link in self._dialled:
            reset_connection(link)
        self._dialled.clear()

    # -- whether it is well -------------------------------------------------------------------------

    def full_service(self) -> float:
        """Return the seconds until a new client is served and logged, and every relay that dials is connected."""
        began = time.monotonic()
        for served in (self._passes, self._connected):
            wait_until(served, "full service")
        return time.monotonic() - began

    def _passes(self) -> bool:
        """Whether a cell passes from a new source to a new client, and the log tells of both."""
        with ExitStack() as stack, contextlib.suppress(OSError):
            client, source = (self._visitor(stack, port) for port in (self._port, self._source_port))
            name = f"client=127.0.0.1:{client.getsockname()[1]} event=connected"
            deadline = time.monotonic() + 0.2 * SLOWNESS
            while time.monotonic() < deadline:
                source.sendall(keyed("feed", 0, 1))
                with contextlib.suppress(TimeoutError):
                    return client.recv(CELL) == keyed("feed", 0, 1) and bool(self.site.lines(name))
        return False

    def _visitor(self, stack: ExitStack, port: int) -> socket.socket:
        sock = self._machine.socket()
        stack.callback(reset_connection, sock)
        sock.settimeout(0.1 * SLOWNESS)
        sock.connect(("127.0.0.1", port))
        return sock

    def _connected(self) -> bool:
        self._accept()
        relays = self.site.status()["relays"]
        return all(found["destinations"][0]["state"] == "up" for found in relays if found["name"].startswith("dials"))


def _inside(machine: Namespace, path: Path) -> Path:
    """Return a path of the machine's as we see it."""
    return Path(f"/proc/{machine.pid}/root{path}")


@contextlib.contextmanager
def plight(rig: Rig, machine: Namespace, host: str = "127.0.0.1", oracle: bool = True) -> Iterator[Plight]:
    """Run a daemon; `host`: of the server that it dials; `oracle`: have it looked at in the end."""
    ports = free_port(), free_port(), free_port()
    disk = rig.folder / "disk"
    disk.mkdir()
    room = rig.times(64, 4096)  # KiB; all that is logged has to fit
    machine.run("mount", "-t", "tmpfs", "-o", f"size={room}k", "none", disk)
    relays = [
        relay("one", *ports[:2], backlog=4, buffer="1M" if oracle else "64M", stall_timeout=0),
        *(
            relay(f"dials{n}", f"unix:{n}", f"{host}:{ports[2]}", "listen-connect",
                  reconnect="0.2s..0.5s", stable_after=0, connect_timeout="1s")
            for n in range(DIALLING)
        ),
    ]  # fmt: skip
    with ExitStack() as stack:
        if oracle:
            keys = {"log": disk / "relayd.log", "pauses": True}
            site = stack.enter_context(rig.daemon(*relays, namespace=machine, **keys))
        else:
            site = stack.enter_context(rig.site(*relays, log=disk / "relayd.log"))
            site.start(prefix=machine.enter)
        yield Plight(site, machine, stack, ports)


@row(
    "K10",
    provoked="one after another, and together: no descriptor free, two local ports for four relays that dial, the "
    "small disk under the log full, the backlog full, an address space that may not grow; under clients that "
    "come, links that are cut, more data than fit",
    required="it lives; within 2 s of the fault's end a new client is served and logged, and every relay that dials is "
    "connected",
)
def test_k10_one_after_another(rig: Rig, machine: Namespace) -> None:
    with plight(rig, machine) as found:
        found.full_service()
        took = {}
        for fault in (found.no_descriptors, found.two_ports, found.no_disk, found.full_backlog):
            with fault():
                if fault != found.full_backlog:
                    found.want(rig.times(1, 60) / 2)
            took[fault.__name__] = found.full_service()
        found.cut()
    _check(rig, took)


@row("K10", provoked="", required="")
def test_k10_together(rig: Rig, machine: Namespace) -> None:
    """The backlog is full, too, for nobody is accepted."""
    with plight(rig, machine) as found:
        found.full_service()
        with found.no_descriptors(), found.two_ports(), found.no_disk():
            found.want(rig.times(1, 60))
        took = found.full_service()
        found.cut()
        assert found.site.lines("event=log_lost"), "nothing was lost on the full disk"
    _check(rig, {"together": took})


@row("K10", provoked="", required="")
@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_k10_no_memory(rig: Rig, machine: Namespace, together: bool) -> None:
    with plight(rig, machine, oracle=False) as found:
        took = _starved(found, rig.times(1, 60), together)
    _check(rig, {"all five" if together else "no memory": took})


@row("K10", provoked="", required="")
def test_k10_no_memory_for_a_look_up(rig: Rig, machine: Namespace) -> None:
    """A name takes a thread: one that cannot begin must neither stop the loop nor hold up the look-ups after it."""
    with plight(rig, machine, "localhost", oracle=False) as found:
        took = _starved(found, rig.times(1, 60), together=False)
    _check(rig, {"no memory, with names": took})


def _starved(found: Plight, seconds: float, together: bool) -> float:
    """Starve the daemon, of everything if `together`; return the seconds until there is full service again.

    A link that needs memory is lost, whosever it is, and the log says what was lacking, and nothing else.
    """
    found.full_service()
    pid = found.site.pid
    with ExitStack() as stack:
        for fault in (found.no_descriptors, found.two_ports, found.no_disk) if together else ():
            stack.enter_context(fault())
        stack.enter_context(found.no_memory())
        found.want(seconds)
    took = found.full_service()
    assert found.site.processes() == [pid]
    found.cut()
    unexpected = [line for line in forgive(found.site) if "MemoryError" not in line]
    assert not unexpected, unexpected
    return took


def _check(rig: Rig, took: dict[str, float]) -> None:
    late = {name: seconds for name, seconds in took.items() if seconds > RECOVERED * SLOWNESS}
    assert not late, f"full service came late: {took}"
    rig.saw(", ".join(f"{name.replace('_', ' ')} {seconds:.2f} s" for name, seconds in took.items()))
