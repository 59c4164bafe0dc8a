"""A connecting end: addresses are tried in turn, for ever, with growing waits."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

from relayd.address import Address, ReplayAddress
from relayd.endpoints.endpoint import Endpoint, EndpointState, LinkOwner, LinkTransport
from relayd.endpoints.replay import ReplaySettings, ReplayTransport
from relayd.net.connector import Connector
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.sockets import SocketOptions, link_name, show_name
from relayd.net.transport import Transport
from relayd.observe.log import BoundLog
from relayd.policy.backoff import Backoff
from relayd.policy.loops import LoopGuard


class ConnectEndpoint:
    """Keeps one link up to the first of its addresses that answers."""

    def __init__(
        self,
        reactor: Reactor,
        addresses: Sequence[Address],
        connector: Connector,
        options: SocketOptions,
        replay: ReplaySettings,
        backoff: Backoff,
        stable_after: float,
        linger_timeout: float,
        guard: LoopGuard,
        owner: LinkOwner,
        log: BoundLog,
    ) -> None:
        """`stable_after`: seconds that a link must have lived for the waits to start over; `log` names the end."""
        self._reactor = reactor
        self._addresses = addresses
        self._connector = connector
        self._options = options
        self._replay = replay
        self._backoff = backoff
        self._stable_after = stable_after
        self._linger_timeout = linger_timeout
        self._guard = guard
        self._owner = owner
        self._log = log
        self._stopped = False
        self._next = 0  # the address to try next
        self._errors: list[str] = []  # of the addresses tried in this round
        self._told = ""  # the error that the log has already
        self._attempts = 0
        self._links = 0  # that have come up
        self._linked = False
        self._last_error = ""
        self._timer: TimerHandle | None = None

    @property
    def address(self) -> Address:
        """The address that is tried, or that the link goes to."""
        return self._addresses[self._next]

    def open(self) -> None:
        """Nothing can be refused here: what does not answer is tried again."""

    def start(self) -> None:
        if not self._linked:
            self._attempt()

    def follow(self, former: Endpoint) -> None:
        if isinstance(former, ConnectEndpoint):
            self._links = former._links

    def adopt(self, transport: LinkTransport, former: Endpoint) -> None:
        self._linked = True
        if isinstance(former, ConnectEndpoint):
            self._next = self._addresses.index(former.address) if former.address in self._addresses else 0
        transport.retune(self._options, self._linger_timeout)

    def state(self) -> EndpointState:
        timer = self._timer
        name = "waiting" if timer is not None else "connecting"
        next_attempt = None
        if timer is not None and not self._stopped:
            next_attempt = max(0.0, timer.when - self._reactor.now)
        return EndpointState(name, max(0, self._links - 1), self._last_error, next_attempt)

    def stop(self) -> None:
        self._stopped = True
        self._connector.cancel()
        if self._timer is not None:
            self._timer.cancel()

    def peer_name(self, transport: LinkTransport) -> str:
        address = self.address
        # The options of a replay, and its folder, say nothing about whose line of the log this is.
        return f"replay:{os.path.basename(address.path)}" if isinstance(address, ReplayAddress) else str(address)

    def link_lost(self, transport: LinkTransport, reason: str) -> None:
        self._guard.hung_up(link_name(transport.local, transport.peer))
        self._linked = False
        if self._reactor.now - transport.since >= self._stable_after:
            self._backoff.reset()
        if not self._stopped:
            self._next = 0
            self._wait()

    def _attempt(self) -> None:
        self._timer = None
        self._attempts += 1
        address = self.address
        if isinstance(address, ReplayAddress):
            try:
                self._link_made(ReplayTransport(self._reactor, address, self._replay))
            except OSError as error:
                self._failed(f"{address.path}: {error.strerror}")
        else:
            self._connector.connect(address, self._connected, self._failed)

    def _connected(self, sock: socket.socket, peer: Any) -> None:
        transport = Transport(self._reactor, sock, peer, self._linger_timeout)
        self._log.debug("dialled", address=self.address, peer=show_name(peer), attempts=self._attempts)
        self._link_made(transport)

    def _link_made(self, transport: LinkTransport) -> None:
        self._attempts = 0
        self._links += 1
        self._linked = True
        self._errors, self._told, self._last_error = [], "", ""
        transport.start(self._owner.link_made(transport, self))

    def _failed(self, error: str) -> None:
        self._errors.append(error)
        if self._next + 1 < len(self._addresses):
            self._next += 1
            # In a turn of its own: hundreds of addresses that fail at once are no recursion.
            self._timer = self._reactor.call_later(0.0, self._attempt)
            return
        self._next = 0
        self._wait()

    def _wait(self) -> None:
        delay = self._backoff.next_delay()
        error, self._errors = "; ".join(self._errors), []
        # One line for each change of state, not for each attempt of a night.
        self._last_error = error
        # A name's addresses may come in another order each time.
        if error and sorted(error.split("; ")) != sorted(self._told.split("; ")):
            self._told = error
            self._log.warning("connect_failed", error=error)
        self._timer = self._reactor.call_later(delay, self._attempt)
