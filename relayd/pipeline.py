"""One direction of a relay: producers -> taps -> sinks.

The stream's producer is the source link, its sinks are the destinations; for what comes back it is
the other way round.  One class serves both.

A sink whose queue is full under `overflow = block` holds the pipeline: all producers stop reading,
and the kernel's windows carry the news to the peers.  Whoever holds must release.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

from relayd.net.pipe import Pipe
from relayd.net.reactor import Reactor
from relayd.net.transport import Buffer
from relayd.tape import Tape
from relayd.wire.chunk import Chunk

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

    @property
    def held(self) -> bool:
        """Whether producers are paused."""
        return bool(self._holders)

    def put(self, data: bytes, records: int, peer: str) -> None:
        """Pass on a run of whole records, so many of them, that came from `peer`."""
        for tap in self.taps:
            tap(data, peer)
        chunk = Chunk(data, records, self._reactor.now)
        size = len(data)
        # The hot loop. What it costs for one of a thousand links is one system call and no Python frame.
        # No copy of the list: links are added and removed between deliveries, never within one,
        # because the reactor tells of a lost link at the end of its turn.
        for sink in self.sinks:
            link = sink.idle
            if link is None:
                sink.put(chunk)
                continue
            try:
                taken = link.push(data)
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
