"""What a new configuration changes: a pure difference of two values.

What is the same is not touched.  What is in both with other settings is built anew and inherits what it
can: listening sockets whose address stays, links whose end stays, their queues and the totals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from relayd.config.keys import AT_START, CONNECT, DAEMON_KEYS
from relayd.config.settings import Config, RelayConfig

# Settings of the process that are taken when it starts, before it has given up the right to them.
_ONLY_AT_START = [key.name for key in DAEMON_KEYS.values() if key.reload == AT_START]


@dataclass(frozen=True)
class Change:
    """A relay that is in both configurations, with other settings."""

    old: RelayConfig
    new: RelayConfig

    @property
    def keeps_source(self) -> bool:
        """Whether the source link that is up may stay."""
        old, new = self.old, self.new
        if old.framing != new.framing or old.source_role != new.source_role:
            return False
        return old.source_role != CONNECT or (old.source == new.source and old.bind_source == new.bind_source)

    def keeps_destination(self, address: object) -> bool:
        """Whether links of the destination end may stay; `address` is the one that was connected to."""
        old, new = self.old, self.new
        if old.framing != new.framing or old.destination_role != new.destination_role:
            return False
        return old.destination_role != CONNECT or (address in new.destination and old.bind_source == new.bind_source)


@dataclass(frozen=True)
class Plan:
    """What a reload has to do, in terms of relays that are enabled."""

    added: tuple[RelayConfig, ...]
    removed: tuple[RelayConfig, ...]
    changed: tuple[Change, ...]
    unchanged: tuple[RelayConfig, ...]
    needs_restart: tuple[str, ...]  # keys of [relayd] that changed and wait for the next start

    @property
    def names(self) -> dict[str, list[str]]:
        """The names of all that changes, by what becomes of it, as JSON has it."""
        return {
            "added": [relay.name for relay in self.added],
            "removed": [relay.name for relay in self.removed],
            "changed": [change.new.name for change in self.changed],
            "needs_restart": list(self.needs_restart),
        }

    @property
    def empty(self) -> bool:
        """Whether no relay is touched."""
        return not (self.added or self.removed or self.changed)


def diff(old: Config, new: Config) -> Plan:
    """Return what leads from the old configuration to the new one."""
    before = {relay.name: relay for relay in old.relays if relay.enabled}
    after = {relay.name: relay for relay in new.relays if relay.enabled}
    common = [(before[name], relay) for name, relay in after.items() if name in before]
    return Plan(
        added=tuple(relay for name, relay in after.items() if name not in before),
        removed=tuple(relay for name, relay in before.items() if name not in after),
        changed=tuple(Change(was, now) for was, now in common if was != now),
        unchanged=tuple(was for was, now in common if was == now),
        needs_restart=tuple(_restart_keys(old, new)),
    )


def _restart_keys(old: Config, new: Config) -> Iterator[str]:
    for found in fields(Config):
        if found.name in _ONLY_AT_START and getattr(old, found.name) != getattr(new, found.name):
            yield found.name
