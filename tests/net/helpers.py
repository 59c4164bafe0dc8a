"""A real reactor with a clock of the test's own, that counts its wake-ups and checks what is left behind."""

from __future__ import annotations

import functools
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from relayd.net.epoll import EpollSelector
from relayd.net.reactor import Reactor
from relayd.net.transport import Transport
from relayd.observe.targets import Fields, render_text
from relayd.observe.writer import Lost, unheard
from tests.support import PATIENCE, ROOT

LINGER = 2.0  # seconds, of every transport that `link` makes


class FakeClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class CountingSelector(EpollSelector):
    """Counts the waits that ended because something was ready."""

    wakeups = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(timeout)
        self.wakeups += bool(ready)
        return ready


class Loop(Reactor):
    """The real reactor, driven by hand."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.counting = CountingSelector()
        super().__init__(self.clock, self.counting)
        self.failures: list[Exception] = []  # that got out of a callback; must be empty at the end
        self.on_failure(self.failures.append)
        self.stack = ExitStack()

    def until(self, condition: Callable[[], object], what: str = "the condition") -> None:
        """Turn until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true"
            self.turn(0.02)

    def turns(self, count: int = 20) -> int:
        """Turn so many times; return how many of them found something to do."""
        before = self.counting.wakeups
        for _ in range(count):
            self.turn(0.002)
        return self.counting.wakeups - before

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.now += seconds
        self.turn(0)

    @property
    def handlers(self) -> int:
        """How many handlers it knows, the waker not among them."""
        return self.watched - 1


def descriptors() -> set[str]:
    """Return the numbers of this process's open descriptors."""
    return set(os.listdir("/proc/self/fd"))


def _unknown_threads() -> int:
    return len(os.listdir("/proc/self/task")) - threading.active_count()


# That belong to whoever runs the tests, or look up a name that a test before this one has given up.
_others = [_unknown_threads()]


def resolver_threads() -> int:
    """Return how many threads look names up: those that `threading` does not know."""
    return max(0, _unknown_threads() - _others[0])


def running_loop() -> Iterator[Loop]:
    """A fixture: a Loop, and afterwards no failure untold, no handler, descriptor or thread left."""
    before = len(descriptors())
    _others[0] = _unknown_threads()
    loop = Loop()
    try:
        yield loop
        assert not loop.failures, loop.failures
    finally:
        loop.stack.close()
        loop.until(lambda: not resolver_threads(), "the end of all look-ups")
        loop.turn(0)
        left = loop.handlers
        loop.close()
    assert not left, "handlers were left in the reactor"
    assert len(descriptors()) == before, "descriptors were left open"


def tcp_pair(loop: Loop, **sizes: int) -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a connection over loopback: ours, non-blocking, and the peer's.

    `peer_receive`, `our_send`: buffer sizes.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = loop.stack.enter_context(socket.socket())
        peer.settimeout(PATIENCE)
        if "peer_receive" in sizes:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, sizes["peer_receive"])
        peer.connect(server.getsockname())
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ours, _ = server.accept()
    ours.setblocking(False)
    if "our_send" in sizes:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sizes["our_send"])
    return ours, peer


class Recorder:
    """A protocol that remembers, and sends what stands in `outgoing` as there is room."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.events: list[str] = []
        self.lost: list[str] = []
        self.outgoing = memoryview(b"")
        self.transport: Transport
        self.on_data: Callable[[bytes], None] = lambda data: None

    @property
    def data(self) -> bytes:
        return b"".join(self.chunks)

    def data_received(self, data: bytes) -> None:
        assert data, "an empty read was handed on"
        assert not self.lost, "data came after connection_lost"
        self.chunks.append(data)
        self.on_data(data)

    def eof_received(self) -> None:
        self.events.append("eof")

    def ready_to_send(self) -> None:
        assert not self.lost, "ready_to_send came after connection_lost"
        self.events.append("room")
        self.outgoing = self.outgoing[self.transport.send(self.outgoing) :]
        self.transport.watch_writing(bool(self.outgoing))

    def connection_lost(self, reason: str) -> None:
        self.lost.append(reason)

    def send(self, data: bytes) -> None:
        """Send all of it, whatever the kernel takes at once."""
        self.outgoing = memoryview(data)
        self.ready_to_send()


def link_over(loop: Loop, ours: socket.socket, peer: object = ("127.0.0.1", 9)) -> Recorder:
    """Return the protocol of a started transport over a socket."""
    protocol = Recorder()
    protocol.transport = Transport(loop, ours, peer, LINGER)
    protocol.transport.start(protocol)
    loop.stack.callback(protocol.transport.abort, "test over")
    return protocol


def link(loop: Loop, **sizes: int) -> tuple[Recorder, socket.socket]:
    """Return a started transport's protocol, and the peer's socket."""
    ours, peer = tcp_pair(loop, **sizes)
    return link_over(loop, ours, peer.getsockname()), peer


@contextmanager
def no_more_descriptors(spare: int = 0) -> Iterator[None]:
    """Let the process open `spare` descriptors and no more (its soft limit is lowered)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    # Fill the holes first: the limit is on the number, not on how many there are.
    highest = max(map(int, descriptors()))
    while not taken or taken[-1] < highest:
        taken.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


@functools.cache
def namespaces_missing() -> bool:
    """Whether this host lets nobody make network namespaces."""
    return subprocess.run(["unshare", "-Urn", "true"], capture_output=True, check=False).returncode != 0


needs_namespace = pytest.mark.skipif("namespaces_missing()", reason="no user namespaces here")


def in_namespace(code: str, *setup: str) -> str:
    """Run Python code in a network of its own, after shell commands that shape it; return what it printed."""
    commands = ["ip link set lo up", *setup, f'exec "{sys.executable}" -W error -c "$0"']
    done = subprocess.run(
        ["unshare", "-Urn", "sh", "-ec", "\n".join(commands), code],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE * 3, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


class Lines:
    """Where a test's log goes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        self.lines.append(render_text(level, seconds, fields))
        return True

    def reopen(self) -> None:
        """It has no name."""

    def having(self, *parts: str) -> list[str]:
        """Return the lines that hold all the parts."""
        return [line for line in self.lines if all(part in line for part in parts)]


class Owner:
    """Takes links as an Inlet or an Outlet does."""

    def __init__(self) -> None:
        self.links: list[OwnedLink] = []
        self.reason = ""  # to refuse the next one with
        self.behind = False
        self.on_link: Callable[[OwnedLink], None] = lambda link: None

    def is_behind(self) -> bool:
        return self.behind

    def refusal(self) -> str:
        return self.reason

    def link_made(self, transport: Any, endpoint: Any) -> OwnedLink:
        link = OwnedLink(transport, endpoint)
        self.links.append(link)
        self.on_link(link)
        return link

    @property
    def up(self) -> list[OwnedLink]:
        """The links that are not lost."""
        return [link for link in self.links if not link.lost]


class OwnedLink(Recorder):
    """A link that tells its endpoint when it is lost, as an owner must; it closes at the peer's end."""

    def __init__(self, transport: Any, endpoint: Any) -> None:
        super().__init__()
        self.transport = transport
        self.endpoint = endpoint
        self.name = endpoint.peer_name(transport)

    def eof_received(self) -> None:
        super().eof_received()
        self.transport.close("eof")

    def connection_lost(self, reason: str) -> None:
        super().connection_lost(reason)
        self.endpoint.link_lost(self.transport, reason)
