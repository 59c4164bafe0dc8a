"""An input as a script: arbitrary bytes are read as a list of things to do, so that any change of them is another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Script:
    """Reads numbers and pieces off an input; what is used up goes on as zeros and empty pieces."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._at < len(self._data)

    def byte(self) -> int:
        """Return a number from 0 to 255."""
        return self.take(1)[0] if self else 0

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes, or as many as are left."""
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        return piece

    def piece(self) -> bytes:
        """Return some bytes, at most 255."""
        return self.take(self.byte())

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of at most 256."""
        return choices[self.byte() % len(choices)]
