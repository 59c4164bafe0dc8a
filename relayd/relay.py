"""A relay: one source end, one pipeline each way, its destination ends.

There are no modes here. The configuration has turned the mode into two roles, the build has made
endpoints of the roles, and from there on every relay is the same.

A changed configuration makes a new relay, which inherits what it can of the old one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from relayd.endpoints.endpoint import Endpoint
from relayd.errors import StartError
from relayd.inlet import Inlet
from relayd.observe.counters import Counters
from relayd.observe.dump import TO_DESTINATION, TO_SOURCE, Dump
from relayd.outlet import Outlet
from relayd.pipeline import Pipeline, Tap
from relayd.sink import Sink
from relayd.status import destination_statuses, source_status

_NO_TAKER = "no taker"  # the pipeline's holder while an unpaced replay has nobody to send to


@dataclass(frozen=True)
class Destination:
    """One destination end: where its links go, and where they come from."""

    outlet: Outlet
    endpoint: Endpoint


class Relay:
    """One named stream, from `open` to the call of `stopped`."""

    def __init__(
        self,
        name: str,
        forward: Pipeline,
        backward: Pipeline,
        counters: Counters,
        close_with_source: bool,
        unpaced: bool,
        changed: Callable[[], None],
    ) -> None:
        """`unpaced`: the source is as fast as it is read, so it is not read while nobody takes it.

        `changed()` is called after each link that came or went.
        """
        self.name = name
        self.counters = counters
        self._forward = forward
        self._backward = backward
        self._close_with_source = close_with_source
        self._unpaced = unpaced
        self._changed = changed
        self._stopped: Callable[[], None] | None = None
        self._stopping = False
        self._end_reason = "stopped"  # of the links
        # Those that this has inherited from, each while it drains what it kept; the service holds it until then.
        self._formers: list[weakref.ref[Relay]] = []
        self._dump: Dump | None = None
        self._watchers: dict[object, tuple[Tap, Tap]] = {}
        self._inlet: Inlet
        self._source: Endpoint
        self._destinations: Sequence[Destination] = ()

    def complete(self, inlet: Inlet, source: Endpoint, destinations: Sequence[Destination], dump: Dump | None) -> None:
        """Take the ends, which were built with `source_lost` and `links_changed` in their hands."""
        self._inlet = inlet
        self._source = source
        self._destinations = destinations
        self._dump = dump
        if dump is not None:
            self._add_taps(_taps(dump))
        self._match_demand()

    @property
    def source_up(self) -> bool:
        """Whether there is a live source link."""
        return self._inlet.link is not None

    @property
    def _endpoints(self) -> list[Endpoint]:
        # The destinations first: who comes at once misses nothing of what the source has to say.
        return [*(destination.endpoint for destination in self._destinations), self._source]

    # -- life -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Take every port and file; raises StartError with all that could not be had, and then holds none."""
        reasons: list[str] = []
        for take in (*(endpoint.open for endpoint in self._endpoints), *([self._dump.open] if self._dump else [])):
            try:
                take()
            except StartError as error:
                reasons += error.reasons
        if reasons:
            self.discard()
            raise StartError([f"[relay {self.name}] {reason}" for reason in reasons])

    def discard(self) -> None:
        """Give back what `open` took, if only a part: the relay will not start."""
        self.stop_endpoints()
        if self._dump is not None:
            self._dump.close()

    def stop_endpoints(self) -> None:
        """Let no link come any more, and give the ports back."""
        for endpoint in self._endpoints:
            endpoint.stop()

    def start(self) -> None:
        """Let links come and go."""
        for endpoint in self._endpoints:
            endpoint.start()

    def inherit(self, former: Relay, keeps_source: bool, keeps_destination: Callable[[object], bool]) -> None:
        """Take over from the relay of the configuration before: before `start`, after its endpoints stopped."""
        self._formers = [weakref.ref(relay) for relay in (former, *former._living_formers())]
        if keeps_source:
            self._source.follow(former._source)
            self._inlet.adopt(former._inlet, self._source)
        else:
            former._inlet.conclude()
        for destination in self._destinations:
            for other in former._destinations:
                if other.outlet.address == destination.outlet.address and keeps_destination(other.outlet.address):
                    destination.endpoint.follow(other.endpoint)
                    destination.outlet.adopt(other.outlet, destination.endpoint)
        for key, taps in former._watchers.items():
            former._remove_taps(taps)
            self._watchers[key] = self._add_taps(taps)
        former._watchers = {}
        self._match_demand()

    def stop(self, stopped: Callable[[], None], reason: str = "stopped") -> None:
        """End gracefully: read no more, send what waits, close. `stopped()` is called when no link is left."""
        self._stopped = stopped
        self._end_reason = reason
        self._stopping = True
        self.stop_endpoints()
        self._inlet.finish(reason)
        for destination in self._destinations:
            destination.outlet.stop(reason)
        self.links_changed()

    def abort(self) -> None:
        """End at once: every link is reset."""
        self._inlet.abort(self._end_reason)
        for destination in self._destinations:
            destination.outlet.abort(self._end_reason)

    # -- told by the ends -----------------------------------------------------------------------

    def source_lost(self, reason: str) -> None:
        """There is no live source link any more. An error is not shown to the other side as a clean end."""
        if self._close_with_source and not self._stopping:
            for destination in self._destinations:
                end = destination.outlet.finish if reason == "eof" else destination.outlet.break_off
                end("source_lost")

    def links_changed(self) -> None:
        """A link has come or gone, at either end."""
        taken = self._match_demand()
        if self._stopped is not None and not taken and not self._inlet.links:
            stopped, self._stopped = self._stopped, None
            if self._dump is not None:
                self._dump.close()
            stopped()
        self._changed()

    def _match_demand(self) -> bool:
        """Hold an unpaced source while there is nobody to send to; return whether there is somebody."""
        taken = any(destination.outlet.links for destination in self._destinations)
        if self._unpaced and not taken:
            self._forward.hold(_NO_TAKER)
        else:
            self._forward.release(_NO_TAKER)
        return taken

    # -- what is seen -----------------------------------------------------------------------------

    def reopen_dump(self) -> None:
        """Go on in a new file, because the old one was renamed."""
        if self._dump is not None:
            self._dump.reopen()

    def watch(self, key: object, dump: Dump) -> None:
        """Show what passes in another dump, too, until `unwatch`."""
        self._watchers[key] = self._add_taps(_taps(dump))

    def unwatch(self, key: object) -> None:
        """Undo `watch`; harmless when it has been undone."""
        taps = self._watchers.pop(key, None)
        if taps is not None:
            self._remove_taps(taps)

    @property
    def peers(self) -> list[str]:
        """What the other sides of all links are called."""
        sources = [link.peer for link in self._inlet.links]
        return sources + [link.peer for destination in self._destinations for link in destination.outlet.links]

    def kick(self, peer: str) -> int:
        """Reset the links of a peer; return how many there were."""
        return self._inlet.kick(peer) + sum(destination.outlet.kick(peer) for destination in self._destinations)

    def status(self, now: float) -> dict[str, Any]:
        """Return a snapshot, as JSON has it; `now` is the reactor's time."""
        return {
            "name": self.name,
            "source": source_status(self._inlet, self._source, now),
            "destinations": [
                link
                for destination in self._destinations
                for link in destination_statuses(destination.outlet, destination.endpoint, now)
            ],
            "totals": self.counters.snapshot(self._sinks()),
        }

    def _sinks(self) -> list[Sink]:
        """Return the sinks whose counts are not yet in the totals, those included that are being drained."""
        return [
            sink
            for relay in (self, *self._living_formers())
            for destination in relay._destinations
            for sink in destination.outlet.sinks
        ]

    def _living_formers(self) -> list[Relay]:
        return [relay for relay in (former() for former in self._formers) if relay is not None]

    def _add_taps(self, taps: tuple[Tap, Tap]) -> tuple[Tap, Tap]:
        self._forward.taps += (taps[0],)
        self._backward.taps += (taps[1],)
        return taps

    def _remove_taps(self, taps: tuple[Tap, Tap]) -> None:
        self._forward.taps = tuple(tap for tap in self._forward.taps if tap is not taps[0])
        self._backward.taps = tuple(tap for tap in self._backward.taps if tap is not taps[1])


def _taps(dump: Dump) -> tuple[Tap, Tap]:
    """Return the taps that show a dump what goes forward and what comes back."""
    return (
        lambda chunk, peer: dump.show(chunk, TO_DESTINATION, peer),
        lambda chunk, peer: dump.show(chunk, TO_SOURCE, peer),
    )
