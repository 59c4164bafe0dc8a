"""Mode S Beast records."""

from __future__ import annotations

import pytest

from relayd.wire.framings import parse_framing
from tests.wire import streams

MODE_AC = streams.beast(b"1", b"timeinsAC")
SHORT = streams.beast(b"2", b"timeinS7bytes.")
RECEIVER = streams.beast(b"\xe3", b"recei\x1aer")
LONG = streams.beast(b"3", b"timein" + b"\x1a" * 15)


@pytest.mark.parametrize(
    "record",
    [
        MODE_AC,
        SHORT,
        LONG,
        streams.beast(b"4", b"\x1a" + b"s" * 19 + b"\x1a"),
        streams.beast(b"5", b"position" + b"p" * 13),
        RECEIVER + SHORT,
        RECEIVER + LONG,
        streams.beast(b"\xe4", b"12345678-1234-1234-1234-123456789abc"),
        streams.beast(b"W", b"O"),
        streams.beast(b"P", b"\1\x1a\3"),
    ],
)
def test_records(record: bytes) -> None:
    assert streams.framed("beast", record * 3) == [record] * 3
    assert streams.framed("beast", b"noise" + record + b"noise\x1a\x1a3" + record + record[:-1]) == [record] * 2


def test_an_escape_that_stands_alone_begins_the_next_record() -> None:
    for cut in range(2, len(SHORT)):
        assert streams.framed("beast", MODE_AC + SHORT[:cut] + SHORT + MODE_AC) == [MODE_AC, SHORT, MODE_AC]


@pytest.mark.parametrize("cut", range(2, len(LONG)))
def test_a_record_cut_among_its_escapes(cut: int) -> None:
    """Between two pairs the next record is found. Inside one, half of it and the next record's beginning are a pair:
    nobody can tell, so the next record is lost, but not the one behind it."""
    inside = cut > 8 and (cut - 8) % 2 == 1
    found = streams.framed("beast", LONG[:cut] + MODE_AC + SHORT)
    assert found[-1] == SHORT
    assert (MODE_AC in found) != inside


def test_pairs_are_no_beginning_however_many_are_cut() -> None:
    tail = b"1timeinsAC"
    for pairs in range(1, 9):
        assert streams.framed("beast", b"x" + b"\x1a\x1a" * pairs + tail) == []
        assert streams.framed("beast", b"x" + b"\x1a\x1a" * pairs + b"\x1a" + tail) == [MODE_AC]


def test_a_stream_joined_inside_a_pair_begins_with_no_false_record() -> None:
    framer = parse_framing("beast").framer(64)
    framer.skip_record()
    assert framer.feed(b"\x1a") == b""
    assert framer.feed(b"1timeinsAC") == b""
    assert framer.feed(MODE_AC) == MODE_AC
    assert framer.unframed == len(MODE_AC)


def test_which_receiver_heard_a_message_stays_with_it() -> None:
    assert streams.framed("beast", SHORT + RECEIVER + LONG + LONG) == [SHORT, RECEIVER + LONG, LONG]
    for cut in range(2, len(RECEIVER)):
        if cut != RECEIVER.index(b"\x1a", 1) + 1:  # there it ends inside a pair
            assert streams.framed("beast", RECEIVER[:cut] + RECEIVER + SHORT + RECEIVER) == [RECEIVER + SHORT]
    for cut in range(1, len(LONG)):
        assert streams.framed("beast", SHORT + RECEIVER + LONG[:cut])[:1] == [SHORT]
    assert streams.framed("beast", RECEIVER + MODE_AC[:5] + SHORT) == [SHORT]


def test_an_unknown_type_is_no_record() -> None:
    assert streams.framed("beast", streams.beast(b"H", b"hulc") + MODE_AC) == [MODE_AC]


def test_what_goes_back_are_settings() -> None:
    framing = parse_framing("beast").returned
    wishes = [b"\x1a1" + switch for switch in (b"C", b"d", b"J")] + [b"\x1aWS", streams.beast(b"P", b"\1\x1a\3")]
    assert streams.framed(framing, b"".join(wishes) + b"noise" + wishes[0] + b"\x1a3") == [*wishes, wishes[0]]
    assert framing.returned is framing
