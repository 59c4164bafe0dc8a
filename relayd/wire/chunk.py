"""What is relayed: a run of whole records, one object for all that send it."""

from __future__ import annotations

from array import array


class Chunk:
    """Bytes that were read at one time, whole records of them; never changed.

    `ends` is a framing's own: where its records end, once it had to be found out.  A thousand clients
    that stop in one chunk are cut at a border each, and it is walked over for the first of them only.
    """

    __slots__ = ("at", "data", "ends", "records")

    def __init__(self, data: bytes, records: int, at: float) -> None:
        """`records`: how many; 0 with a framing that has none. `at`: the reactor's time when it was read."""
        self.data = data
        self.records = records
        self.at = at
        self.ends: array[int] | None = None

    def __repr__(self) -> str:
        return f"<Chunk {len(self.data)} bytes, {self.records} records>"
