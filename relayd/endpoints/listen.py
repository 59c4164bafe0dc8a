"""A listening end: peers come in, if they may."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from relayd.address import Address
from relayd.endpoints.endpoint import Endpoint, EndpointState, LinkOwner, LinkTransport
from relayd.errors import StartError
from relayd.net.acceptor import Acceptor
from relayd.net.listener import Listener, ListenerPool, ListenSettings
from relayd.net.reactor import Reactor
from relayd.net.sockets import accepted_name, error_name, link_name, name_of, reset, show_name
from relayd.net.transport import Transport
from relayd.observe.counters import Counters
from relayd.observe.log import BoundLog
from relayd.policy.access import AccessList
from relayd.policy.loops import End, LoopGuard


class Admission:
    """Who may come in at one end: by address, by number, by number per address (0: no limit)."""

    def __init__(
        self,
        access: AccessList,
        max_links: int,
        max_links_per_ip: int,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        """`has_room()`: whether the process has a descriptor to spare."""
        self._access = access
        self._has_room = has_room
        self._max_links = max_links
        self._max_links_per_ip = max_links_per_ip
        self._by_host: Counter[str] = Counter()
        self._links = 0

    def refusal(self, peer: Any) -> str:
        """Return why the peer may not come in, "" where it may. Unix peers have no address to judge."""
        host = _host(peer)
        if host and not self._access.permits(host):
            return "denied"
        if (self._max_links and self._links >= self._max_links) or not self._has_room():
            return "full"
        if host and self._max_links_per_ip and self._by_host[host] >= self._max_links_per_ip:
            return "full_for_ip"
        return ""

    def entered(self, peer: Any) -> None:
        """The peer has come in."""
        self._links += 1
        self._by_host[_host(peer)] += 1

    def left(self, peer: Any) -> None:
        """The peer is gone."""
        self._links -= 1
        host = _host(peer)
        self._by_host[host] -= 1
        if not self._by_host[host]:
            del self._by_host[host]


def _host(peer: Any) -> str:
    return str(peer[0]) if isinstance(peer, tuple) else ""


class ListenEndpoint:
    """Listens on every address given, and brings the peers that may come in to its owner."""

    def __init__(
        self,
        reactor: Reactor,
        addresses: Sequence[Address],
        pool: ListenerPool,
        settings: ListenSettings,
        linger_timeout: float,
        admission: Admission,
        guard: LoopGuard,
        end: End,
        owner: LinkOwner,
        counters: Counters,
        log: BoundLog,
    ) -> None:
        """`linger_timeout` in seconds, see Transport."""
        self._reactor = reactor
        self._addresses = addresses
        self._pool = pool
        self._settings = settings
        self._linger_timeout = linger_timeout
        self._admission = admission
        self._guard = guard
        self._end = end
        self._owner = owner
        self._counters = counters
        self._log = log
        self._refusals = log.bind(end="source" if end.is_source else "destination")
        self._listeners: dict[Address, Listener] = {}
        self._acceptors: dict[Address, list[Acceptor]] = {}

    def open(self) -> None:
        """Listen on all addresses, or on none: raises StartError with every reason."""
        reasons: list[str] = []
        for address in self._addresses:
            try:
                self._listeners[address] = self._pool.take(address, self._settings)
            except StartError as error:
                reasons += error.reasons
        if reasons:
            self.stop()
            raise StartError(reasons)

    def start(self) -> None:
        for address, listener in self._listeners.items():
            listener.retune(self._settings)
            if listener.told != self._end:  # one that a reload has kept is no news
                self._log.info("listening", address=address)
                listener.told = self._end
            self._acceptors[address] = [
                Acceptor(self._reactor, sock, self._accepted, self._exhausted, self._owner.is_behind)
                for sock in listener.sockets
            ]
            for acceptor in self._acceptors[address]:
                acceptor.start()

    def follow(self, former: Endpoint) -> None:
        """It counts nothing of its own."""

    def adopt(self, transport: LinkTransport, former: Endpoint) -> None:
        self._admission.entered(transport.peer)
        transport.retune(self._settings.options, self._linger_timeout)

    def stop(self) -> None:
        for acceptors in self._acceptors.values():
            for acceptor in acceptors:
                acceptor.close()
        for listener in self._listeners.values():
            self._pool.give_back(listener)
        self._acceptors, self._listeners = {}, {}

    def peer_name(self, transport: LinkTransport) -> str:
        return show_name(transport.peer)

    def state(self) -> EndpointState:
        return EndpointState("listening", 0, "")

    def link_lost(self, transport: LinkTransport, reason: str) -> None:
        self._admission.left(transport.peer)
        self._guard.left(link_name(transport.peer, transport.local))

    def _accepted(self, sock: socket.socket, peer: Any) -> None:
        peer = accepted_name(sock, peer)
        reason = self._refusal(sock, peer)
        if reason:
            reset(sock)
            self._refused(peer, reason)
            return
        self._admission.entered(peer)
        try:
            self._settings.options.apply(sock)
            transport = Transport(self._reactor, sock, peer, self._linger_timeout)
            transport.start(self._owner.link_made(transport, self))
        except BaseException as error:
            self._admission.left(peer)
            self._guard.left(link_name(peer, name_of(sock.getsockname)))
            reset(sock)
            if not isinstance(error, OSError):
                raise
            self._refused(peer, error_name(error.errno or 0))

    def _refused(self, peer: Any, reason: str) -> None:
        self._counters.refused += 1
        self._refusals.burst("refused", peer=show_name(peer), reason=reason)

    def _refusal(self, sock: socket.socket, peer: Any) -> str:
        """Return the first reason against the peer; the guard comes last, for it remembers whom it admits."""
        reason = self._admission.refusal(peer) or self._owner.refusal()
        if (
            reason
            or not isinstance(peer, tuple)
            or self._guard.admits(link_name(peer, name_of(sock.getsockname)), self._end)
        ):
            return reason
        return "loop"

    def _exhausted(self, reason: str) -> None:
        self._log.burst("accepting_paused", reason=reason)
