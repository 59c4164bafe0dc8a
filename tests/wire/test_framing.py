"""Framers find record borders; they never change a byte."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.wire.framing import FRAMINGS, LineFramer, RawFramer, line_border_before, raw_border_before

# Lines and not-quite-lines, with LF likely and lengths around a max_record of 8.
STREAMS = st.lists(st.sampled_from([b"\n", b"\r\n", b"a", b"bcd", b"1234567", b"12345678", b"x" * 20])).map(b"".join)
CUTS = st.lists(st.integers(0, 200), max_size=20)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


def run(framer: LineFramer, parts: list[bytes]) -> bytes:
    return b"".join(framer.feed(part) for part in parts)


def whole_lines(data: bytes, max_record: int) -> bytes:
    """What a line framer must give, written the slow way."""
    lines = [line + b"\n" for line in data.split(b"\n")[:-1]]
    return b"".join(line for line in lines if len(line) <= max_record)


@given(STREAMS, CUTS, st.integers(1, 30))
def test_lines_are_the_same_however_they_come(data: bytes, cuts: list[int], max_record: int) -> None:
    expected = whole_lines(data, max_record)
    half = len(data) // 2
    for parts in ([data], [data[:half], data[half:]], [bytes([byte]) for byte in data], pieces(data, cuts)):
        framer = LineFramer(max_record)
        assert run(framer, [part for part in parts if part]) == expected


@given(STREAMS, CUTS, st.integers(1, 30))
def test_every_byte_is_handed_on_or_counted(data: bytes, cuts: list[int], max_record: int) -> None:
    framer = LineFramer(max_record)
    handed_on = run(framer, pieces(data, cuts))
    framer.reset()
    assert len(handed_on) + framer.unframed == len(data)


@given(STREAMS, CUTS)
def test_every_run_is_whole_lines(data: bytes, cuts: list[int]) -> None:
    framer = LineFramer(8)
    for part in pieces(data, cuts):
        chunk = framer.feed(part)
        assert not chunk or chunk.endswith(b"\n")


def test_a_line_of_max_record_goes_one_longer_is_lost() -> None:
    framer = LineFramer(4)
    assert framer.feed(b"abc\nabcd\nabc\n") == b"abc\nabc\n"
    assert framer.unframed == 5


def test_an_endless_line_is_not_kept() -> None:
    framer = LineFramer(10)
    for _ in range(1000):
        assert framer.feed(b"x" * 100) == b""
    assert framer.unframed == 100_000
    assert framer.feed(b"\nnext\n") == b"next\n"


def test_s26_reset_throws_the_cut_record_away() -> None:
    framer = LineFramer(100)
    assert framer.feed(b"whole\ncut sho") == b"whole\n"
    framer.reset()
    assert framer.unframed == 7
    assert framer.take_unframed() == 7
    assert (framer.unframed, framer.take_unframed()) == (0, 0)
    assert framer.feed(b"new\n") == b"new\n"


def test_reset_ends_the_skipping_of_a_long_line() -> None:
    framer = LineFramer(4)
    framer.feed(b"too long")
    framer.reset()
    assert framer.feed(b"new\n") == b"new\n"


def test_a_read_of_whole_lines_is_not_copied() -> None:
    data = b"one\ntwo\n"
    assert LineFramer(100).feed(data) is data
    assert RawFramer(100).feed(data) is data


def test_raw_hands_everything_on() -> None:
    framer = RawFramer(1)
    assert run(framer, [b"abc", b"\n", b"\0"]) == b"abc\n\0"  # type: ignore[arg-type]
    framer.reset()
    assert (framer.unframed, framer.take_unframed()) == (0, 0)


def seconds(data: bytes, step: int, max_record: int) -> float:
    begin = time.process_time()
    framer = LineFramer(max_record)
    for at in range(0, len(data), step):
        framer.feed(data[at : at + step])
    return time.process_time() - begin


@pytest.mark.parametrize(
    ("unit", "step", "max_record"),
    [
        (b"x", 7, 1 << 30),  # one endless line, in drops
        (b"\n", 1 << 30, 4),  # nothing but borders
        (b"a\n" + b"x" * 62 + b"\n", 1 << 30, 64),  # each long line just fits
        (b"a\n" + b"x" * 200 + b"\n", 1 << 30, 64),  # each long line is too long
        (b"x" * 99 + b"\n", 3, 50),
    ],
)
def test_s17_time_is_linear(unit: bytes, step: int, max_record: int) -> None:
    small = unit * (400_000 // len(unit))
    least = min(seconds(small, step, max_record) for _ in range(3))
    # Quadratic would be 64 times as much.
    assert seconds(small * 8, step, max_record) < 24 * least + 0.05


@given(STREAMS.filter(bool), st.data())
def test_border_before_is_the_start_of_the_record(data: bytes, draw: st.DataObject) -> None:
    offset = draw.draw(st.integers(0, len(data)))
    border = line_border_before(data, offset)
    assert border <= offset
    assert border == 0 or data[border - 1 : border] == b"\n"
    assert b"\n" not in data[border:offset]
    assert raw_border_before(data, offset) == offset


def test_the_table_is_by_name() -> None:
    assert set(FRAMINGS) >= {"raw", "line"}
    for name, framing in FRAMINGS.items():
        assert framing.name == name
        assert framing.framer(64).unframed == 0
