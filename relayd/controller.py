"""The control socket: one JSON request, one JSON answer per line.

    {"command": "status"}                                  {"ok": true, "status": {...}}
    {"command": "status", "relay": "ais"}                  the same, with that relay alone
    {"command": "reload"}                                  {"ok": true, "summary": "...", "added": [...],
                                                           "removed": [...], "changed": [...], "needs_restart": [...]}
    {"command": "stop"}                                    {"ok": true}
    {"command": "kick", "relay": "ais", "peer": "..."}     {"ok": true, "links": 1}
    {"command": "dump", "relay": "ais", "format": "text"}  {"ok": true}, then the dump until the caller hangs up,
                                                           or a reload removes the relay
    {"command": "dump", "relay": "ais", "format": "off"}   {"ok": true, "ended": 1}: every caller's dump of it ends
    anything else                                          {"ok": false, "error": "..."}

A caller can cost nothing but its own connection: requests are bounded, answers are queued within a
limit and the caller that does not read them is cut, like any slow link.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from relayd.address import UnixAddress
from relayd.net.acceptor import Acceptor
from relayd.net.listener import Listener, ListenerPool, ListenSettings
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.sockets import SocketOptions, reset
from relayd.net.transport import Transport
from relayd.observe.dump import DumpStream, DumpTarget
from relayd.observe.log import BoundLog
from relayd.observe.writer import Lost, unheard
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.sink import Sink, SinkSettings
from relayd.wire.framings import LINE, RAW

_REQUEST_MAX = 64 * 1024  # bytes; the longest request has a peer's name in it
_ANSWER_MAX = 16 * 1024 * 1024  # bytes queued for one caller: the status of ten thousand links has 3 MB
_DUMP_MAX = 256 * 1024  # bytes of a live dump that wait for a terminal: more is not live
_CALLERS_MAX = 32  # at once; they must not eat the links' descriptors
_ANSWERS_PER_TURN = 4  # the status of ten thousand links takes some milliseconds
_IDLE = 60.0  # seconds without a request, after which a caller is let go
_LINGER = 2.0


class RefusedError(Exception):
    """A request that cannot be done; the message is the answer."""


class Controlled(Protocol):
    """What can be asked of the daemon; each returns the answer's fields or raises RefusedError."""

    def status(self, relay: str | None = None) -> dict[str, Any]:
        """Return the whole snapshot, or that of one relay beside what there is of the daemon."""

    def reload(self, ended: Callable[[dict[str, Any] | RefusedError], None]) -> None:
        """Read the configuration again; `ended(the answer's fields, or why not)` is called when that is over."""

    def stop(self) -> dict[str, Any]:
        """Stop gracefully, as SIGTERM does."""

    def kick(self, relay: str, peer: str) -> dict[str, Any]:
        """Reset the links of a peer."""

    def watch(self, relay: str, style: str, target: DumpTarget) -> Callable[[], None]:
        """Dump to the target until the function that is returned is called."""


class Controller:
    """Listens on the control socket, for as long as it is open."""

    controlled: Controlled  # set by `serve`

    def __init__(self, reactor: Reactor, pool: ListenerPool, log: BoundLog) -> None:
        self._pool = pool
        self.reactor = reactor
        self.callers: set[Caller] = set()
        self.log = log
        self._listener: Listener | None = None
        self._acceptor: Acceptor | None = None

    def serve(self, controlled: Controlled) -> None:
        """Say who does what is asked for; before `listen`."""
        self.controlled = controlled

    def take(self, path: str, mode: int) -> Listener | None:
        """Return a listener for `listen`, None for no path; raises StartError."""
        return self._pool.take(UnixAddress(path), _settings(mode)) if path else None

    def give_back(self, listener: Listener | None) -> None:
        """Undo `take`."""
        if listener is not None:
            self._pool.give_back(listener)

    def listen(self, listener: Listener | None, mode: int) -> None:
        """Accept callers on the listener, whose file gets the mode, and no more on the one before."""
        self._stop_listening()
        self._listener = listener
        if listener is not None:
            listener.retune(_settings(mode))
            self._acceptor = Acceptor(self.reactor, listener.sockets[0], self._accepted, self._exhausted)
            self._acceptor.start()

    def close(self) -> None:
        """Stop listening and let the callers go, who still get their answers."""
        self._stop_listening()
        for caller in self.callers:
            caller.finish()

    def end_dumps(self, relay: str) -> int:
        """Let go every caller that watches the relay; return how many there were."""
        watching = [caller for caller in self.callers if caller.watching == relay]
        for caller in watching:
            caller.finish()
        return len(watching)

    def _stop_listening(self) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        self.give_back(self._listener)
        self._acceptor = self._listener = None

    def _accepted(self, sock: socket.socket, peer: Any) -> None:
        if len(self.callers) >= _CALLERS_MAX:
            reset(sock)
            return
        transport = Transport(self.reactor, sock, peer, _LINGER)
        caller = Caller(self, transport)
        self.callers.add(caller)
        transport.start(caller)

    def _exhausted(self, reason: str) -> None:
        self.log.burst("control_paused", reason=reason)


def _settings(mode: int) -> ListenSettings:
    return ListenSettings(SocketOptions(), backlog=16, unix_mode=mode)


class Caller:
    """One connection to the control socket."""

    def __init__(self, controller: Controller, transport: Transport) -> None:
        self._controller = controller
        self._transport = transport
        self._framer = LINE.framer(_REQUEST_MAX)
        self._answers = Pipeline(controller.reactor)
        self._sink = Sink(
            SinkSettings(
                controller.reactor, self._answers, RAW, _ANSWER_MAX, Relief.CUT, kept=False, stall_timeout=_IDLE
            ),
            controller.log,
        )  # fmt: skip
        self._answers.sinks[self._sink] = None
        self._sink.attach(transport)
        self._waiting: deque[bytes] = deque()
        self._stop_watching: Callable[[], None] | None = None
        self.watching = ""  # the relay whose dump it gets
        self._reloading = False  # and nothing else is answered before that is
        self._timer: TimerHandle = controller.reactor.call_later(_IDLE, self.finish)

    # -- for the transport ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._waiting.extend(self._framer.feed(data).split(b"\n")[:-1])
        if self._framer.unframed:
            self._transport.abort("request too long")
        elif self._waiting:
            self._transport.pause_reading()
            self._answer_some()

    def eof_received(self) -> None:
        if self._stop_watching is None:
            self.finish()

    def ready_to_send(self) -> None:
        self._sink.flush()

    def connection_lost(self, reason: str) -> None:
        self._timer.cancel()
        self._sink.detach()
        if self._stop_watching is not None:
            self._stop_watching()
        self._controller.callers.discard(self)

    # -- requests -------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let the caller go, after the answers that are under way."""
        self._sink.finish("finished")

    def _answer_some(self) -> None:
        """Answer what waits, so much a turn that the streams hardly notice, and then read on."""
        for _ in range(min(len(self._waiting), _ANSWERS_PER_TURN)):
            if not self._reloading:
                self._answer(self._waiting.popleft())
        if self._reloading or not self._transport.open:
            return
        if self._waiting:
            self._controller.reactor.call_later(0.0, self._answer_some)
        else:
            self._transport.resume_reading()

    def _answer(self, line: bytes) -> None:
        self._timer.cancel()
        try:
            request = _parsed(line)
            if request.get("command") == "reload":
                self._reloading = True
                self._controller.controlled.reload(self._reloaded)
                return
            self._reply(self._perform(request))
        except RefusedError as refusal:
            self._reply(refusal)

    def _reloaded(self, answer: dict[str, Any] | RefusedError) -> None:
        self._reloading = False
        if self._transport.open:
            self._reply(answer)
            self._controller.reactor.call_later(0.0, self._answer_some)  # if that took its time, nobody else does

    def _reply(self, answer: dict[str, Any] | RefusedError) -> None:
        told = {"ok": False, "error": str(answer)} if isinstance(answer, RefusedError) else {"ok": True, **answer}
        self._answers.put(json.dumps(told).encode() + b"\n", 0, "")
        if self._stop_watching is None:
            self._timer = self._controller.reactor.call_later(_IDLE, self.finish)

    def _perform(self, request: dict[str, str]) -> dict[str, Any]:
        controlled = self._controller.controlled
        command = request.get("command")
        if command == "status":
            return {"status": controlled.status(request.get("relay"))}
        if command == "stop":
            return controlled.stop()
        if command == "kick":
            return controlled.kick(request.get("relay", ""), request.get("peer", ""))
        if command == "dump" and request.get("format") == "off":
            return {"ended": self._controller.end_dumps(request.get("relay", ""))}
        if command == "dump":
            self._watch(request.get("relay", ""), request.get("format", "text"))
            return {}
        raise RefusedError(f"unknown command {command!r}; there are status, reload, stop, kick and dump")

    def _watch(self, relay: str, style: str) -> None:
        stop_watching = self._controller.controlled.watch(relay, style, DumpStream(self._show, self._has_room))
        if self._stop_watching is not None:
            self._stop_watching()
        self._stop_watching = stop_watching
        self.watching = relay

    def _show(self, data: bytes, lost: Lost = unheard) -> bool:
        """Take a piece of a dump if it fits: a terminal that does not keep up misses something, and is told.

        What still waits when the caller leaves, nobody misses.
        """
        if not self._has_room():
            return False
        self._answers.put(data, 0, "")
        return True

    def _has_room(self) -> bool:
        return self._sink.queue.size <= _DUMP_MAX


def _parsed(line: bytes) -> dict[str, str]:
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        raise RefusedError("that is no JSON; write one request a line") from None
    if not isinstance(request, dict) or not all(isinstance(value, str) for value in request.values()):
        raise RefusedError('a request is an object of strings, like {"command": "status"}')
    return request
