"""RTCM 3 messages."""

from __future__ import annotations

import io
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.rtcm3 import FOLDS, divides, remainder
from tests.wire import streams


@pytest.mark.parametrize(("size", "bits"), FOLDS)
def test_the_folds_are_what_they_claim(size: int, bits: tuple[int, ...]) -> None:
    assert remainder(1 << size) == sum(1 << bit for bit in bits)


def test_the_folds_leave_what_is_looked_up() -> None:
    """The longest message, all ones: each fold must leave less than its size and the next one's reach."""
    left = 1029 * 8
    for size, bits in FOLDS:
        while left > size + 1:
            assert left - size + max(bits) <= size + 24, "one fold is not enough"
            left = max(size, left - size + max(bits))
    assert left <= 120


def test_a_known_checksum() -> None:
    assert remainder(int.from_bytes(b"123456789", "big") << 24) == 0xCDE703  # CRC-24/LTE-A, of the same polynomial
    assert divides(bytes.fromhex("d30000 47ea4b"))  # the filler that RTCM 10403 shows


@settings(deadline=None)
@given(st.binary(max_size=1023))
def test_a_message_divides_and_a_spoilt_one_does_not(payload: bytes) -> None:
    message = streams.rtcm3(payload)
    assert divides(message)
    spoilt = bytearray(message)
    spoilt[random.Random(payload).randrange(len(spoilt))] ^= 1 << len(payload) % 8
    assert not divides(bytes(spoilt))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 20, 24, 44, 90, 180, 325, 560, 1022, 1023])
def test_messages_of_every_size(size: int) -> None:
    message = streams.rtcm3((bytes(range(255, -1, -1)) * 4)[:size])
    assert streams.framed("rtcm3", b"\xd3\xd3\0\0noise" + message * 2 + message[:-1]) == [message] * 2


def test_the_reserved_bits_must_be_zero() -> None:
    message = bytearray(streams.rtcm3(b"abc")[:-3])
    message[1] |= 0x40
    set_bits = bytes(message) + streams.crc24q(bytes(message)).to_bytes(3, "big")
    assert divides(set_bits)
    assert streams.framed("rtcm3", set_bits) == []


@pytest.mark.parametrize("name", ["rtcm3.2.log", "ublox-zed-f9t-rtcm3.log"])
def test_recordings_agree_with_pyrtcm(name: str) -> None:
    pyrtcm = pytest.importorskip("pyrtcm")
    data = streams.recording(name)
    records = streams.framed("rtcm3", data)
    assert len(records) > 100
    assert records == [raw for raw, _ in pyrtcm.RTCMReader(io.BytesIO(data), quitonerror=0)]


def test_a_mixed_recording_is_shared_out_without_a_rest() -> None:
    """UBX and RTCM 3 on one line: what neither takes is the message that the recording's end cut short."""
    data = streams.recording("ublox-zed-f9t-rtcm3.log")
    messages, ubx, sentences = (streams.framed(text, data) for text in ("rtcm3", "ubx", "nmea"))
    rest = data
    for record in messages + ubx:
        assert record in rest
        rest = rest.replace(record, b"", 1)
    assert (len(messages), len(ubx), sentences) == (182, 136, [])
    assert rest == data[-len(rest) :] and rest[:3] == bytes.fromhex("d30086") and len(rest) < 6 + 0x86
