"""Four modes, one code path: every byte, in order, to every link."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support import check_keyed, connect, free_port, keyed, listener, receive, relayd

MODES = ("connect-listen", "listen-connect", "connect-connect", "listen-listen")


class Setting:
    """A relay in one mode, with ends that this test plays."""

    def __init__(self, mode: str) -> None:
        source, _, destination = mode.partition("-")
        self.source_listener = listener() if source == "connect" else None
        self.destination_listener = listener() if destination == "connect" else None
        self.source_port = self.source_listener.getsockname()[1] if self.source_listener else free_port()
        self.destination_port = (
            self.destination_listener.getsockname()[1] if self.destination_listener else free_port()
        )

    def source(self) -> socket.socket:
        """Return a new source link."""
        return self._end(self.source_listener, self.source_port)

    def destination(self) -> socket.socket:
        """Return a new destination link."""
        return self._end(self.destination_listener, self.destination_port)

    @staticmethod
    def _end(listening: socket.socket | None, port: int) -> socket.socket:
        return listening.accept()[0] if listening else connect(port)


@contextmanager
def setting(mode: str, *options: str) -> Iterator[tuple[Setting, object]]:
    """Run a relay in a mode."""
    ends = Setting(mode)
    with ExitStack() as stack:
        for sock in filter(None, (ends.source_listener, ends.destination_listener)):
            stack.enter_context(sock)
        words = [f"127.0.0.1:{ends.source_port}", f"127.0.0.1:{ends.destination_port}", "--mode", mode, "--retry", "0.05"]
        running = stack.enter_context(relayd(*words, *options))
        yield ends, running


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "cells"), [(1, 500), (64 * 1024, 100_000)], ids=["byte-by-byte", "64KiB"])
def test_every_byte_in_order(mode: str, size: int, cells: int) -> None:
    with setting(mode) as (ends, running):
        destination, source = ends.destination(), ends.source()
        running.wait_log("event=connected", times=2)
        data = keyed(mode[:4], 0, cells)
        with source, destination:
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for begin in range(0, len(data), size):
                source.sendall(data[begin : begin + size])
            got = receive(destination, len(data))
        assert check_keyed(mode[:4], got, 0) == range(cells)
