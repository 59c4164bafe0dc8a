"""What a relay has done so far. Totals never go backwards; links that have left are in them."""

from __future__ import annotations


class Counters:
    """One relay's totals. At every moment, for every destination link that took part from the start:

    bytes_in == sent - repeated + dropped + queued
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "destination_links",
        "discarded",
        "dropped",
        "refused",
        "repeated",
        "returned",
        "source_links",
        "unframed",
    )

    def __init__(self) -> None:
        self.source_links = 0  # that have come up
        self.destination_links = 0
        self.refused = 0  # peers that were not let in, by any rule
        self.bytes_in = 0  # from sources, whole records only
        self.bytes_out = 0  # taken by the kernel for destination links
        self.repeated = 0  # of bytes_out: sent again because a lost link had cut a record
        self.dropped = 0  # left queues without being sent
        self.unframed = 0  # belonged to no record, either direction
        self.returned = 0  # sent back towards the source
        self.discarded = 0  # came from destination links that may not send back
