"""One connected stream socket.

A transport reads when it may, hands what came to its protocol, and sends what it is given as far as
the kernel takes it.  It holds no bytes: what was not taken stays with the caller, who asks to be told
when there is room (`watch_writing`).  When much comes at a time it first asks `on_bulk`, who may move
it to another socket unread (`read_into` here, `send_from` there).  Its life:

    OPEN --close()--> LINGERING --peer's end, error or linger_timeout--> CLOSED
    OPEN --abort(), error-----------------------------------------------> CLOSED

LINGERING: our side is shut down, what still comes is read and thrown away.  A plain close with unread
input makes the kernel send RST, which overtakes data on its way: 36 % of it was lost when measured.
Whatever the way, `connection_lost(reason)` comes exactly once, at the end of a turn.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Union

from relayd.net.pipe import Pipe, SpliceRefused
from relayd.net.reactor import READ, WRITE, Reactor, TimerHandle, UnwatchedError
from relayd.net.sockets import BROKEN, SocketOptions, error_name, name_of, reset, show_name, unacknowledged, unread

Buffer = Union[bytes, memoryview]

# A recv allocates what it is asked for: 256 KiB for a 100-byte message is waste, 4 KiB for a bulk
# stream is sixty calls too many.  So the size follows the stream, between these.
_READ_MIN = 4 * 1024
READ_MAX = 256 * 1024

# What is spliced costs by the call, not by the byte: where less than this has come, the next one waits a millisecond.
_BULK = 256 * 1024
_BULK_REST = 0.001

# A read of so much saves nothing by waiting for more.
_ENOUGH = 64 * 1024

# What splice(2) says of descriptors, and a sandbox of calls, that it does not serve.
_NO_SPLICE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP, errno.ENOMEM})


class TransportProtocol(Protocol):
    """Who is told what happens on a transport."""

    def data_received(self, data: bytes) -> None:
        """Bytes came; never empty."""

    def eof_received(self) -> None:
        """The peer will send no more. It may still receive; nothing is closed by itself."""

    def ready_to_send(self) -> None:
        """There is room again; asked for with `watch_writing(True)`."""

    def connection_lost(self, reason: str) -> None:
        """The transport is closed; the last call, and it comes exactly once."""


class Transport:
    """A non-blocking connected socket in a reactor."""

    __slots__ = (
        "_coalesce", "_linger_timeout", "_linger_timer", "_lingering", "_paused", "_protocol", "_reactor",
        "_read_size", "_reason", "_rest_timer", "_sock", "_writing", "bytes_read", "closed", "eof", "feeds",
        "last_read", "local", "on_bulk", "peer", "push", "since",
    )  # fmt: skip

    def __init__(self, reactor: Reactor, sock: socket.socket, peer: Any, linger_timeout: float) -> None:
        """Take over a connected non-blocking socket; `peer` is its name as accept or connect had it.

        Nothing is read before `start`.
        """
        self._reactor = reactor
        self._sock = sock
        self._linger_timeout = linger_timeout
        self._linger_timer: TimerHandle | None = None
        self._protocol: TransportProtocol | None = None
        self._read_size = _READ_MIN
        self._reason = ""
        self._lingering = self._paused = self._writing = False
        self._coalesce = 0.0
        self._rest_timer: TimerHandle | None = None  # until it runs, nothing is read
        self.closed = self.feeds = False
        self.eof = False  # the peer has ended its side
        self.on_bulk: Callable[[], bool] = _nobody  # returns whether it has moved what came
        # `send` without its frame, for those who send one chunk to thousands: it raises what the kernel
        # answers, which is then told to `push_failed`. Once the link is closed it takes nothing.
        self.push: Callable[[Buffer], int] = sock.send
        self.bytes_read = 0
        self.peer = peer
        self.local = name_of(sock.getsockname)
        self.since = self.last_read = reactor.now

    def __repr__(self) -> str:
        return f"<Transport {show_name(self.peer)}>"

    @property
    def open(self) -> bool:
        """Whether there is any use in sending."""
        return not (self.closed or self._lingering)

    def start(self, protocol: TransportProtocol) -> None:
        """Begin to read, for `protocol`."""
        self._protocol = protocol
        self._update_interest()

    def retune(self, options: SocketOptions, linger_timeout: float) -> None:
        """Apply other settings to a connection that is up; a dead one is let be."""
        self._linger_timeout = linger_timeout
        with contextlib.suppress(OSError):
            options.apply_sizes(self._sock)
            options.apply(self._sock)

    def coalesce(self, seconds: float) -> None:
        """Read small pieces at most once in that time; 0: when they come."""
        self._coalesce = seconds
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
            self._update_interest()

    # -- sending --------------------------------------------------------------------------------

    def send(self, data: Buffer) -> int:
        """Send what the kernel takes; return the bytes taken, 0 too where the link is breaking."""
        if self.closed or self._lingering:
            return 0
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._broken(error)
            return 0

    def push_failed(self, error: OSError) -> None:
        """`push` has raised: the kernel has no room, or the link is breaking."""
        if not isinstance(error, BlockingIOError):
            self._broken(error)

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        """Like `send`, for several buffers in one call; at most IOV_MAX (1024) of them."""
        if self.closed or self._lingering:
            return 0
        try:
            return self._sock.sendmsg(buffers)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._broken(error)
            return 0

    def send_from(self, pipe: Pipe) -> int:
        """Like `send`, from a pipe; raises SpliceRefused where that cannot be done."""
        if self.closed or self._lingering:
            return 0
        try:
            return pipe.empty_into(self._sock.fileno())
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in _NO_SPLICE:
                raise SpliceRefused from error
            self._broken(error)
            return 0

    def watch_writing(self, wanted: bool) -> None:
        """Ask for `ready_to_send`, for as long as there is something left to send."""
        if self._writing != wanted:
            self._writing = wanted
            self._update_interest()

    def unacknowledged(self) -> int:
        """Return how many bytes the kernel has taken that the peer's has not acknowledged."""
        return unacknowledged(self._sock)

    def check(self) -> None:
        """Look whether the connection broke, for one that nothing is asked of; then it is lost like any other."""
        code = 0 if self.closed else self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._broken(OSError(code, ""))

    # -- reading --------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take no more; the kernel's window closes and the peer waits."""
        self._paused = True
        self._update_interest()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._paused = False
        self._update_interest()

    def read_little(self) -> None:
        """What has come was hard to take: read no more of it in one turn than of a link that is new."""
        self._read_size = _READ_MIN

    def unread(self) -> int:
        """Return how many bytes have come that were not read yet."""
        return unread(self._sock)

    def drain(self) -> None:
        """Read what has come by now, even while paused, its end included: the link is about to be given up."""
        end = self.bytes_read + self.unread()
        while self.open and not self.eof:
            before = self.bytes_read
            self._read_here()
            if self.bytes_read == before or self.bytes_read > end:
                return  # nothing more has come, or it came after we were asked

    def read_into(self, pipe: Pipe, limit: int) -> int:
        """Move what has come into a pipe (for `on_bulk`).

        Returns the bytes moved; 0 where there is nothing more to do, the link is broken; -1 where recv has to
        tell what is the matter: nothing has come, the pipe has no room, the end has come, or urgent data
        stand in the way, at which splice answers EAGAIN for ever and, after a FIN, 0 before the end.
        Raises SpliceRefused where it cannot be done.
        """
        try:
            moved = pipe.fill_from(self._sock.fileno(), limit, self._reactor.now)
        except BlockingIOError:
            return -1
        except OSError as error:
            if error.errno in _NO_SPLICE:
                self.on_bulk = _nobody
                raise SpliceRefused from error
            self._broken(error)
            return 0
        if moved:
            self.bytes_read += moved
            self.last_read = self._reactor.now
            self._fit_read_size(moved, limit)
            if moved < min(limit, _BULK):
                self._rest(_BULK_REST)
        return moved or -1

    # -- the end --------------------------------------------------------------------------------

    def close(self, reason: str) -> None:
        """End our side so that all that was sent arrives; `reason` is for connection_lost."""
        if not self.open:
            return
        self._reason = reason
        self.push = _take_nothing
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno not in BROKEN:
                raise
            self._finish()
            return
        if self.eof:
            self._finish()
            return
        self._lingering = True
        self._linger_timer = self._reactor.call_later(self._linger_timeout, self._finish)
        self._update_interest()

    def abort(self, reason: str) -> None:
        """Reset at once: for a peer that is cut for cause, or takes nothing."""
        if self.closed:
            return
        self._reason = reason
        self._mark_closed()
        self._reactor.at_turn_end(lambda: self._free(reset))

    # -- for the reactor ------------------------------------------------------------------------

    def fileno(self) -> int:
        return self._sock.fileno()

    def ready(self, events: int) -> None:
        if events & READ and (self._lingering or not (self._paused or self._rest_timer)):
            self._read()
        if events & WRITE and self._writing and self.open and self._protocol is not None:
            self._protocol.ready_to_send()

    def hung_up(self) -> None:
        """The connection broke while nothing was asked for.

        A paused transport with input left is let be: what came before the break can still be read,
        and reading it on resumption ends in the error.
        """
        if self.eof:
            self.check()
            self.abort("reset")

    def failed(self, error: Exception) -> None:
        self.abort(error_name(error.errno or 0) if isinstance(error, UnwatchedError) else "internal")

    def _read(self) -> None:
        if self._read_size == READ_MAX and not self._lingering and self.on_bulk():
            return
        self._read_here()

    def _read_here(self) -> None:
        asked = self._read_size
        try:
            data = self._sock.recv(asked)
        except BlockingIOError:
            return
        except OSError as error:
            self._broken(error)
            return
        if not data:
            self._end_of_input()
            return
        if self._lingering:
            return  # thrown away
        size = len(data)
        self.bytes_read += size
        self.last_read = self._reactor.now
        if size == asked or asked > _READ_MIN:
            self._fit_read_size(size, asked)
        if self._coalesce and size < min(asked, _ENOUGH):
            self._rest(self._coalesce)
        assert self._protocol is not None
        self._protocol.data_received(data)

    def _fit_read_size(self, size: int, asked: int) -> None:
        if size == asked:
            self._read_size = min(self._read_size * 4, READ_MAX)
        elif size * 8 < self._read_size:
            self._read_size = max(self._read_size // 2, _READ_MIN)

    def _rest(self, seconds: float) -> None:
        """Let what comes next wait in the kernel, to be read with what follows."""
        if self._rest_timer is None:
            self._rest_timer = self._reactor.call_later(seconds, self._rest_is_over)
            self._update_interest()

    def _rest_is_over(self) -> None:
        """Read what has come, without asking the selector first: it would say yes and cost a turn."""
        self._rest_timer = None
        if not (self._paused or self._lingering or self.eof):
            self._reactor.deliver(self, self._read)
        self._update_interest()

    def _end_of_input(self) -> None:
        self.eof = True
        if self._lingering:
            self._finish()
            return
        self._update_interest()  # or the loop would spin on the end of input
        assert self._protocol is not None
        self._protocol.eof_received()

    def _broken(self, error: OSError) -> None:
        """The kernel refused to go on: an expected end has a name, anything else is told like an exception of ours."""
        if (code := error.errno or 0) not in BROKEN:
            self._reactor.handler_failed(self, error)
            return
        if not self._lingering:
            self._reason = {errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timeout"}.get(
                code, error_name(code)
            )
        self._finish()

    def _update_interest(self) -> None:
        """The one place where readiness is asked for."""
        if self.closed:
            return
        events = 0
        if not self.eof and (self._lingering or not (self._paused or self._rest_timer)):
            events |= READ
        if self._writing and not self._lingering:
            events |= WRITE
        self._reactor.set_interest(self, events)

    def _finish(self) -> None:
        if not self.closed:
            self._mark_closed()
            self._reactor.at_turn_end(lambda: self._free(socket.socket.close))

    def _mark_closed(self) -> None:
        self.closed = True
        self.push = _take_nothing
        self._reactor.forget(self)
        for timer in (self._linger_timer, self._rest_timer):
            if timer is not None:
                timer.cancel()

    def _free(self, close: Any) -> None:
        close(self._sock)
        protocol, self._protocol = self._protocol, None
        self.on_bulk = _nobody
        if protocol is not None:
            protocol.connection_lost(self._reason)


def _nobody() -> bool:
    return False


def _take_nothing(data: Buffer) -> int:
    return 0
