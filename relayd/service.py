"""The service: one reactor and all relays; from opening the ports to the last byte sent."""

from __future__ import annotations

from collections.abc import Callable

from relayd import __version__
from relayd.build import Surroundings, build_relay
from relayd.config.settings import Config
from relayd.errors import StartError
from relayd.relay import Relay


class Service:
    """Runs the relays of a configuration."""

    def __init__(self, config: Config, shared: Surroundings, ended: Callable[[], None]) -> None:
        """`ended()` is called once, when everything has been stopped. Raises StartError."""
        self._drain_timeout = config.drain_timeout
        self._reactor = shared.reactor
        self._log = shared.log.bind()
        self._ended = ended
        self._stopping = False
        self._relays: list[Relay] = []
        reasons: list[str] = []
        for relay in config.relays:
            if not relay.enabled:
                continue
            try:
                self._relays.append(build_relay(relay, shared))
            except StartError as error:
                reasons += [f"[relay {relay.name}] {reason}" for reason in error.reasons]
        if reasons:
            raise StartError(reasons)
        self._running = set(self._relays)

    def open(self) -> None:
        """Take every port of every relay; raises StartError with all reasons, and then holds none."""
        reasons: list[str] = []
        for relay in self._relays:
            try:
                relay.open()
            except StartError as error:
                reasons += error.reasons
        if reasons:
            for relay in self._relays:
                relay.stop_endpoints()
            raise StartError(reasons)

    def start(self) -> None:
        """Let the streams flow."""
        self._log.info("started", version=__version__, relays=len(self._relays))
        for relay in self._relays:
            relay.start()

    def stop(self) -> None:
        """Stop gracefully within `drain_timeout`; when called again, at once."""
        if self._stopping:
            self._abort()
            return
        self._stopping = True
        self._log.info("stopping", drain_timeout=self._drain_timeout)
        self._reactor.call_later(self._drain_timeout, self._abort)
        if not self._relays:
            self._end()
        for relay in self._relays:
            relay.stop(lambda relay=relay: self._relay_stopped(relay))  # type: ignore[misc]

    def _relay_stopped(self, relay: Relay) -> None:
        self._running.discard(relay)
        if not self._running:
            self._end()

    def _abort(self) -> None:
        for relay in self._running:
            relay.abort()

    def _end(self) -> None:
        self._log.info("stopped")
        self._ended()
