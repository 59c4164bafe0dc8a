"""The process's descriptor limit, the memory it keeps, and standard descriptors that are what they are called."""

from __future__ import annotations

import os
import resource
import sys

from relayd.net.transport import READ_MAX

# Blocks of memory up to this size are used again when they are free. A read takes a block of READ_MAX, its framing
# another, and a third for what lies between; in bulk 2 MiB that stay in the process save more than half of its time.
_KEPT_BLOCK = 4 * READ_MAX

# Descriptors that are not links: log, dumps, listeners, the reactor's own, look-ups, a reload.
_RESERVE = 32


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one; return how many links there is room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):
        pass  # a sandbox may forbid it; the soft limit is what there is
    return max(1, soft - _RESERVE)


def keep_freed_memory() -> None:
    """Have the C library keep the memory of large reads, where it would give it back to the kernel each time.

    Each page of it would then be a page fault on the next read: 64 for each 256 KiB.  glibc learns by example: a
    block that it has mapped, and that is freed, raises the size from which on it maps, and twice as much
    free memory at the end of the heap is kept (mallopt(3), M_MMAP_THRESHOLD).  Others may learn nothing from it.
    """
    bytearray(_KEPT_BLOCK)  # zeroed by the kernel when it is touched, which it never is


def fill_standard_descriptors() -> None:
    """Open /dev/null for those of 0, 1 and 2 that are closed, so that no socket gets their number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has None for those that were closed when it started; python-daemon asks for their fileno.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
