"""The destination ends of a relay: links, each with a sink that the pipeline feeds.

`ClientsOutlet` is a listening end: every client that comes has a sink of its own, for as long as it
stays.  `KeptOutlet` is one address that is connected to: its one sink outlives the links.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from relayd.address import Address
from relayd.breakoff import BreakOff
from relayd.endpoints.endpoint import Endpoint, LinkProtocol, LinkTransport
from relayd.history import History
from relayd.net.transport import Transport
from relayd.observe.counters import Counters
from relayd.observe.log import BoundLog
from relayd.returnpath import ReturnPath
from relayd.sink import Sink, SinkSettings
from relayd.trial import HalfCloseTrial

# Why a link was cut that would have had more: somebody should look at it, once for a crowd.
_TOO_SLOW = frozenset({"slow", "stalled"})


class DestinationLink:
    """One destination's connection: it takes the stream, and may send something back."""

    __slots__ = (
        "break_off", "dropped_before", "endpoint", "finishing", "half_closed", "outlet", "peer", "sent_before", "sink",
        "transport",
    )  # fmt: skip

    def __init__(self, outlet: Outlet, endpoint: Endpoint, transport: LinkTransport, peer: str, sink: Sink) -> None:
        self.outlet = outlet
        self.endpoint = endpoint
        self.transport = transport
        self.peer = peer
        self.sink = sink
        self.half_closed = False
        self.finishing = False  # it ends once all that waits for it is sent
        self.break_off: BreakOff | None = None
        self.sent_before = sink.sent
        self.dropped_before = sink.dropped

    def data_received(self, data: bytes) -> None:
        self.outlet.return_path.received(self, data)

    def bulk_received(self) -> bool:
        """Much has come: pass it on without reading it, if that can be done."""
        return self.outlet.return_path.passed_on(self, self.transport)

    @property
    def has_sent(self) -> bool:
        """Whether anything has come from it yet."""
        return bool(self.transport.bytes_read)

    def interrupted(self) -> None:
        """No file is a destination."""

    def eof_received(self) -> None:
        self.half_closed = True
        self.outlet.half_closed(self)

    def ready_to_send(self) -> None:
        self.sink.flush()

    def connection_lost(self, reason: str) -> None:
        self.outlet.link_lost(self, reason)

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()

    def read_little(self) -> None:
        self.transport.read_little()


class Outlet:
    """What both kinds of destination end have in common."""

    role = "destination"  # what the peer is called in the log
    address: Address | None = None  # the one that is connected to

    def __init__(
        self,
        sinks: SinkSettings,
        return_path: ReturnPath,
        counters: Counters,
        log: BoundLog,
        changed: Callable[[], None],
        patience: float,
    ) -> None:
        """`changed()` is called after each link that came or went; `patience`: seconds, see BreakOff."""
        self.links: dict[DestinationLink, None] = {}
        self.return_path = return_path
        self.last_reason = ""  # why the last link ended
        self.changed_at = sinks.reactor.now  # when the last link came or went
        self._reactor = sinks.reactor
        self._pipeline = sinks.pipeline
        self._sinks = sinks
        self._counters = counters
        self._log = log
        self._changed = changed
        self._patience = patience

    # -- what the kinds differ in -----------------------------------------------------------------

    def _sink_for_link(self, log: BoundLog) -> Sink:
        """Return the sink that a new link is to drain; `log` names the link."""
        raise NotImplementedError

    def _sink_left(self, sink: Sink) -> None:
        """The link that drained the sink is gone."""
        raise NotImplementedError

    @property
    def sinks(self) -> list[Sink]:
        """The sinks that the pipeline feeds for this end."""
        raise NotImplementedError

    def _ends(self, link: DestinationLink) -> None:
        """The link is to end with what waits for it now."""

    def half_closed(self, link: DestinationLink) -> None:
        """The link will send nothing more; it may still receive."""
        self.return_path.left(link)

    # -- for endpoints --------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Return whether further links are to wait: they never do, each has a queue of its own."""
        return False

    def refusal(self) -> str:
        """Return why no further link may come in now: there is no reason of the outlet's own."""
        return ""

    def link_made(self, transport: LinkTransport, endpoint: Endpoint) -> LinkProtocol:
        """A destination has come up; it gets the stream from the next record on."""
        peer = endpoint.peer_name(transport)
        log = self._log.bind(**{self.role: peer})
        sink = self._sink_for_link(log)
        link = DestinationLink(self, endpoint, transport, peer, sink)
        self.links[link] = None
        self.changed_at = self._reactor.now
        self._counters.destination_links += 1
        log.info("connected")
        transport.on_bulk = link.bulk_received
        self.return_path.joined(link)
        sink.attach(transport)
        self._changed()
        return link

    def adopt(self, former: Outlet, endpoint: Endpoint) -> None:
        """Take over the links of the configuration before, with their queues."""
        for link in list(former.links):
            del former.links[link]
            endpoint.adopt(link.transport, link.endpoint)
            link.outlet, link.endpoint = self, endpoint
            self.links[link] = None
            self._adopt_sink(link)
            self.return_path.adopt(link, former.return_path)

    def _adopt_sink(self, link: DestinationLink) -> None:
        link.sink.move(self._sinks, self._log.bind(**{self.role: link.peer}))

    # -- for links ------------------------------------------------------------------------------

    def link_lost(self, link: DestinationLink, reason: str) -> None:
        """The link's descriptor is closed."""
        del self.links[link]
        if link.break_off is not None:
            link.break_off.cancel()
        self.last_reason = reason
        self.changed_at = self._reactor.now
        self.return_path.left(link)
        sink = link.sink
        sink.detach()
        self._sink_left(sink)
        transport = link.transport
        log = self._log.bind(**{self.role: link.peer})
        if reason in _TOO_SLOW:
            log.burst("cut", reason=reason)
        log.info(
            "closed",
            reason=reason,
            sent=sink.sent - link.sent_before,
            dropped=sink.dropped - link.dropped_before,
            up=round(self._reactor.now - transport.since, 1),
        )
        link.endpoint.link_lost(transport, reason)
        self._changed()

    # -- the end --------------------------------------------------------------------------------

    def finish(self, reason: str) -> None:
        """Close every link once all that waits for it is sent, but those that are being broken off."""
        for link in self.links:
            if link.break_off is None:
                link.finishing = True
                link.sink.finish(reason)
                self._ends(link)

    def break_off(self, reason: str) -> None:
        """Reset every link once all that waits for it is there: what ends is not the stream.

        Not those that are finishing: their stream has ended before.
        """
        self._pipeline.settle()
        for link in self.links:
            if link.break_off is None and not link.finishing:
                link.break_off = BreakOff(self._reactor, link.sink, link.transport, reason, self._patience)
                self._ends(link)

    def stop(self, reason: str = "stopped") -> None:
        """Close every link, for there will be no other."""
        self.finish(reason)

    def kick(self, peer: str) -> int:
        """Reset the links of a peer; return how many there were."""
        kicked = [link for link in self.links if link.peer == peer]
        for link in kicked:
            link.transport.abort("kicked")
        return len(kicked)

    def abort(self, reason: str = "stopped") -> None:
        """Reset every link."""
        for link in self.links:
            link.transport.abort(reason)


class ClientsOutlet(Outlet):
    """A listening destination: any number of clients."""

    role = "client"

    def __init__(
        self,
        sinks: SinkSettings,
        return_path: ReturnPath,
        counters: Counters,
        log: BoundLog,
        changed: Callable[[], None],
        patience: float,
        history: History | None = None,
    ) -> None:
        """`history`: what of the past a new client gets first."""
        super().__init__(sinks, return_path, counters, log, changed, patience)
        self._history = history
        if history is not None:
            self._pipeline.sinks[history] = None

    def adopt(self, former: Outlet, endpoint: Endpoint) -> None:
        super().adopt(former, endpoint)
        assert isinstance(former, ClientsOutlet)
        if self._history is not None and former._history is not None:
            self._history.adopt(former._history)

    def stop(self, reason: str = "stopped") -> None:
        super().stop(reason)
        if self._history is not None:
            self._history.end()

    def _sink_for_link(self, log: BoundLog) -> Sink:
        sink = Sink(self._sinks, log)
        if self._history is not None:
            self._history.fill(sink.queue)
        self._pipeline.sinks[sink] = None
        return sink

    def _sink_left(self, sink: Sink) -> None:
        self._pipeline.sinks.pop(sink, None)
        self._counters.add(sink)

    def _ends(self, link: DestinationLink) -> None:
        """What another source sends is not for it: under a steady flow it would never come to its end."""
        self._pipeline.sinks.pop(link.sink, None)
        self._pipeline.release(link.sink)

    @property
    def sinks(self) -> list[Sink]:
        return [link.sink for link in self.links]


class KeptOutlet(Outlet):
    """One address that is connected to, and its sink, which is fed whether or not a link is up."""

    def __init__(
        self,
        sinks: SinkSettings,
        return_path: ReturnPath,
        counters: Counters,
        log: BoundLog,
        changed: Callable[[], None],
        address: Address,
        patience: float,
    ) -> None:
        """`patience`: seconds, see HalfCloseTrial too."""
        super().__init__(sinks, return_path, counters, log.bind(destination=str(address)), changed, patience)
        self.address: Address = address
        self._trial: HalfCloseTrial | None = None
        self._stopping = False
        self.sink = Sink(sinks, self._log)
        self._pipeline.sinks[self.sink] = None

    def adopt(self, former: Outlet, endpoint: Endpoint) -> None:
        super().adopt(former, endpoint)
        assert isinstance(former, KeptOutlet)
        if former.sink in former._pipeline.sinks:  # no link has brought it
            former.sink.move(self._sinks, self._log)
        del self._pipeline.sinks[self.sink]
        self.sink, former.sink = former.sink, self.sink
        self.last_reason, self.changed_at = former.last_reason, former.changed_at
        self._trial, former._trial = former._trial, None

    def _sink_for_link(self, log: BoundLog) -> Sink:
        return self.sink

    def _sink_left(self, sink: Sink) -> None:
        self._end_trial()
        if self._stopping:
            self._retire(sink)

    def half_closed(self, link: DestinationLink) -> None:
        super().half_closed(link)
        transport = cast(Transport, link.transport)  # nothing else than a socket half-closes
        self._trial = HalfCloseTrial(
            self._reactor, self.sink, transport, self._patience, gone=lambda: transport.close("eof")
        )

    def finish(self, reason: str) -> None:
        if self._trial is not None and not any(link.break_off for link in self.links):
            self._trial.finish(reason)
        super().finish(reason)

    def stop(self, reason: str = "stopped") -> None:
        self._stopping = True
        super().stop(reason)
        if not self.links and self.sink.queue.size:
            self._log.warning("undelivered", dropped=self.sink.queue.size)
        if not self.links:
            self._retire(self.sink)

    @property
    def sinks(self) -> list[Sink]:
        return [self.sink] if self.sink in self._pipeline.sinks else []

    def _retire(self, sink: Sink) -> None:
        """There will be no other link: what waits is lost."""
        sink.drop_queue()
        if self._pipeline.sinks.pop(sink, self) is None:
            self._counters.add(sink)

    def _end_trial(self) -> None:
        if self._trial is not None:
            self._trial.cancel()
            self._trial = None
