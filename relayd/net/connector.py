"""Connecting out: a name is looked up, each address that comes back is tried in turn."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from relayd.address import TcpAddress, UnixAddress, unmapped
from relayd.net.reactor import WRITE, Reactor, TimerHandle, UnwatchedError
from relayd.net.resolver import Answer, Found, Resolution, Resolver, literal
from relayd.net.sockets import SocketOptions, link_name, name_of, reset, show_name
from relayd.policy.loops import End, LoopGuard


@dataclass(frozen=True)
class DialSettings:
    """How to connect: `timeout` seconds for each address and for the look-up."""

    options: SocketOptions
    timeout: float
    bind_source: str = ""  # the local address to connect from, "" for the kernel's choice


class Connector:
    """One connection attempt at a time to one address; it ends in exactly one of two callbacks."""

    def __init__(
        self, reactor: Reactor, resolver: Resolver, settings: DialSettings, guard: LoopGuard, end: End
    ) -> None:
        """`guard` is told the local name of each socket, under `end`; forgetting it is the owner's."""
        self._reactor = reactor
        self._resolver = resolver
        self._settings = settings
        self._guard = guard
        self._end = end
        self._candidates: deque[tuple[socket.AddressFamily, Any]] = deque()
        self._errors: list[str] = []
        self._resolution: Resolution | None = None
        self._timer: TimerHandle | None = None
        self._dial: _Dial | None = None
        self._connected: Callable[[socket.socket, Any], None]
        self._failed: Callable[[str], None]

    def connect(
        self,
        address: TcpAddress | UnixAddress,
        connected: Callable[[socket.socket, Any], None],
        failed: Callable[[str], None],
    ) -> None:
        """Try the address. `connected(socket, peer)` gets a non-blocking socket, `failed` the reasons."""
        self._connected, self._failed = connected, failed
        self._errors = []
        if isinstance(address, UnixAddress):
            self._try_each([(socket.AF_UNIX, address.path)])
        elif address.ip is None:
            self._set_timer(lambda: self._give_up(f"look-up of {address.host} timed out"))
            self._resolution = self._resolver.resolve(
                address.host, address.port, lambda answer: self._resolved(address.host, answer)
            )
        else:
            try:
                found = literal(address.host, address.port)
            except (OSError, LookupError) as error:  # LookupError: a codec that cannot be loaded
                self._give_up(f"{address}: {_reason(error)}")
                return
            self._try_each(found)

    def cancel(self) -> None:
        """Drop the attempt, whatever it waits for; no callback comes."""
        self._stop_waiting()
        if self._resolution is not None:
            self._resolution.cancel()
            self._resolution = None

    def _resolved(self, host: str, answer: Answer) -> None:
        self._resolution = None
        if isinstance(answer, Exception):
            self._give_up(f"look-up of {host}: {_reason(answer)}")
        elif not answer:
            self._give_up(f"look-up of {host}: no address")
        else:
            self._try_each(answer)

    def _try_each(self, candidates: Found) -> None:
        self._candidates = deque(candidates)
        self._try_next()

    def _try_next(self) -> None:
        """Go on with the next address; report failure when there is none left."""
        self._stop_waiting()
        while self._candidates and self._dial is None:
            family, name = self._candidates.popleft()
            if family != socket.AF_UNIX and unmapped(ipaddress.ip_address(name[0])).is_unspecified:
                # What name servers answer that block a name; the kernel would take it for this machine.
                self._errors.append(f"{show_name(name)}: stands for every address, not for a host")
                continue
            try:
                self._begin(family, name)
            except OSError as error:
                self._note(name, error.errno or 0)
        if self._dial is None:
            self._give_up()

    def _begin(self, family: socket.AddressFamily, name: Any) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            self._settings.options.apply_sizes(sock)
            self._settings.options.apply(sock)
            self._bind(sock, family)
            code = sock.connect_ex(name)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        local = name_of(sock.getsockname)
        if family != socket.AF_UNIX:
            self._guard.dialled(link_name(local, name), self._end)
        self._dial = _Dial(self, sock, name, local)
        self._set_timer(self._timed_out)
        self._reactor.set_interest(self._dial, WRITE)

    def _bind(self, sock: socket.socket, family: socket.AddressFamily) -> None:
        source = self._settings.bind_source
        if not source or family == socket.AF_UNIX:
            return
        version = 4 if family == socket.AF_INET else 6
        if ipaddress.ip_address(source).version != version:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        # The port is chosen by connect: the same local port may then serve several destinations; ip(7).
        sock.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
        sock.bind((source, 0))

    def completed(self, dial: _Dial, code: int) -> None:
        """A dial has come to its end (for `_Dial`): `code` is its SO_ERROR."""
        if not code and dial.local == name_of(dial.sock.getpeername) and dial.sock.family != socket.AF_UNIX:
            # TCP's simultaneous open with oneself: a port of the ephemeral range that nobody listens
            # on, dialled often enough, is one day its own peer. The port must not stay taken.
            self._errors.append(f"{show_name(dial.name)}: loop, connected to itself")
            self._try_next()
        elif code:
            self._note(dial.name, code)
            self._try_next()
        else:
            self._dial = None
            dial.closed = True
            self._reactor.forget(dial)
            self._stop_waiting()
            self._connected(dial.sock, dial.name)

    def _timed_out(self) -> None:
        assert self._dial is not None
        self._errors.append(f"{show_name(self._dial.name)}: timed out after {self._settings.timeout:g} s")
        self._try_next()

    def _note(self, name: Any, code: int) -> None:
        self._errors.append(f"{show_name(name)}: {os.strerror(code)}")

    def _give_up(self, reason: str = "") -> None:
        self.cancel()
        self._failed(reason or "; ".join(self._errors))

    def _set_timer(self, callback: Callable[[], None]) -> None:
        self._timer = self._reactor.call_later(self._settings.timeout, callback)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._dial is not None:
            dial, self._dial = self._dial, None
            self._guard.hung_up(link_name(dial.local, dial.name))
            dial.closed = True
            self._reactor.forget(dial)
            reset(dial.sock)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


_IP_BIND_ADDRESS_NO_PORT = 24  # linux/in.h; not in the socket module of Python 3.10


class _Dial:
    """One socket on its way to one address."""

    def __init__(self, connector: Connector, sock: socket.socket, name: Any, local: Any) -> None:
        self._connector = connector
        self.sock = sock
        self.name = name
        self.local = local
        self.closed = self.feeds = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def ready(self, events: int) -> None:
        self._connector.completed(self, self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def hung_up(self) -> None:
        raise AssertionError("a dial always waits for WRITE")

    def failed(self, error: Exception) -> None:
        if not self.closed:  # else it was the new owner who raised, and the socket is his
            self._connector.completed(self, (error.errno if isinstance(error, UnwatchedError) else 0) or errno.EIO)
