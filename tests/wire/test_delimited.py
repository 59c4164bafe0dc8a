"""Lines, and other records that end with a mark."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.delimited import LINE, DelimitedFramer, DelimitedFraming, parse_delimiter
from tests.wire import slowly, streams


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=4), st.data(), streams.CUTS, st.integers(1, 30))
def test_any_delimiter(delimiter: bytes, draw: st.DataObject, cuts: list[int], max_record: int) -> None:
    """Of bytes that are mostly the delimiter's own, so that it overlaps itself and is cut."""
    letters = st.sampled_from([*(bytes([byte]) for byte in delimiter), delimiter, b"x", b"yy"])
    data = draw.draw(st.lists(letters, max_size=60).map(b"".join))
    expected = slowly.delimited(delimiter)(data, max_record)
    assert streams.framed(DelimitedFraming("", delimiter), data, max_record, cuts) == expected


def test_a_delimiter_cut_anywhere() -> None:
    data = b"one\r\n\r\ntwo\r\r\n\r\n"
    for at in range(len(data)):
        framer = DelimitedFramer(b"\r\n\r\n", 100)
        assert framer.feed(data[:at]) + framer.feed(data[at:]) == data
        assert framer.unframed == 0


def test_a_delimiter_that_overlaps_itself_is_read_from_the_left() -> None:
    framer = DelimitedFramer(b"aa", 100)
    assert (framer.feed(b"xaaa"), framer.records) == (b"xaa", 1)
    assert (framer.feed(b"aaa"), framer.records) == (b"aaaa", 2)


def test_a_line_of_max_record_goes_one_longer_is_lost() -> None:
    framer = LINE.framer(4)
    assert framer.feed(b"abc\nabcd\nabc\n") == b"abc\nabc\n"
    assert (framer.records, framer.unframed) == (2, 5)


def test_an_endless_line_is_not_kept() -> None:
    framer = LINE.framer(10)
    for _ in range(1000):
        assert framer.feed(b"x" * 100) == b""
    assert framer.unframed == 100_000
    assert framer.feed(b"\nnext\n") == b"next\n"


def test_s26_reset_throws_the_cut_record_away() -> None:
    framer = LINE.framer(100)
    assert framer.feed(b"whole\ncut sho") == b"whole\n"
    framer.finish()
    assert framer.unframed == 7
    assert framer.take_unframed() == 7
    assert (framer.unframed, framer.take_unframed()) == (0, 0)
    assert framer.feed(b"new\n") == b"new\n"


def test_the_end_ends_the_skipping_of_a_long_line() -> None:
    framer = LINE.framer(4)
    framer.feed(b"too long")
    framer.finish()
    assert framer.feed(b"new\n") == b"new\n"


def test_the_delimiter_of_a_long_record_may_be_cut_anywhere() -> None:
    data = b"x" * 40 + b"\r\n\r\n" + b"ab\r\n\r\n"
    for size in range(1, 9):
        framer = DelimitedFramer(b"\r\n\r\n", 30)
        assert streams.run(framer, [data[at : at + size] for at in range(0, len(data), size)]) == b"ab\r\n\r\n"


def test_half_a_delimiter_is_forgotten_at_the_end() -> None:
    framer = DelimitedFramer(b"\r\n", 4)
    framer.feed(b"too long\r")
    framer.finish()
    assert framer.feed(b"\nab") == b""
    assert framer.feed(b"\r\n") == b""  # \nab\r\n is five bytes
    assert framer.feed(b"ab\r\n") == b"ab\r\n"


def test_skip_record_in_the_middle_of_a_delimiter() -> None:
    framer = DelimitedFramer(b"\r\n", 100)
    assert framer.feed(b"ab\r") == b""
    framer.skip_record()
    assert framer.feed(b"\ncd\r\n") == b"cd\r\n"
    assert framer.unframed == 4


@pytest.mark.parametrize(
    ("text", "delimiter", "shown"),
    [
        (r"\x00", b"\0", r"\x00"),
        (r"\0", b"\0", r"\x00"),
        (r"\r\n", b"\r\n", r"\r\n"),
        ("\\t\\\\", b"\t\\", "\\t\\\\"),
        (r"\xFf;", b"\xff;", r"\xff;"),
        (r"\x41", b"A", "A"),
        (" |", b" |", r"\x20|"),
    ],
)
def test_delimiters_can_be_written(text: str, delimiter: bytes, shown: str) -> None:
    framing = parse_delimiter(text)
    assert isinstance(framing, DelimitedFraming)
    assert (framing.delimiter, framing.text) == (delimiter, f"delimiter:{shown}")


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=6))
def test_what_is_shown_is_read_again(delimiter: bytes) -> None:
    written = "".join(f"\\x{byte:02x}" for byte in delimiter)
    framing = parse_delimiter(written)
    assert parse_delimiter(str(framing).removeprefix("delimiter:")) == framing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"empty; write at least one byte: delimiter:\x00"),
        (r"\x0", r"'\\x' cannot stand in a delimiter; write it as \xHH"),
        (r"a\q", r"'\\q' cannot stand"),
        ("\\", r"write it as \xHH"),
        ("é", r"'\xe9' cannot stand"),
        ("\x07", r"'\x07' cannot stand"),
    ],
)
def test_bad_delimiters(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_delimiter(text)
    assert message in str(caught.value)


def test_a_delimiter_longer_than_max_record_is_a_problem() -> None:
    assert (
        DelimitedFraming("", b"x" * 65).problem(64)
        == "its delimiter alone is 65 bytes, so max_record must be that at least"
    )
    assert LINE.problem(1) == ""
