"""Many peers in one thread: sources that send keyed streams, destinations that hold every byte against them.

A source's stream has lives: each link that it gets begins a new one, whose cells are numbered from life * LIFE on.
So a destination's bytes tell what came from where, and whether anything is missing, doubled or torn in between.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from tests.faults.streams import deafen
from tests.support import CELL, PATIENCE, keyed, reset_connection

LIFE = 1_000_000  # the first cell of a life; more than a life has

_TICK = 0.05  # seconds between two sends of a source
_RETRY = 0.1  # seconds between two attempts to dial relayd

_R = TypeVar("_R")


class Stream:
    """What a source has sent, life by life."""

    def __init__(self, key: str) -> None:
        """`key`: four letters."""
        self.key = key
        self.lives: list[bytearray] = []
        self._cell = re.compile(rb"%s:(\d{10})\n" % key.encode())

    def fault(self, data: bytes, framed: bool, gaps: bool) -> str:
        """Return what is wrong with what came of it over one link, or nothing.

        It may begin anywhere in a life, is whole up to wherever that life ends, and goes on at the beginning of a
        later one.  `framed`: in whole cells.  `gaps`: cells may be missing.
        """
        first = self._cell.search(data[: 2 * CELL])
        if first is None or first.start() >= CELL or (framed and first.start()):
            return f"begins with {data[:40]!r}" if len(data) >= 2 * CELL else ""
        pos = first.start()
        life, index = divmod(int(first[1]), LIFE)
        if self._of(life)[: index * CELL][-pos or CELL * LIFE :] != data[:pos] and index:
            return f"begins with {data[:40]!r}"
        while True:
            sent, offset = self._of(life), index * CELL
            same = _same(data, pos, sent, offset)
            if same < min(CELL, len(data) - pos):
                return f"{data[pos : pos + CELL]!r} was never sent"
            pos += same
            if len(data) - pos < CELL:
                return ""  # the link ended there
            # What follows may have begun with bytes that the end of this life would have had, too.
            for back in range(CELL):
                found = self._cell.match(data, pos - back)
                if found and not (framed and (same - back) % CELL):
                    newer, begins = divmod(int(found[1]), LIFE)
                    if (newer > life and (gaps or not begins)) or (gaps and newer == life and begins > index):
                        break
            else:
                return (
                    f"byte {pos}: {data[max(0, pos - 40) : pos + 40]!r}, life {life} had {sent[offset + same :][:16]!r}"
                )
            life, index, pos = newer, begins, pos - back

    def _of(self, life: int) -> bytes:
        return bytes(self.lives[life]) if life < len(self.lives) else b""


def _same(one: bytes, at: int, other: bytes, offset: int) -> int:
    """Return for how many bytes the two are the same, each from its place on."""
    one, other = one[at:], other[offset:]
    if one.startswith(other) or other.startswith(one):
        return min(len(one), len(other))
    low, high = 0, min(len(one), len(other))  # the first `low` are the same, the first `high` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


class Crowd(threading.Thread):
    """The thread; whatever is done to a peer is done in it, see `call`."""

    def __init__(self) -> None:
        super().__init__(name="crowd", daemon=True)
        self.peers: list[Peer] = []
        self.faults: list[str] = []  # found in any stream; must be empty
        self.selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._calls: list[Callable[[], None]] = []
        self._timers: list[tuple[float, Callable[[], None]]] = []
        self._running = True
        self.selector.register(self._woken, selectors.EVENT_READ, lambda: self._woken.recv(64))
        self.start()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_alive():
            self.call(self._stop)
            self.join(PATIENCE)
        for closing in (self._waker, self._woken, self.selector):
            closing.close()

    def _stop(self) -> None:
        for peer in self.peers:
            peer.leave()
        self._running = False

    def call(self, what: Callable[[], _R]) -> _R:
        """Do something in the thread; return its result."""
        done: Future[_R] = Future()

        def run() -> None:
            try:
                done.set_result(what())
            except Exception as error:
                done.set_exception(error)

        self._calls.append(run)
        self._waker.send(b"!")
        return done.result(PATIENCE)

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do something in the thread after so long."""
        self._timers.append((time.monotonic() + seconds, what))

    def hurry(self) -> None:
        """Do now whatever was to be done later."""
        timers, self._timers = self._timers, []
        for _, what in timers:
            what()

    def run(self) -> None:
        tick = time.monotonic()
        while self._running:
            for key, _ in self.selector.select(max(0.0, tick - time.monotonic())):
                key.data()
            while self._calls:
                self._calls.pop(0)()
            now = time.monotonic()
            if now >= tick:
                tick = now + _TICK
                due = [what for at, what in self._timers if at <= now]
                self._timers = [(at, what) for at, what in self._timers if at > now]
                for what in due:
                    what()
                for peer in self.peers:
                    peer.tick(now)


class Peer:
    """One end of a relay: it dials relayd, again and again, or listens for it; one link at a time."""

    def __init__(self, crowd: Crowd, stream: Stream, port: int, dials: bool) -> None:
        """Dials the port, or listens on it, once it is told to `come_back`."""
        self.stream = stream
        self.port = port
        self.dials = dials
        self.link: socket.socket | None = None
        self._crowd = crowd
        self._listener: socket.socket | None = None
        self._absences = 1
        self._reading = False
        self._dial_at = 0.0
        crowd.peers.append(self)

    # -- for the kinds ----------------------------------------------------------------------------

    def begun(self) -> None:
        """There is a link."""

    def received(self, data: bytes) -> None:
        """Relayd has sent something."""

    def ended(self) -> None:
        """The link is gone."""

    # -- the link ---------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Get a link, if there is none."""
        if self.is_away:
            return
        if not self.dials:
            if self._listener is None:
                self._listener = socket.create_server(("127.0.0.1", self.port))
                self._crowd.selector.register(self._listener, selectors.EVENT_READ, self._accept)
        elif self.link is None and now >= self._dial_at:
            self._dial_at = now + _RETRY
            with contextlib.suppress(OSError):
                self._take(socket.create_connection(("127.0.0.1", self.port), timeout=1))

    def _accept(self) -> None:
        assert self._listener is not None
        sock = self._listener.accept()[0]
        self.reset()  # relayd has given that link up, or it would not have dialled
        self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.link = sock
        self.begun()
        self.read()

    def read(self) -> None:
        """Read what comes; undoes `stop`."""
        if self.link is not None and not self._reading:
            self._crowd.selector.register(self.link, selectors.EVENT_READ, self._readable)
            self._reading = True

    def stop(self) -> None:
        """Read nothing more."""
        if self.link is not None and self._reading:
            self._crowd.selector.unregister(self.link)
            self._reading = False

    def _readable(self) -> None:
        assert self.link is not None
        try:
            data = self.link.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.received(data)
        else:
            self.reset()

    # -- what can be done to it -------------------------------------------------------------------

    def reset(self) -> None:
        """Reset the link, if there is one."""
        if self.link is not None:
            self.stop()
            reset_connection(self.link)
            self.link = None
            self.ended()

    def end(self) -> None:
        """Send FIN; a destination goes on receiving."""
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.shutdown(socket.SHUT_WR)

    def go_deaf(self) -> None:
        """Answer nothing any more, as if the cable were cut; until the link is reset."""
        if self.link is not None:
            deafen(self.link)

    def chatter(self, data: bytes) -> None:
        """Send what nobody has asked for, as far as it is taken."""
        if self.link is not None:
            with contextlib.suppress(OSError):
                self.link.send(data)

    def leave(self) -> None:
        """Have no link and listen for none, until `come_back`."""
        self._absences = 1
        self.reset()
        if self._listener is not None:
            self._crowd.selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def come_back(self) -> None:
        """Have a link as soon as there is one to be had, and whenever it is lost."""
        self._absences -= 1

    @property
    def is_away(self) -> bool:
        """Whether it is."""
        return self._absences > 0


class Source(Peer):
    """Sends a stream, so many cells a tick."""

    def __init__(self, crowd: Crowd, stream: Stream, port: int, dials: bool, cells: int) -> None:
        super().__init__(crowd, stream, port, dials)
        self.cells = cells
        self._made = 0  # cells of this life
        self._waiting = b""
        self._over = False  # FIN was sent

    def begun(self) -> None:
        self.stream.lives.append(bytearray())
        self._made, self._waiting, self._over = 0, b"", False
        self.send(1)

    def tick(self, now: float) -> None:
        super().tick(now)
        if self.cells and len(self._waiting) < 1 << 20:
            self.send(self.cells)

    def send(self, cells: int) -> None:
        """Send so many cells more, as far as they are taken now."""
        if self.link is None or self._over:
            return
        first = (len(self.stream.lives) - 1) * LIFE + self._made
        self._waiting += keyed(self.stream.key, first, cells)
        self._made += cells
        with contextlib.suppress(OSError):
            sent = self.link.send(self._waiting)
            self.stream.lives[-1] += self._waiting[:sent]
            self._waiting = self._waiting[sent:]

    def end(self) -> None:
        self._over = True
        super().end()

    @property
    def newest(self) -> int:
        """The number of the last whole cell that was handed over, -1 where there is no link."""
        sent = len(self.stream.lives[-1]) // CELL if self.link is not None and not self._over else 0
        return (len(self.stream.lives) - 1) * LIFE + sent - 1 if sent else -1


class Destination(Peer):
    """Keeps what comes over a link, and looks at it when the link has ended."""

    def __init__(self, crowd: Crowd, stream: Stream, port: int, dials: bool, framed: bool, gaps: bool) -> None:
        super().__init__(crowd, stream, port, dials)
        self.links = 0  # that there have been
        self._framed, self._gaps = framed, gaps
        self._data = bytearray()

    def begun(self) -> None:
        self.links += 1

    def received(self, data: bytes) -> None:
        self._data += data

    @property
    def waiting(self) -> int:
        """How many bytes came over this link and were not taken."""
        return len(self._data)

    def take(self) -> bytes:
        """Return what came over this link, as if it had not come."""
        data = bytes(self._data)
        self._data.clear()
        return data

    def ended(self) -> None:
        fault = self.stream.fault(bytes(self._data), self._framed, self._gaps)
        if fault:
            self._crowd.faults.append(f"{self.stream.key}, port {self.port}: {fault}")
        self._data.clear()

    @property
    def newest(self) -> int:
        """The number of the last whole cell that came over this link, -1 where there is none."""
        end = self._data.rfind(b"\n") + 1
        number = bytes(self._data[end - 11 : end - 1])
        return int(number) if len(number) == 10 and number.isdigit() else -1
