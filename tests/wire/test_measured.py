"""Records of a known length."""

from __future__ import annotations

import pytest

from relayd.wire.measured import FixedFramer, LengthFraming, parse_fixed, parse_length
from tests.wire import streams


def test_fixed_records_are_counted_from_the_beginning() -> None:
    framer = FixedFramer(3, 64)
    assert (framer.feed(b"abcd"), framer.records) == (b"abc", 1)
    assert (framer.feed(b"e"), framer.records) == (b"", 0)
    assert (framer.feed(b"fghijkl"), framer.records) == (b"defghijkl", 3)
    assert framer.unframed == 0


def test_fixed_keeps_its_place_while_its_records_are_too_long() -> None:
    framer = FixedFramer(5, 4)
    assert framer.feed(b"abcdeab") == b""
    framer.max_record = 5
    assert framer.feed(b"cdefghij") == b"fghij"
    assert framer.unframed == 10
    framer.feed(b"kl")
    framer.max_record = 4
    framer.feed(b"m")
    framer.max_record = 5
    assert framer.feed(b"nopqrst") == b"pqrst"


def test_records_that_cannot_be_kept_do_not_grow_the_tail() -> None:
    framer = FixedFramer(1 << 30, 64)
    framer.feed(b"x" * 1000)
    assert framer.unframed == 1000


@pytest.mark.parametrize("text", ["fixed:3", "length:u8"])
def test_nothing_goes_on_after_skip_record_before_reset(text: str) -> None:
    framing = parse_fixed("3") if text == "fixed:3" else parse_length("u8")
    framer = framing.framer(64)
    framer.feed(b"\2")
    framer.skip_record()
    assert framer.feed(b"\2ab\2ab\2ab") == b""
    assert framer.unframed == 10
    framer.finish()
    assert framer.feed(b"\2ab") == b"\2ab"


@pytest.mark.parametrize(
    ("text", "record"),
    [
        ("u8", b"\3abc"),
        ("u8+2", b"\1aCC"),
        ("u16be@2+4", b"hh\0\1aCRC4"),
        ("u16le", b"\2\0ab"),
        ("u32be@1-5", b"h\0\0\0\7ab"),  # the field counts everything
        ("u32le", b"\1\0\0\0a"),
    ],
)
def test_length_fields(text: str, record: bytes) -> None:
    framing = parse_length(text)
    assert streams.framed(framing, record * 3) == [record] * 3
    assert streams.framed(framing, record * 2 + record[:-1]) == [record] * 2
    assert str(framing) == f"length:{text}"


def test_an_overlong_record_is_left_out_alone() -> None:
    framer = parse_length("u32be").framer(64)
    long = (1000).to_bytes(4, "big") + b"\0\0\0\1" * 250
    good = b"\0\0\0\1a"
    assert framer.feed(good + long[:300]) == good
    assert framer.feed(long[300:900]) == b""
    assert framer.feed(long[900:] + good) == good
    assert (framer.records, framer.unframed) == (1, 1004)


def test_a_record_shorter_than_its_header_is_the_header_alone() -> None:
    assert streams.framed("length:u16be@1-3", b"h\0\2" + b"h\0\4x" + b"h\0\3") == [b"h\0\4x", b"h\0\3"]


@pytest.mark.parametrize("text", ["", "0", "000", "-1", "1.5", "x", "999999999", "٣"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_fixed(text)
    assert str(caught.value) == f"'{text}' is no record size; write a number of bytes: fixed:188"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is no length field; write one like u16be, u8@1 or u32le@4+2"),
        ("u16be@", "'u16be@' is no length field"),
        ("u16be+4@2", "is no length field"),
        ("u16be @2", "is no length field"),
        ("u8@999999", "is no length field"),
        ("U8", "is no length field"),
        ("u16", "'u16' is no kind of number; choose u8, u16be, u16le, u32be or u32le; did you mean 'u16"),
        ("i64@2", "'i64' is no kind of number"),
    ],
)
def test_bad_length_fields(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_length(text)
    assert message in str(caught.value)


def test_texts_are_canonical() -> None:
    assert str(parse_fixed("0188")) == "fixed:188"
    assert str(parse_length("u16be@0+0")) == "length:u16be"
    assert parse_length("u8@02+04") == parse_length("u8@2+4") != parse_length("u8@2-4")


def test_what_max_record_makes_impossible() -> None:
    assert parse_fixed("188").problem(188) == ""
    assert parse_fixed("188").problem(187) == "every record is 188 bytes, so max_record must be that at least"
    framing = parse_length("u16be@60+4")
    assert isinstance(framing, LengthFraming)
    assert framing.problem(66) == ""
    assert framing.problem(65) == "the shortest record is 66 bytes, so max_record must be that at least"
