"""The walk, with a format of its own where the real ones do not show a thing."""

from __future__ import annotations

from relayd.wire.chunk import Chunk
from relayd.wire.records import RecordFramer, RecordFraming
from relayd.wire.rtcm3 import RTCM3
from relayd.wire.ubx import UBX, UbxFormat
from tests.wire import streams

GOOD = streams.ubx(b"good")
LONG = streams.ubx(b"long" * 200)


class CountedFormat(UbxFormat):
    """Counts the bytes whose checksum was asked for, and the questions for a length."""

    def __init__(self) -> None:
        self.checked = 0
        self.asked = 0

    def length(self, data: bytes, begin: int) -> int:
        self.asked += 1
        return super().length(data, begin)

    def valid(self, data: bytes, begin: int, end: int) -> bool:
        self.checked += end - begin
        return super().valid(data, begin, end)


def test_noise_between_records_is_left_out() -> None:
    assert streams.framed(UBX, b"noise" + GOOD + b"\xb5" + GOOD + b"\xb5\x62" + GOOD + GOOD, 100) == [GOOD] * 4


def test_a_good_record_inside_the_claim_of_a_false_one() -> None:
    false = b"\xb5\x62\1\7\x20\0"
    assert streams.framed(UBX, false + GOOD * 4) == [GOOD] * 4


def test_an_overlong_claim_costs_its_first_byte_alone() -> None:
    framer = UBX.framer(100)
    assert framer.feed(b"\xb5\x62\1\7\xff\xff" + GOOD) == GOOD
    assert framer.feed(LONG + GOOD) == GOOD
    assert framer.unframed == 6 + len(LONG)


def test_records_wait_for_what_a_false_header_claims() -> None:
    framer = UBX.framer(100)
    assert framer.feed(b"\xb5\x62\1\7\x20\0" + GOOD) == b""
    assert framer.unframed == 0
    assert framer.feed(GOOD * 2) == GOOD * 3
    framer.feed(b"\xb5\x62\1\7\x20\0" + GOOD + GOOD[:-1])
    assert (framer.finish(), framer.records) == (GOOD, 1)  # at the end nothing is left to wait for
    assert framer.unframed == 6 + 6 + len(GOOD) - 1


def test_a_lower_max_record_does_not_wait_for_what_is_now_too_long() -> None:
    framer = UBX.framer(1000)
    assert framer.feed(LONG[:700]) == b""
    framer.max_record = 100
    assert framer.feed(LONG[700:] + GOOD) == GOOD
    framer.max_record = 1000
    assert framer.feed(LONG) == LONG
    assert framer.feed(LONG[:300]) == b""
    framer.max_record = 100
    assert framer.feed(LONG[300:310] + GOOD) == GOOD  # it would still be incomplete


def test_a_record_is_not_looked_at_again_before_it_is_complete() -> None:
    counted = CountedFormat()
    framer = RecordFramer(counted, 65536)
    for byte in LONG * 3:
        framer.feed(bytes([byte]))
    assert counted.checked == 3 * len(LONG)
    assert counted.asked <= 3 * 8


def test_at_the_end_each_place_is_looked_at_once() -> None:
    """A hostile source's last bytes, headers that each claim more than follows, are no second of work."""
    counted = CountedFormat()
    framer = RecordFramer(counted, 65536)
    framer.feed(b"\xb5\x62\1\7\xf0\xff" + GOOD + b"\xb5\x62\1\7\xff\xff" * 5000)
    counted.asked = 0
    assert framer.finish() == GOOD
    assert counted.asked <= 5002


def test_failed_checks_are_paid_for() -> None:
    """A stream of nothing but headers that each claim 64 KiB costs a bounded number of checks a byte."""
    counted = CountedFormat()
    framer = RecordFramer(counted, 65536)
    framer.feed(GOOD * 200_000)  # a good past is no credit
    counted.checked = 0
    data = b"\xb5\x62\1\7\xf0\xff" * 100_000
    for at in range(0, len(data), 6000):
        assert framer.feed(data[at : at + 6000]) == b""
    assert counted.checked <= 16 * len(data) + (1 << 20) + 65536
    # And when the noise is over long enough, long records go on again.
    handed_on = framer.feed(GOOD * 20000 + LONG * 3)
    assert handed_on.endswith(LONG * 3)


def test_short_records_go_on_all_the_same() -> None:
    attack = b"\xb5\x62\1\7\xf0\xff" * 30_000
    framer = UBX.framer(65536)
    framer.feed(attack)
    assert framer.feed(GOOD * 3 + attack).startswith(GOOD)


def test_ordinary_noise_costs_no_record() -> None:
    noise = b"\xd3\0\xff" + b"x" * 30
    message = streams.rtcm3(b"m" * 1000)
    framer = RTCM3.framer(65536)
    assert framer.feed((noise + message) * 300) == message * 300
    assert framer.records == 300


def test_the_borders_of_a_chunk_are_walked_over_once_for_all_that_stop_in_it() -> None:
    counted = CountedFormat()
    framing = RecordFraming("counted", counted)
    chunk = Chunk(GOOD + LONG + GOOD, 3, 0.0)
    second, third, end = len(GOOD), len(GOOD + LONG), len(chunk.data)
    for _ in range(3):
        assert framing.record_at(chunk, 0) == (0, second)
        assert framing.record_at(chunk, second) == (second, third)
        assert framing.record_at(chunk, end - 1) == (third, end)
        assert [framing.records_before(chunk, border) for border in (0, second, third, end)] == [0, 1, 2, 3]
    assert counted.asked == 3


def test_noise_makes_no_more_debt_than_is_allowed() -> None:
    """After much noise of short false headers, long records are let through again before 128 KiB have passed."""
    framer = UBX.framer(65536)
    noise = b"\xb5\x62\1\7\xf8\1" * 2000
    for _ in range(20):
        framer.feed(noise)
    framer.feed(bytes(1100))
    good = streams.ubx(b"m" * 1000)
    assert any(framer.feed(good) for _ in range(131072 // len(good)))
