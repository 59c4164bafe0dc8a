"""Crowds of clients that come to a relay, `one`, and leave it."""

from __future__ import annotations

import errno
import resource
import socket
from contextlib import ExitStack

import pytest

from tests.faults.streams import discard
from tests.integration.daemons import Site
from tests.support import keyed, reset_connection, wait_until


def room_for(count: int) -> None:
    """Skip the test where this process may not have so many descriptors; the daemon inherits the same limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200:
        pytest.skip(f"only {hard} descriptors are allowed here, ulimit -Hn")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count + 200), hard))


def dial(stack: ExitStack, port: int, count: int) -> list[socket.socket]:
    """Return so many sockets on their way to the port, all at once; they are reset in the end."""
    found = []
    for _ in range(count):
        sock = socket.socket()
        stack.callback(discard, sock)
        sock.setblocking(False)
        code = sock.connect_ex(("127.0.0.1", port))
        assert code in (0, errno.EINPROGRESS), errno.errorcode[code]
        found.append(sock)
    return found


def come(stack: ExitStack, site: Site, port: int, count: int) -> list[socket.socket]:
    """Return so many clients that are in; they come fifty at a time: all at once are a storm, see L11."""
    before, crowd = counted(site, "connected"), []
    while len(crowd) < count:
        crowd += dial(stack, port, min(50, count - len(crowd)))
        so_many = before + len(crowd)
        wait_until(lambda so_many=so_many: counted(site, "connected") >= so_many, "fifty more")
    return crowd


def leave(site: Site, crowd: list[socket.socket]) -> None:
    """Reset them, fifty at a time."""
    before = counted(site, "closed")
    for first in range(0, len(crowd), 50):
        for sock in crowd[first : first + 50]:
            reset_connection(sock)
        left = min(first + 50, len(crowd))
        wait_until(lambda left=left: counted(site, "closed") >= before + left, "the end of fifty")


def counted(site: Site, event: str) -> int:
    """Return how many clients of the relay the log has seen come, or go.

    Not by the status, which takes some milliseconds itself with so many links in it.
    """
    return len(site.lines("relay=one client=", f"event={event}"))


def clients_of(site: Site) -> int:
    """Return how many clients the relay has."""
    return len(site.relay("one")["destinations"])


def sent_to_nobody(source: socket.socket, site: Site) -> bool:
    """Send a cell; return whether there is no client any more."""
    source.sendall(keyed("feed", 0, 1))
    return clients_of(site) == 0
