"""Writing to a descriptor that must never be waited for: a terminal, a pipe, a file.

Setting O_NONBLOCK would change the descriptor for everybody who shares it (the operator's shell).  So it
is opened once more where that can be; where not, poll(2) is asked, and no more written than it vouches for.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from collections import deque
from collections.abc import Callable
from typing import Protocol

# A pipe that is writable takes at least PIPE_BUF bytes without blocking, pipe(7).
_PIECE = 4096

# What waits for a reader, at most: some seconds of a busy feed, nothing for a machine.
_QUEUE_MAX = 1024 * 1024

# How often a full descriptor is tried again, in seconds: a human's blink.
_RETRY = 0.1

Lost = Callable[[], None]  # what was taken has come to nothing


class Timer(Protocol):
    """The part of a timer that observers use."""

    def cancel(self) -> None:
        """See TimerHandle.cancel."""


class Scheduler(Protocol):
    """The part of the reactor that observers use."""

    now: float

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """See Reactor.call_later."""


def write_whole(fd: int, data: bytes) -> None:
    """Append to a regular file whole or not at all; raises OSError. Half a row is worse than none."""
    taken = os.write(fd, data)
    if taken < len(data):
        # The disk became full in the middle.
        os.ftruncate(fd, os.fstat(fd).st_size - taken)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def close_fd(fd: int) -> None:
    """Close a file; what close(2) has to say of earlier writes (a network's file system) comes too late."""
    with contextlib.suppress(OSError):
        os.close(fd)


def unshared(fd: int) -> int:
    """Return another descriptor of a terminal or a pipe, one that never waits; `fd` where there is none to be had.

    poll(2) is not enough: a terminal vouches for one byte, and others who write to a pipe may be quicker.
    """
    if not (os.isatty(fd) or stat.S_ISFIFO(os.fstat(fd).st_mode)):
        return fd
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return fd  # another user's terminal


def unheard(*what: object) -> None:
    """Take what nobody wants to hear of."""


class LossyWriter:
    """A bounded queue before a descriptor; what does not fit is lost, and `lost` counts it.

    So is all that waits when a write fails: the reader has left, the disk is full.  Later writes are tried
    again, for a reader may come back.  Half a row on a full disk is not lost: the rest follows when there is room.
    """

    def __init__(
        self, scheduler: Scheduler, fd: int, rest: float = 0.0, failed: Callable[[OSError], None] = unheard
    ) -> None:
        """After a failure nothing is taken for `rest` seconds. `failed(why)` is called for the first of a row."""
        self._scheduler = scheduler
        self._fd = fd
        self._rest = rest
        self._failed = failed
        self._queue: deque[tuple[bytes, Lost]] = deque()
        self._queued = 0
        self._begun = False  # a part of the queue's head is written
        self._retry: Timer | None = None
        self._failing = False
        self._rested_at = 0.0
        self._closed = False
        self._regular = stat.S_ISREG(os.fstat(fd).st_mode)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.lost = 0  # writes

    def has_room(self) -> bool:
        """Whether something more would be taken: what takes pains to make need not be made else."""
        return not self._closed and self._queued < _QUEUE_MAX and self._scheduler.now >= self._rested_at

    def write(self, data: bytes, lost: Lost = unheard) -> bool:
        """Write or queue `data` whole; False where it had to be thrown away whole.

        `lost()` is called where it was queued, and thrown away later.
        """
        if not self.has_room() or (self._queued and self._queued + len(data) > _QUEUE_MAX):
            self.lost += 1
            return False
        before = self.lost
        self._queue.append((data, unheard))
        self._queued += len(data)
        self.flush()
        if self.lost > before:
            return False
        if self._queue:
            self._queue[-1] = (self._queue[-1][0], lost)
        return True

    def flush(self) -> None:
        """Write what the descriptor takes now; the rest is tried again soon."""
        while self._queue and self._poll.poll(0):
            head, lost = self._queue[0]
            try:
                taken = os.write(self._fd, head[: _QUEUE_MAX if self._regular else _PIECE])
            except BlockingIOError:
                break
            except OSError as error:
                self._give_up(error)
                break
            self._queued -= taken
            self._begun = taken < len(head)
            if self._begun:
                self._queue[0] = (head[taken:], lost)
            else:
                self._queue.popleft()
                self._failing = False
                self._rested_at = 0.0
        if self._queue and self._retry is None:
            self._retry = self._scheduler.call_later(max(_RETRY, self._rest if self._failing else 0), self._try_again)

    def close(self) -> int:
        """Write what is taken now, lose the rest and take no more; return how many writes were lost.

        To be called before the descriptor is closed, whose number may be a client's the next moment.
        """
        self._failed = unheard
        before = self.lost
        self.flush()
        self._throw_away()
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        return self.lost - before

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def _give_up(self, error: OSError) -> None:
        """The reader is gone, or the disk is full: lose what waits, and stay alive."""
        begun = self._queue.popleft() if self._begun and self._regular else None
        self._throw_away()
        if begun is not None:
            self._queue.append(begun)
            self._queued = len(begun[0])
            self._begun = True
        self._rested_at = self._scheduler.now + self._rest
        if not self._failing:
            self._failing = True
            self._failed(error)

    def _throw_away(self) -> None:
        thrown, self._queue = self._queue, deque()
        self._queued = 0
        self._begun = False
        self.lost += len(thrown)
        for _, lost in thrown:
            lost()
