"""What gives way when the next chunk does not fit into a destination's send queue."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Relief(enum.Enum):
    """How a full queue is relieved."""

    CUT = "cut"  # the link is aborted and its queue emptied
    HOLD = "hold"  # the chunk is queued and the source not read until the queue is half empty


@dataclass(frozen=True)
class OverflowRule:
    """One row of the choices for `overflow`."""

    name: str
    relief: Relief
    help: str


OVERFLOW = {
    rule.name: rule
    for rule in (
        OverflowRule("disconnect", Relief.CUT, "the slow link is cut; the others miss nothing"),
        OverflowRule("block", Relief.HOLD, "the source is not read until there is room; nothing is lost"),
    )
}
