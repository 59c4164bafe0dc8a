"""What destination links send back, on its way to the source.

Every link's input is framed for itself, so that two links never interleave inside a record, and it is
framed whether or not the link may send just now, so that one whose turn comes starts at a border.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relayd.observe.counters import Counters
from relayd.pipeline import Pipeline, Producer
from relayd.policy.returns import RETURNS, ReturnRule
from relayd.wire.framing import Framer


class Returning(Producer, Protocol):
    """A destination link, as the return path sees it."""

    peer: str


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
        unframed = framer.unframed
        chunk = framer.feed(data)
        self._counters.unframed += framer.unframed - unframed
        if not chunk:
            return
        if self._rule.admits(link, self._framers):
            self._counters.returned += len(chunk)
            self._pipeline.put(chunk, link.peer)
        else:
            self._counters.discarded += len(chunk)

    def left(self, link: Returning) -> None:
        """A link will send no more; the record it was cut in is thrown away. Harmless when repeated."""
        framer = self._framers.pop(link, None)
        if framer is not None:
            self._counters.unframed += framer.reset()
            self._pipeline.remove_producer(link)
