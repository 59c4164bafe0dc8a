"""Going into the background, without leaving the caller in the dark.

python-daemon's `DaemonContext` detaches: its parents exit at once, with status 0, before anybody knows
whether the daemon can do its work, and what it complains of goes to /dev/null.  So one more fork
stands before it: the caller waits at a pipe until the daemon says that it is ready, or why it is not.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import NoReturn

import daemon
from lockfile import LockFailed

from relayd.errors import StartError
from relayd.process.limits import fill_standard_descriptors
from relayd.process.pidfile import PidFile

# How long a start may take, in seconds: names to listen on are looked up, files are opened.
_READY_TIMEOUT = 30.0

# And how long its end, when it has failed or was killed: it may hang in the kernel, on a disk that does not answer.
_END_TIMEOUT = 5.0

_READY = "ready"
UMASK = 0o027


class Caller:
    """The daemon's line to whoever started it, until it has said how the start went."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def say_pid(self) -> None:
        """Tell which process to end should the start hang."""
        self._send({"pid": os.getpid()})

    def say_ready(self) -> None:
        """The start has succeeded: the caller returns 0, and the terminal is let go."""
        self._send({_READY: True})
        self._hang_up()

    def say_failed(self, reasons: tuple[str, ...]) -> None:
        """The start has failed."""
        self._send({_READY: False, "reasons": reasons})
        self._hang_up()

    def _send(self, message: dict[str, object]) -> None:
        if self.fd < 0:
            return  # the caller has gone its way
        with contextlib.suppress(BrokenPipeError):  # the caller has given up, or was killed
            os.write(self.fd, json.dumps(message).encode() + b"\n")

    def _hang_up(self) -> None:
        os.close(self.fd)
        self.fd = -1
        os.dup2(0, 2)  # which is /dev/null already; there may be none any more, in a chroot


def daemonize(pidfile: PidFile | None, umask: int | None, body: Callable[[Caller], None]) -> None:
    """Run `body(caller)` in a daemon; return when it has said that it is ready, raise StartError when not.

    `pidfile` is held already, so that a second instance is told on the terminal.  Descriptors are
    made by the body: everything but the standard ones, the pidfile's and the pipe's is closed before.
    The pidfile of a start that has failed is removed here: the daemon may have given up the right to.
    """
    fill_standard_descriptors()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        try:
            reader, writer = os.pipe()
            child = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            raise StartError([f"cannot start another process: {error.strerror}"]) from error
        if child == 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            os.close(reader)
            _detach(pidfile, umask, Caller(writer), body)
        try:
            os.close(writer)
            _await_ready(reader, mask)
        finally:
            os.close(reader)
    except StartError:
        if pidfile is not None:
            pidfile.release()
        raise
    if pidfile is not None:
        os.close(pidfile.fd)  # the daemon has the lock, through a descriptor of its own


def _detach(pidfile: PidFile | None, umask: int | None, caller: Caller, body: Callable[[Caller], None]) -> NoReturn:
    """Become the daemon. Never returns: what called us belongs to the parent."""
    status = 1
    try:
        context = daemon.DaemonContext(
            detach_process=True,  # its guess takes a socket on stdin for inetd
            umask=UMASK if umask is None else umask,
            pidfile=pidfile,
            signal_map={},  # its SIGTERM raises SystemExit anywhere; ours wake the loop
            files_preserve=[caller.fd, *([pidfile.fd] if pidfile is not None else [])],
            stderr=sys.stderr,  # until the start has succeeded
        )
        context.open()
        for fd in (0, 1, 2):
            os.set_inheritable(fd, True)  # python-daemon leaves them CLOEXEC
        caller.say_pid()
        body(caller)
        context.close()
        status = 0
    except StartError as error:
        caller.say_failed(error.reasons)
    except LockFailed as error:
        caller.say_failed((f"cannot write pidfile {pidfile.path if pidfile else ''}: {error}",))
    except Exception as error:
        caller.say_failed((f"{type(error).__name__}: {error}",))
    finally:
        if pidfile is not None:
            pidfile.release()
        os._exit(status)


class _Start:
    """The caller's view of a start: what the daemon has said of it so far."""

    def __init__(self, reader: int) -> None:
        self.pid = 0  # 0: not known yet
        self.ready = False
        self.ended = False  # nothing more will be said
        self.reasons: list[str] = []  # why it has failed
        self._reader = reader
        self._received = b""
        self._poll = select.poll()
        self._poll.register(reader, select.POLLIN)

    def hear(self, timeout: float, enough: Callable[[], bool]) -> None:
        """Return when it is enough, or the daemon says no more, or so many seconds have passed."""
        deadline = time.monotonic() + timeout
        while not (self.ended or enough()) and self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            data = os.read(self._reader, 65536)
            self.ended = not data
            *lines, self._received = (self._received + data).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self.pid = message.get("pid", self.pid)
                self.ready = message.get(_READY, self.ready)
                self.reasons = message.get("reasons", self.reasons)


def _await_ready(reader: int, mask: Collection[int]) -> None:
    """Return when the daemon is ready; raises StartError, when it is gone, with its reasons or what befell it.

    `mask`: the signals to be blocked; SIGINT has been since before there was a daemon, and is now taken.
    """
    start = _Start(reader)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        start.hear(_READY_TIMEOUT, lambda: start.ready)
        if start.ready:
            return
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one must not leave the daemon behind
        start.hear(_END_TIMEOUT, lambda: start.pid > 0)
        _end(start.pid, signal.SIGTERM, signal.SIGKILL)
        raise StartError(["interrupted; the daemon has been ended"]) from None
    if start.ended:
        _await_end(start.pid)
        raise StartError(start.reasons or ["ended before it was ready"])
    _end(start.pid, signal.SIGKILL)
    raise StartError([f"not ready after {_READY_TIMEOUT:.0f} s"])


def _end(pid: int, *numbers: signal.Signals) -> None:
    """Send signals, one after the other, until one has ended the process; 0 is none."""
    for number in numbers if pid else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if _await_end(pid):
            return


def _await_end(pid: int) -> bool:
    """Return when a process is gone: the next start, at once, must find the pidfile and the ports free.

    False where it does not go, or the kernel (older than 5.3) does not tell.
    """
    try:
        watch = os.pidfd_open(pid)
    except OSError as error:
        return error.errno == errno.ESRCH
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)
        return bool(poll.poll(_END_TIMEOUT * 1000))
    finally:
        os.close(watch)
