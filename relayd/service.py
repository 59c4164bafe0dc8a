"""The service: one reactor and all relays; start, reload, stop, status.

A reload is done or not done.  The new relays take all they need first, and if one cannot, what was
taken is given back and nothing has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from relayd import __version__
from relayd.address import TcpAddress
from relayd.build import Surroundings, build_relay
from relayd.config.settings import Config, RelayConfig
from relayd.errors import StartError
from relayd.net.resolver import Answer
from relayd.observe.counters import Counters
from relayd.relay import Relay
from relayd.reload import Change, Plan, diff


class Service:
    """Runs the relays of a configuration, and then of the next one."""

    def __init__(self, config: Config, shared: Surroundings, ended: Callable[[], None]) -> None:
        """`ended()` is called once, when everything has been stopped."""
        self.config = config
        self._shared = shared
        self._reactor = shared.reactor
        self._log = shared.log.bind()
        self._ended = ended
        self._relays: dict[str, Relay] = {}
        self._running: set[Relay] = set()  # those, and the ones that are being drained
        self._started_at = shared.reactor.now
        self.stopping = False
        self._told_end = False

    def start(self) -> None:
        """Take every port, and let the streams flow; raises StartError with all reasons, and then holds nothing."""
        relays = self._opened([(config, Counters()) for config in self.config.relays if config.enabled])
        self._log.info("started", version=__version__, relays=len(relays))
        for relay in relays:
            self._add(relay)
            relay.start()

    def to_look_up(self, config: Config) -> list[TcpAddress]:
        """Return the addresses whose names `reload` would wait for, if it were not given the answers."""
        return self._shared.pool.to_look_up(config.listening)

    def reload(self, config: Config, answers: Mapping[TcpAddress, Answer] = MappingProxyType({})) -> Plan:
        """Go over to another configuration; raises StartError, and then nothing has changed."""
        plan = diff(self.config, config)
        fresh = [(relay, Counters()) for relay in plan.added]
        changed = [(change.new, self._relays[change.new.name].counters) for change in plan.changed]
        with self._shared.pool.taking_over(config.listening, answers):
            relays = self._opened(fresh + changed)
        self.config = config
        for gone in plan.removed:
            self._retire(self._relays.pop(gone.name), "removed")
        for change, relay in zip(plan.changed, relays[len(fresh) :], strict=True):
            self._replace(change, relay)
        for relay in relays:
            self._add(relay)
            relay.start()
        return plan

    def stop(self) -> None:
        """Stop gracefully within `drain_timeout`; when called again, at once."""
        if self.stopping:
            self._abort()
            return
        self.stopping = True
        self._log.info("stopping", drain_timeout=self.config.drain_timeout)
        for relay in self._relays.values():
            self._retire(relay, "stopped")
        self._end_if_idle()

    # -- what is seen -----------------------------------------------------------------------------

    @property
    def relays(self) -> Sequence[Relay]:
        """The relays of the configuration, in its order."""
        return [self._relays[relay.name] for relay in self.config.relays if relay.name in self._relays]

    def summary(self) -> str:
        """Return the state in a line: 3 of 4 sources up."""
        up = sum(relay.source_up for relay in self._relays.values())
        return f"{up} of {len(self._relays)} sources up"

    def status(self, only: str | None = None) -> dict[str, Any]:
        """Return a snapshot of every relay, or of the one of that name, as JSON has it."""
        now = self._reactor.now
        return {
            "version": __version__,
            "uptime": round(now - self._started_at, 3),
            "stopping": self.stopping,
            "relays": [
                {**self._relays[config.name].status(now), "settings": config.shown}
                for config in self.config.relays
                if config.name in self._relays and only in (None, config.name)
            ],
        }

    # -- relays come and go -----------------------------------------------------------------------

    def _opened(self, wanted: Sequence[tuple[RelayConfig, Counters]]) -> list[Relay]:
        """Return relays that have their ports and files; raises StartError with all reasons, and then none has."""
        relays = [build_relay(config, self._shared, counters) for config, counters in wanted]
        reasons: list[str] = []
        try:
            for relay in relays:
                try:
                    relay.open()
                except StartError as error:
                    reasons += error.reasons
            if reasons:
                raise StartError(reasons)
        except BaseException:
            for relay in relays:
                relay.discard()
            raise
        return relays

    def _add(self, relay: Relay) -> None:
        self._relays[relay.name] = relay
        self._running.add(relay)

    def _replace(self, change: Change, relay: Relay) -> None:
        """Let the relay take over from the one of its name, which drains what it leaves."""
        former = self._relays.pop(relay.name)
        former.stop_endpoints()
        relay.inherit(former, change.keeps_source, change.keeps_destination)
        self._retire(former, "changed")

    def _retire(self, relay: Relay, reason: str) -> None:
        """Drain a relay, for `drain_timeout` at most; its links end with the reason."""
        deadline = self._reactor.call_later(self.config.drain_timeout, relay.abort)

        def retired() -> None:
            deadline.cancel()
            self._running.discard(relay)
            self._end_if_idle()

        relay.stop(retired, reason)

    def _abort(self) -> None:
        for relay in self._running:
            relay.abort()

    def _end_if_idle(self) -> None:
        if self.stopping and not self._running and not self._told_end:
            self._told_end = True
            self._log.info("stopped")
            self._ended()
