"""The source end of a relay: at most one live link, whose records go down the pipeline."""

from __future__ import annotations

from collections.abc import Callable

from relayd.endpoints.endpoint import Endpoint, LinkTransport
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.transport import TransportProtocol
from relayd.observe.counters import Counters
from relayd.observe.log import BoundLog
from relayd.pipeline import Pipeline
from relayd.sink import Sink
from relayd.wire.framing import Framer


class SourceLink:
    """The source's connection: what it sends is framed and passed on."""

    def __init__(self, inlet: Inlet, endpoint: Endpoint, transport: LinkTransport, framer: Framer) -> None:
        self._inlet = inlet
        self.endpoint = endpoint
        self.transport = transport
        self.framer = framer
        self.peer = endpoint.peer_name(transport)
        self.log = inlet.log.bind(source=self.peer)

    def data_received(self, data: bytes) -> None:
        self._inlet.received(self, data)

    def eof_received(self) -> None:
        """A source that ends is gone: it is reconnected, or the next one is awaited."""
        self._inlet.release(self)
        self.transport.close("eof")

    def ready_to_send(self) -> None:
        self._inlet.sink.flush()

    def connection_lost(self, reason: str) -> None:
        self._inlet.link_lost(self, reason)

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()


class Inlet:
    """Owns the source links; `link` is the live one, the others are on their way out."""

    def __init__(
        self,
        reactor: Reactor,
        pipeline: Pipeline,
        sink: Sink,
        framer: Callable[[], Framer],
        counters: Counters,
        log: BoundLog,
        replace: bool,
        idle_timeout: float,
        changed: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        """`sink` takes what goes back to the source. `idle_timeout` in seconds, 0: a source may be silent.

        `changed()` is called after each link that has gone, `lost()` when there is no live one any more.
        """
        self.sink = sink
        self.log = log
        self.link: SourceLink | None = None
        self.links: set[SourceLink] = set()
        self._reactor = reactor
        self._pipeline = pipeline
        self._framer = framer
        self._counters = counters
        self._replace = replace
        self._idle_timeout = idle_timeout
        self._idle_timer: TimerHandle | None = None
        self._changed = changed
        self._lost = lost

    # -- for endpoints --------------------------------------------------------------------------

    def refusal(self) -> str:
        """Return why no further source may come in now, "" where it may."""
        return "second_source" if self.link is not None and not self._replace else ""

    def link_made(self, transport: LinkTransport, endpoint: Endpoint) -> TransportProtocol:
        """A source has come up: it is the live one, whoever was before."""
        if self.link is not None:
            replaced = self.link
            self.release(replaced)
            replaced.transport.close("replaced")
        link = SourceLink(self, endpoint, transport, self._framer())
        self.link = link
        self.links.add(link)
        self._counters.source_links += 1
        link.log.info("connected")
        self._pipeline.add_producer(link)
        self.sink.attach(transport)
        if self._idle_timeout:
            self._idle_timer = self._reactor.call_later(self._idle_timeout, self._check_idle)
        return link

    # -- for links ------------------------------------------------------------------------------

    def received(self, link: SourceLink, data: bytes) -> None:
        """The link has read something; only the live one does."""
        framer = link.framer
        chunk = framer.feed(data)
        if chunk:
            self._counters.bytes_in += len(chunk)
            self._pipeline.put(chunk, link.peer)

    def release(self, link: SourceLink) -> None:
        """The link is no longer the source; a record it was cut in is thrown away."""
        if link is not self.link:
            return
        self.link = None
        self._pipeline.remove_producer(link)
        self.sink.detach()
        link.framer.reset()
        self._counters.unframed += link.framer.unframed
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def link_lost(self, link: SourceLink, reason: str) -> None:
        """The link's descriptor is closed."""
        self.release(link)
        self.links.discard(link)
        transport = link.transport
        lived = self._reactor.now - transport.since
        link.log.info("closed", reason=reason, received=transport.bytes_read, up=round(lived, 1))
        if self.link is None:
            self._lost()
        link.endpoint.link_lost(transport, reason)
        self._changed()

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """Read no more; let go of the source once what goes back to it is sent."""
        link = self.link
        if link is None:
            return
        self._pipeline.remove_producer(link)
        link.transport.pause_reading()
        self.sink.finish("stopped")

    def abort(self) -> None:
        """Reset every link."""
        for link in self.links:
            link.transport.abort("stopped")

    def _check_idle(self) -> None:
        timer, link = self._idle_timer, self.link
        assert timer is not None and link is not None
        now = self._reactor.now
        silent = now - link.transport.last_read
        wait = self._idle_timeout - silent
        # While we do not read, the silence is ours; a timer that comes late tells of our loop as well.
        if self._pipeline.held or now - timer.when > self._idle_timeout / 2:
            wait = self._idle_timeout
        if wait <= 0:
            self._idle_timer = None
            link.transport.close("idle")
        else:
            self._idle_timer = self._reactor.call_later(wait, self._check_idle)
