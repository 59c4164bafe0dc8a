"""The configuration as the rest of the program sees it: frozen values, every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from relayd.address import Address, ReplayAddress
from relayd.config.keys import CONNECT, LISTEN, MODES, RELAY_KEYS
from relayd.config.kinds import Waits
from relayd.net.sockets import Keepalive
from relayd.observe.dump import Rotation
from relayd.policy.access import Network
from relayd.policy.history import HistoryBound
from relayd.policy.loops import End
from relayd.policy.overflow import SlowAfter
from relayd.wire.framing import Framing


@dataclass(frozen=True)
class RelayConfig:
    """One relay's settings; the keys of RELAY_KEYS. Times in seconds, sizes in bytes."""

    name: str
    mode: str
    source: tuple[Address, ...]
    destination: tuple[Address, ...]
    enabled: bool
    framing: Framing
    max_record: int
    return_rule: str
    second_source: str
    on_source_loss: str
    source_idle: float
    buffer: int
    overflow: str
    slow_after: SlowAfter
    stall_timeout: float
    max_age: float
    history: HistoryBound
    coalesce: float
    notsent: int
    reconnect: Waits
    stable_after: float
    connect_timeout: float
    bind_source: str
    keepalive: Keepalive | None
    linger_timeout: float
    max_clients: int
    max_clients_per_ip: int
    allow: tuple[Network, ...]
    deny: tuple[Network, ...]
    source_allow: tuple[Network, ...]
    source_deny: tuple[Network, ...]
    unix_mode: int
    backlog: int
    nodelay: bool
    send_buffer: int
    receive_buffer: int
    dump: str
    dump_file: str
    dump_max: Rotation
    secret_keys: frozenset[str] = field(default=frozenset(), compare=False)  # given by @FILE: never shown

    @property
    def source_role(self) -> str:
        """How relayd meets the source."""
        return MODES[self.mode][0]

    @property
    def destination_role(self) -> str:
        """How relayd meets the destinations."""
        return MODES[self.mode][1]

    @property
    def listening(self) -> list[tuple[End, Address]]:
        """Every address that is listened on, and the end for which."""
        return self._addresses(LISTEN)

    @property
    def connecting(self) -> list[tuple[End, Address]]:
        """Every address that is connected to, and the end for which."""
        return self._addresses(CONNECT)

    def _addresses(self, role: str) -> list[tuple[End, Address]]:
        source = self.source if self.source_role == role else ()
        destination = self.destination if self.destination_role == role else ()
        return [
            *((End(self.name, is_source=True), address) for address in source),
            *((End(self.name, is_source=False), address) for address in destination),
        ]

    @property
    def unpaced(self) -> bool:
        """Whether the source is a file that is read as fast as it is taken."""
        return is_unpaced(self.source)

    @cached_property  # each `status` has it, for each relay
    def shown(self) -> dict[str, str]:
        """The settings as they would be written, those that have an effect; secrets are not shown."""
        roles = (f"source {self.source_role}", f"destination {self.destination_role}")
        return {
            key.name: "***" if key.name in self.secret_keys else key.kind.show(getattr(self, key.field))
            for key in RELAY_KEYS.values()
            if not key.only_for or key.only_for in roles
        }


@dataclass(frozen=True)
class Config:
    """Everything: the keys of DAEMON_KEYS, and the relays in the order of the text."""

    pidfile: str
    user: str
    group: str
    umask: int | None  # None: by whether the process is in the foreground
    chroot: str
    log: str  # stderr, syslog, journal or a path; empty: by whether the process is in the foreground
    log_level: str
    log_format: str
    control: str
    control_mode: int
    drain_timeout: float
    include: str  # the pattern, whose files the relays have come from, too
    relays: tuple[RelayConfig, ...]
    path: str = ""  # the file it came from, "" for a command line
    secret_keys: frozenset[str] = field(default=frozenset(), compare=False)  # of the daemon's own, as in RelayConfig
    warnings: tuple[str, ...] = field(default=(), compare=False)  # what is legal, and yet may not be what was meant

    @property
    def listening(self) -> list[Address]:
        """Every address that relays listen on."""
        return [address for relay in self.relays if relay.enabled for _, address in relay.listening]


def is_unpaced(source: tuple[Address, ...]) -> bool:
    """Whether one of the addresses is a replay without a rate."""
    return any(isinstance(address, ReplayAddress) and address.rate is None for address in source)


def dependent_default(name: str, values: Mapping[str, Any]) -> str:
    """Return the default of a key whose default depends on the keys before it, as it would be written."""
    one_connected = MODES[values["mode"]][1] == CONNECT and len(values["destination"]) == 1
    if name == "return":
        return "all" if one_connected else "none"
    if name == "overflow":
        return "block" if one_connected or is_unpaced(values["source"]) else "disconnect"
    if name == "stall_timeout":
        return "0" if values["overflow"] == "block" else "60s"
    raise AssertionError(f"{name} has a fixed default")
