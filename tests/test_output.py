"""What a command says on its standard streams."""

from __future__ import annotations

import errno
import io
import os

import pytest

from relayd.output import one_line, put


def test_a_stream_that_is_closed_takes_nothing_and_that_is_no_error() -> None:
    assert put(None, "text") is None


def test_characters_that_the_stream_does_not_know_are_no_error() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    assert put(stream, "±\udcff") is None
    assert raw.getvalue() == "±".encode() + b"\\udcff"


def test_bytes_go_out_as_they_are() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8")
    assert put(stream, b"\x00\xff") is None
    assert raw.getvalue() == b"\x00\xff"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_returned_and_not_tried_again() -> None:
    with open("/dev/full", "w") as stream:
        error = put(stream, "text")
        assert error is not None
        assert error.errno == errno.ENOSPC
        assert put(stream, "text") is None  # it leads to /dev/null now


@pytest.mark.parametrize(
    ("text", "line"), [("plain ±", "plain ±"), ("two\nlines", "two\\nlines"), ("\x1b[2J", "\\x1b[2J")]
)
def test_one_error_is_one_line(text: str, line: str) -> None:
    assert one_line(text) == line
