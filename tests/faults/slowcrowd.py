"""A crowd of readers and their source, in a process of its own: some fast, some at 1 KiB/s, some that never read.

Told what to do by lines of JSON on its standard input, it answers each with one; it ends when its input does.
"""

from __future__ import annotations

import json
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support import CELL, PATIENCE, ROOT, bulk, cells_of, reset_connection, stalled_client

FAST, SLOW, NEVER = "fast", "slow", "never"
_TRICKLE = 1024  # bytes a second that a slow one reads
_PIECE = 16 * 1024  # bytes that are sent at a time
_SEND_BUFFER = 64 * 1024  # of the source: what it has sent is to be in relayd, not here
_PERIOD = 4 << 20  # bytes after which the stream begins anew


class Crowd:
    """The process, seen from the test."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, do: str, **words: object) -> dict[str, Any]:
        """Have something done; return what it came to."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        stdin.write(json.dumps({"do": do, **words}) + "\n")
        stdin.flush()
        line = stdout.readline()
        assert line, "the crowd has died"
        found: dict[str, Any] = json.loads(line)
        wrong = found.pop("wrong")
        assert not wrong, wrong
        return found

    def send(self, seconds: float, rate: int) -> dict[str, Any]:
        """Have the source send `rate` bytes a second for so long.

        `due` and `sent` are bytes, `p99` seconds from the sending of a piece to its coming to a fast reader.
        """
        return self.ask("send", seconds=seconds, rate=rate)

    def catch_up(self) -> dict[str, Any]:
        """Let the source send what is due, and the fast ones read all of it; return `missing`, bytes of the worst."""
        return self.ask("catch_up")

    def leave(self, *kinds: str) -> None:
        """Reset all of these kinds."""
        self.ask("leave", kinds=kinds)

    def links(self) -> dict[str, int]:
        """Return how many of each kind are still connected, as far as they know."""
        return self.ask("links")


@contextmanager
def crowd(source: int, port: int, fast: int, slow: int, never: int) -> Iterator[Crowd]:
    """Run a crowd on these ports, so many of each kind; all are connected, and in the end all are gone."""
    words = [sys.executable, "-m", "tests.faults.slowcrowd", *map(str, (source, port, fast, slow, never))]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    try:
        found = Crowd(process)
        found.links()  # answered when all are there
        yield found
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


class _Reader:
    """One of the crowd."""

    def __init__(self, kind: str, sock: socket.socket) -> None:
        self.kind = kind
        self.sock = sock
        self.got = 0
        self.lost = ""  # how the link ended
        self.wrong = ""  # what of the stream was not as it should be
        self._rest = b""
        sock.setblocking(False)

    def read(self, data: memoryview) -> None:
        """Compare what a fast one gets with what was sent; `data` is the stream, twice over."""
        try:
            found = self.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost = repr(error)
            return
        if not found:
            self.lost = "end"
            return
        at = self.got % _PERIOD
        if data[at : at + len(found)] != found:
            self.wrong = self.wrong or f"{self.kind}: not the stream, after {self.got} bytes"
        self.got += len(found)

    def trickle(self, size: int) -> None:
        """Read so many bytes at most, of which only whole records have to be right."""
        try:
            found = self.sock.recv(size)
        except BlockingIOError:
            return
        except OSError as error:
            self.lost = repr(error)
            return
        self.got += len(found)
        whole, self._rest = self._rest + found, b""
        whole, self._rest = whole[: len(whole) // CELL * CELL], whole[len(whole) // CELL * CELL :]
        try:
            cells_of("bulk", whole)
        except AssertionError as error:
            self.wrong = self.wrong or f"{self.kind}: {error}"


class _Crowd:
    """What the process does."""

    def __init__(self, source: int, port: int, counts: dict[str, int]) -> None:
        self._data = memoryview(bulk(_PERIOD // CELL) * 2)
        self._selector = selectors.DefaultSelector()
        self.readers: list[_Reader] = []
        for kind, count in counts.items():
            for _ in range(count):
                sock = socket.create_connection(("127.0.0.1", port)) if kind == FAST else stalled_client(port)
                self.readers.append(_Reader(kind, sock))
        self._source = socket.socket()
        self._source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self._source.connect(("127.0.0.1", source))
        self._source.setblocking(False)
        self._sent = self._due = 0
        self._sent_at: list[tuple[int, float]] = []  # how far the stream was, and when
        self._next: dict[_Reader, int] = {}  # of these the one that a fast reader waits for
        self._waits: list[float] = []
        for reader in self.of(FAST):
            self._selector.register(reader.sock, selectors.EVENT_READ, reader)
            self._next[reader] = 0
        self._trickled = time.monotonic()

    def of(self, *kinds: str) -> list[_Reader]:
        """Return those of these kinds that are there."""
        return [reader for reader in self.readers if reader.kind in kinds and not reader.lost]

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do something; return what it came to."""
        do = request.pop("do")
        found: dict[str, Any] = getattr(self, do)(**request)
        return {**found, "wrong": next((reader.wrong for reader in self.readers if reader.wrong), "")}

    def send(self, seconds: float, rate: int) -> dict[str, Any]:
        began, due, sent = time.monotonic(), self._due, self._sent
        self._waits = []
        while (now := time.monotonic()) < began + seconds:
            self._due = due + int((now - began) * rate) // _PIECE * _PIECE
            self._turn()
        waits = sorted(self._waits) or [0.0]
        return {"due": self._due - due, "sent": self._sent - sent, "p99": waits[int(0.99 * (len(waits) - 1))]}

    def catch_up(self) -> dict[str, Any]:
        moved, since = -1, time.monotonic()
        while time.monotonic() < since + PATIENCE / 2 and (self._sent < self._due or self._missing()):
            self._turn()
            if moved != (moved := sum(reader.got for reader in self.of(FAST))):
                since = time.monotonic()
        return {"unsent": self._due - self._sent, "missing": self._missing(), "sent": self._sent}

    def leave(self, kinds: list[str]) -> dict[str, Any]:
        for reader in self.of(*kinds):
            self._end(reader, "left")
        return {}

    def links(self) -> dict[str, int]:
        for reader in self.of(NEVER):  # it reads nothing; but a reset shows
            code = reader.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._end(reader, f"errno {code}")
        return {kind: len(self.of(kind)) for kind in (FAST, SLOW, NEVER)}

    def _missing(self) -> int:
        return max((self._sent - reader.got for reader in self.of(FAST)), default=0)

    def _turn(self) -> None:
        while self._sent < self._due:
            at = self._sent % _PERIOD
            try:
                taken = self._source.send(self._data[at : at + min(_PIECE, self._due - self._sent)])
            except BlockingIOError:
                break
            self._sent += taken
            self._sent_at.append((self._sent, time.monotonic()))
        for key, _ in self._selector.select(0.002):
            reader: _Reader = key.data
            reader.read(self._data)
            if reader.lost:
                self._end(reader, reader.lost)
            else:
                self._note(reader)
        now = time.monotonic()
        if now > self._trickled + 0.25:
            for reader in self.of(SLOW):
                reader.trickle(int((now - self._trickled) * _TRICKLE))
                if reader.lost:
                    self._end(reader, reader.lost)
            self._trickled = now

    def _note(self, reader: _Reader) -> None:
        number, now = self._next[reader], time.monotonic()
        while number < len(self._sent_at) and self._sent_at[number][0] <= reader.got:
            self._waits.append(now - self._sent_at[number][1])
            number += 1
        self._next[reader] = number

    def _end(self, reader: _Reader, why: str) -> None:
        reader.lost = why
        if reader.kind == FAST:
            self._selector.unregister(reader.sock)
        reset_connection(reader.sock)

    def end(self) -> None:
        """Reset all."""
        for reader in self.of(FAST, SLOW, NEVER):
            self._end(reader, "the end")
        reset_connection(self._source)
        self._selector.close()


def _main(source: int, port: int, *counts: int) -> None:
    found = _Crowd(source, port, dict(zip((FAST, SLOW, NEVER), counts, strict=True)))
    for line in sys.stdin:
        sys.stdout.write(json.dumps(found.answer(json.loads(line))) + "\n")
        sys.stdout.flush()
    found.end()


if __name__ == "__main__":
    _main(*map(int, sys.argv[1:]))
