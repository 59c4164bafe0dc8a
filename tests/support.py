"""What tests share: a keyed stream that betrays every lost, doubled or swapped byte, ports, processes."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# One variable scales every wait of the suite, for slow machines.
PATIENCE = float(os.environ.get("RELAYD_TEST_PATIENCE", "20"))

CELL = 16  # bytes of one cell of the keyed stream, its LF included


def keyed(key: str, first: int, count: int) -> bytes:
    """Return cells first..first+count of the stream `key` (4 letters): lines of 16 bytes, `keyd:0000000042`."""
    assert len(key) == 4
    return b"".join(b"%s:%010d\n" % (key.encode(), number) for number in range(first, first + count))


def check_keyed(key: str, data: bytes, first: int | None = None) -> range:
    """Return the numbers of the cells in `data`; fails at the first byte that is not as it should be.

    With `first`, the data must begin with that cell; else with any whole one.
    """
    assert len(data) % CELL == 0, f"a torn cell of {len(data) % CELL} bytes at the end: {data[-40:]!r}"
    if not data:
        return range(0)
    begin = int(data[5:15]) if first is None else first
    count = len(data) // CELL
    expected = keyed(key, begin, count)
    if data != expected:
        at = next(index for index, (a, b) in enumerate(zip(data, expected, strict=True)) if a != b)
        raise AssertionError(f"offset {at}: {data[max(0, at - 32) : at + 32]!r}, expected {expected[at : at + 16]!r}")
    return range(begin, begin + count)


def free_port() -> int:
    """Return a TCP port that nobody has, outside the range that outgoing connections are given."""
    while True:
        port = random.randrange(10000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Return when the condition holds; fail when it does not within the patience of the suite."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)


def receive(sock: socket.socket, count: int) -> bytes:
    """Return exactly `count` bytes."""
    sock.settimeout(PATIENCE)
    parts = bytearray()
    while len(parts) < count:
        data = sock.recv(min(count - len(parts), 1 << 20))
        assert data, f"the stream ended after {len(parts)} of {count} bytes"
        parts += data
    return bytes(parts)


def receive_all(sock: socket.socket) -> bytes:
    """Return everything up to the end of the stream."""
    sock.settimeout(PATIENCE)
    parts = bytearray()
    while data := sock.recv(1 << 20):
        parts += data
    return bytes(parts)


def reset_connection(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def listener(port: int = 0) -> socket.socket:
    """Return a listening socket on loopback; accept waits as long as the suite's patience."""
    sock = socket.create_server(("127.0.0.1", port), backlog=64)
    sock.settimeout(PATIENCE)
    return sock


def connect(port: int) -> socket.socket:
    """Return a connection to the port on loopback, as soon as somebody listens there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, f"nobody listens on {port}"
            time.sleep(0.01)
            continue
        if sock.getsockname() == sock.getpeername():  # connected to itself
            sock.close()
            continue
        return sock


class Relayd:
    """A running relayd; its log is read as it comes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode().rstrip("\n"))

    def logged(self, *parts: str) -> list[str]:
        """Return the log lines that hold all the parts."""
        return [line for line in self.log if all(part in line for part in parts)]

    def wait_log(self, *parts: str, times: int = 1) -> str:
        """Return the log line that holds all the parts, when there are so many."""
        try:
            wait_until(lambda: len(self.logged(*parts)) >= times, f"{times} x {parts} in the log")
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.log[-30:]])) from None
        return self.logged(*parts)[times - 1]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, return the exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return the exit status; the log is complete then."""
        status = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def cpu_seconds(self) -> float:
        """Return the CPU time the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        """Return how many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def relayd(*words: str, **popen: object) -> Iterator[Relayd]:
    """Run `relayd WORDS` and wait until it has started; it must not leave a traceback behind."""
    command = [sys.executable, "-W", "error", "-m", "relayd", *words]
    popen.setdefault("stdout", subprocess.DEVNULL)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=ROOT, **popen)  # type: ignore[call-overload]
    running = Relayd(process)
    try:
        running.wait_log("event=started")
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        running.wait()
        assert process.stderr is not None
        process.stderr.close()
    assert not running.logged("internal_error"), running.logged("internal_error")
    assert not running.logged("Traceback"), running.log
