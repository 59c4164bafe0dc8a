"""What destination links send back, on its way to the source.

Every link's input is framed for itself, so that two links never interleave inside a record, and it is
framed whether or not the link may send just now, so that one whose turn comes starts at a border.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relayd.observe.counters import Counters
from relayd.pipeline import Incoming, Pipeline, Producer
from relayd.policy.returns import RETURNS, ReturnRule
from relayd.wire.framing import Framer, mostly_noise


class Returning(Producer, Protocol):
    """A destination link, as the return path sees it."""

    peer: str
    half_closed: bool  # it will send nothing more

    def read_little(self) -> None:
        """See Transport.read_little."""

    @property
    def has_sent(self) -> bool:
        """Whether anything has come from it yet."""


class ReturnPath:
    """Admits input of destination links to the pipeline that ends at the source."""

    def __init__(self, rule: ReturnRule, pipeline: Pipeline, framer: Callable[[], Framer], counters: Counters) -> None:
        self._rule = rule
        self._closed = rule is RETURNS["none"]
        self._pipeline = pipeline
        self._framer = framer
        self._counters = counters
        self._framers: dict[Returning, Framer] = {}  # the longest connected first

    def joined(self, link: Returning) -> None:
        """A destination link has come up."""
        if not self._closed:
            self._framers[link] = self._framer()
            self._pipeline.add_producer(link)

    def received(self, link: Returning, data: bytes) -> None:
        """A destination link has sent something."""
        framer = self._framers.get(link)
        if framer is None:
            self._counters.discarded += len(data)
            return
        run = framer.feed(data)
        if framer.unframed and mostly_noise(framer, data):
            link.read_little()
        self._pass_on(run, framer, link)

    def passed_on(self, link: Returning, transport: Incoming) -> bool:
        """Pass on what the link has to be read without reading it; return whether that could be done."""
        if link not in self._framers or not self._rule.admits(link, self._framers):
            return False
        moved = self._pipeline.splice(transport)
        if moved > 0:
            self._counters.returned += moved
            self._counters.spliced += moved
        return moved >= 0

    def adopt(self, link: Returning, former: ReturnPath) -> None:
        """A link of the configuration before has become this path's, in the middle of a record perhaps."""
        framer = former._framers.pop(link, None)
        former._pipeline.remove_producer(link)
        if self._closed:
            if framer is not None:
                self._counters.discarded += len(framer.finish())
                self._counters.unframed += framer.take_unframed()
            link.resume_reading()
        elif framer is not None:
            framer.max_record = self._framer().max_record
            self._framers[link] = framer
            self._pipeline.add_producer(link)
        elif not link.half_closed:
            self.joined(link)
            if link.has_sent:
                self._framers[link].skip_record()  # nobody has looked where its records begin

    def left(self, link: Returning) -> None:
        """A link will send no more; the record it was cut in is thrown away. Harmless when repeated."""
        framer = self._framers.get(link)
        if framer is not None:
            self._pipeline.remove_producer(link)
            self._pass_on(framer.finish(), framer, link)
            self._framers.pop(link, None)

    def _pass_on(self, run: bytes, framer: Framer, link: Returning) -> None:
        """Pass on what the framer returned, if the link may send just now; count what it left out."""
        if framer.unframed:
            self._counters.unframed += framer.take_unframed()
        if not run:
            return
        if self._rule.admits(link, self._framers):
            self._counters.returned += len(run)
            self._pipeline.put(run, framer.records, link.peer)
        else:
            self._counters.discarded += len(run)
