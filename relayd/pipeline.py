"""One direction of a relay: producers -> taps -> sinks.

The stream's producer is the source link, its sinks are the destinations; for what comes back it is
the other way round.  One class serves both.

A sink whose queue is full under `overflow = block` holds the pipeline: all producers stop reading,
and the kernel's windows carry the news to the peers.  Whoever holds must release.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

from relayd.net.pipe import Pipe
from relayd.net.reactor import Reactor, TimerHandle
from relayd.net.transport import Buffer
from relayd.tape import Tape
from relayd.wire.chunk import Chunk

# Sinks that get a chunk in one turn. Some ten thousand sends take a tenth of a second, and every other relay of the
# process would wait so long; this many take a few milliseconds.
SWEEP = 1000

_SWEEPING = "sweeping"  # the pipeline's holder while not all have got a chunk

Tap = Callable[[bytes, str], None]  # a chunk, and the peer it came from


class Pushed(Protocol):
    """The part of a transport that a chunk is pushed into."""

    def push(self, data: Buffer, /) -> int:
        """See Transport.push."""

    def push_failed(self, error: OSError) -> None:
        """See Transport.push_failed."""


class Consumer(Protocol):
    """Where a pipeline ends: a Sink; or the stream's History."""

    sent: int  # bytes that links took

    @property
    def idle(self) -> Pushed | None:
        """Its link, if it is up and nothing waits: a chunk may be pushed into it."""

    def put(self, chunk: Chunk) -> None:
        """Take a run of whole records."""

    def put_rest(self, chunk: Chunk, sent: int) -> None:
        """Take what is left of a chunk of which `idle` took `sent` bytes only."""

    def splice(self, source: Incoming) -> int:
        """Take what has come from a source without it being read; return the bytes, -1 where it must be read."""


class Incoming(Protocol):
    """The part of a transport that is spliced from."""

    def read_into(self, pipe: Pipe, limit: int) -> int:
        """See Transport.read_into."""


class Producer(Protocol):
    """A link whose input goes into a pipeline."""

    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`."""

    def resume_reading(self) -> None:
        """Go on."""


class Pipeline:
    """Hands each chunk to every tap and sink."""

    def __init__(self, reactor: Reactor, seen: bool = True) -> None:
        """`seen`: the bytes have to come into the process, as they do for any framing."""
        self._reactor = reactor
        self.seen = seen
        self.tape = Tape()
        self.sinks: dict[Consumer, None] = {}  # ordered, and left in one step
        self.taps: tuple[Tap, ...] = ()
        self._producers: set[Producer] = set()
        self._holders: set[Hashable] = set()
        self._newest: Chunk | None = None  # while some are left who have not got it
        self._left: list[Consumer] = []
        self._next_sweep: TimerHandle | None = None

    @property
    def held(self) -> bool:
        """Whether producers are paused."""
        return bool(self._holders)

    def put(self, data: bytes, records: int, peer: str) -> None:
        """Pass on a run of whole records, so many of them, that came from `peer`."""
        if self._newest is not None:
            self.settle()
        for tap in self.taps:
            tap(data, peer)
        chunk = Chunk(data, records, self._reactor.now)
        if len(self.sinks) <= SWEEP:
            self._deliver(chunk, self.sinks)
        else:
            self._newest, self._left = chunk, list(self.sinks)
            self.hold(_SWEEPING)
            self._sweep(SWEEP)

    def settle(self) -> None:
        """Let all that are left have the newest chunk, now: another comes, or a sink is about to leave in peace."""
        if self._newest is not None:
            self._sweep(len(self._left))

    def _sweep(self, count: int = SWEEP) -> None:
        """Deliver the newest chunk to so many of those that are left; the producers wait for the others."""
        assert self._newest is not None
        takers, self._left = self._left[:count], self._left[count:]
        self._deliver(self._newest, [sink for sink in takers if sink in self.sinks])
        if self._next_sweep is not None:
            self._next_sweep.cancel()
        if self._left:
            self._next_sweep = self._reactor.call_later(0.0, self._sweep)
        else:
            self._newest = self._next_sweep = None
            self.release(_SWEEPING)

    def _deliver(self, chunk: Chunk, sinks: Iterable[Consumer]) -> None:
        data, size = chunk.data, len(chunk.data)
        # The hot loop. What it costs for one of a thousand links is one system call and no Python frame.
        # No copy of the list: links are added and removed between deliveries, never within one,
        # because the reactor tells of a lost link at the end of its turn.
        for sink in sinks:
            link = sink.idle
            if link is None:
                sink.put(chunk)
                continue
            push = link.push  # an attribute that is called at once is looked up the slow way
            try:
                taken = push(data)
            except OSError as error:
                link.push_failed(error)
                taken = 0
            sink.sent += taken
            if taken != size:
                sink.put_rest(chunk, taken)

    @property
    def direct(self) -> bool:
        """Whether the bytes may go past the process: there is one sink, and nobody looks on."""
        return not (self.seen or self.taps) and len(self.sinks) == 1

    def splice(self, source: Incoming) -> int:
        """Pass on what has come from a source without reading it; return the bytes, -1 where it must be read."""
        if not self.direct:
            return -1
        (sink,) = self.sinks
        return sink.splice(source)

    def add_producer(self, producer: Producer) -> None:
        """A link's input comes here from now on; it is paused where the pipeline is held."""
        self._producers.add(producer)
        if self._holders:
            producer.pause_reading()
        else:
            producer.resume_reading()

    def remove_producer(self, producer: Producer) -> None:
        """The link is gone, or will send no more; harmless when it was never added."""
        self._producers.discard(producer)

    def is_held_by(self, holder: Hashable) -> bool:
        """Whether `holder` is one of those that have not released."""
        return holder in self._holders

    def hold(self, holder: Hashable) -> None:
        """Read nothing more until every holder has released."""
        if not self._holders:
            for producer in self._producers:
                producer.pause_reading()
        self._holders.add(holder)

    def release(self, holder: Hashable) -> None:
        """Undo `hold`; harmless when there is none."""
        if holder not in self._holders:
            return
        self._holders.remove(holder)
        if not self._holders:
            for producer in self._producers:
                producer.resume_reading()
