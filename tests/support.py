"""What tests share: a keyed stream that betrays every lost, doubled or swapped byte, ports, processes."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One variable scales every wait of the suite, for slow machines.
PATIENCE = float(os.environ.get("RELAYD_TEST_PATIENCE", "20"))

# Limits on how long something may take are multiplied by this.
SLOWNESS = max(1.0, PATIENCE / 20)

_given: set[int] = set()  # ports

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


@functools.cache
def bulk(cells: int) -> bytes:
    """Return a large keyed stream, made once for the whole run."""
    return keyed("bulk", 0, cells)


def cells_of(key: str, data: bytes) -> list[int]:
    """Return the numbers of the cells in `data`, which must all be whole; they may have gaps and any order."""
    assert len(data) % CELL == 0, f"a torn cell of {len(data) % CELL} bytes: {data[-40:]!r}"
    numbers = []
    for offset in range(0, len(data), CELL):
        cell = data[offset : offset + CELL]
        assert cell[:5] == key.encode() + b":" and cell[5:15].isdigit() and cell[15:] == b"\n", (
            f"offset {offset}: a torn cell: {data[max(0, offset - 32) : offset + 32]!r}"
        )
        numbers.append(int(cell[5:15]))
    return numbers


def free_port() -> int:
    """Return a TCP port that nobody has and no outgoing connection is given; none comes again soon."""
    return _free_port(10000, 32000)


def low_port() -> int:
    """Return a TCP port that nobody has and only root may bind; not 1023."""
    return _free_port(600, 1023)


# For a relay whose source is to be held up: its kernel may take 32 MB else (net.ipv4.tcp_rmem), and all is sent.
HELD_UP = ("-o", "receive_buffer=512K")


def _free_port(begin: int, end: int) -> int:
    """Processes that run tests at the same time (xdist) choose from different ones."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ours = range(begin + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")), end, workers)
    if sum(port in ours for port in _given) > len(ours) // 2:
        _given.difference_update(ours)  # most are from tests that are over
    while True:
        port = random.choice(ours)
        if port in _given:
            continue
        _given.add(port)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("0.0.0.0", port))
            return port


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Return when the condition holds; fail when it does not within the patience of the suite."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true"
        time.sleep(0.005)


def kept_waiting(pid: int) -> float:
    """Return the seconds that a process was ready to run and had no CPU (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[1]) for task in tasks) / 1e9


def stolen() -> float:
    """Return the seconds that the host of this virtual machine had its CPUs for others (proc(5), stat)."""
    fields = Path("/proc/stat").read_text().split(maxsplit=9)
    return int(fields[8]) / os.sysconf("SC_CLK_TCK")


def is_linear(prepared: Callable[[int], Callable[[], object]], size: int) -> bool:
    """Return whether what is prepared for twice the size takes less than three times as long, in one of three tries."""

    def cpu_seconds(size: int) -> float:
        work = prepared(size)
        begin = time.process_time()
        work()
        return time.process_time() - begin

    for _ in range(3):
        once, twice = (min(cpu_seconds(number) for _ in range(2)) for number in (size, 2 * size))
        if twice < 3 * once:
            return True
    return False


class Stopwatch:
    """Measures how long something takes, without what others had of it who use this machine.

    That is what the scheduler kept this process or one of `pids` waiting, and what the host had for itself.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self.start()

    def start(self) -> None:
        self._kept = dict.fromkeys(self._pids, 0.0)
        self._before, self._began = self._of_others(), time.monotonic()

    def seconds(self) -> float:
        """Return the time since the start. Of a process that has ended, an earlier call has to have seen the waits."""
        passed = time.monotonic() - self._began
        return max(0.0, passed - (self._of_others() - self._before))

    def _of_others(self) -> float:
        for pid in self._pids:
            with contextlib.suppress(OSError):
                self._kept[pid] = max(self._kept[pid], kept_waiting(pid))
        return stolen() + sum(self._kept.values())


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
        if sock.getsockname()[1] == port:  # connected to itself
            sock.close()
            continue
        return sock


def blackhole_port(stack: contextlib.ExitStack) -> int:
    """Return a port on loopback where every connect hangs (FAULTS HOLE-SYN): its listener's one slot is taken."""
    full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    port: int = full.getsockname()[1]
    for _ in range(2):
        filler = stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(("127.0.0.1", port))
    return port


def stalled_client(port: int) -> socket.socket:
    """Return a connection whose window closes soon, and for good: a small buffer that is never read (FAULTS ZW)."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.settimeout(PATIENCE)
    sock.connect(("127.0.0.1", port))
    return sock


class Collector(threading.Thread):
    """Reads a socket to its end in the background."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.data = bytearray()
        self.error: OSError | None = None
        self._sock = sock
        self.start()

    def run(self) -> None:
        self._sock.settimeout(None)
        try:
            while data := self._sock.recv(1 << 18):
                self.data += data
        except OSError as error:
            self.error = error

    def wait_for(self, count: int) -> bytes:
        """Return what has come when it is at least `count` bytes."""
        with contextlib.suppress(AssertionError):  # the one below says more
            wait_until(lambda: len(self.data) >= count or not self.is_alive(), f"{count} bytes")
        assert len(self.data) >= count, f"{len(self.data)} of {count} bytes came, error {self.error!r}"
        return bytes(self.data)

    def wait_end(self) -> bytes:
        """Return all, when the stream has ended; fails where it ended in an error."""
        self.join(PATIENCE)
        assert not self.is_alive(), f"the stream does not end; {len(self.data)} bytes came"
        assert self.error is None, f"{self.error!r} after {len(self.data)} bytes"
        return bytes(self.data)


class Sender(threading.Thread):
    """Sends in the background, `size` bytes a call; `sent` says how far it is."""

    def __init__(self, sock: socket.socket, data: bytes, size: int = 64 * 1024) -> None:
        super().__init__(daemon=True)
        self.sent = 0
        self.error: OSError | None = None
        self._sock, self._data, self._size = sock, data, size
        self.start()

    def run(self) -> None:
        self._sock.settimeout(None)
        view = memoryview(self._data)
        try:
            while self.sent < len(view):
                self.sent += self._sock.send(view[self.sent : self.sent + self._size])
        except OSError as error:
            self.error = error

    def wait_end(self) -> None:
        """Return when everything is sent."""
        self.join(PATIENCE)
        assert not self.is_alive() and self.error is None, f"{self.sent} of {len(self._data)} sent, {self.error!r}"

    def wait_stuck(self) -> int:
        """Return how many bytes were sent, when nobody has taken any for half a second."""
        last, since = self.sent, time.monotonic()

        def stuck() -> bool:
            nonlocal last, since
            if self.sent != last:
                last, since = self.sent, time.monotonic()
            return time.monotonic() - since > 0.5

        wait_until(stuck, "a sender that is held up")
        assert self.is_alive(), f"it is not held up but at its end: {self.sent} bytes, {self.error!r}"
        return self.sent


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

    def cpu_share(self, seconds: float = 1.0) -> float:
        """Return the part of one core that the process uses for so long."""
        before = self.cpu_seconds()
        time.sleep(seconds)
        return (self.cpu_seconds() - before) / seconds

    def memory(self) -> int:
        """Return the resident bytes of the process."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def descriptors(self) -> int:
        """Return how many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def relayd(*words: str, prefix: Sequence[str] = (), **popen: object) -> Iterator[Relayd]:
    """Run `relayd WORDS` and wait until it has started; it must not leave a traceback behind.

    `prefix` is a command that starts another, see `Namespace.enter`.
    """
    command = [*prefix, sys.executable, "-W", "error", "-m", "relayd", *words]
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
        for pipe in filter(None, (process.stderr, process.stdout)):
            pipe.close()
    assert not running.logged("internal_error"), running.logged("internal_error")
    assert not running.logged("Traceback"), running.log


def write_config(folder: Path, text: str) -> str:
    """Write a configuration file; return its path."""
    file = folder / "relayd.ini"
    file.write_text(text)
    return str(file)


def run_relayd(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `relayd WORDS` to its end."""
    command = [sys.executable, "-W", "error", "-m", "relayd", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False
    )


def needs(*programs: str) -> None:
    """Skip the test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")


@contextlib.contextmanager
def spawned(*words: str | Path, **popen: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run another program in the background; it is killed in the end."""
    for stream in ("stdin", "stdout", "stderr"):
        popen.setdefault(stream, subprocess.DEVNULL)
    process = subprocess.Popen([str(word) for word in words], **popen)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            pipe.close()


# Lives in the namespaces of a test, and opens a TCP socket there for every byte it gets.
_HOLDER = """
import socket
control = socket.socket(fileno=0)
control.sendall(b"!")
while control.recv(1):
    with socket.socket() as sock:
        socket.send_fds(control, [b"."], [sock.fileno()])
"""


class Namespace:
    """A network and mount namespace of its own, with loopback up; skips the test where that is not allowed.

    An unprivileged user gets one inside a user namespace, where the kernel lets them.
    """

    def __init__(self, parent: Namespace | None = None) -> None:
        """`parent`: share its user namespace, so that links can be laid between the two."""
        needs("unshare", "nsenter", "ip", "mount")
        self._control, theirs = socket.socketpair()
        self._control.settimeout(PATIENCE)
        own_user = parent is None and os.geteuid() != 0
        self._user = own_user or (parent is not None and parent._user)
        words = ["unshare", *(["-Ur"] if own_user else []), "-nm", sys.executable, "-c", _HOLDER]
        with theirs:
            self._holder = subprocess.Popen(
                [*(parent.enter if parent else []), *words],
                stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )  # fmt: skip
        if self._control.recv(1) != b"!":
            assert self._holder.stderr is not None
            reason = self._holder.stderr.read().decode().strip()
            self.close()
            pytest.skip(f"no namespaces here: {reason}")
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the namespace go."""
        self._control.close()
        self._holder.kill()
        self._holder.wait(PATIENCE)
        assert self._holder.stderr is not None
        self._holder.stderr.close()

    @property
    def pid(self) -> int:
        """A process that lives there."""
        return self._holder.pid

    @property
    def enter(self) -> list[str]:
        """The words that start a command there."""
        user = ["-U", "--preserve-credentials"] if self._user else []
        return ["nsenter", "-t", str(self.pid), *user, "-n", "-m", "env", "-C", str(ROOT)]

    def run(self, *words: str | Path) -> None:
        """Run a command there; it must succeed."""
        done = subprocess.run(
            [*self.enter, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.stderr}"

    def socket(self) -> socket.socket:
        """Return a new TCP socket that lives there, wherever it is used."""
        self._control.sendall(b"?")
        _, fds, _, _ = socket.recv_fds(self._control, 1, 1)
        sock = socket.socket(fileno=fds[0])
        sock.settimeout(PATIENCE)
        return sock

    def listener(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Return a socket that listens there."""
        sock = self.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen()
        return sock

    def connect(self, port: int, host: str = "127.0.0.1") -> socket.socket:
        """Return a connection there, as soon as somebody listens."""
        deadline = time.monotonic() + PATIENCE
        while True:
            sock = self.socket()
            try:
                sock.connect((host, port))
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < deadline, f"nobody listens on {host}:{port}"
                time.sleep(0.01)
            else:
                return sock


def silent_name_server(namespace: Namespace, folder: Path) -> contextlib.ExitStack:
    """Give the namespace a name server that never answers (FAULTS DNSX)."""
    stack = contextlib.ExitStack()
    (folder / "resolv.conf").write_text("nameserver 127.0.0.53\nnameserver 127.0.0.54\n")
    namespace.run("mount", "--bind", folder / "resolv.conf", "/etc/resolv.conf")
    silent = (
        "import socket, time\nheld = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in '34']\n"
        "for number, sock in zip('34', held): sock.bind(('127.0.0.5' + number, 53))\nprint(flush=True)\ntime.sleep(1e6)"
    )
    server = stack.enter_context(spawned(*namespace.enter, sys.executable, "-c", silent, stdout=subprocess.PIPE))
    assert server.stdout is not None and server.stdout.readline() == b"\n"
    return stack
