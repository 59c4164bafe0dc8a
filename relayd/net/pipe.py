"""A pipe between two sockets: bytes go through it without entering the process; splice(2)."""

from __future__ import annotations

import contextlib
import fcntl
import os

# As much as an unprivileged process may ask for (/proc/sys/fs/pipe-max-size), and what one splice moves
# at most. The default of 64 KiB takes four times as many calls for a byte.
_WANTED = 1024 * 1024

# What a pipe must hold to be worth its calls; one of a user that has too many already gets 8 KiB, pipe(7).
_ENOUGH = 64 * 1024

_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class SpliceRefused(Exception):  # noqa: N818 - an answer, not an error
    """The kernel does not splice here: the bytes have to be copied."""


class Pipe:
    """Holds `held` of at most `size` bytes, which it got since the time `since`."""

    __slots__ = ("_reader", "_writer", "held", "since", "size")

    def __init__(self) -> None:
        """Raises SpliceRefused where there is none to be had."""
        self.held = 0
        self.since = 0.0
        try:
            self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise SpliceRefused from error  # no descriptors: copying needs none
        with contextlib.suppress(OSError):
            fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, _WANTED)
        self.size = fcntl.fcntl(self._writer, fcntl.F_GETPIPE_SZ)
        if self.size < _ENOUGH:
            self.close()
            raise SpliceRefused

    def fill_from(self, fd: int, limit: int) -> int:
        """Move at most `limit` bytes in; return how many, 0 at the end of input. Raises OSError."""
        moved = os.splice(fd, self._writer, limit, flags=_FLAGS)
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
