"""What gives way when the next chunk does not fit into a destination's send queue."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Relief(enum.Enum):
    """How a full queue is relieved."""

    CUT = "cut"  # the link is aborted and its queue emptied
    HOLD = "hold"  # the chunk is queued and the source not read until the queue is half empty
    DROP_OLDEST = "drop oldest"  # what has waited longest goes, whole records
    DROP_NEWEST = "drop newest"  # the chunk itself goes


@dataclass(frozen=True)
class OverflowRule:
    """One row of the choices for `overflow`."""

    name: str
    relief: Relief
    help: str
    needs_records: bool = False  # bytes of a raw stream cannot be left out without tearing it


OVERFLOW = {
    rule.name: rule
    for rule in (
        OverflowRule("disconnect", Relief.CUT, "the slow link is cut; the others miss nothing"),
        OverflowRule("drop_oldest", Relief.DROP_OLDEST, "the oldest records go, the link stays", needs_records=True),
        OverflowRule("drop_newest", Relief.DROP_NEWEST, "the newest records go, the link stays", needs_records=True),
        OverflowRule("block", Relief.HOLD, "the source is not read until there is room; nothing is lost"),
    )
}


@dataclass(frozen=True)
class SlowAfter:
    """More than `size` bytes that wait for `seconds` are an overflow, too; 0 seconds: never."""

    size: int = 0
    seconds: float = 0.0


NEVER_SLOW = SlowAfter()
