"""The process's descriptor limit, and the standard descriptors that must be what they are called."""

from __future__ import annotations

import os
import resource
import sys

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


def fill_standard_descriptors() -> None:
    """Open /dev/null for those of 0, 1 and 2 that are closed, so that no socket gets their number."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has None for those that were closed when it started; python-daemon asks for their fileno.
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115
