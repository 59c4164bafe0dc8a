"""Writing to a descriptor that must never be waited for: a terminal, a pipe, a file.

Setting O_NONBLOCK would change the descriptor for everybody who shares it (the operator's shell).  So
poll(2) is asked first, and no more is written than it vouches for.
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


class LossyWriter:
    """A bounded queue before a descriptor; what does not fit is lost, and `lost` counts it."""

    def __init__(self, scheduler: Scheduler, fd: int) -> None:
        self._scheduler = scheduler
        self._fd = fd
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._retry: Timer | None = None
        self._broken = False
        self._piece = _QUEUE_MAX if stat.S_ISREG(os.fstat(fd).st_mode) else _PIECE
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self.lost = 0  # writes

    def has_room(self) -> bool:
        """Whether something more would be taken: what takes pains to make need not be made else."""
        return not self._broken and self._queued < _QUEUE_MAX

    def write(self, data: bytes) -> bool:
        """Write or queue `data` whole; False where it had to be thrown away whole."""
        if self._broken or (self._queued and self._queued + len(data) > _QUEUE_MAX):
            self.lost += 1
            return False
        self._queue.append(data)
        self._queued += len(data)
        self.flush()
        return True

    def flush(self) -> None:
        """Write what the descriptor takes now; the rest is tried again soon."""
        while self._queue and self._poll.poll(0):
            head = self._queue[0]
            try:
                taken = os.write(self._fd, head[: self._piece])
            except BlockingIOError:
                break
            except OSError as error:
                self._give_up(error)
                return
            self._queued -= taken
            if taken == len(head):
                self._queue.popleft()
            else:
                self._queue[0] = head[taken:]
        if self._queue and self._retry is None:
            self._retry = self._scheduler.call_later(_RETRY, self._try_again)

    def close(self) -> None:
        """Write what is taken now, lose the rest and take no more: before the descriptor is closed.

        Its number may be a client's the next moment.
        """
        self.flush()
        self._throw_away()
        self._broken = True
        if self._retry is not None:
            self._retry.cancel()

    def _try_again(self) -> None:
        self._retry = None
        self.flush()

    def _give_up(self, error: OSError) -> None:
        """The reader is gone for good, or the disk is full: lose what waits, and stay alive."""
        self._throw_away()
        self._broken = error.errno in (errno.EPIPE, errno.EBADF, errno.EIO)

    def _throw_away(self) -> None:
        self.lost += len(self._queue)
        self._queue.clear()
        self._queued = 0
