"""The source end of a relay: at most one live link, whose records go down the pipeline."""

from __future__ import annotations

from collections.abc import Callable

from relayd.endpoints.endpoint import Endpoint, LinkProtocol, LinkTransport
from relayd.net.reactor import Reactor, TimerHandle
from relayd.observe.counters import Counters
from relayd.observe.log import BoundLog
from relayd.pipeline import Pipeline
from relayd.sink import Sink, SinkSettings
from relayd.wire.framing import Framer, mostly_noise

# Those that were replaced and are on their way out included: one that is replaced again and again (two feeders
# that fight, a loop through another daemon) must not take all descriptors.
_LINKS_MAX = 16

# Why a source has ended that somebody wanted to end; any other end is one that somebody should look at.
_WANTED_ENDS = frozenset({"stopped", "removed", "changed", "kicked"})


class SourceLink:
    """The source's connection: what it sends is framed and passed on."""

    def __init__(self, inlet: Inlet, endpoint: Endpoint, transport: LinkTransport, framer: Framer) -> None:
        self.inlet = inlet
        self.endpoint = endpoint
        self.transport = transport
        self.framer = framer
        self.peer = endpoint.peer_name(transport)
        self.log = inlet.log.bind(source=self.peer)
        self.reading_since = inlet.now  # before that, silence was ours
        self.replaced = False  # another came in its place
        self.concluded = False  # nothing more is read of it
        self.due: int | None = None  # once another waits to come in: the bytes to be read of this one before

    def data_received(self, data: bytes) -> None:
        run = self.framer.feed(data)
        if self.framer.unframed and mostly_noise(self.framer, data):
            self.transport.read_little()
        self.pass_on(run)

    def pass_on(self, run: bytes) -> None:
        """Pass on what the framer returned; count what it left out."""
        framer, inlet = self.framer, self.inlet
        counters = inlet.counters
        if framer.unframed:
            counters.unframed += framer.take_unframed()
        if run:
            counters.bytes_in += len(run)
            counters.records_in += framer.records
            inlet.pipeline.put(run, framer.records, self.peer)

    def bulk_received(self) -> bool:
        """Much has come: pass it on without reading it, if that can be done."""
        return self.inlet.passed_on(self)

    def interrupted(self) -> None:
        """The record that was cut is thrown away, and what waited behind it passed on."""
        self.pass_on(self.framer.finish())

    def eof_received(self) -> None:
        """A source that ends is gone: it is reconnected, or the next one is awaited."""
        self.inlet.release(self)
        self.transport.close("eof")

    def ready_to_send(self) -> None:
        self.inlet.sink.flush()

    def connection_lost(self, reason: str) -> None:
        self.inlet.link_lost(self, reason)

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.reading_since = self.inlet.now
        self.transport.resume_reading()


class Inlet:
    """Owns the source links; `link` is the live one, the others are on their way out."""

    def __init__(
        self,
        reactor: Reactor,
        pipeline: Pipeline,
        sinks: SinkSettings,
        framer: Callable[[], Framer],
        counters: Counters,
        log: BoundLog,
        replace: bool,
        idle_timeout: float,
        changed: Callable[[], None],
        lost: Callable[[str], None],
        coalesce: float = 0.0,
    ) -> None:
        """`sinks` is for what goes back to the source. `idle_timeout` in seconds, 0: a source may be silent.
        `coalesce`: seconds between two reads of small pieces.

        `changed()` is called after each link that came or went, `lost(reason)` when there is no live one any
        more.
        """
        self.sink = Sink(sinks, log)
        sinks.pipeline.sinks[self.sink] = None
        self.log = log
        self.link: SourceLink | None = None
        self.links: set[SourceLink] = set()
        self.last_reason = ""  # why the last link ended
        self.changed_at = reactor.now  # when the live link came, or went
        self._reactor = reactor
        self._sinks = sinks
        self.pipeline = pipeline
        self._framer = framer
        self.counters = counters
        self._replace = replace
        self._idle_timeout = idle_timeout
        self._idle_timer: TimerHandle | None = None
        self._coalesce = coalesce
        self._changed = changed
        self._lost = lost

    @property
    def now(self) -> float:
        """The reactor's time."""
        return self._reactor.now

    # -- for endpoints --------------------------------------------------------------------------

    def is_behind(self) -> bool:
        """Return whether further sources are to wait: what this one has sent comes first, and there is no room for it.

        Each that came would otherwise push as much as the kernel holds of the one before over the queues' limits.
        """
        if len(self.links) >= _LINKS_MAX:
            return True
        link = self.link
        if link is None:
            return False
        if not self.pipeline.held:
            link.due = None
            return False
        if link.due is None:
            link.due = link.transport.bytes_read + link.transport.unread()
        if link.transport.bytes_read < link.due:
            return True
        link.due = None
        return False

    def refusal(self) -> str:
        """Return why no further source may come in now, "" where it may."""
        if self.link is not None and not self._replace:
            self.link.transport.drain()  # it may have ended, and be the one that comes back
        return "second_source" if self.link is not None and not self._replace else ""

    def link_made(self, transport: LinkTransport, endpoint: Endpoint) -> LinkProtocol:
        """A source has come up: it is the live one, whoever was before."""
        if self.link is not None:
            self.link.transport.drain()  # what a source has sent before it restarted comes first
        if self.link is not None:
            former = self.link
            former.replaced = True
            self.release(former)
            former.transport.close("replaced")
        link = SourceLink(self, endpoint, transport, self._framer())
        self.link = link
        self.links.add(link)
        self.changed_at = self._reactor.now
        self.counters.source_links += 1
        link.log.info("connected")
        transport.feeds = True
        transport.on_bulk = link.bulk_received
        transport.coalesce(self._coalesce)
        self.pipeline.add_producer(link)
        self.sink.attach(transport)
        self._watch_idle()
        self._changed()
        return link

    def adopt(self, former: Inlet, endpoint: Endpoint) -> None:
        """Take over the live link of the configuration before, and what waits to go back to the source."""
        former.sink.move(self._sinks, self.log)
        del self._sinks.pipeline.sinks[self.sink]
        self.sink, former.sink = former.sink, self.sink
        self.last_reason = former.last_reason
        link = former.hand_over()
        if link is None:
            return
        endpoint.adopt(link.transport, link.endpoint)
        link.inlet, link.endpoint = self, endpoint
        link.framer.max_record = self._framer().max_record
        link.transport.coalesce(self._coalesce)
        self.link = link
        self.links.add(link)
        self.changed_at = former.changed_at
        self.pipeline.add_producer(link)
        self._watch_idle()

    def hand_over(self) -> SourceLink | None:
        """Let go of the live link without ending it (for `adopt`)."""
        link, self.link = self.link, None
        if link is not None:
            self.links.discard(link)
            self.pipeline.remove_producer(link)
            self._stop_watching_idle()
        return link

    @property
    def records(self) -> int:
        """Records that have come so far; 0 with a framing that has none."""
        return self.counters.records_in

    # -- for links ------------------------------------------------------------------------------

    def passed_on(self, link: SourceLink) -> bool:
        """Pass on what the link has to be read without reading it; return whether that could be done."""
        moved = self.pipeline.splice(link.transport)
        if moved > 0:
            self.counters.bytes_in += moved
            self.counters.spliced += moved
        return moved >= 0

    def release(self, link: SourceLink) -> None:
        """The link is no longer the source; a record it was cut in is thrown away."""
        if link is not self.link:
            return
        self.link = None
        self.pipeline.remove_producer(link)
        self.sink.detach()
        link.interrupted()
        self.changed_at = self._reactor.now
        self._stop_watching_idle()

    def link_lost(self, link: SourceLink, reason: str) -> None:
        """The link's descriptor is closed."""
        self.release(link)
        self.links.discard(link)
        transport = link.transport
        lived = self._reactor.now - transport.since
        link.log.info("closed", reason=reason, received=transport.bytes_read, up=round(lived, 1))
        if not link.replaced:
            self.last_reason = reason
            if self.link is None:
                if reason not in _WANTED_ENDS:
                    self.log.burst("source_lost", reason=reason)
                self._lost(reason)
        link.endpoint.link_lost(transport, reason)
        self._changed()

    def conclude(self) -> None:
        """Read no more of the source, for it is given up; what has come by now, and was not passed on, is."""
        link = self.link
        if link is None or link.concluded:
            return
        link.concluded = True
        if self._coalesce and not self.pipeline.held:
            link.transport.drain()
        if self.link is None:  # the end had come, too
            return
        self.pipeline.remove_producer(link)
        link.transport.pause_reading()
        link.interrupted()

    # -- the end --------------------------------------------------------------------------------

    def finish(self, reason: str = "stopped") -> None:
        """Read no more; let go of the source once what goes back to it is sent."""
        self.conclude()
        if self.link is not None:
            self.sink.finish(reason)

    def abort(self, reason: str = "stopped") -> None:
        """Reset every link."""
        for link in self.links:
            link.transport.abort(reason)

    def kick(self, peer: str) -> int:
        """Reset the links of a peer; return how many there were."""
        kicked = [link for link in self.links if link.peer == peer]
        for link in kicked:
            link.transport.abort("kicked")
        return len(kicked)

    def _watch_idle(self) -> None:
        if self._idle_timeout:
            self._idle_timer = self._reactor.call_later(self._idle_timeout, self._check_idle)

    def _stop_watching_idle(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def _check_idle(self) -> None:
        timer, link = self._idle_timer, self.link
        assert timer is not None and link is not None
        now = self._reactor.now
        silent = now - max(link.transport.last_read, link.reading_since)
        wait = self._idle_timeout - silent
        # While we do not read, the silence is ours; a timer that comes late tells of our loop as well.
        if self.pipeline.held or now - timer.when > self._idle_timeout / 2:
            wait = self._idle_timeout
        if wait <= 0:
            self.release(link)
            link.transport.close("idle")
        else:
            self._idle_timer = self._reactor.call_later(wait, self._check_idle)
