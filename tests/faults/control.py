"""The client of the relay that nobody touches: it sends a keyed stream through, and times every cell.

A process of its own, so that what the test does to itself does not show; and beside each cell it sends one through
a connection without a relay, so that what the machine does to everybody does not count.  Ends when its standard
input does, and says what it saw as one line of JSON.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from tests.support import CELL, PATIENCE, ROOT, SLOWNESS

_EVERY = 0.01  # seconds between two cells
_LATEST = 0.050  # seconds: the p99 that a scenario must leave (FAULTS 2.2, 5)
_ENOUGH = 100  # cells, from which on there is a p99 to speak of


class ControlClient:
    """The process, seen from the test."""

    def __init__(self, source: int, destination: int, enter: Sequence[str] = ()) -> None:
        """`enter`: the words that start a command where the daemon is, see Namespace.enter."""
        words = [*enter, sys.executable, "-m", "tests.faults.control", str(source), str(destination)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def end(self) -> dict[str, Any]:
        """Stop sending; return what it saw, when the last cell has come."""
        out, _ = self._process.communicate(timeout=PATIENCE)
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        """Make sure that it is gone."""
        self._process.kill()
        self._process.communicate()


def verdict(found: dict[str, Any], pauses: bool, waited: float) -> str:
    """Return what was wrong with the untouched stream, or nothing.

    `pauses`: the process was stopped meanwhile; `waited`: the seconds that the machine had no CPU for it.
    """
    if found["error"]:
        return str(found["error"])
    worst = found["p99"] if found["cells"] >= _ENOUGH else found["p90"]
    direct = found["direct_p99"] if found["cells"] >= _ENOUGH else found["direct_p90"]
    if not pauses and worst > _LATEST * SLOWNESS + direct + waited:
        return f"cells came late: {found}"
    return ""


class _Lane:
    """A way that cells take, and when each came out of it."""

    def __init__(self, outgoing: socket.socket, incoming: socket.socket) -> None:
        self.outgoing, self.incoming = outgoing, incoming
        self.came: list[float] = []
        self._rest = b""
        incoming.setblocking(False)
        # A client that ends in peace goes on receiving, as far as relayd can know.
        incoming.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    def send(self, number: int) -> None:
        self.outgoing.sendall(b"ctrl:%010d\n" % number)

    def receive(self) -> None:
        data = self.incoming.recv(1 << 16)
        assert data, f"the stream ended after {len(self.came)} cells"
        self._rest += data
        now = time.monotonic()
        while len(self._rest) >= CELL:
            cell, self._rest = self._rest[:CELL], self._rest[CELL:]
            assert cell == b"ctrl:%010d\n" % len(self.came), f"cell {len(self.came)} is {cell!r}"
            self.came.append(now)


def _run(source: int, destination: int) -> dict[str, Any]:
    incoming = socket.create_connection(("127.0.0.1", destination))  # first: who is not there gets nothing
    through = _Lane(socket.create_connection(("127.0.0.1", source)), incoming)
    lanes, sent = [through, _Lane(*_direct())], []
    selector = selectors.DefaultSelector()
    for lane in lanes:
        lane.outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(lane.incoming, selectors.EVENT_READ, lane.receive)
    stdin = selector.register(sys.stdin, selectors.EVENT_READ)
    error, end, ready = "", float("inf"), False
    try:
        while time.monotonic() < end and (end == float("inf") or len(through.came) < len(sent)):
            if end == float("inf") and (not sent or time.monotonic() >= sent[-1] + _EVERY):
                for lane in lanes:
                    lane.send(len(sent))
                sent.append(time.monotonic())
            for key, _ in selector.select(max(0.0, sent[-1] + _EVERY - time.monotonic())):
                if key is stdin:
                    selector.unregister(sys.stdin)
                    end = time.monotonic() + PATIENCE
                else:
                    key.data()
                    if through.came and not ready:
                        ready = True
                        _say("ready")
        assert len(through.came) == len(sent), f"{len(through.came)} of {len(sent)} cells came"
    except (OSError, AssertionError) as found:
        error = repr(found)
    return {"error": error, "cells": len(sent), **_waits("", through, sent), **_waits("direct_", lanes[1], sent)}


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _direct() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]


def _waits(prefix: str, lane: _Lane, sent: list[float]) -> dict[str, float]:
    waits = sorted(came - at for came, at in zip(lane.came, sent, strict=False)) or [0.0]
    parts = {"p90": 0.9, "p99": 0.99, "max": 1.0}
    return {prefix + name: round(waits[int(part * (len(waits) - 1))], 4) for name, part in parts.items()}


if __name__ == "__main__":
    _say(json.dumps(_run(int(sys.argv[1]), int(sys.argv[2]))))
