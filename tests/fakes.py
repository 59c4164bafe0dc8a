"""What stands in for the reactor, a link and the log, so that a test is a script that never waits."""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from relayd.build import Surroundings
from relayd.config.load import load_file
from relayd.config.settings import Config
from relayd.endpoints.endpoint import EndpointState
from relayd.errors import StartError
from relayd.net.listener import ListenerPool
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.resolver import Resolver
from relayd.net.transport import Buffer, TransportProtocol
from relayd.observe.log import BoundLog, EventLog
from relayd.observe.targets import Fields, render_text
from relayd.observe.writer import Lost, unheard
from relayd.policy.loops import LoopGuard
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing
from relayd.wire.framings import LINE
from tests.support import PATIENCE


class FakeReactor:
    """A reactor whose clock is moved by hand; `interest` is what each handler has asked for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.interest: dict[Any, int] = {}
        self.turn_end: list[Callable[[], None]] = []
        self._timers: list[TimerHandle] = []

    # -- the face of the real one ---------------------------------------------------------------

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        handle = TimerHandle(self, self.now + delay, callback)  # type: ignore[arg-type]
        self._timers.append(handle)
        return handle

    def timer_cancelled(self) -> None:
        self._timers = [timer for timer in self._timers if timer.callback is not None]

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        self.turn_end.append(callback)

    def set_interest(self, handler: Any, events: int) -> None:
        self.interest[handler] = events

    def forget(self, handler: Any) -> None:
        self.interest.pop(handler, None)

    # -- for the test -----------------------------------------------------------------------------

    @property
    def watched(self) -> int:
        """How many handlers have asked for something."""
        return len(self.interest)

    @property
    def timers(self) -> int:
        """How many calls are due in the future."""
        return len(self._timers)

    @property
    def next_delay(self) -> float:
        """Seconds to the next timer."""
        return min(timer.when for timer in self._timers) - self.now

    def end_turn(self) -> None:
        """Free what was closed."""
        while self.turn_end:
            freed, self.turn_end = self.turn_end, []
            for callback in freed:
                callback()

    def advance(self, seconds: float = 0.0) -> None:
        """Let time pass, one turn for each instant that a timer is due at."""
        until = self.now + seconds
        self.end_turn()
        while due := [timer for timer in self._timers if timer.when <= until + 1e-9]:
            self.now = max(self.now, min(timer.when for timer in due))
            self._run_due()
        self.now = until

    def jump(self, seconds: float) -> None:
        """Let time pass in one turn: what a process sees that was stopped for so long."""
        self.now += seconds
        self._run_due()

    def _run_due(self) -> None:
        for timer in sorted((timer for timer in self._timers if timer.when <= self.now), key=lambda timer: timer.when):
            callback, timer.callback = timer.callback, None
            if callback is not None:
                self._timers.remove(timer)
                callback()
        self.end_turn()


class FakeTransport:
    """A link whose kernel takes what the script says; `received` is what the peer has got.

    `room`: bytes that are taken in all, None: everything; `short`: bytes that each following call may
    take, before `room` alone counts again. `broken` takes nothing more, as a link that just failed.
    `waiting` is what has come and was not read yet, None in it: the end.  `dead`: why it broke, unnoticed yet.
    """

    def __init__(
        self, reactor: FakeReactor, room: int | None = None, short: Iterable[int] = (), peer: Any = ("192.0.2.1", 4000)
    ) -> None:
        self.room = room
        self.short = deque(short)
        self.broken = False
        self.dead = ""
        self.waiting: deque[bytes | None] = deque()
        self.received = bytearray()
        self.acknowledged: int | None = None  # of `received`; None: all
        self.closes: list[str] = []
        self.aborts: list[str] = []
        self.pauses = self.resumes = self.small_reads = 0
        self.paused = False
        self.writing = False
        self.retuned: list[Any] = []
        self.protocol: TransportProtocol | None = None
        self.peer = peer
        self.local = ("192.0.2.2", 5000)
        self.since = self.last_read = reactor.now
        self.bytes_read = 0
        self.coalesced = 0.0
        self.feeds = False
        self.on_bulk: Callable[[], bool] = bool
        self._reactor = reactor

    @property
    def open(self) -> bool:
        return not (self.closes or self.aborts or self.broken)

    def start(self, protocol: TransportProtocol) -> None:
        self.protocol = protocol

    def coalesce(self, seconds: float) -> None:
        self.coalesced = seconds

    def send(self, data: Buffer) -> int:
        taken = 0 if self.broken or not self.open else len(data)
        if self.short:
            taken = min(taken, self.short.popleft())
        if self.room is not None:
            taken = min(taken, self.room)
            self.room -= taken
        self.received += data[:taken]
        return taken

    push = send

    def push_failed(self, error: OSError) -> None:
        raise AssertionError("no kernel, no error")

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        return self.send(b"".join(buffers))

    def watch_writing(self, wanted: bool) -> None:
        self.writing = wanted

    def retune(self, options: Any, linger_timeout: float) -> None:
        self.retuned.append((options, linger_timeout))

    def unacknowledged(self) -> int:
        return 0 if self.acknowledged is None else len(self.received) - self.acknowledged

    def check(self) -> None:
        if self.dead and self.open:
            self.broken = True
            self._reactor.at_turn_end(lambda: self.lose(self.dead))

    def unread(self) -> int:
        return sum(len(data) for data in self.waiting if data is not None)

    def drain(self) -> None:
        while self.waiting and self.open:
            data = self.waiting.popleft()
            assert self.protocol is not None
            if data is None:
                self.protocol.eof_received()
            else:
                self.bytes_read += len(data)
                self.last_read = self._reactor.now
                self.protocol.data_received(data)

    def pause_reading(self) -> None:
        self.paused = True
        self.pauses += 1

    def resume_reading(self) -> None:
        self.paused = False
        self.resumes += 1

    def read_little(self) -> None:
        self.small_reads += 1

    def close(self, reason: str) -> None:
        if self.open:
            self.closes.append(reason)
            self._reactor.at_turn_end(lambda: self.lose(reason))

    def abort(self, reason: str) -> None:
        if not self.aborts:
            self.aborts.append(reason)
            self._reactor.at_turn_end(lambda: self.lose(reason))

    # -- for the test -----------------------------------------------------------------------------

    def lose(self, reason: str = "reset") -> None:
        """The link is gone; its protocol is told once."""
        self.broken = True
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            protocol.connection_lost(reason)

    def make_room(self, room: int | None = None) -> None:
        """The peer has read: there is room again, for so many bytes or for all."""
        self.room = room
        if self.writing and self.protocol is not None:
            self.protocol.ready_to_send()

    def deliver(self, data: bytes) -> None:
        """The peer has sent something."""
        assert self.protocol is not None and not self.paused
        self.bytes_read += len(data)
        self.last_read = self._reactor.now
        self.protocol.data_received(data)


def chunk(data: bytes, framing: Framing = LINE, at: float = 0.0) -> Chunk:
    """Return a chunk of the records that the framing sees in the data."""
    return Chunk(data, framing.records_before(Chunk(data, 0, at), len(data)), at)


class Lines:
    """A log's target, or a writer, that keeps what it is given as lines; with `full`, it takes nothing and counts."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.full = False
        self.lost = 0
        self.reopened = 0
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Any:
        return iter(self.lines)

    def has_room(self) -> bool:
        return not self.full

    def write(self, data: bytes, lost: Lost = unheard) -> bool:
        if self.full:
            self.lost += 1
            return False
        self.lines += data.decode("ascii").splitlines()
        return True

    def emit(self, level: str, seconds: float, fields: Fields, lost: Lost = unheard) -> bool:
        return self.write(render_text(level, seconds, fields).encode())

    def reopen(self) -> None:
        self.reopened += 1

    def having(self, *parts: str) -> list[str]:
        """Return the lines that hold all the parts."""
        return [line for line in self.lines if all(part in line for part in parts)]


def event_log(reactor: Any, level: str = "debug") -> tuple[EventLog, Lines]:
    """Return a log and what it writes; its wall clock stands still."""
    lines = Lines()
    return EventLog(reactor, lines, level, wall_clock=lambda: 0.0), lines


def bound_log(reactor: Any) -> tuple[BoundLog, Lines]:
    """Return a log with no fields of its own, and what it writes."""
    log, lines = event_log(reactor)
    return log.bind(), lines


class FakeEndpoint:
    """An end of a relay that brings the links it is told to."""

    def __init__(self, refuse: Sequence[str] = ()) -> None:
        self.refuse = tuple(refuse)
        self.calls: list[str] = []
        self.lost: list[str] = []
        self.followed: list[Any] = []
        self.adopted: list[Any] = []  # (transport, the end that brought it)

    def open(self) -> None:
        self.calls.append("open")
        if self.refuse:
            raise StartError(self.refuse)

    def start(self) -> None:
        self.calls.append("start")

    def stop(self) -> None:
        self.calls.append("stop")

    def follow(self, former: Any) -> None:
        self.followed.append(former)

    def adopt(self, transport: Any, former: Any) -> None:
        self.adopted.append((transport, former))

    def state(self) -> EndpointState:
        return EndpointState("listening", 0, "")

    def peer_name(self, transport: Any) -> str:
        return f"{transport.peer[0]}:{transport.peer[1]}"

    def link_lost(self, transport: Any, reason: str) -> None:
        self.lost.append(reason)


class House:
    """A real reactor and what all relays share, for tests of whole relays over Unix sockets."""

    def __init__(self, folder: Any, max_links: int = 100) -> None:

        self.folder = folder
        self.reactor = Reactor()
        log, self.lines = event_log(self.reactor)
        self.reactor.on_failure(log.failed)
        self.stdout = Lines()
        self.pool = ListenerPool()
        self.changes = 0  # links of any relay that came or went
        self.shared = Surroundings(
            self.reactor, Resolver(self.reactor), self.pool, LoopGuard(), log, self.stdout, max_links,  # type: ignore[arg-type]
            self._links_changed,
        )  # fmt: skip

    def _links_changed(self) -> None:
        self.changes += 1

    def config(self, text: str) -> Config:
        """Return the configuration of a file beside the sockets."""

        path = self.folder / "relayd.ini"
        path.write_text(text)
        return load_file(str(path), {})

    def connect(self, name: str) -> socket.socket:
        """Return a connection to a Unix socket of the folder."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / name))
        sock.setblocking(False)
        return sock

    def until(self, condition: Callable[[], object], what: str = "the condition") -> None:
        """Turn the loop until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come true: {self.lines.lines}"
            self.reactor.turn(0.01)

    def receive(self, sock: socket.socket, count: int) -> bytes:
        """Return so many bytes, or what came before the end."""
        got = bytearray()

        def enough() -> bool:
            try:
                data = sock.recv(count - len(got))
            except BlockingIOError:
                return False
            got.extend(data)
            return not data or len(got) == count

        self.until(enough, f"{count} bytes")
        return bytes(got)

    def close(self) -> None:
        """Give everything back; nothing unexpected may have happened."""
        self.pool.close()
        self.reactor.close()
        assert not self.lines.having("internal_error"), self.lines.lines
