"""The chunk."""

from __future__ import annotations

import pytest

from relayd.wire.chunk import Chunk


def test_it_is_what_it_was_made_of_and_nothing_more() -> None:
    chunk = Chunk(b"one\n", 1, 2.5)
    assert (chunk.data, chunk.records, chunk.at, repr(chunk)) == (b"one\n", 1, 2.5, "<Chunk 4 bytes, 1 records>")
    with pytest.raises(AttributeError):
        chunk.more = 1  # type: ignore[attr-defined]  # millions of them: they have no dictionary
