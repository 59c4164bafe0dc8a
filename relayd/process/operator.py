"""What relayctl may ask of a running daemon."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from relayd.controller import RefusedError
from relayd.errors import listed, nearest_first
from relayd.net.reactor import Reactor
from relayd.observe.dump import FORMATS, Dump, DumpTarget
from relayd.observe.log import EventLog
from relayd.process.reloader import Reloader
from relayd.relay import Relay
from relayd.service import Service


class Operator:
    """Answers the controller; see relayd.controller.Controlled."""

    def __init__(
        self, reactor: Reactor, service: Service, reloader: Reloader, log: EventLog, stop: Callable[[], None]
    ) -> None:
        self._reactor = reactor
        self._service = service
        self._reloader = reloader
        self._log = log
        self._stop = stop

    def status(self, relay: str | None = None) -> dict[str, Any]:
        """Return the whole snapshot, or that of one relay beside what there is of the daemon."""
        if relay is not None:
            self._relay(relay)
        lag, reloader = self._reactor.lag, self._reloader
        return {
            "pid": os.getpid(),
            "loop_lag": {"last": round(lag.last, 4), "max": round(lag.max, 4)},
            "loop": {"timers": self._reactor.timers, "watched": self._reactor.watched},
            "config": {"path": self._service.config.path, "loaded_at": round(reloader.loaded_at, 3)},
            "reload": {"failed": bool(reloader.failure), "error": reloader.failure},
            **self._service.status(relay),
        }

    def reload(self, ended: Callable[[dict[str, Any] | RefusedError], None]) -> None:
        """Read the configuration again; `ended(the answer's fields, or why not)` is called when that is over."""

        def told(reasons: Sequence[str]) -> None:
            plan = self._reloader.plan
            done = {"summary": self._service.summary(), **(plan.names if plan is not None else {})}
            ended(RefusedError("\n".join(reasons)) if reasons else done)

        self._reloader.reload(told)

    def stop(self) -> dict[str, Any]:
        """Stop gracefully, as SIGTERM does, once the answer is under way."""
        self._reactor.call_later(0.0, self._stop)
        return {}

    def kick(self, relay: str, peer: str) -> dict[str, Any]:
        """Reset the links of a peer."""
        found = self._relay(relay)
        links = found.kick(peer)
        if not links:
            near = listed([other for other in found.peers if _host(other) == _host(peer)])
            cure = f"of that host there are {near}" if near else f"`relayctl status {relay}` shows them, as host:port"
            raise RefusedError(f"relay {relay} has no peer {peer}; {cure}")
        return {"links": links}

    def watch(self, relay: str, style: str, target: DumpTarget) -> Callable[[], None]:
        """Dump to the target until the function that is returned is called."""
        if style not in FORMATS:
            raise RefusedError(f"unknown format '{style}'; there are {', '.join(FORMATS)}")
        dump = Dump(relay, style, target, self._log.bind(relay=relay))
        self._relay(relay).watch(dump, dump)

        def unwatch() -> None:
            # A reload may have put another relay in the place of the one that was asked for.
            for found in self._service.relays:
                found.unwatch(dump)

        return unwatch

    def _relay(self, name: str) -> Relay:
        relays = {relay.name: relay for relay in self._service.relays}
        if name not in relays:
            known = listed(nearest_first(name, list(relays)))
            raise RefusedError(f"there is no relay '{name}'; " + (f"there are {known}" if known else "there is none"))
        return relays[name]


def _host(peer: str) -> str:
    """Return what a peer's name has beside the port, which somebody may have left off."""
    host, _, port = peer.rpartition(":")
    whole = not host or port.endswith("]") or (":" in host and not host.endswith("]"))  # [::1], and ::1 without them
    return (peer if whole else host).strip("[]")
