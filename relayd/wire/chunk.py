"""What is relayed: a run of whole records, one object for all that send it."""

from __future__ import annotations


class Chunk:
    """Bytes that were read at one time, whole records of them; never changed."""

    __slots__ = ("at", "data", "records")

    def __init__(self, data: bytes, records: int, at: float) -> None:
        """`records`: how many; 0 with a framing that has none. `at`: the reactor's time when it was read."""
        self.data = data
        self.records = records
        self.at = at

    def __repr__(self) -> str:
        return f"<Chunk {len(self.data)} bytes, {self.records} records>"
