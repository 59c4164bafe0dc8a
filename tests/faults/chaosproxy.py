"""A proxy that stands between two programs and is a bad network, in toxiproxy's words.

    with ChaosProxy(upstream=("127.0.0.1", port), seed=7) as proxy:  # clients connect to proxy.port
        slow = proxy.add("latency", latency=0.1, jitter=0.05, stream="upstream")
        proxy.remove(slow)

A *link* is a client's connection and the one that is opened for it to the upstream; each of its directions is a
*flow*, "upstream" from the client and "downstream" to it.  A *toxic* spoils the flows of one direction, of living
links too.  Times are seconds, sizes bytes.  A flow brings what was sent, in order, up to its FIN; only what ends a
link loses what is under way.  One thread has it all: it does a step of each link whose socket is ready or whose time
has come.  A step is whatever can be done at that moment, so one too many does no harm.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from math import ceil, inf
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar, Union

from tests.support import PATIENCE, reset_connection

Address = Union[tuple[str, int], str]  # a numeric host and a port, or the path of a Unix socket
Stream = Literal["upstream", "downstream"]
_Method = TypeVar("_Method", bound=Callable[..., Any])

WINDOW = 256 * 1024  # bytes held by a flow at which it reads no more
LATENCY_WINDOW = 2 * 1024 * 1024  # the same where they wait for their time: latency shall not limit the rate
SOCKET_BUFFER = 64 * 1024  # bytes, each way of each socket, so that who sends too fast finds out; the kernel doubles it
_READS = 16 * 1024  # held by a flow: a byte that came alone takes more than a byte
_BURST = 64  # sends of a flow in one step, so that thin slices do not keep other links waiting
_TICK = 0.02  # seconds: the grain of a bandwidth
_RESET_CHECK = 0.05  # seconds between two looks at a socket that is neither to be read nor to be written


@dataclass(eq=False)
class Toxic:
    """What a toxic comes to; each flow that has it works with a copy of its own, once begun."""

    delay: float = 0.0  # seconds that all that was read stays, the FIN too,
    jitter: float = 0.0  # give or take so many
    fin_delay: float = 0.0  # seconds that the FIN stays longer
    dead_time: float = 0.0  # seconds until anything passes
    quota: float = inf  # bytes that pass from one pause to the next,
    variation: int = 0  # give or take so many
    pause: float = 0.0  # seconds; inf: the link ends when the quota has passed
    arrears: float = 0.0  # seconds that were overslept and are made up for
    lifetime: float = inf  # seconds until the link ends
    resets: bool = False  # how it ends: with RST, else with a close
    stream: Stream = "downstream"
    toxicity: float = 1.0  # how probable it is that a link gets it

    def begin(self, now: float, random: Random) -> None:
        """A flow has it from now on."""
        self.ready_at = now + self.dead_time
        self.ends_at = now + self.lifetime
        self._random = random
        self.left = self._next_quota()  # bytes that may pass when it is ready

    def stay(self, is_fin: bool) -> float:
        """Return how long what was just read, data or the FIN, has to stay."""
        return self.delay + self._random.uniform(-self.jitter, self.jitter) + (self.fin_delay if is_fin else 0.0)

    def passed(self, count: int, now: float) -> None:
        """So many bytes have passed, not more than were left."""
        self.left -= count
        if not self.left:
            self.left = self._next_quota()
            self.ready_at = max(self.ready_at, now - self.arrears) + self.pause
            if self.pause == inf:
                self.ends_at = now

    def _next_quota(self) -> float:
        return max(1, self.quota + self._random.randint(-self.variation, self.variation))


TOXICS: dict[str, Callable[..., Toxic]] = {
    "latency": lambda latency, jitter=0.0: Toxic(delay=latency, jitter=jitter),  # everything comes later
    # At most `rate` bytes a second pass.
    "bandwidth": lambda rate: Toxic(quota=ceil(rate * _TICK), pause=ceil(rate * _TICK) / rate, arrears=_TICK),
    "slow_close": lambda delay: Toxic(fin_delay=delay),  # the FIN comes later
    # Nothing passes; the link is closed after `timeout` seconds (0: never).  Toxiproxy drops what comes meanwhile;
    # here it waits, as before a dead network, and goes on when the toxic is removed.
    "timeout": lambda timeout: Toxic(dead_time=inf, lifetime=timeout or inf),
    "reset_peer": lambda timeout=0.0: Toxic(lifetime=timeout, resets=True),  # until then the link works
    # Data goes in slices of `average_size` bytes, give or take `size_variation`, `delay` seconds apart.
    "slicer": lambda average_size, size_variation=0, delay=0.0: Toxic(
        quota=average_size, variation=size_variation, pause=delay
    ),
    # The link is closed when `bytes` bytes, one or more, have passed.
    "limit_data": lambda bytes: Toxic(quota=bytes, pause=inf),  # noqa: A006  toxiproxy's word
}


class Flow:
    """One direction of a link: what was read at its source and is not yet at its target."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.toxics: dict[Toxic, Toxic] = {}  # the proxy's: the copy that is this flow's
        self.blocked = False  # the target takes no more
        self.finished = False  # the FIN is passed on
        self._source, self._target = source, target
        self._held: deque[tuple[float, float, memoryview]] = deque()  # when it came, when it is due, what
        self._size = 0
        self._ended = False  # the FIN has come; it is held as an empty view

    @property
    def reading(self) -> bool:
        """Whether it takes more."""
        window = LATENCY_WINDOW if any(toxic.delay for toxic in self.toxics) else WINDOW
        return not self._ended and self._size < window and len(self._held) < _READS

    def add(self, toxic: Toxic, random: Random) -> None:
        """Have the toxic; it does not delay what is held."""
        self.toxics[toxic] = copy.copy(toxic)
        # With a generator of its own, or what one link happens to read would change the others' luck.
        self.toxics[toxic].begin(time.monotonic(), Random(random.random()))

    def remove(self, toxic: Toxic) -> None:
        """Have the toxic no more, nor its delay of what is held."""
        if self.toxics.pop(toxic, None):
            self._held = deque((came, self._due(came, data), data) for came, _, data in self._held)

    def _due(self, came: float, data: memoryview) -> float:
        return came + sum(toxic.stay(is_fin=not data) for toxic in self.toxics.values())

    def pull(self, now: float) -> None:
        """Read once."""
        with contextlib.suppress(BlockingIOError):
            if self.reading:
                data = memoryview(self._source.recv(SOCKET_BUFFER))
                self._held.append((now, self._due(now, data), data))
                self._size += len(data)
                self._ended = not data

    def push(self, now: float) -> float:
        """Send what may be sent; return when it is time for more (inf: it depends on the sockets)."""
        self.blocked = False
        toxics = self.toxics.values()
        for _ in range(_BURST):
            if not self._held:
                return inf
            came, due, data = self._held[0]
            ready_at = max([due, *(toxic.ready_at for toxic in toxics)])
            if ready_at > now:
                return ready_at
            if not data:
                self._held.clear()
                self._target.shutdown(socket.SHUT_WR)
                self.finished = True
                return inf
            try:
                count = self._target.send(data[: int(min([len(data), *(toxic.left for toxic in toxics)]))])
            except BlockingIOError:
                self.blocked = True
                return inf
            self._size -= count
            self._held.popleft()
            if count < len(data):
                self._held.appendleft((came, due, data[count:]))
            for toxic in toxics:
                toxic.passed(count, now)
        return now


class Link:
    """A client's connection and ours to the upstream."""

    def __init__(self, client: socket.socket, upstream: Address, selector: selectors.BaseSelector) -> None:
        self.ended = False
        self.wake_at = 0.0  # when it wants a step though nothing may be ready
        self._selector, self._upstream = selector, upstream
        self._client, self._server = client, _new_socket(upstream)
        self._connecting = True
        self._watched = {self._client: 0, self._server: 0}
        for sock in self._watched:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._up, self._down = Flow(self._client, self._server), Flow(self._server, self._client)
        self.flows = {"upstream": self._up, "downstream": self._down}

    def step(self, now: float) -> None:
        """Do all that can be done now."""
        if self.ended:
            return
        self.wake_at = inf
        try:
            self._check()
            for flow in () if self._connecting else self.flows.values():
                flow.pull(now)
                self.wake_at = min(self.wake_at, flow.push(now))
        except OSError:  # what one end of a connection sees, the other end has to see
            self.end(reset=True)
        for toxic in [*self._up.toxics.values(), *self._down.toxics.values()]:
            self.wake_at = min(self.wake_at, toxic.ends_at)
            if toxic.ends_at <= now:
                self.end(toxic.resets)
        if self._up.finished and self._down.finished:
            self.end()
        if not self.ended:
            self._watch(self._client, self._up.reading and not self._connecting, self._down.blocked)
            self._watch(self._server, self._down.reading and not self._connecting, self._up.blocked or self._connecting)
            if 0 in self._watched.values():
                self.wake_at = min(self.wake_at, now + _RESET_CHECK)

    def _check(self) -> None:
        # A selector watches for no errors alone, so a socket that it does not have is asked.
        errors = [sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for sock, on in self._watched.items() if not on]
        if self._connecting:
            errors.append(self._server.connect_ex(self._upstream))  # asked again, it says how the first one fares
            self._connecting = errors[-1] in (errno.EINPROGRESS, errno.EALREADY)
        if bad := set(errors) - {0, errno.EISCONN, errno.EINPROGRESS, errno.EALREADY}:
            raise OSError(bad)

    def _watch(self, sock: socket.socket, reading: bool, writing: bool) -> None:
        events = reading * selectors.EVENT_READ | writing * selectors.EVENT_WRITE
        if events != self._watched[sock]:
            if self._watched[sock]:
                self._selector.unregister(sock)
            if events:
                self._selector.register(sock, events, self.step)
            self._watched[sock] = events

    def end(self, reset: bool = False) -> None:
        """Close both connections, or reset them; what is held is lost."""
        for sock in () if self.ended else self._watched:
            self._watch(sock, False, False)
            (reset_connection if reset else _close)(sock)
        self.ended = True


def _in_the_loop(method: _Method) -> _Method:
    """Have the method run in the proxy's thread, while the caller waits."""

    @functools.wraps(method)
    def call(self: ChaosProxy, *args: Any, **kwargs: Any) -> Any:
        future: Future[Any] = Future()
        self.submitted.append((functools.partial(method, self, *args, **kwargs), future))
        self.waker.send(b"!")
        return future.result(PATIENCE)

    return call  # type: ignore[return-value]


class ChaosProxy(threading.Thread):
    """Listens on `listen` (port 0: any that is free), connects each client to `upstream`; chance is `seed`'s."""

    def __init__(self, upstream: Address, listen: Address = ("127.0.0.1", 0), seed: int = 1) -> None:
        super().__init__(name="chaosproxy", daemon=True)
        self._upstream, self._random = upstream, Random(seed)
        self._toxics: list[Toxic] = []
        self._links: list[Link] = []
        self.submitted: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._selector = selectors.DefaultSelector()
        self._reader, self.waker = socket.socketpair()
        self._selector.register(self._reader, selectors.EVENT_READ, self._run_submitted)
        self._place = _bound(listen)  # does not listen, but keeps the port for us while we are disabled
        self.port: int = 0 if isinstance(listen, str) else self._place.getsockname()[1]
        self._address: Address = listen if isinstance(listen, str) else (listen[0], self.port)
        self._listener: socket.socket | None = None
        self._running = True
        self.start()
        self.enable()

    def __enter__(self) -> ChaosProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def links(self) -> int:
        """How many links live."""
        return sum(not link.ended for link in self._links)

    @_in_the_loop
    def add(self, kind: str, *, stream: Stream = "downstream", toxicity: float = 1.0, **attributes: float) -> Toxic:
        """Have one more toxic, see TOXICS and the attributes there; return it for `remove`."""
        toxic = TOXICS[kind](**attributes)
        toxic.stream, toxic.toxicity = stream, toxicity
        self._toxics.append(toxic)
        for link in self._links:
            self._infect(link, toxic)
        return toxic

    @_in_the_loop
    def remove(self, *toxics: Toxic) -> None:
        """Have these toxics no more."""
        for toxic in toxics:
            self._toxics.remove(toxic)
            for link in self._links:
                link.flows[toxic.stream].remove(toxic)

    def clear(self) -> None:
        """Have no toxics."""
        self.remove(*self._toxics)

    @_in_the_loop
    def cut(self) -> None:
        """Reset all links; new ones may come."""
        for link in self._links:
            link.end(reset=True)

    @_in_the_loop
    def disable(self) -> None:
        """Close all links and refuse new ones."""
        if self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
        for link in self._links:
            link.end()

    @_in_the_loop
    def enable(self) -> None:
        """Listen again, at the same address."""
        if self._listener is None:
            self._listener = _bound(self._address)
            self._listener.listen()
            self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Close all; harmless when that is done."""
        if self._running:
            self.disable()
            self._running = False
            self.waker.send(b"!")
            self.join(PATIENCE)
            for closing in (self._place, self._reader, self.waker, self._selector):
                closing.close()

    def run(self) -> None:
        while self._running:
            wake_at = min((link.wake_at for link in self._links), default=inf)
            for key, _ in self._selector.select(None if wake_at == inf else wake_at - time.monotonic()):
                key.data(time.monotonic())
            now = time.monotonic()
            for link in self._links:
                if link.wake_at <= now:
                    link.step(now)
            self._links = [link for link in self._links if not link.ended]

    def _run_submitted(self, now: float) -> None:
        self._reader.recv(1)
        while self.submitted:
            function, future = self.submitted.popleft()
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
        for link in self._links:
            link.wake_at = now  # whatever it was, they look at it

    def _accept(self, now: float) -> None:
        if self._listener is not None:  # else disabled in this very turn
            link = Link(self._listener.accept()[0], self._upstream, self._selector)
            self._links.append(link)
            for toxic in self._toxics:
                self._infect(link, toxic)

    def _infect(self, link: Link, toxic: Toxic) -> None:
        if self._random.random() < toxic.toxicity:
            link.flows[toxic.stream].add(toxic, self._random)


def _new_socket(address: Address) -> socket.socket:
    is_ipv6 = ":" in address[0]
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if is_ipv6 else socket.AF_INET)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):  # a window is agreed on when the connection begins
        sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)
    return sock


def _bound(address: Address) -> socket.socket:
    sock = _new_socket(address)
    if isinstance(address, str):
        Path(address).unlink(missing_ok=True)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    return sock


def _close(sock: socket.socket) -> None:
    """Close so that what was sent arrives: bytes that nobody reads would turn the FIN into a reset."""
    with contextlib.suppress(OSError):
        sock.recv(16 * SOCKET_BUFFER)  # more than there can be
    sock.close()
