"""One direction of a relay: producers -> taps -> sinks.

The stream's producer is the source link, its sinks are the destinations; for what comes back it is
the other way round.  One class serves both.

A sink whose queue is full under `overflow = block` holds the pipeline: all producers stop reading,
and the kernel's windows carry the news to the peers.  Whoever holds must release.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Protocol

Tap = Callable[[bytes, str], None]  # a chunk, and the peer it came from


class Consumer(Protocol):
    """Where a pipeline ends: a Sink."""

    def put(self, chunk: bytes) -> None:
        """Take a run of whole records, at once."""


class Producer(Protocol):
    """A link whose input goes into a pipeline."""

    def pause_reading(self) -> None:
        """Deliver nothing until `resume_reading`."""

    def resume_reading(self) -> None:
        """Go on."""


class Pipeline:
    """Hands each chunk to every tap and sink."""

    def __init__(self) -> None:
        self.sinks: dict[Consumer, None] = {}  # ordered, and left in one step
        self.taps: tuple[Tap, ...] = ()
        self._producers: set[Producer] = set()
        self._holders: set[Hashable] = set()

    @property
    def held(self) -> bool:
        """Whether producers are paused."""
        return bool(self._holders)

    def put(self, chunk: bytes, peer: str) -> None:
        """Pass on a run of whole records that came from `peer`."""
        for tap in self.taps:
            tap(chunk, peer)
        # No copy of the list: links are added and removed between deliveries, never within one,
        # because the reactor tells of a lost link at the end of its turn.
        for sink in self.sinks:
            sink.put(chunk)

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
