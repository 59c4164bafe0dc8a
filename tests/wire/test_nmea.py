"""NMEA 0183 sentences."""

from __future__ import annotations

import functools
import io
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.nmea import NMEA, checksum
from tests.wire import streams

GGA = streams.nmea(b"GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,")
AIS = streams.nmea(b"AIVDM,1,1,,A,13u?etPv2;0n:dDPwUM1U1Cb069D,0", mark=b"!")
HEARD = AIS[:-2] + b",x367022,d-079,T08.48347459,r003669976,1166058609\r\n"
TAG = b"\\" + streams.nmea(b"s:r1,c:123", b"", b"") + b"\\"


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=700))
def test_the_checksum_is_the_exclusive_or(text: bytes) -> None:
    assert checksum(text) == functools.reduce(operator.xor, text)


@pytest.mark.parametrize(
    "sentence",
    [
        GGA,
        AIS,
        TAG + AIS,
        HEARD,
        TAG + HEARD,
        AIS[:-2] + b",\n",
        streams.nmea(b"GPGGA,1", b"\n"),
        streams.nmea(b"GPTXT,Hello, world!"),
        streams.nmea(b"GPTXT," + b"x" * 500),
        streams.nmea(b"PMTK220,j")[:-4] + b"%02x\r\n" % functools.reduce(operator.xor, b"PMTK220,j"),
        b"$GPGGA,old,talker\r\n",
        b"$PASHQ\n",
    ],
)
def test_sentences(sentence: bytes) -> None:
    assert streams.framed("nmea", b"noise " + sentence + sentence + b"$GPcut") == [sentence] * 2


@pytest.mark.parametrize(
    "broken",
    [
        GGA.replace(b"545", b"546"),
        GGA.replace(b"$", b""),
        GGA.replace(b"*", b"\xff*"),
        GGA.replace(b"\r\n", b"\r\r\n"),
        GGA.replace(b"\r\n", b",r003669976\r\n"),
        HEARD.replace(b"0n", b"0m"),
        HEARD.replace(b",r", b"*r"),
        HEARD.replace(b",r", b"!r"),
        HEARD.replace(b",x367022", b"x367022"),
        b"$GPGGA,1*4\r\n",
        b"$GPGGA,1*4G\r\n",
        b"$gp,1\r\n",
        b"$\r\n",
        b"$G\r\n",
        b"$GPTXT,hello!\r\n",
        streams.nmea(b"GPTXT,!!!!"),
        streams.nmea(b"GPTXT,a*b"),
        streams.nmea(b"GPTXT,a\\b"),
    ],
)
def test_broken_sentences_are_left_out(broken: bytes) -> None:
    assert streams.framed("nmea", AIS + broken + GGA) == [AIS, GGA]


def test_a_sentence_cut_short_by_the_next_is_left_out_alone() -> None:
    assert streams.framed("nmea", GGA[:20] + GGA + GGA[:20] + AIS + GGA[:20] + TAG + AIS) == [GGA, AIS, TAG + AIS]


def test_a_broken_tag_block_leaves_the_sentence() -> None:
    assert streams.framed("nmea", TAG.replace(b"123", b"124") + AIS) == [AIS]
    assert streams.framed("nmea", b"\\s:r1\\" + AIS) == [AIS]


def test_a_sentence_longer_than_max_record_is_left_out_alone() -> None:
    assert streams.framed("nmea", AIS + GGA + AIS, len(AIS)) == [AIS, AIS]


def test_after_skip_record_the_rest_of_the_line_is_left_out() -> None:
    """What looks like an old talker's sentence may be the end of a text."""
    framer = streams.parse_framing("nmea").framer(100)
    framer.skip_record()
    assert framer.feed(b",oh !LOOK,here") == b""
    assert framer.feed(b"\r\n" + GGA) == GGA


@pytest.mark.parametrize("name", ["ais-nmea.log", "quectel-l76k-nmea.log", "ublox-8.log"])
def test_recordings_agree_with_pynmeagps(name: str) -> None:
    """It reads what begins with `$` alone; all else is held against a line by line check."""
    pynmeagps = pytest.importorskip("pynmeagps")
    data = streams.recording(name)
    records = streams.framed("nmea", data)
    reader = pynmeagps.NMEAReader(io.BytesIO(data), quitonerror=0)
    assert [record for record in records if record[:1] == b"$"] == [raw for raw, _ in reader]
    lines = data.splitlines(keepends=True)
    right = [
        line
        for line in lines
        if line[:1] == b"!" and streams.nmea(line[1:].split(b"*")[0], b"")[-2:] == line.split(b"*")[1].strip()
    ]
    assert [record for record in records if record[:1] == b"!"] == right


def test_spoilt_recordings_agree_with_pynmeagps() -> None:
    pynmeagps = pytest.importorskip("pynmeagps")
    lines = streams.recording("quectel-l76k-nmea.log").splitlines(keepends=True)[:600]
    data = b"".join(line.replace(b"1", b"7", at % 2) for at, line in enumerate(lines))
    reader = pynmeagps.NMEAReader(io.BytesIO(data), quitonerror=0)
    records = streams.framed("nmea", data)
    assert records == [raw for raw, _ in reader]
    assert 300 <= len(records) < 600


@pytest.mark.parametrize(
    "line",
    [b"$GPTXT,WATCH OUT!STARBOARD,NOW\r\n", b"loading!READY\r\n", b"!AIVDM,1,1,,A,15MgK45P3@G?fl0E`JbR0OwT0@MS,0\r\n",
     b"$*00\r\n", b"!*00\n"],
)  # fmt: skip
def test_half_of_a_text_is_no_sentence(line: bytes) -> None:
    """Without a checksum only `$` begins one, and one must say something."""
    framer = NMEA.framer(1000)
    assert framer.feed(line) == b""
    assert framer.take_unframed() == len(line)
