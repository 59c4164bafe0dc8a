"""What the framings' tests share: ways to cut a stream, records made the slow way, recordings, CPU time."""

from __future__ import annotations

import functools
import itertools
import operator
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framer, Framing
from relayd.wire.framings import parse_framing

CUTS = st.lists(st.integers(0, 400), max_size=20)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


def run(framer: Framer, parts: list[bytes]) -> bytes:
    return b"".join(framer.feed(part) for part in parts)


def fed(framer: Framer, parts: list[bytes]) -> Iterator[bytes]:
    """Yield what the framer returns for each part, and at the end."""
    yield from map(framer.feed, parts)
    yield framer.finish()


def framed(framing: Framing | str, data: bytes, max_record: int = 65536, cuts: list[int] | None = None) -> list[bytes]:
    """Return the records of a stream, having tried it whole, halved, byte by byte and cut at `cuts`.

    Every run must be whole records, and every byte in a run or counted.
    """
    framing = parse_framing(framing) if isinstance(framing, str) else framing
    half = len(data) // 2
    results = []
    for parts in ([data], [data[:half], data[half:]], [bytes([byte]) for byte in data], pieces(data, cuts or [])):
        framer = framing.framer(max_record)
        records = []
        for chunk in fed(framer, parts):
            found = split(framing, chunk)
            assert b"".join(found) == chunk
            assert len(found) == framer.records == framing.records_before(Chunk(chunk, 0, 0.0), len(chunk))
            records += found
        assert sum(map(len, records)) + framer.take_unframed() == len(data)
        results.append(records)
    assert all(result == results[0] for result in results)
    return results[0]


def split(framing: Framing, chunk: bytes) -> list[bytes]:
    records = []
    border = 0
    while border < len(chunk):
        end = framing.next_border(chunk, border)
        assert end > border
        records.append(chunk[border:end])
        border = end
    return records


def nmea(body: bytes, end: bytes = b"\r\n", mark: bytes = b"$") -> bytes:
    return mark + body + b"*%02X" % functools.reduce(operator.xor, body, 0) + end


def crc24q(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc <<= 1
            if crc & 0x1000000:
                crc ^= 0x1864CFB
    return crc


def rtcm3(payload: bytes) -> bytes:
    head = b"\xd3" + len(payload).to_bytes(2, "big") + payload
    return head + crc24q(head).to_bytes(3, "big")


def fletcher(data: bytes) -> bytes:
    a = b = 0
    for byte in data:
        a = (a + byte) & 0xFF
        b = (b + a) & 0xFF
    return bytes([a, b])


def ubx(payload: bytes, kind: bytes = b"\x01\x07") -> bytes:
    summed = kind + len(payload).to_bytes(2, "little") + payload
    return b"\xb5\x62" + summed + fletcher(summed)


def mcrf4xx(data: bytes) -> int:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x8408 if crc & 1 else 0)
    return crc


def mavlink1(payload: bytes, number: int, extra: int) -> bytes:
    head = bytes([len(payload), 1, 1, 1, number]) + payload
    return b"\xfe" + head + mcrf4xx(head + bytes([extra])).to_bytes(2, "little")


def mavlink2(payload: bytes, number: int, extra: int, signature: bytes = b"") -> bytes:
    head = bytes([len(payload), 1 if signature else 0, 0, 7, 1, 1]) + number.to_bytes(3, "little") + payload
    return b"\xfd" + head + mcrf4xx(head + bytes([extra])).to_bytes(2, "little") + signature


def beast(kind: bytes, content: bytes) -> bytes:
    return b"\x1a" + kind + content.replace(b"\x1a", b"\x1a\x1a")


def recording(name: str) -> bytes:
    """Return a recording; skips the test where there is none."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    path = Path(os.environ.get("RELAYD_RECORDINGS", beside)) / name
    if not path.exists():
        pytest.skip(f"no recording {path} (RELAYD_RECORDINGS says where they are)")
    return path.read_bytes()


def cpu_seconds(framing: Framing, data: bytes, step: int, max_record: int) -> float:
    begin = time.process_time()
    framer = framing.framer(max_record)
    for at in range(0, len(data), step):
        framer.feed(data[at : at + step])
    return time.process_time() - begin


def is_linear(framing: str, unit: bytes, step: int, size: int, max_record: int = 65536) -> bool:
    """Return whether twice the stream takes less than three times as long, in one of three tries."""
    value = parse_framing(framing)
    small = unit * (size // len(unit) + 1)
    for _ in range(3):
        once, twice = (min(cpu_seconds(value, data, step, max_record) for _ in range(2)) for data in (small, small * 2))
        if twice < 3 * once or twice < 0.002:
            return True
    return False
