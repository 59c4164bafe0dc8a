"""UBX messages."""

from __future__ import annotations

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.ubx import checksum
from tests.wire import streams


@settings(deadline=None)
@given(st.integers(0, 3000), st.randoms(use_true_random=False))
def test_the_checksum_is_that_of_the_description(size: int, chance: object) -> None:
    text = chance.randbytes(size)  # type: ignore[attr-defined]
    assert bytes(checksum(text)) == streams.fletcher(text)


@pytest.mark.parametrize(
    "size", [0, 1, 255, 256, 511, 512, 513, 514, 1023, 1024, 1025, 4097, 32768, 65535, 65539, 65792]
)
def test_the_checksum_of_long_messages(size: int) -> None:
    for text in (b"\xff" * size, bytes(range(251)) * (size // 251) + bytes(size % 251)):
        assert bytes(checksum(text)) == streams.fletcher(text)


@pytest.mark.parametrize("size", [0, 1, 92, 600, 65527])
def test_messages(size: int) -> None:
    message = streams.ubx((b"\xb5\x62payload" * 10000)[:size])
    framer = streams.parse_framing("ubx").framer(65536)
    assert framer.feed(message[:-1]) == b""
    assert framer.feed(message[-1:] + message) == message * 2
    assert (framer.records, framer.unframed) == (2, 0)


def test_a_wrong_byte_of_the_checksum_is_enough() -> None:
    good = streams.ubx(b"abc")
    for at in (-2, -1):
        spoilt = bytearray(good)
        spoilt[at] ^= 1
        assert streams.framed("ubx", bytes(spoilt) + good) == [good]


def test_recordings_agree_with_pyubx2() -> None:
    pyubx2 = pytest.importorskip("pyubx2")
    data = streams.recording("ublox-zed-f9t-rtcm3.log")
    records = streams.framed("ubx", data)
    assert len(records) > 100
    reader = pyubx2.UBXReader(io.BytesIO(data), quitonerror=0, protfilter=pyubx2.UBX_PROTOCOL)
    assert records == [raw for raw, _ in reader]
