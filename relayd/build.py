"""Configuration -> objects: the one module that knows every concrete class."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from relayd.address import Address
from relayd.config.keys import CONNECT, LISTEN
from relayd.config.settings import RelayConfig
from relayd.endpoints.connect import ConnectEndpoint
from relayd.endpoints.endpoint import Endpoint, LinkOwner
from relayd.endpoints.listen import Admission, ListenEndpoint
from relayd.endpoints.replay import ReplaySettings
from relayd.history import History
from relayd.inlet import Inlet
from relayd.net.connector import Connector, DialSettings
from relayd.net.listener import ListenerPool, ListenSettings
from relayd.net.reactor import Reactor
from relayd.net.resolver import Resolver
from relayd.net.sockets import SocketOptions
from relayd.observe.counters import Counters
from relayd.observe.dump import Dump, DumpFile, DumpStream, DumpTarget
from relayd.observe.log import EventLog
from relayd.observe.writer import LossyWriter
from relayd.outlet import ClientsOutlet, KeptOutlet
from relayd.pipeline import Pipeline
from relayd.policy.access import AccessList
from relayd.policy.backoff import Backoff
from relayd.policy.loops import End, LoopGuard
from relayd.policy.overflow import OVERFLOW, Relief
from relayd.policy.returns import RETURNS
from relayd.relay import Destination, Relay
from relayd.returnpath import ReturnPath
from relayd.sink import SinkSettings

# What the loop may watch beside links, listeners most of all, out of the reserve of the descriptor limit.
_NO_LINKS = 16


@dataclass(frozen=True)
class Surroundings:
    """What all relays of a process share."""

    reactor: Reactor
    resolver: Resolver
    pool: ListenerPool
    guard: LoopGuard
    log: EventLog
    stdout: LossyWriter  # where a dump without a file goes
    max_links: int  # of one listening end: what the descriptor limit leaves room for
    links_changed: Callable[[], None]  # a link of any relay came or went


def build_relay(config: RelayConfig, shared: Surroundings, counters: Counters) -> Relay:
    """Return the relay, its ends not yet open. `counters` are new, or those of the relay it follows."""
    return _Builder(config, shared, counters).relay()


def listen_settings(config: RelayConfig) -> ListenSettings:
    """Return how the relay's listening ends listen."""
    notsent = config.notsent if config.destination_role == LISTEN else 0
    return ListenSettings(replace(_socket_options(config), notsent=notsent), config.backlog, config.unix_mode)


def _socket_options(config: RelayConfig) -> SocketOptions:
    return SocketOptions(
        nodelay=config.nodelay,
        keepalive=config.keepalive,
        stall_timeout=config.stall_timeout,
        send_buffer=config.send_buffer,
        receive_buffer=config.receive_buffer,
    )


class _Builder:
    """The parts of one relay on their way to each other."""

    def __init__(self, config: RelayConfig, shared: Surroundings, counters: Counters) -> None:
        self._config = config
        self._shared = shared
        self._log = shared.log.bind(relay=config.name)
        self._counters = counters
        self._framing = config.framing
        self._returned = config.framing.returned
        # Records have to be found, and what is read seldom to be read: then nothing can go past the process.
        self._forward = Pipeline(shared.reactor, seen=config.framing.has_records or bool(config.coalesce))
        self._backward = Pipeline(shared.reactor, seen=self._returned.has_records)
        self._options = _socket_options(config)

    def relay(self) -> Relay:
        config = self._config
        relay = Relay(
            config.name, self._forward, self._backward, self._counters,
            close_with_source=config.on_source_loss == "close", unpaced=config.unpaced,
            changed=self._shared.links_changed,
        )  # fmt: skip
        inlet = self._inlet(relay)
        source = self._endpoint(config.source, config.source_role, inlet, is_source=True)
        relay.complete(inlet, source, self._destinations(relay), self._dump())
        return relay

    # -- what is seen -----------------------------------------------------------------------------

    def _dump(self) -> Dump | None:
        config, shared = self._config, self._shared
        if config.dump == "off":
            return None
        target: DumpTarget = DumpStream(shared.stdout.write, shared.stdout.has_room)
        if config.dump_file:
            target = DumpFile(shared.reactor, config.dump_file, config.dump_max, self._log)
        return Dump(config.name, config.dump, target, self._log)

    # -- the source -------------------------------------------------------------------------------

    def _inlet(self, relay: Relay) -> Inlet:
        config = self._config
        # What goes back is never dropped: where the source does not take it, the links are not read.
        sinks = SinkSettings(
            self._shared.reactor, self._backward, self._returned, config.buffer, Relief.HOLD, kept=True
        )  # fmt: skip
        return Inlet(
            self._shared.reactor, self._forward, sinks,
            framer=lambda: self._framing.framer(config.max_record),
            coalesce=config.coalesce, counters=self._counters, log=self._log,
            replace=config.second_source == "replace", idle_timeout=config.source_idle,
            changed=relay.links_changed, lost=relay.source_lost,
        )  # fmt: skip

    # -- the destinations -------------------------------------------------------------------------

    def _destinations(self, relay: Relay) -> list[Destination]:
        config, reactor = self._config, self._shared.reactor
        kept = config.destination_role == CONNECT
        sinks = SinkSettings(
            reactor, self._forward, self._framing, config.buffer, OVERFLOW[config.overflow].relief, kept,
            config.stall_timeout, config.slow_after, config.max_age,
        )  # fmt: skip
        back = ReturnPath(
            RETURNS[config.return_rule],
            self._backward,
            lambda: self._returned.framer(config.max_record),
            self._counters,
        )
        if not kept:
            clients = ClientsOutlet(
                sinks, back, self._counters, self._log, relay.links_changed, config.linger_timeout, self._history()
            )  # fmt: skip
            endpoint = self._endpoint(config.destination, config.destination_role, clients, is_source=False)
            return [Destination(clients, endpoint)]
        destinations = []
        for address in config.destination:
            outlet = KeptOutlet(
                sinks, back, self._counters, self._log, relay.links_changed, address, config.linger_timeout
            )  # fmt: skip
            endpoint = self._endpoint([address], config.destination_role, outlet, is_source=False)
            destinations.append(Destination(outlet, endpoint))
        return destinations

    def _history(self) -> History | None:
        config = self._config
        if not config.history:
            return None
        # A client that joins with a queue more than half full would be slow before it has read a byte.
        return History(
            self._forward.tape, config.history, config.buffer // 2, self._framing, lambda: self._shared.reactor.now
        )  # fmt: skip

    # -- the ends ---------------------------------------------------------------------------------

    def _endpoint(self, addresses: Sequence[Address], role: str, owner: LinkOwner, is_source: bool) -> Endpoint:
        end = End(self._config.name, is_source)
        return (self._connecting if role == CONNECT else self._listening)(addresses, owner, end)

    def _connecting(self, addresses: Sequence[Address], owner: LinkOwner, end: End) -> Endpoint:
        config, shared = self._config, self._shared
        dial = DialSettings(self._options, config.connect_timeout, config.bind_source)
        log = self._log.bind(**{"source" if end.is_source else "destination": ",".join(map(str, addresses))})
        return ConnectEndpoint(
            shared.reactor, addresses, Connector(shared.reactor, shared.resolver, dial, shared.guard, end),
            self._options, ReplaySettings(config.framing, config.max_record),
            Backoff(config.reconnect.low, config.reconnect.high, random.random),
            config.stable_after, config.linger_timeout, shared.guard, owner, log,
        )  # fmt: skip

    def _listening(self, addresses: Sequence[Address], owner: LinkOwner, end: End) -> Endpoint:
        config, shared = self._config, self._shared
        return ListenEndpoint(
            shared.reactor, addresses, shared.pool, listen_settings(config),
            config.linger_timeout, self._admission(end), shared.guard, end, owner, self._counters, self._log,
        )  # fmt: skip

    def _admission(self, end: End) -> Admission:
        config = self._config
        if end.is_source:
            return Admission(AccessList(config.source_allow, config.source_deny), 0, 0, self._has_room)
        access = AccessList(config.allow, config.deny)
        return Admission(access, self._max_clients(), config.max_clients_per_ip, self._has_room)

    def _has_room(self) -> bool:
        """Whether the clients of all relays together leave what is kept for the control socket, files and look-ups."""
        return self._shared.reactor.watched < self._shared.max_links + _NO_LINKS

    def _max_clients(self) -> int:
        wanted, possible = self._config.max_clients, self._shared.max_links
        if wanted > possible:
            self._log.warning("max_clients_lowered", wanted=wanted, to=possible, reason="descriptor limit, ulimit -n")
        return min(wanted, possible)
