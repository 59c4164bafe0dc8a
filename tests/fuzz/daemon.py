"""A whole service with a control socket, in this process and on a clock of its own."""

from __future__ import annotations

import contextlib
import gc
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from relayd.build import Surroundings
from relayd.config.load import load_file
from relayd.config.settings import Config
from relayd.controller import Controller
from relayd.net.listener import ListenerPool
from relayd.net.resolver import Resolver
from relayd.observe.dump import DumpTarget
from relayd.policy.loops import LoopGuard
from relayd.process.operator import Operator
from relayd.process.reloader import Reloader
from relayd.process.systemd import Notifier
from relayd.service import Service
from tests.fakes import Lines, event_log
from tests.net.helpers import Loop

CONFIG = """\
[relayd]
control = control.sock
[relay a]
mode = listen-listen
source = unix:a.in
destination = unix:a.out
"""

_TURNS = 50  # in which an answer that does not come is missed


class WatchfulOperator(Operator):
    """Does what is asked for, and knows the dumps that are watched."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.watched: set[DumpTarget] = set()

    def watch(self, relay: str, style: str, target: DumpTarget) -> Callable[[], None]:
        unwatch = super().watch(relay, style, target)
        self.watched.add(target)

        def stop() -> None:
            self.watched.discard(target)
            unwatch()

        return stop


class Daemon:
    """A service of one relay that nobody uses, and its control socket; a context manager."""

    def __init__(self, path: Path) -> None:
        """`path` is a file that holds CONFIG."""
        gc.freeze()  # a reload collects garbage, which is to look at what is its own, not at all that this process has
        self._path = path
        self.loop = Loop()
        log, self.lines = event_log(self.loop)
        self._pool = ListenerPool()
        resolver = Resolver(self.loop)
        shared = Surroundings(
            self.loop, resolver, self._pool, LoopGuard(), log, Lines(), 100, lambda: None  # type: ignore[arg-type]
        )  # fmt: skip
        self._stopped = False
        self._service = Service(self._load(), shared, self._ended)
        self.controller = Controller(self.loop, self._pool, log.bind())
        reloader = Reloader(
            self.loop, resolver, self._load, lambda config: self.lines, self._service, self.controller, log,
            Notifier({}, self.loop.call_later),
        )  # fmt: skip
        self.operator = WatchfulOperator(self.loop, self._service, reloader, log, lambda: None)
        self.controller.serve(self.operator)
        self._service.start()
        config = self._service.config
        self.controller.listen(self.controller.take(config.control, config.control_mode), config.control_mode)

    def _load(self) -> Config:
        return load_file(str(self._path), {})

    def _ended(self) -> None:
        self._stopped = True

    def call(self) -> Caller:
        """Return a new caller of the control socket."""
        return Caller(self.loop, self._service.config.control)

    def check_let_go(self) -> None:
        """All callers have ended their sides: none is left but those that watch a dump."""
        for _ in range(3):
            self.loop.advance(1)
        left, watched = len(self.controller.callers), len(self.operator.watched)
        assert left <= watched, f"{left} callers are left, who watch {watched} dumps"

    def hang_up(self) -> None:
        """Close the connections of all callers, as they are."""
        self.loop.stack.close()

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Stop; nothing unexpected may have happened, and nothing may be left."""
        self.hang_up()
        for _ in range(3):
            self.loop.advance(1)  # what broke while nobody read it is looked for each second
        callers, watched = len(self.controller.callers), len(self.operator.watched)
        self.controller.close()
        self._service.stop()
        self.loop.advance(1)
        self._pool.close()
        left = self.loop.handlers
        self.loop.close()
        gc.unfreeze()
        if kind is None:  # else that is what there is to tell
            assert not self.loop.failures, self.loop.failures
            assert not callers, "a caller that has gone is still there"
            assert not watched, "a dump goes on whose caller has gone"
            assert self._stopped, "the service does not stop"
            assert not left, "handlers were left in the reactor"


class Caller:
    """One connection to the control socket; `answers` are the lines that have come."""

    def __init__(self, loop: Loop, path: str) -> None:
        self._loop = loop
        self._sock = loop.stack.enter_context(socket.socket(socket.AF_UNIX))
        self._sock.connect(path)
        self._sock.setblocking(False)
        self._came = bytearray()
        self.cut = False  # the daemon has hung up

    @property
    def answers(self) -> list[bytes]:
        """The whole lines that have come."""
        return self._came.split(b"\n")[:-1]

    def send(self, data: bytes) -> None:
        """Send everything, reading all the while, or what can be sent until the daemon hangs up."""
        while data and not self.cut:
            try:
                data = data[self._sock.send(data) :]
            except BlockingIOError:
                self.turn()
            except OSError:
                self.cut = True

    def end(self) -> None:
        """End our side."""
        with contextlib.suppress(OSError):  # the daemon may have reset it
            self._sock.shutdown(socket.SHUT_WR)

    def turn(self) -> None:
        """Let the daemon do something, and read what has come of it; through a Unix socket, both is at once."""
        self._loop.turn(0)
        try:
            while data := self._sock.recv(1 << 16):
                self._came += data
        except BlockingIOError:
            return
        except OSError:
            pass  # a reset is an end, too
        self.cut = True

    def turn_until(self, condition: Callable[[], Any], work: int = 0) -> bool:
        """Turn until the condition holds; False if it does not in the time that `work` more requests may take."""
        for _ in range(_TURNS + work):
            if condition():
                return True
            self.turn()
        return bool(condition())
