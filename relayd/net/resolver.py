"""Name look-ups that never block the loop.

`getaddrinfo` is the one function that knows all of a host's ways to find a name (nsswitch, hosts,
resolved, search lists), and it blocks: 20 seconds with two name servers that do not answer.  So it
runs in threads, the only ones in the program.  A thread takes a name, notes that it has begun, and
posts an answer; it touches nothing else of ours.  Each look-up in flight has its own thread, up to a
limit, so that dead names do not stand in the way of living ones; literal addresses never come here.
"""

from __future__ import annotations

import _thread
import errno
import functools
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Union

from relayd.net.reactor import Reactor

# Distinct names looked up at once. A thread that waits for a name server costs 40 KiB or so; past
# this many dead names the next ones wait for the first to be given up.
_THREADS_MAX = 32

# The addresses of one name that are tried, so that an answer with a thousand holds nobody for hours.
_ANSWERS_MAX = 8

# Seconds after which a look-up that somebody asks for again is taken for lost and begun anew, for a thread that is
# short of memory may end without a word, most of all at its beginning. Name servers are given up long before.
_LOST_AT_START = 0.5
_LOST_AFTER = 60.0

Found = list[tuple[socket.AddressFamily, Any]]  # (family, socket address), in the resolver's order
Answer = Union[Found, Exception]
Lookup = Callable[..., "list[tuple[Any, Any, Any, Any, Any]]"]  # the face of socket.getaddrinfo


class Resolution:
    """One caller's wait for an answer."""

    __slots__ = ("_answered",)

    def __init__(self, answered: Callable[[Answer], None]) -> None:
        self._answered: Callable[[Answer], None] | None = answered

    def cancel(self) -> None:
        """The answer is no longer wanted; the thread may go on, nobody listens."""
        self._answered = None

    def answer(self, answer: Answer) -> None:
        """Hand the answer on, if it is still wanted."""
        if self._answered is not None:
            self._answered(answer)


class Resolver:
    """Looks names up in threads; answers arrive in the loop. Nothing is cached: that is nsswitch's."""

    def __init__(self, reactor: Reactor, lookup: Lookup = socket.getaddrinfo) -> None:
        self._reactor = reactor
        self._lookup = lookup
        self._wanted: dict[tuple[str, int], list[Resolution]] = {}  # in flight or waiting for a thread
        self._waiting: deque[tuple[str, int]] = deque()
        self._begun: dict[tuple[str, int], float] = {}  # those in flight, and the reactor's time of their beginning
        self._running: set[tuple[str, int]] = set()  # of these, those whose thread has begun
        self._threads = 0

    def resolve(self, host: str, port: int, answered: Callable[[Answer], None]) -> Resolution:
        """Have `answered` called in a later turn with the stream addresses of the name, or the error.

        Callers that want the same name at the same time share one look-up.
        """
        resolution = Resolution(answered)
        key = (host, port)
        if key in self._wanted:
            self._wanted[key].append(resolution)
            if self._is_lost(key):
                self._threads -= 1
                self._begin(key)
            return resolution
        self._wanted[key] = [resolution]
        if self._threads < _THREADS_MAX:
            self._begin(key)
        else:
            self._waiting.append(key)
        return resolution

    def _is_lost(self, key: tuple[str, int]) -> bool:
        age = self._reactor.now - self._begun.get(key, self._reactor.now)
        return age > (_LOST_AFTER if key in self._running else _LOST_AT_START)

    def _begin(self, key: tuple[str, int]) -> None:
        self._threads += 1
        self._begun[key] = begun = self._reactor.now
        self._running.discard(key)
        # Not threading.Thread, whose start waits for a sign of life from the thread: one that is short of memory gives
        # none, and the loop would wait for ever. Such a thread does not keep the process from ending either.
        try:
            _thread.start_new_thread(self._look_up, (*key, begun))
        except (RuntimeError, MemoryError) as error:  # the process may have no more threads, or memory for one
            failure = OSError(errno.EAGAIN, str(error) or "no memory for a thread")
            self._reactor.post(lambda: self._answered(key, begun, failure))

    def _look_up(self, host: str, port: int, begun: float) -> None:
        """Run in a thread."""
        answer: Answer
        try:
            self._running.add((host, port))
            found = self._lookup(host, port, 0, socket.SOCK_STREAM)
            answer = [(entry[0], entry[4]) for entry in found[:_ANSWERS_MAX]]
        except Exception as error:  # OSError, and UnicodeError for a name the codec cannot write
            answer = error
        self._reactor.post(lambda: self._answered((host, port), begun, answer))

    def _answered(self, key: tuple[str, int], begun: float, answer: Answer) -> None:
        if self._begun.get(key) != begun:
            return  # it was taken for lost
        del self._begun[key]
        self._running.discard(key)
        self._threads -= 1
        if self._waiting:
            self._begin(self._waiting.popleft())
        for resolution in self._wanted.pop(key):
            self._reactor.guard(functools.partial(resolution.answer, answer))


def literal(host: str, port: int) -> Found:
    """Return the socket address of a host that is an address; raises OSError (an unknown interface)."""
    found = socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    return [(entry[0], entry[4]) for entry in found]
