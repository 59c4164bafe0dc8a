"""What a relay has done so far. Totals never go backwards; links that have left are in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Tally(Protocol):
    """What a sink counts for itself while it lives."""

    sent: int
    repeated: int
    dropped: int
    dropped_records: int
    stale_records: int


# The totals that sinks count for themselves, by what they call them.
_OF_SINKS = {
    "bytes_out": "sent",
    "repeated": "repeated",
    "dropped": "dropped",
    "dropped_records": "dropped_records",
    "stale_records": "stale_records",
}


class Counters:
    """One relay's totals; those of its sinks are added when they go. For each sink, at every moment:

    put == sent - repeated + dropped + queued
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "destination_links",
        "discarded",
        "dropped",
        "dropped_records",
        "records_in",
        "refused",
        "repeated",
        "returned",
        "source_links",
        "spliced",
        "stale_records",
        "unframed",
    )

    def __init__(self) -> None:
        self.source_links = 0  # that have come up
        self.destination_links = 0
        self.refused = 0  # peers that were not let in, by any rule
        self.bytes_in = 0  # from sources, whole records only
        self.records_in = 0  # 0 with a framing that has none
        self.bytes_out = 0  # taken by the kernel for destination links
        self.repeated = 0  # of bytes_out: sent again because a lost link had cut a record
        self.dropped = 0  # left queues without being sent
        self.dropped_records = 0
        self.stale_records = 0  # of dropped_records: they had waited too long
        self.unframed = 0  # belonged to no record, either direction
        self.returned = 0  # sent back towards the source
        self.spliced = 0  # of bytes_in and returned: passed on without being copied
        self.discarded = 0  # came from destination links that may not send back

    def add(self, sink: Tally) -> None:
        """A sink is gone: what it counted for itself becomes part of the totals."""
        for total, own in _OF_SINKS.items():
            setattr(self, total, getattr(self, total) + getattr(sink, own))

    def snapshot(self, living: Iterable[Tally]) -> dict[str, int]:
        """Return the totals by name, with those of the sinks that are still there."""
        totals = {name: getattr(self, name) for name in self.__slots__}
        for sink in living:
            for total, own in _OF_SINKS.items():
                totals[total] += getattr(sink, own)
        return totals
