"""What holds for every framing: bytes go on unchanged, in whole records, however they come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.chunk import Chunk
from relayd.wire.framing import RawFramer, RawFraming
from relayd.wire.framings import FRAMINGS, RAW, parse_framing
from tests.wire import slowly, streams

EXTRA = 50  # of MAVLink's HEARTBEAT, id 0

# For each framing: pieces of streams, right and wrong ones, of which any may follow any.
PARTS = {
    "line": [b"\n", b"\r\n", b"a", b"bcd", b"1234567", b"x" * 40],
    r"delimiter:\x00": [b"\0", b"a", b"bcd", b"x" * 40],
    r"delimiter:\r\n": [b"\r", b"\n", b"\r\n", b"a", b"x" * 40],
    r"delimiter:\r\n\r\n": [b"\r", b"\n", b"\r\n", b"\r\n\r", b"a", b"x" * 40],
    "delimiter:aa": [b"a", b"aa", b"b", b"x" * 40],
    "fixed:7": [b"a", b"bcd", b"x" * 40],
    "fixed:50": [b"a", b"x" * 70],
    "length:u8": [b"\0", b"\1", b"\2xx", b"\x0a", b"\xff", b"x" * 40],
    "length:u16be@2+4": [b"ab\0\1xcccc", b"\0", b"\xff", b"\0\0\0\0\0\0\0\0"],
    "length:u32be": [b"\0\0\0", b"\0", b"\1", b"\0\0\0\2ab", b"\0\0\0\x30", b"x" * 45],
    "length:u16le@1-3": [b"a\3\0", b"a\5\0xy", b"\0", b"\xff", b"a\2\0", b"a\x30\0" + b"x" * 45],
    "nmea": [
        streams.nmea(b"GPGGA,1,2"), streams.nmea(b"AIVDM,1", b"\n", b"!"), streams.nmea(b"GPTXT,no!"),
        b"\\s:x*" + streams.nmea(b"s:x")[-4:-2] + b"\\" + streams.nmea(b"AIVDM,1", b"\r\n", b"!"),
        b"\\s:x*00\\" + streams.nmea(b"AIVDM,1"), b"$OLD,1\n", b"$GPGGA,1,2*00\r\n", b"$", b"!", b"\\", b"*", b"\r\n",
        b"noise", b"\xff", b"$GPRMC,cut", streams.nmea(b"GPTXT," + b"x" * 60),
    ],
    "rtcm3": [
        streams.rtcm3(b"ab"), streams.rtcm3(b""), streams.rtcm3(b"\xd3\0\2"), streams.rtcm3(b"x" * 60), b"\xd3", b"\0",
        b"\xd3\0\x02abCRC", b"\xd3\0\x06", b"\xd3\3\xff", b"noise", streams.rtcm3(b"cut off")[:-2],
    ],
    "mavlink": [
        streams.mavlink1(b"abc", 0, EXTRA), streams.mavlink2(b"abcd", 0, EXTRA), streams.mavlink2(b"a", 9999999, 77),
        streams.mavlink2(b"a", 0, EXTRA, b"s" * 13), streams.mavlink1(b"x" * 60, 0, EXTRA),
        streams.mavlink1(b"abc", 0, EXTRA ^ 1), streams.mavlink2(b"abc", 0, EXTRA)[:-3],
        b"\xfe", b"\xfd", b"\xfd\x01\x02", b"\0", b"noise",
    ],
    "ubx": [
        streams.ubx(b"ab"), streams.ubx(b""), streams.ubx(b"\xb5\x62\1\7\0\0"), streams.ubx(b"x" * 60), b"\xb5",
        b"\x62", b"\xb5\x62\1\7\2\0abXX", b"\xb5\x62\1\7\4\0", b"\xb5\x62\1\7\xff\xff", b"noise",
        streams.ubx(b"cut off")[:-2],
    ],
    "beast": [
        streams.beast(b"1", b"timesgnlA"), streams.beast(b"2", b"times\x1agnl234567"), streams.beast(b"3", b"x" * 21),
        streams.beast(b"1", b"\x1a" * 9), streams.beast(b"4", b"\x1a" * 21), b"\x1a", b"\x1a\x1a", b"1", b"3", b"noise",
        streams.beast(b"\xe3", b"1\x1a345678"), streams.beast(b"\xe4", b"u" * 36), streams.beast(b"P", b"\x1a\x1a3"),
        b"P", b"\xe3", b"\x1aW",
        b"\x1a1cut", b"\x1a2cut\x1a", b"\x1ax",
    ],
}  # fmt: skip


# A stream that is hard on each framing, a step that reads are cut in, and max_record.
ENDLESS = 1 << 30
HARD = [
    ("line", b"x", 7, ENDLESS),  # one endless line, in drops
    ("line", b"\n", ENDLESS, 4),  # nothing but borders
    ("line", b"a\n" + b"x" * 62 + b"\n", ENDLESS, 64),  # each long line just fits
    ("line", b"a\n" + b"x" * 200 + b"\n", ENDLESS, 64),  # each long line is too long
    ("line", b"x" * 99 + b"\n", 3, 50),
    (r"delimiter:\r\n", b"\r", 7, ENDLESS),
    (r"delimiter:\r\n\r\n", b"\r\n\r", ENDLESS, 65536),
    (r"delimiter:\r\n\r\n", b"x" * 60 + b"\r\n\r\n", 65536, 65536),
    ("delimiter:aa", b"aa" + b"b" * 200 + b"aa", ENDLESS, 64),
    ("fixed:65536", b"x", 1, 65536),
    ("fixed:188", b"x", 65536, 65536),
    ("length:u16be@2+4", b"ab\0\x3c" + b"y" * 64, 65536, 65536),
    ("length:u16be", b"\xff\xf0" + b"y" * 0xFFF0, 1, 65536),
    ("length:u32be", b"\0\xff\0\0" + b"y" * 0xFF0000, 4096, 65536),
    ("length:u8", b"\0", 65536, 65536),
    ("nmea", streams.nmea(b"GPGGA,1,2,3,4,5,6,7,8"), 65536, 65536),
    ("nmea", b"$GPTXT," + b"x" * 65000 + b"\r\n", 1, 65536),
    ("nmea", b"$", 65536, 65536),
    ("nmea", b"!", 65536, 65536),
    ("nmea", b"$", 1, 65536),
    ("nmea", b"!", 1, 65536),
    ("nmea", b"\\a*00", 65536, 65536),
    ("nmea", b"!a" * 30000 + b"\n", 65536, 65536),
    ("nmea", b"x", 65536, 65536),
    ("rtcm3", streams.rtcm3(b"x" * 200), 65536, 65536),
    ("rtcm3", streams.rtcm3(b"x" * 1023), 1, 65536),
    ("rtcm3", b"\xd3\3\xff", 65536, 65536),
    ("rtcm3", b"\xd3\3\xff", 1, 65536),
    ("rtcm3", b"\xd3", 65536, 65536),
    ("mavlink", streams.mavlink2(b"x" * 30, 0, EXTRA), 65536, 65536),
    ("mavlink", b"\xfe", 65536, 65536),
    ("mavlink", b"\xfd\xff\0", 65536, 65536),
    ("mavlink", b"\xfe\xff", 1, 65536),
    ("ubx", streams.ubx(b"x" * 100), 65536, 65536),
    ("ubx", streams.ubx(b"x" * 60000), 1, 65536),
    ("ubx", b"\xb5\x62\xff\xff", 65536, 65536),
    ("ubx", b"\xb5\x62\1\7\xf0\xff", 65536, 65536),
    ("ubx", b"\xb5\x62\1\7\xf0\xff", 6, 65536),
    ("ubx", b"\xb5", 65536, 65536),
    ("beast", streams.beast(b"3", b"x" * 21), 65536, 65536),
    ("beast", b"\x1a", 65536, 65536),
    ("beast", b"\x1a", 1, 65536),
    ("beast", b"\x1a3" + b"x" * 20, 65536, 65536),
    ("beast", b"\x1a\x1ax", 65536, 65536),
]  # fmt: skip


def chosen(text: str) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(PARTS[text]), max_size=12).map(b"".join)


def test_every_framing_is_tried() -> None:
    assert {text.partition(":")[0] for text in PARTS} == set(FRAMINGS) - {"raw"}
    assert set(PARTS) == set(slowly.RECORDS)
    assert {text.partition(":")[0] for text, *_ in HARD} == set(FRAMINGS) - {"raw"}


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_records_are_those_found_slowly_however_they_come(text: str, draw: st.DataObject) -> None:
    data, cuts = draw.draw(chosen(text)), draw.draw(streams.CUTS)
    max_record = draw.draw(st.sampled_from([1, 2, 5, 11, 12, 30, 50, 65536]))
    assert streams.framed(text, data, max_record, cuts) == slowly.RECORDS[text](data, max_record)


@pytest.mark.parametrize("text", PARTS)
def test_one_stream_of_everything_cut_at_every_place(text: str) -> None:
    parts = PARTS[text]
    data = b"".join(parts + parts[::-1] + parts[::2] + parts[1::2] + parts)
    for max_record in (30, 65536):
        expected = b"".join(slowly.RECORDS[text](data, max_record))
        assert b"".join(streams.framed(text, data, max_record)) == expected
        for at in range(len(data)):
            framer = parse_framing(text).framer(max_record)
            assert framer.feed(data[:at]) + framer.feed(data[at:]) + framer.finish() == expected
            assert framer.unframed == len(data) - len(expected)


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_same_of_bytes_that_mean_nothing(text: str, draw: st.DataObject) -> None:
    data = draw.draw(st.lists(st.sampled_from(sorted(set(b"".join(PARTS[text])))), max_size=60).map(bytes))
    assert streams.framed(text, data, 30) == slowly.RECORDS[text](data, 30)


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_record_at_an_offset(text: str, draw: st.DataObject) -> None:
    framing = parse_framing(text)
    records = streams.framed(framing, draw.draw(chosen(text)))
    chunk = Chunk(b"".join(records), len(records), 0.0)
    begin = 0
    for number, record in enumerate(records):
        end = begin + len(record)
        assert framing.records_before(chunk, begin) == number
        for offset in range(begin, end):
            assert framing.record_at(chunk, offset) == (begin, end)
        begin = end
    assert framing.records_before(chunk, begin) == len(records)


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_max_record_may_change_between_reads(text: str, draw: st.DataObject) -> None:
    """What was refused stays so, nothing longer than the limit goes on, and every byte is accounted for."""
    framing = parse_framing(text)
    framer = framing.framer(30)
    data = draw.draw(chosen(text))
    handed_on = 0
    for part in streams.pieces(data, draw.draw(streams.CUTS)):
        framer.max_record = draw.draw(st.sampled_from([2, 12, 30, 50, 65536]))
        chunk = framer.feed(part)
        assert all(len(record) <= framer.max_record for record in streams.split(framing, chunk))
        handed_on += len(chunk)
    assert handed_on + len(framer.finish()) + framer.unframed == len(data)


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_s26_the_end_throws_the_cut_record_away(text: str, draw: st.DataObject) -> None:
    """Nothing of a stream that has ended is in the next one, not even what was being skipped."""
    framer = parse_framing(text).framer(50)
    former, data = draw.draw(chosen(text)), draw.draw(chosen(text))
    handed_on = len(streams.run(framer, streams.pieces(former, draw.draw(streams.CUTS))))
    if draw.draw(st.booleans()):
        framer.skip_record()
    assert handed_on + len(framer.finish()) + framer.take_unframed() == len(former)
    assert (framer.unframed, framer.take_unframed()) == (0, 0)
    assert (framer.finish(), framer.records) == (b"", 0)
    assert framer.feed(data) + framer.finish() == b"".join(slowly.RECORDS[text](data, 50))


@pytest.mark.parametrize("text", PARTS)
@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_goes_on_after_skip_record_are_records(text: str, draw: st.DataObject) -> None:
    data, cuts = draw.draw(chosen(text)), draw.draw(streams.CUTS)
    results = []
    for parts in ([data], [bytes([byte]) for byte in data], streams.pieces(data, cuts)):
        framer = parse_framing(text).framer(50)
        framer.skip_record()
        chunk = streams.run(framer, parts) + framer.finish()
        assert len(chunk) + framer.unframed == len(data)
        results.append(chunk)
    assert all(result == results[0] for result in results)
    for record in streams.split(parse_framing(text), results[0]):
        assert slowly.RECORDS[text](record, 50) == [record]


@pytest.mark.parametrize("text", PARTS)
def test_skip_record_in_the_middle_of_one(text: str) -> None:
    """The first record is cut anywhere inside, and only what follows it goes on."""
    framing = parse_framing(text)
    records = [record for part in PARTS[text] for record in slowly.RECORDS[text](part * 7, 50)]
    assert records
    blind = text.startswith(("fixed", "length"))
    for first in records:
        for at in range(1, len(first)):
            framer = framing.framer(50)
            framer.skip_record()
            chunk = framer.feed(first[at:] + first + first) + framer.finish()
            assert chunk in ((b"",) if blind else (first, first + first)), (first, at)
            assert framer.feed(first) == first


@pytest.mark.parametrize("text", ["raw", *PARTS])
def test_a_read_of_whole_records_is_not_copied(text: str) -> None:
    framing = parse_framing(text)
    data = (
        b"".join(max((slowly.RECORDS[text](part * 350, 65536) for part in PARTS[text]), key=len))
        if text != "raw"
        else b"x"
    )
    framer = framing.framer(65536)
    assert framer.feed(data) is data
    assert framer.records == framing.records_before(Chunk(data, 0, 0.0), len(data))
    assert framer.feed(data) is data
    assert framer.unframed == 0


@pytest.mark.parametrize("text", ["raw", *PARTS])
def test_an_empty_read_is_nothing(text: str) -> None:
    framer = parse_framing(text).framer(64)
    assert (framer.feed(b""), framer.records, framer.unframed) == (b"", 0, 0)


@pytest.mark.parametrize(("text", "unit", "step", "max_record"), HARD)
def test_s17_time_is_linear(text: str, unit: bytes, step: int, max_record: int) -> None:
    # More than max_record, so that the tail has been full at half of it; a quadratic walk takes four times as long.
    size = 4_000_000 if text.startswith(("line", "delimiter")) and step > 10 else 70_000
    if text == "ubx":
        size = 400_000  # the debt that failed checks may make is used up early in it
    assert streams.is_linear(text, unit, step, size, max_record)


def test_raw_hands_everything_on() -> None:
    framer = RawFramer(1)
    assert streams.run(framer, [b"abc", b"\n", b"\0"]) == b"abc\n\0"
    framer.skip_record()
    assert framer.finish() == b""
    assert (framer.records, framer.unframed, framer.take_unframed()) == (0, 0, 0)


def test_raw_can_be_cut_anywhere() -> None:
    assert RawFraming() == RAW and not RAW.has_records
    chunk = Chunk(b"abc", 0, 0.0)
    assert RAW.record_at(chunk, 2) == (2, 2)
    assert RAW.records_before(chunk, 2) == 0
    assert RAW.next_border(b"abc", 1) == 3


def test_framings_are_values() -> None:
    assert parse_framing("ubx") == parse_framing("ubx") != parse_framing("rtcm3")
    assert len({parse_framing("fixed:7"), parse_framing("fixed:7"), parse_framing("fixed:8")}) == 2
    assert all(parse_framing(text).has_records for text in PARTS)
