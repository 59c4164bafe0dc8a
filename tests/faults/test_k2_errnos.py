"""The errno matrix: the n-th call of a kind fails, as strace(1) can make it, in the start or at work."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.faults.oracle import check_log, cpu_seconds
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import descriptors, relay
from tests.support import PATIENCE, ROOT, SLOWNESS, free_port, listener, needs, reset_connection, wait_until

# What the manual page of each call lists, without what Linux cannot answer there: no call of relayd's has a
# bad descriptor or pointer (EBADF, EFAULT, ENOTSOCK), and closing a socket succeeds.
ERRNOS = {
    "accept4": "EAGAIN EINTR ECONNABORTED EMFILE ENFILE ENOBUFS ENOMEM EPROTO EPERM ENETDOWN EHOSTUNREACH ETIMEDOUT",
    "connect": "EACCES EPERM EADDRINUSE EADDRNOTAVAIL EAFNOSUPPORT EAGAIN EINTR ECONNREFUSED ENETUNREACH EHOSTUNREACH "
    "ETIMEDOUT ENOBUFS EINVAL",
    "socket": "EACCES EAFNOSUPPORT EINVAL EMFILE ENFILE ENOBUFS ENOMEM EPROTONOSUPPORT",
    "setsockopt": "EINVAL ENOPROTOOPT ENOMEM ENOBUFS",
    "epoll_ctl": "ENOMEM ENOSPC",
    "epoll_wait": "EINTR",
    "recvfrom": "EAGAIN EINTR ECONNREFUSED ECONNRESET ENOMEM ENOTCONN ETIMEDOUT EHOSTUNREACH EIO",
    "sendto": "EAGAIN EINTR EACCES ECONNRESET ENOBUFS ENOMEM ENOTCONN EPIPE ETIMEDOUT EHOSTUNREACH",
    "pipe2": "EMFILE ENFILE",
    "splice": "EAGAIN EINTR EINVAL ENOMEM ECONNRESET EPIPE ETIMEDOUT",
    "openat": "EACCES EINTR EIO EMFILE ENFILE ENOENT ENOMEM ENOSPC EROFS ELOOP EDQUOT",
    "write": "EAGAIN EINTR EIO ENOSPC EDQUOT EFBIG EPERM",
    "close": "EINTR EIO ENOSPC EDQUOT",
}

NTH = 1, 2, 5
NTH_OF_FILE = 1, 2  # in the start, and when it is opened again

# What the start itself makes more than five times: there are cases of these that begin to count after it.
BEFORE_AND_AFTER = "socket", "setsockopt", "epoll_ctl"

# What Python does a thousand times before relayd's first line: only where one of these files is meant.
FILES = {
    "openat": ("relayd.ini", "relayd.log", "relayd.pid", "dump"),
    "write": ("relayd.log", "dump"),
    "close": ("relayd.ini", "relayd.log", "dump"),
}
ONCE = "relayd.pid"  # is opened in the start and never again

_CELL = b"cell:0123456789\n"
_BULK = bytes(2 << 20)  # so much in one piece is spliced
_ROUNDS = 5  # of all that is done, so that each call is made five times


@dataclass(frozen=True)
class Case:
    """The n-th call fails: of all, of those on a file, or of those that are made after the start."""

    call: str
    error: str
    nth: int
    file: str = ""
    started: bool = False

    def __str__(self) -> str:
        where = f" of {self.file}" if self.file else " after the start" if self.started else ""
        return f"{self.call} {self.nth}{where}: {self.error}"


def cases(call: str) -> list[Case]:
    """Return all cases of a call."""
    return [
        Case(call, error, nth, file, started)
        for error in ERRNOS[call].split()
        for nth in (NTH_OF_FILE if call in FILES else NTH)
        for file in FILES.get(call, ("",))
        for started in ((False, True) if call in BEFORE_AND_AFTER else (False,))
        if file != ONCE or nth == 1
    ]


class Peer(threading.Thread):
    """What relayd dials: takes what comes, and sends a cell now and then while `feeding`."""

    def __init__(self, feeding: bool) -> None:
        super().__init__(daemon=True)
        self.feeding = feeding
        self.received = self.accepted = 0
        self._cutting = self._ending = False
        self._links: list[socket.socket] = []
        self._listener = listener()
        self._listener.settimeout(0.01)
        self.port: int = self._listener.getsockname()[1]
        self.start()

    def run(self) -> None:
        while not self._ending:
            with contextlib.suppress(TimeoutError):
                link, _ = self._listener.accept()
                link.setblocking(False)
                self._links.append(link)
                self.accepted += 1
            self._links = [link for link in self._links if self._serve(link)]
            self._cutting = False
        for sock in (*self._links, self._listener):
            sock.close()

    def _serve(self, link: socket.socket) -> bool:
        try:
            with contextlib.suppress(BlockingIOError):
                while data := link.recv(1 << 20):
                    self.received += len(data)
                link.close()
                return False
            if self.feeding:
                link.send(_CELL)
            broken = self._cutting
        except OSError:
            broken = True
        if broken:
            reset_connection(link)
        return not broken

    def cut(self) -> None:
        """Reset what is connected; return when there is a link again, or after a while."""
        before, self._cutting = self.accepted, True
        _soon(lambda: self.accepted > before)

    def end(self) -> None:
        """Close everything."""
        self._ending = True
        self.join(PATIENCE)


def _soon(condition: Callable[[], object]) -> None:
    """Wait a little for what comes at once, unless it is just that which the fault prevents."""
    deadline = time.monotonic() + 0.3 * SLOWNESS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)


class Stage:
    """A daemon under strace with a relay of each kind, and what is at their ends."""

    def __init__(self, rig: Rig, stack: contextlib.ExitStack) -> None:
        self.feeder, self.reader = Peer(feeding=True), Peer(feeding=False)
        stack.callback(self.feeder.end)
        stack.callback(self.reader.end)
        self.fan, self.taken, self.given = (free_port(), free_port()), free_port(), free_port()
        quick = {"reconnect": "20ms", "connect_timeout": "1s", "linger_timeout": "0.2s"}
        self._relays = [
            relay("fan", *self.fan, framing="line", dump="raw", dump_file="dump", **quick),
            relay("taken", self.feeder.port, self.taken, "connect-listen", **quick),
            relay("given", self.given, self.reader.port, "listen-connect", **quick),
        ]
        self._control = rig.control_relay
        self._extra = relay("extra", free_port(), free_port())
        for name in ("relayd.log", "dump"):
            (rig.folder / name).unlink(missing_ok=True)
        self.site = stack.enter_context(rig.site(*self._relays))
        self._trace = rig.folder / "trace"
        self._process: subprocess.Popen[str]

    def start(self, case: Case | None, before: Counter[str]) -> bool:
        """Start it; return whether it runs. `before`: how many calls there are in a start."""
        words = ["strace", "-f", "--seccomp-bpf", "-qq", "-o", str(self._trace)]
        if case is None:
            words += ["-e", f"trace={','.join(BEFORE_AND_AFTER)}"]
        else:
            nth = case.nth + (before[case.call] if case.started else 0)
            words += ["-e", f"trace={case.call}", "-e", f"inject={case.call}:error={case.error}:when={nth}"]
            words += ["-P", str(self.site.folder / case.file)] if case.file else []
        words += [*self.site.program, "--config", str(self.site.file), "--foreground"]
        self._process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        wait_until(lambda: self._process.poll() is not None or (self.feeder.accepted and self.reader.accepted), "start")
        return self._process.poll() is None

    def calls(self, marked: str = "") -> Counter[str]:
        """Return how often each call was made, or those that have the mark."""
        return Counter(re.findall(rf"^\d+ +(\w+)\(.*{marked}", self._trace.read_text(), re.MULTILINE))

    def calls_of_the_start(self) -> Counter[str]:
        """Return how often each call was made, when no more are."""
        found, since = self.calls(), time.monotonic()
        while time.monotonic() < since + 0.3 * SLOWNESS:
            time.sleep(0.02)
            if self.calls() != found:
                found, since = self.calls(), time.monotonic()
        return found

    def work(self) -> None:
        """Do a bit of everything, whatever comes of it."""
        for number in range(_ROUNDS):
            with contextlib.suppress(OSError):
                self._fan_once()
            with contextlib.suppress(OSError):
                self._give_once()
            self.feeder.cut()
            self.reader.cut()
            self._signal(signal.SIGUSR1, "event=reopen")
            self.site.configure(*self._relays, self._control, *([] if number % 2 else [self._extra]))
            self._signal(signal.SIGHUP, "event=reload")

    def _signal(self, number: int, answer: str) -> None:
        before = len(self.site.lines(answer))
        self.site.send(number)
        _soon(lambda: len(self.site.lines(answer)) > before)

    def _fan_once(self) -> None:
        with contextlib.ExitStack() as stack:
            client, source = (_opened(stack, port) for port in reversed(self.fan))
            source.sendall(_CELL)
            client.settimeout(0.1 * SLOWNESS)
            client.recv(len(_CELL))

    def _give_once(self) -> None:
        before = self.reader.received
        with contextlib.ExitStack() as stack:
            _opened(stack, self.given).sendall(_BULK)
            _soon(lambda: self.reader.received >= before + len(_BULK))

    # -- afterwards -------------------------------------------------------------------------------

    def serves(self) -> None:
        """Fail where a relay does not serve who comes next."""
        wait_until(lambda: _passes(self.fan[0], self.fan[1]), "a new client behind a source that comes")
        wait_until(lambda: _passes(0, self.taken), "a new client behind a source that is dialled")
        before = self.reader.received
        wait_until(lambda: _passes(self.given, 0) and self.reader.received > before, "a destination that is dialled")

    def calm_down(self) -> None:
        """Take the first configuration again, which must succeed; wait until all have gone who did not come with it."""
        self.feeder.feeding = False
        self.site.configure(*self._relays, self._control)
        self.site.reload()
        for name, count in {"fan": 0, "taken": 0, "given": 1}.items():
            self._wait_links(name, count)
        wait_until(lambda: self.site.relay("taken")["source"]["state"] == "up", "the source that is dialled")

    def held(self) -> dict[str, int]:
        """Return what the daemon holds."""
        return {"descriptors": len(descriptors(self.site.pid)), "watched": self.site.status()["loop"]["watched"]}

    def _wait_links(self, name: str, count: int) -> None:
        wait_until(lambda: len(self.site.relay(name)["destinations"]) == count, f"relay {name} with {count} links")

    def idles(self) -> None:
        """Fail where the loop spins."""
        shares: list[float] = []
        while not shares or min(shares) >= 0.05:
            assert len(shares) < 10, f"it spins: {shares} of a core"
            before = cpu_seconds(self.site.pid)
            time.sleep(0.1)
            shares.append((cpu_seconds(self.site.pid) - before) / 0.1)

    def stop(self) -> None:
        """End it; it has done so well, and said nothing on its standard error."""
        self.site.send(signal.SIGTERM)
        assert self.ended() == (0, [])
        check_log(self.site.lines())

    def ended(self) -> tuple[int, list[str]]:
        """Return the exit status and what was said on standard error, when it has ended and left nothing."""
        _, said = self._process.communicate(timeout=PATIENCE)
        assert not self.site.pidfile.exists() and not self.site.control.exists(), "its files are still there"
        return self._process.returncode, said.splitlines()


def _opened(stack: contextlib.ExitStack, port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    stack.callback(reset_connection, sock)
    return sock


def _passes(source: int, destination: int) -> bool:
    """Connect to the ports that there are; return whether a cell comes through."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        client = _opened(stack, destination) if destination else None
        if source:
            _opened(stack, source).sendall(_CELL)
        if client is None:
            return True
        client.settimeout(0.2 * SLOWNESS)
        return bool(client.recv(1))
    return False


@dataclass
class Normal:
    """What is counted where nothing fails."""

    start: Counter[str]  # calls of the start
    left: dict[str, int]  # what the daemon holds when all have gone


def run(rig: Rig, case: Case | None, normal: Normal) -> str:
    """Make the case; return what came of it. Without a case, note what is normal."""
    with contextlib.ExitStack() as stack:
        stage = Stage(rig, stack)
        if not stage.start(case, normal.start):
            return _verdict_on_the_end(case, *stage.ended())
        if case is None:
            normal.start = stage.calls_of_the_start()
        stage.work()
        stage.serves()
        stage.calm_down()
        if case is None:
            time.sleep(0.2)  # until whoever has asked last is gone
            normal.left = stage.held()
        else:
            assert stage.calls(r"\(INJECTED\)")[case.call] == 1, "the call was not made so often"
            _nothing_left(stage, case, normal)
        stage.idles()
        stage.stop()
        return "served on"


def _nothing_left(stage: Stage, case: Case, normal: Normal) -> None:
    # What is not closed because strace stands before it is not relayd's to answer for.
    allowed = {**normal.left, "descriptors": normal.left["descriptors"] + (case.call == "close")}
    try:
        wait_until(lambda: all(count <= allowed[name] for name, count in stage.held().items()))
    except AssertionError:
        raise AssertionError(f"left behind: {stage.held()}, normal is {normal.left}") from None


def _verdict_on_the_end(case: Case | None, status: int, said: list[str]) -> str:
    assert case and status in (1, 2) and all(line.startswith("relayd: ") for line in said), (status, said)
    assert os.strerror(getattr(errno, case.error)) in said[0], said
    return f"exit {status}"


@pytest.fixture(scope="module")
def normal(program: list[str], tmp_path_factory: pytest.TempPathFactory) -> Normal:
    """What a run counts in which nothing fails."""
    needs("strace")
    found = Normal(Counter(), {})
    run(Rig(tmp_path_factory.mktemp("normal"), program, "K2", 0, long=False), None, found)
    return found


@row(
    "K2",
    provoked="strace lets the 1st, 2nd or 5th call of a kind fail with each errno of its manual page (13 calls, files "
    "apart), in the start or at work: clients, redialling, bulk, dump, SIGUSR1, SIGHUP",
    required="it ends with status 1 or 2 and the reason, or lives: the next clients of all relays are served, a reload "
    "succeeds, nothing is left behind, less than 5 % CPU, no traceback; SIGTERM ends it with 0",
)
@pytest.mark.parametrize("call", ERRNOS)
def test_k2_the_nth_call_fails(rig: Rig, normal: Normal, call: str) -> None:
    every = cases(call)
    seen: Counter[str] = Counter()
    failures = []
    for case in every if rig.long else rig.random.sample(every, 1):
        try:
            seen[run(rig, case, normal)] += 1
        except AssertionError as error:
            failures.append(f"{case}: {error}")
    assert not failures, "\n\n".join([f"{len(failures)} of {len(every)}:", *failures])
    rig.saw(f"{call}: {', '.join(f'{count} {what}' for what, count in sorted(seen.items()))}")
