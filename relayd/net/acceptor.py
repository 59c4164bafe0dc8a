"""Accepting connections, with a budget and without spinning when descriptors run out."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from relayd.net.reactor import READ, Reactor, TimerHandle, UnwatchedError
from relayd.net.sockets import ACCEPT_AGAIN, error_name

# Connections accepted a turn and listener. A burst of thousands then shares the loop with the
# streams that run, some ten milliseconds at a time; the rest waits in the kernel's backlog.
_ACCEPTS_PER_TURN = 64

# Seconds until it is asked again whether somebody may come in.
_BEHIND_PAUSE = 0.1

# Out of descriptors or memory, the listener stays readable: an unguarded loop failed 350,000 times a second.
_EXHAUSTED_PAUSE = 1.0


class Acceptor:
    """One listening socket in the reactor."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        accepted: Callable[[socket.socket, Any], None],
        exhausted: Callable[[str], None],
        is_behind: Callable[[], bool] = bool,
    ) -> None:
        """`accepted(socket, peer)` gets a non-blocking socket; `exhausted(errno name)` is told of a pause.

        Nobody is accepted while `is_behind()`, which is a pause as well, with that word for an errno's name.
        """
        self._reactor = reactor
        self._sock = sock
        self._accepted = accepted
        self._exhausted = exhausted
        self._is_behind = is_behind
        self._waits = False  # somebody does, and that has been told
        self._pause: TimerHandle | None = None
        self.closed = self.feeds = False

    def start(self) -> None:
        """Begin to accept."""
        self._reactor.set_interest(self, READ)

    def close(self) -> None:
        """Stop accepting; the listening socket is its owner's to close."""
        self.closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._reactor.forget(self)

    def fileno(self) -> int:
        return self._sock.fileno()

    def ready(self, events: int) -> None:
        for taken in range(_ACCEPTS_PER_TURN):
            if self.closed:
                return
            if self._is_behind():
                self._rest(_BEHIND_PAUSE)
                if not (taken or self._waits):  # there is somebody
                    self._waits = True
                    self._exhausted("behind")
                return
            self._waits = False
            try:
                sock, peer = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                code = error.errno or 0
                if code in ACCEPT_AGAIN:
                    continue
                # EMFILE, ENFILE, ENOBUFS, ENOMEM: it will come back. And what nobody has thought of must not spin.
                self._rest(_EXHAUSTED_PAUSE)
                self._exhausted(error_name(code))
                return
            sock.setblocking(False)
            self._accepted(sock, peer)

    def hung_up(self) -> None:
        """Nothing hangs up on a listener."""

    def failed(self, error: Exception) -> None:
        """One connection could not be taken in, and the listener stays; or it cannot be watched for now."""
        if isinstance(error, UnwatchedError):
            self._rest(_EXHAUSTED_PAUSE)
            self._exhausted(error_name(error.errno or 0))

    def _rest(self, seconds: float) -> None:
        self._reactor.set_interest(self, 0)
        if self._pause is not None:
            self._pause.cancel()
        self._pause = self._reactor.call_later(seconds, self.start)
