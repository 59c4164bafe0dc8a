"""A pipe between two sockets: bytes go through it without entering the process; splice(2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque

# As much as an unprivileged process may ask for (/proc/sys/fs/pipe-max-size), and what one splice moves
# at most. The default of 64 KiB takes four times as many calls for a byte.
_WANTED = 1024 * 1024

# What a pipe must hold to be worth its calls; one of a user that has too many already gets 8 KiB, pipe(7).
_ENOUGH = 64 * 1024

# Descriptors that are left for others: copying needs none.
_RESERVE = 64

# Seconds between two marks of how old the bytes are. The pipe's slots, 256 of them, bound their number.
_MARK_STEP = 0.1

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SpliceRefused(Exception):  # noqa: N818 - an answer, not an error
    """The kernel does not splice here: the bytes have to be copied."""


class Pipe:
    """Holds `held` of at most `size` bytes."""

    __slots__ = ("_marks", "_moved_in", "_reader", "_writer", "held", "size")

    def __init__(self) -> None:
        """Raises SpliceRefused where there is none to be had."""
        self.held = 0
        self._moved_in = 0
        self._marks: deque[tuple[int, float]] = deque()  # what had been moved in before a time, and the time
        try:
            self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SpliceRefused from error  # no descriptors: copying needs none
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _WANTED)
        self.size = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)
        if self.size < _ENOUGH or self._writer >= os.sysconf("SC_OPEN_MAX") - _RESERVE:
            self.close()
            raise SpliceRefused

    @property
    def since(self) -> float:
        """When the first byte that it holds was moved in, within `_MARK_STEP`; it must hold one."""
        while len(self._marks) > 1 and self._marks[1][0] <= self._moved_in - self.held:
            self._marks.popleft()
        return self._marks[0][1]

    def fill_from(self, fd: int, limit: int, now: float) -> int:
        """Move at most `limit` bytes in; return how many, 0 at the end of input. Raises OSError."""
        moved = os.splice(fd, self._writer, limit, flags=_FLAGS)
        if not self.held:
            self._marks.clear()
        if moved and (not self._marks or now - self._marks[-1][1] >= _MARK_STEP):
            self._marks.append((self._moved_in, now))
        self._moved_in += moved
        self.held += moved
        return moved

    def empty_into(self, fd: int) -> int:
        """Move out what is taken; return the bytes. Raises OSError."""
        moved = os.splice(self._reader, fd, self.held, flags=_FLAGS)
        self.held -= moved
        return moved

    def pour(self) -> bytes:
        """Return what it holds."""
        parts = []
        while self.held:
            parts.append(os.read(self._reader, self.held))
            self.held -= len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Give the descriptors back, and forget what it holds."""
        os.close(self._reader)
        os.close(self._writer)
