"""What the tests of the service share: a site with its files, the daemon that runs there, and its operator."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.support import CELL, PATIENCE, ROOT, Stopwatch, keyed, wait_until

RELAYD = (sys.executable, "-W", "error", "-m", "relayd")

_PR_SET_CHILD_SUBREAPER = 36  # prctl(2)


def relay(name: str, source: object, destination: object, mode: str = "listen-listen", **keys: object) -> str:
    """Return a section; a bare number is a port of 127.0.0.1, a trailing underscore is for Python's own words."""
    ends = {"source": _addresses(source), "destination": _addresses(destination)}
    settings = {"mode": mode, **ends, **{key.rstrip("_"): value for key, value in keys.items()}}
    return f"[relay {name}]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())


def _addresses(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_addresses, value))
    return f"127.0.0.1:{value}" if isinstance(value, int) else str(value)


class Site:
    """A folder with a configuration, and the paths of all that a daemon leaves there."""

    def __init__(self, folder: Path, *relays: str, **keys: object) -> None:
        self.folder = folder
        self.file = folder / "relayd.ini"
        self.pidfile = folder / "relayd.pid"
        self.control = folder / "control.sock"
        self.log = folder / "relayd.log"
        self.program: Sequence[str] = RELAYD  # the words that start relayd
        self.keys: dict[str, object] = {"pidfile": self.pidfile, "control": self.control, "log": self.log, **keys}
        self.configure(*relays)

    def configure(self, *relays: str, **keys: object) -> None:
        """Write the file anew, in one step; a key that is None is left out."""
        self.keys.update(keys)
        head = "".join(f"{key} = {value}\n" for key, value in self.keys.items() if value is not None)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"[relayd]\n{head}\n" + "\n".join(relays), encoding="utf-8")
        os.replace(fresh, self.file)

    def launch(self, *words: str, prefix: Sequence[str] = (), **run: object) -> subprocess.CompletedProcess[str]:
        """Run `relayd --config FILE`; it returns when the daemon is ready, and lets go of the pipes."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "cwd": ROOT,
            "timeout": PATIENCE, "check": False,
        } | run  # fmt: skip
        return subprocess.run([*prefix, *self.program, "--config", str(self.file), *words], **options)

    def start(self, *words: str, prefix: Sequence[str] = (), **run: object) -> None:
        """Start the daemon, which must succeed in silence."""
        done = self.launch(*words, prefix=prefix, **run)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), f"{done}\n{self.tail()}"

    def processes(self) -> list[int]:
        """Return the pids of all that runs with this configuration."""
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and self._is_ours(name)]

    def _is_ours(self, pid: str) -> bool:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return any(word.endswith(b"relayd") for word in words) and os.fsencode(self.file) in words

    @property
    def pid(self) -> int:
        """The daemon's, by its pidfile."""
        return int(self.pidfile.read_text())

    def send(self, number: int) -> None:
        """Send the daemon a signal."""
        os.kill(self.pid, number)

    def wait_gone(self, pid: int, patience: float = PATIENCE) -> float:
        """Return the seconds until the process is gone."""
        watch, deadline = Stopwatch(pid), time.monotonic() + patience
        with contextlib.suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                while not select.select([process], [], [], 0.02)[0]:
                    watch.seconds()
                    assert time.monotonic() < deadline, f"{pid} still runs after {patience} s: {self.tail()}"
            finally:
                os.close(process)
        return watch.seconds()

    def stop(self, number: int = signal.SIGTERM) -> float:
        """End the daemon by a signal; return the seconds it took."""
        pid = self.pid
        os.kill(pid, number)
        return self.wait_gone(pid)

    def kill(self) -> None:
        """Make sure that nothing of this site runs any more."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self.wait_gone(pid)

    # -- what it says -----------------------------------------------------------------------------

    def lines(self, *parts: str) -> list[str]:
        """Return the log lines that hold all the parts."""
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text().splitlines() if all(part in line for part in parts)]

    def tail(self) -> str:
        """Return the end of the log, for messages."""
        return "\n".join(self.lines()[-20:])

    def wait_log(self, *parts: str, times: int = 1) -> str:
        """Return the log line that holds all the parts, when there are so many."""
        try:
            wait_until(lambda: len(self.lines(*parts)) >= times, f"{times} x {parts} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.tail()}") from None
        return self.lines(*parts)[times - 1]

    def ask(self, command: str, **arguments: str) -> dict[str, Any]:
        """Return the daemon's answer to a request."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.control))
            sock.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                data = sock.recv(1 << 20)
                assert data, f"hung up after {answer!r}"
                answer += data
        found: dict[str, Any] = json.loads(answer)
        return found

    def status(self) -> dict[str, Any]:
        """Return the whole snapshot."""
        found: dict[str, Any] = self.ask("status")["status"]
        return found

    def relay(self, name: str) -> dict[str, Any]:
        """Return one relay's part of the snapshot."""
        return next(found for found in self.status()["relays"] if found["name"] == name)

    def reload(self) -> None:
        """Read the configuration again, which must succeed."""
        answer = self.ask("reload")
        assert answer["ok"], answer

    def hang_up(self) -> None:
        """Reload by SIGHUP; return when it is done."""
        before = self.status()["config"]["loaded_at"]
        self.send(signal.SIGHUP)
        wait_until(lambda: self.status()["config"]["loaded_at"] != before, "a reload")

    def relayctl(self, *words: str, **run: object) -> subprocess.CompletedProcess[str]:
        """Run `relayctl` for this daemon to its end."""
        options: dict[str, Any] = {
            "stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "cwd": ROOT,
            "timeout": PATIENCE, "check": False,
        } | run  # fmt: skip
        return subprocess.run([*relayctl_words(self.control), *words], **options)

    # -- what it is --------------------------------------------------------------------------------

    def memory(self) -> int:
        """Return the resident bytes."""
        return int(proc_status(self.pid)["VmRSS"].split()[0]) * 1024

    def descriptors(self) -> dict[int, str]:
        """Return what each open descriptor is."""
        return descriptors(self.pid)


def relayctl_words(control: Path) -> list[str]:
    """Return the words that begin a `relayctl` command, as the installed script runs it."""
    call = "import sys; from relayd.relayctl import main; sys.exit(main())"
    return [sys.executable, "-c", call, "--socket", str(control)]


def proc_status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def descriptors(pid: int) -> dict[int, str]:
    """Return what each open descriptor of a process is."""
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def name_of(sock: socket.socket) -> str:
    """Return what relayd calls this link of ours."""
    host, port = sock.getsockname()
    return f"{host}:{port}"


def turned_away(port: int) -> bool:
    """Connect; return whether that came to an end at once, with a reset."""
    with socket.socket() as sock:  # not support's connect, which asks for names that a reset link has not
        sock.settimeout(PATIENCE)
        try:
            sock.connect(("127.0.0.1", port))
            return not sock.recv(1)
        except ConnectionResetError:
            return True


@contextlib.contextmanager
def site(folder: Path, *relays: str, **keys: object) -> Iterator[Site]:
    """Return a site with nothing running; in the end nothing is, and no log holds an unexpected exception."""
    found = Site(folder, *relays, **keys)
    try:
        yield found
    finally:
        found.kill()
    assert not found.lines("internal_error") and not found.lines("Traceback"), found.tail()


@contextlib.contextmanager
def daemon(folder: Path, *relays: str, prefix: Sequence[str] = (), **keys: object) -> Iterator[Site]:
    """Run a daemon; `prefix` is a command that starts another."""
    with site(folder, *relays, **keys) as found:
        found.start(prefix=prefix)
        yield found


@contextlib.contextmanager
def subreaper() -> Iterator[None]:
    """Be the parent of all daemons that start in the meantime, so that their exit status can be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


class Feed(threading.Thread):
    """Sends the keyed stream `key` in small pieces until it is told to end."""

    def __init__(self, sock: socket.socket, key: str, cells: int = 50, pause: float = 0.002) -> None:
        super().__init__(daemon=True)
        self.cells = 0
        self.error: OSError | None = None
        self._sock, self._key, self._step, self._pause = sock, key, cells, pause
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        self._sock.settimeout(None)
        try:
            while not self._ending.wait(self._pause):
                self._sock.sendall(keyed(self._key, self.cells, self._step))
                self.cells += self._step
        except OSError as error:
            self.error = error

    def end(self) -> int:
        """Send no more; return how many bytes were sent."""
        self._ending.set()
        self.join(PATIENCE)
        assert not self.is_alive() and self.error is None, f"after {self.cells} cells: {self.error!r}"
        return self.cells * CELL
