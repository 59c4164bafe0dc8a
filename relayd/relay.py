"""A relay: one source end, one pipeline each way, its destination ends.

There are no modes here. The configuration has turned the mode into two roles, the build has made
endpoints of the roles, and from there on every relay is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relayd.endpoints.endpoint import Endpoint
from relayd.errors import StartError
from relayd.inlet import Inlet
from relayd.observe.counters import Counters
from relayd.observe.log import BoundLog
from relayd.outlet import Outlet
from relayd.pipeline import Pipeline

_NO_TAKER = "no taker"  # the pipeline's holder while an unpaced replay has nobody to send to


class Relay:
    """One named stream, from `open` to the call of `stopped`."""

    def __init__(
        self, name: str, pipeline: Pipeline, counters: Counters, log: BoundLog, close_with_source: bool, unpaced: bool
    ) -> None:
        """`unpaced`: the source is as fast as it is read, so it is not read while nobody takes it."""
        self.name = name
        self.counters = counters
        self._pipeline = pipeline
        self._log = log
        self._close_with_source = close_with_source
        self._unpaced = unpaced
        self._stopped: Callable[[], None] | None = None
        self._inlet: Inlet
        self._outlets: Sequence[Outlet] = ()
        self._endpoints: Sequence[Endpoint] = ()

    def complete(self, inlet: Inlet, outlets: Sequence[Outlet], endpoints: Sequence[Endpoint]) -> None:
        """Take the ends, which were built with `source_lost` and `links_changed` in their hands."""
        self._inlet = inlet
        self._outlets = outlets
        self._endpoints = endpoints
        self.links_changed()

    @property
    def source_up(self) -> bool:
        """Whether there is a live source link."""
        return self._inlet.link is not None

    def open(self) -> None:
        """Take every port; raises StartError with all that could not be had, and then holds none."""
        reasons: list[str] = []
        for endpoint in self._endpoints:
            try:
                endpoint.open()
            except StartError as error:
                reasons += error.reasons
        if reasons:
            self.stop_endpoints()
            raise StartError([f"[relay {self.name}] {reason}" for reason in reasons])

    def start(self) -> None:
        """Let links come and go."""
        for endpoint in self._endpoints:
            endpoint.start()

    def stop_endpoints(self) -> None:
        """Let no link come any more, and give the ports back."""
        for endpoint in self._endpoints:
            endpoint.stop()

    def stop(self, stopped: Callable[[], None]) -> None:
        """End gracefully: read no more, send what waits, close. `stopped()` is called when no link is left."""
        self._stopped = stopped
        self.stop_endpoints()
        self._inlet.finish()
        for outlet in self._outlets:
            outlet.stop()
        self.links_changed()

    def abort(self) -> None:
        """End at once: every link is reset."""
        self._inlet.abort()
        for outlet in self._outlets:
            outlet.abort()

    # -- told by the ends -----------------------------------------------------------------------

    def source_lost(self) -> None:
        """There is no live source link any more."""
        if self._close_with_source and self._stopped is None:
            for outlet in self._outlets:
                outlet.finish("source_lost")

    def links_changed(self) -> None:
        """A link has come or gone, at either end."""
        taken = any(outlet.links for outlet in self._outlets)
        if self._unpaced and not taken:
            self._pipeline.hold(_NO_TAKER)
        else:
            self._pipeline.release(_NO_TAKER)
        if self._stopped is not None and not taken and not self._inlet.links:
            stopped, self._stopped = self._stopped, None
            stopped()
