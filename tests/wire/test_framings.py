"""The table of framings, and what can be written."""

from __future__ import annotations

import pytest

from relayd.wire.framings import FRAMINGS, LINE, RAW, parse_framing


@pytest.mark.parametrize(
    "text",
    [
        "raw", "line", r"delimiter:\x00", r"delimiter:\r\n", "delimiter:;", "fixed:188", "length:u8",
        "length:u16be@2+4", "length:u32le@2-8", "nmea", "rtcm3", "mavlink", "ubx", "beast",
    ],
)  # fmt: skip
def test_texts_are_read_and_shown(text: str) -> None:
    framing = parse_framing(text)
    assert str(framing) == framing.text == text
    assert parse_framing(str(framing)) == framing
    assert framing.problem(65536) == ""


def test_other_spellings_are_made_canonical() -> None:
    assert str(parse_framing(r"delimiter:\0\x41 ")) == r"delimiter:\x00A\x20"
    assert str(parse_framing("fixed:0188")) == "fixed:188"
    assert str(parse_framing("length:u8@0+0")) == "length:u8"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not known; choose raw, line, delimiter, fixed, length, nmea, rtcm3, mavlink, ubx or beast"),
        ("nema", "'nema' is not known; choose raw, line"),
        ("nema", "; did you mean 'nmea'?"),
        ("Line", "; did you mean 'line'?"),
        ("rtcm", "; did you mean 'rtcm3'?"),
        ("line:", "nothing follows 'line:'; write line"),
        ("line:x", "line takes no 'x'; write line alone"),
        ("ubx:8", "ubx takes no '8'; write ubx alone"),
        ("delimiter", r"the delimiter is empty; write at least one byte: delimiter:\x00"),
        ("delimiter:", r"nothing follows 'delimiter:'; write delimiter:\x00"),
        ("fixed", "'' is no record size; write a number of bytes: fixed:188"),
        ("fixed:0", "'0' is no record size"),
        ("length:", "write length:u8|u16be|u16le|u32be|u32le[@OFFSET][+EXTRA]"),
        ("length:u24be", "'u24be' is no kind of number; choose u8, u16be, u16le, u32be or u32le; did you mean 'u"),
        ("length:u8@x", "'u8@x' is no length field"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_framing(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_is_by_name_and_says_what_it_holds() -> None:
    for name, kind in FRAMINGS.items():
        assert kind.name == name
        assert kind.usage.partition(":")[0] == name
        assert kind.help and kind.help[0] != " "
        assert parse_framing(kind.usage.partition("|")[0]).text.startswith(name)
    assert (FRAMINGS["raw"].parse(""), FRAMINGS["line"].parse("")) == (RAW, LINE)
