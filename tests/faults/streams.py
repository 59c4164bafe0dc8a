"""What the scenarios of established streams share: the ends of a relay, peers that fall silent, a look at the CPU."""

from __future__ import annotations

import ctypes
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from tests.faults.oracle import MIB, cpu_seconds
from tests.faults.rig import Rig
from tests.integration.daemons import Site, name_of, relay
from tests.support import PATIENCE, SLOWNESS, connect, free_port, listener, reset_connection, stalled_client, wait_until

# Seconds that a turn of the loop may take beside threads of ours that flood it: two cores are shared with them.
LAG = 0.5

_QUIET = 0.03 * SLOWNESS  # of a core: the control client's hundred cells a second cost half of it

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF_RET|BPF_K, 0 bytes: of each packet nothing is kept; socket(7)


def deafen(sock: socket.socket) -> None:
    """Make a black hole of our end: its kernel drops every packet that comes for it, acknowledgements included.

    Needs no rights, and nothing else of the machine is touched.
    """
    code = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", 1, ctypes.addressof(code)))


def discard(sock: socket.socket) -> None:
    """Close with RST what may be closed already, or have a thread waiting in it, which would keep it open."""
    if sock.fileno() >= 0:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        reset_connection(sock)


def fill(socks: list[socket.socket]) -> None:
    """Send zeroes into each until nobody has taken any for half a second; no thread is left in a call."""
    for sock in socks:
        sock.setblocking(False)
    last = time.monotonic()
    while time.monotonic() < last + 0.5:
        for sock in socks:
            with suppress(BlockingIOError):
                sock.send(bytes(1 << 16))
                last = time.monotonic()
        time.sleep(0.001)


class Ends:
    """One relay that listens for its source, and the peers that it gets from us; they are reset in the end."""

    def __init__(self, site: Site, stack: ExitStack, name: str, source_port: int, port: int, connects: bool) -> None:
        """`connects`: relayd dials the destination, whose listener stands from the first `client` on."""
        self.site = site
        self.name = name
        self.port = port
        self.source_port = source_port
        self._stack = stack
        self._connects = connects
        self._listener: socket.socket | None = None

    def keep(self, sock: socket.socket) -> socket.socket:
        """Reset the socket in the end."""
        self._stack.callback(discard, sock)
        return sock

    def source(self) -> socket.socket:
        """Return a source that is up."""
        sock = self.keep(connect(self.source_port))
        self.wait(sock, "event=connected")
        return sock

    def client(self, small: bool = False) -> socket.socket:
        """Return a destination that is up; `small`: one whose window closes soon."""
        if self._connects:
            return self._server(small)
        sock = self.keep(stalled_client(self.port) if small else connect(self.port))
        self.wait(sock, "event=connected")
        return sock

    def _server(self, small: bool) -> socket.socket:
        if self._listener is None:
            self._listener = self._stack.enter_context(listener(self.port))
            if small:
                self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        return self.keep(self._listener.accept()[0])

    def wait(self, sock: socket.socket, *parts: str, times: int = 1) -> str:
        """Return the line of the log that holds all the parts, of the link whose other end the socket is."""
        peer = f"127.0.0.1:{self.port}" if sock.getsockname()[1] == self.port else name_of(sock)
        return self.site.wait_log(f"relay={self.name} ", f"={peer} ", *parts, times=times)

    def closed(self, reason: str, times: int = 1) -> str:
        """Return the line of the log that says so of a destination."""
        end = " destination=" if self._connects else " client="
        return self.site.wait_log(f"relay={self.name}{end}", "event=closed", f"reason={reason} ", times=times)

    def totals(self) -> dict[str, int]:
        """Return the relay's totals."""
        found: dict[str, int] = self.site.relay(self.name)["totals"]
        return found

    def queued(self) -> int:
        """Return the bytes that wait for all destinations."""
        return sum(link["queued"] for link in self.site.relay(self.name)["destinations"])


@contextmanager
def ends(
    rig: Rig, mode: str = "listen-listen", grows: int = 2 * MIB, pauses: bool = False, **keys: object
) -> Iterator[Ends]:
    """Run a daemon with one relay; `grows`, `pauses`: see Rig.daemon."""
    ports = free_port(), free_port()
    keys = {"reconnect": "150ms", **keys}  # often enough to wait for, too seldom to count as unrest
    with (
        rig.daemon(relay("one", *ports, mode, **keys), grows=grows, lag=LAG, pauses=pauses) as site,
        ExitStack() as stack,
    ):
        yield Ends(site, stack, "one", *ports, connects=mode.endswith("-connect"))


def check_quiet(rig: Rig, site: Site) -> None:
    """Fail where the daemon spins, though nothing happens but the control client's stream."""
    seconds = 2.0 if rig.long else 0.2
    shares = []
    for _ in range(10):
        before = cpu_seconds(site.pid)
        time.sleep(seconds)
        shares.append((cpu_seconds(site.pid) - before) / seconds)
        if shares[-1] < _QUIET:
            return
    raise AssertionError(f"it spins: {shares} of a core")


def seconds_until(condition: Callable[[], object], what: str) -> float:
    """Return how long it takes until the condition holds."""
    began = time.monotonic()
    wait_until(condition, what)
    return time.monotonic() - began


def ended_with(sock: socket.socket) -> str:
    """Return what ends the stream that we get: "fin" or "rst"; what comes before is thrown away."""
    sock.settimeout(PATIENCE / 4)
    try:
        while sock.recv(1 << 18):
            pass
    except ConnectionResetError:
        return "rst"
    return "fin"
