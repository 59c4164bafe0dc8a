"""Reading small text files that somebody else has named."""

from __future__ import annotations

import contextlib
import os
import stat


def read_regular(path: str, limit: int) -> bytes:
    """Return the file's bytes; raises ValueError, whose message follows the file's name in a sentence.

    Anything but a regular file of at most `limit` bytes is refused before it is read: opening a FIFO
    would wait for ever, and /dev/zero has no end.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("cannot be read: it is not a regular file")
        parts = []
        room = limit + 1
        while room and (part := os.read(fd, room)):
            parts.append(part)
            room -= len(part)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):  # a network's file system may tell of a fault here; all is read
            os.close(fd)
    if not room:
        raise ValueError(f"is larger than {limit // 1024} KiB, which is too large")
    return b"".join(parts)
