"""A file that behaves like a source, so that a relay can be tried with no feed at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader

from relayd.address import ReplayAddress
from relayd.net.pipe import Pipe, SpliceRefused
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.sockets import SocketOptions
from relayd.net.transport import Buffer, TransportProtocol

# An unpaced replay delivers this much a turn, so that it shares the loop like any other source.
_BLOCK = 64 * 1024

# A file with nothing to send is looked at again after this many seconds: it may be being written.
_EMPTY = 1.0


@dataclass(frozen=True)
class ReplaySettings:
    """A record is a line, `max_record` bytes at most; `whole`: an unterminated last line is no record."""

    max_record: int
    whole: bool


class ReplayTransport:
    """Has the face of a Transport: reads the file instead of a socket, throws away what it is sent.

    With a rate, records go out one by one at that rate; without, as fast as they are taken.  At the
    end of the file it starts over, or falls silent: a feed that has nothing more to say.
    """

    def __init__(self, reactor: Reactor, address: ReplayAddress, settings: ReplaySettings) -> None:
        """Open the file; raises OSError."""
        self._reactor = reactor
        self._address = address
        self._settings = settings
        self._file: BufferedReader = open(address.path, "rb")  # noqa: SIM115 - closed with the link
        self._protocol: TransportProtocol | None = None
        self._timer: TimerHandle | None = None
        self._paused = False
        self._closed = False
        self._begun = False  # something was sent since the file's beginning
        self._due = reactor.now  # when the next record is to be sent
        self.peer = str(address)
        self.local = None
        self.since = self.last_read = reactor.now
        self.bytes_read = 0
        self.coalesce = 0.0  # a file comes as fast as it is asked to
        self.on_bulk: Callable[[], bool] = bool  # never called

    def start(self, protocol: TransportProtocol) -> None:
        self._protocol = protocol
        self._due = self._reactor.now
        self._schedule(0.0)

    def send(self, data: Buffer) -> int:
        return len(data)

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        return sum(map(len, buffers))

    def send_from(self, pipe: Pipe) -> int:
        return len(pipe.pour())

    def read_into(self, pipe: Pipe, limit: int) -> int:
        raise SpliceRefused  # nobody asks: a file is never bulk

    def unacknowledged(self) -> int:
        return 0

    def drain(self) -> None:
        """A file is never given up for another."""

    def watch_writing(self, wanted: bool) -> None:
        """There is always room: to be told so in the next turn is what a socket would do."""
        if wanted:
            self._reactor.call_later(0.0, self._tell_ready)

    def _tell_ready(self) -> None:
        if self._protocol is not None and not self._closed:
            self._protocol.ready_to_send()

    def retune(self, options: SocketOptions, linger_timeout: float) -> None:
        """There is no socket."""

    def pause_reading(self) -> None:
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def resume_reading(self) -> None:
        self._paused = False
        self._due = max(self._due, self._reactor.now)  # what was not sent in time is not hurried after
        self._schedule(self._due - self._reactor.now)

    def close(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self.pause_reading()
        self._reactor.at_turn_end(lambda: self._free(reason))

    abort = close

    def _free(self, reason: str) -> None:
        self._file.close()
        protocol, self._protocol = self._protocol, None
        if protocol is not None:
            protocol.connection_lost(reason)

    def _schedule(self, delay: float) -> None:
        if self._protocol is not None and not self._paused and not self._closed and self._timer is None:
            self._timer = self._reactor.call_later(delay, self._deliver)

    def _deliver(self) -> None:
        self._timer = None
        data = self._next_data()
        if data:
            self._begun = True
            self._due += 1 / self._address.rate if self._address.rate is not None else 0.0
            self.bytes_read += len(data)
            self.last_read = self._reactor.now
            assert self._protocol is not None
            self._protocol.data_received(data)
            self._schedule(max(0.0, self._due - self._reactor.now))
        elif self._address.loop:
            self._file.seek(0)
            self._schedule(0.0 if self._begun else _EMPTY)
            self._begun = False

    def _next_data(self) -> bytes:
        """Return what is to be sent next, b"" at the end of the file."""
        limit = self._settings.max_record
        if self._address.rate is None:
            data = self._file.read(_BLOCK)
            data += self._file.readline(limit) if self._settings.whole else b""
        else:
            data = self._file.readline(limit)
        if self._settings.whole and not data.endswith(b"\n") and not self._file.peek(1):
            return data[: data.rfind(b"\n") + 1]  # the last line of the file has no end, so it is no record
        return data
