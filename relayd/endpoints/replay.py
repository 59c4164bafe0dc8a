"""A file that behaves like a source, so that a relay can be tried with no feed at hand."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BufferedReader

from relayd.address import ReplayAddress
from relayd.endpoints.endpoint import LinkProtocol
from relayd.net.pipe import Pipe, SpliceRefused
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.sockets import SocketOptions, error_name
from relayd.net.transport import Buffer
from relayd.wire.framing import Framing

# An unpaced replay delivers this much a turn, so that it shares the loop like any other source.
_BLOCK = 64 * 1024

# A file with nothing to send is looked at again after this many seconds: it may be being written.
_EMPTY = 1.0


@dataclass(frozen=True)
class ReplaySettings:
    """What a record is, and how many bytes the longest may have. With a framing that has none, it is a line."""

    framing: Framing
    max_record: int


class _Bytes:
    """Reads a file whose records do not matter: at a rate, lines go out, the last one though it has no end."""

    def __init__(self, file: BufferedReader, settings: ReplaySettings) -> None:
        self._file = file
        self._max_record = settings.max_record
        self.found = False  # there was something since the file's beginning

    def block(self) -> bytes:
        return self._noted(self._file.read(_BLOCK))

    def record(self) -> bytes:
        return self._noted(self._file.readline(self._max_record))

    def rewind(self) -> None:
        self._file.seek(0)
        self.found = False

    def _noted(self, data: bytes) -> bytes:
        self.found |= bool(data)
        return data


class _Records:
    """Reads a file of records. What lies between them goes out with them, to be counted like any other noise."""

    def __init__(self, file: BufferedReader, settings: ReplaySettings) -> None:
        self._file = file
        self._settings = settings
        self._framer = settings.framing.framer(settings.max_record)
        self._pending = b""  # what was read and has not gone out
        self._ready = 0  # of it, the bytes that may
        self._run = b""  # of these, the records
        self._border = 0  # up to there they have gone out
        self.found = False  # there was a record since the file's beginning

    def block(self) -> bytes:
        """Return whole records, as many as come with the next read, or the noise at the end; b"" behind that."""
        while not self._ready and self._read():
            pass
        return self._take(self._ready)

    def record(self) -> bytes:
        """Return the next record, or the noise at the end; b"" behind that."""
        while not self._ready and self._read():
            pass
        end = self._ready
        if self._border < len(self._run):
            begin, self._border = self._border, self._settings.framing.next_border(self._run, self._border)
            record = self._run[begin : self._border]
            if self._border < len(self._run):
                end = self._pending.find(record) + len(record)
        return self._take(end)

    def rewind(self) -> None:
        """Begin anew, after the end."""
        self._file.seek(0)
        self.found = False

    def _read(self) -> bool:
        """Read on; return whether anything is to go out."""
        block = self._file.read(_BLOCK)
        self._pending += block
        self._run, self._border = self._framer.feed(block) if block else self._framer.finish(), 0
        # The rest the framer keeps: it is the beginning of the next record. At the end nothing is kept.
        self._ready = len(self._run) + self._framer.take_unframed()
        self.found |= bool(self._run)
        return bool(block or self._ready)

    def _take(self, count: int) -> bytes:
        data, self._pending = self._pending[:count], self._pending[count:]
        self._ready -= count
        return data


def _opened(path: str) -> BufferedReader:
    """Open a regular file; raises OSError. What else may have come in its place must not make the loop wait."""
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - returned
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file")
    return file


class ReplayTransport:
    """Has the face of a Transport: reads the file instead of a socket, throws away what it is sent.

    With a rate, records go out one by one at that rate; without, as fast as they are taken.  At the
    end of the file it starts over, or falls silent: a feed that has nothing more to say.
    """

    def __init__(self, reactor: Reactor, address: ReplayAddress, settings: ReplaySettings) -> None:
        """Open the file; raises OSError."""
        self._reactor = reactor
        self._address = address
        self._file = _opened(address.path)
        reads = _Records if settings.framing.has_records else _Bytes
        self._reader: _Records | _Bytes = reads(self._file, settings)
        self._protocol: LinkProtocol | None = None
        self._timer: TimerHandle | None = None
        self._paused = False
        self._closed = False
        self._due = reactor.now  # when the next record is to be sent
        self.peer = str(address)
        self.local = None
        self.since = self.last_read = reactor.now
        self.bytes_read = 0
        self.on_bulk: Callable[[], bool] = bool  # never called
        self.feeds = True  # by timers, which have no turn to wait for

    def start(self, protocol: LinkProtocol) -> None:
        self._protocol = protocol
        self._due = self._reactor.now
        self._schedule(0.0)

    def coalesce(self, seconds: float) -> None:
        """A file comes as fast as it is asked to."""

    def push(self, data: Buffer) -> int:
        return len(data)

    def push_failed(self, error: OSError) -> None:
        """It never does."""

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        return sum(map(len, buffers))

    def send_from(self, pipe: Pipe) -> int:
        return len(pipe.pour())

    def read_into(self, pipe: Pipe, limit: int) -> int:
        raise SpliceRefused  # nobody asks: a file is never bulk

    def unacknowledged(self) -> int:
        return 0

    def unread(self) -> int:
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

    def read_little(self) -> None:
        """It delivers what belongs to records only, by the clock."""

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
        assert self._protocol is not None
        try:
            data = self._reader.block() if self._address.rate is None else self._reader.record()
        except OSError as error:
            self.close(error_name(error.errno or 0))
            return
        if data:
            self._due += 1 / self._address.rate if self._address.rate is not None else 0.0
            self.bytes_read += len(data)
            self.last_read = self._reactor.now
            self._protocol.data_received(data)
            self._schedule(max(0.0, self._due - self._reactor.now))
            return
        self._protocol.interrupted()
        if self._address.loop:
            found = self._reader.found
            self._reader.rewind()
            self._schedule(0.0 if found else _EMPTY)
