"""MAVLink packets."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.wire.mavlink import crc_extra
from relayd.wire.mavlink_extras import EXTRAS
from tests.wire import streams

UNKNOWN = 9_999_999


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 255))
def test_the_extra_byte_is_solved_for(summed: bytes, extra: int) -> None:
    assert crc_extra(summed, streams.mcrf4xx(summed + bytes([extra])).to_bytes(2, "little")) == extra


def test_one_checksum_in_256_can_be_made_to_fit() -> None:
    found = [crc_extra(b"abc", crc.to_bytes(2, "little")) for crc in range(65536)]
    assert sorted(extra for extra in found if extra >= 0) == list(range(256))


@pytest.mark.parametrize(
    "packet",
    [
        streams.mavlink1(b"", 0, 50),
        streams.mavlink1(b"x" * 255, 0, 50),
        streams.mavlink2(b"", 0, 50),
        streams.mavlink2(b"x" * 255, 0, 50),
        streams.mavlink2(b"x" * 255, 0, 50, b"s" * 13),
        streams.mavlink2(b"abc", UNKNOWN, 99),
        streams.mavlink1(b"\xfe\xfd\0", 150, EXTRAS[150][1]),  # an id that two dialects use
    ],
)
def test_packets(packet: bytes) -> None:
    assert streams.framed("mavlink", b"\xfe\x02noise\xfd" + packet * 2 + b"x" * 300) == [packet] * 2


def test_known_ids_are_checked_exactly() -> None:
    good = streams.mavlink1(b"good", 0, 50)
    for extra in set(range(256)) - {50}:
        assert streams.framed("mavlink", streams.mavlink1(b"abc", 0, extra) + good + b"x" * 300) == [good]


def test_what_is_packed_by_a_former_definition_is_a_record() -> None:
    # FILE_TRANSFER_PROTOCOL of 2014, and OPEN_DRONE_ID_SYSTEM as drones of 2020 to 2022 send it.
    old = [
        streams.mavlink1(b"x" * 254, 110, 235),
        *(streams.mavlink2(b"x" * 50, 12904, extra) for extra in (150, 203, 77)),
    ]
    assert streams.framed("mavlink", b"".join(old)) == old


def test_unknown_flags_cannot_be_parsed() -> None:
    head = b"\4\2\0\7\1\1\0\0\0abcd"
    packet = b"\xfd" + head + streams.mcrf4xx(head + bytes([50])).to_bytes(2, "little")
    assert streams.framed("mavlink", packet) == []


def dialect() -> Any:
    pytest.importorskip("pymavlink")
    import importlib

    return importlib.import_module("pymavlink.dialects.v20.ardupilotmega")


def parsed(module: Any, data: bytes) -> list[bytes]:
    """Return the packets that pymavlink finds."""
    link = module.MAVLink(None)
    link.robust_parsing = True
    found = []
    for at in range(len(data)):
        message = link.parse_char(data[at : at + 1])
        if message is not None and message.get_type() != "BAD_DATA":
            found.append(bytes(message.get_msgbuf()))
    return found


@pytest.mark.parametrize("version", [1, 2])
def test_what_pymavlink_packs_is_found_and_what_we_find_it_reads(version: int) -> None:
    module = dialect()
    chance = random.Random(version)
    link = module.MAVLink(None, srcSystem=1, srcComponent=1)
    packets = []
    for number, kind in sorted(module.mavlink_map.items()):
        if version == 1 and number > 255:
            continue
        values = [
            (b"x" if kind.fieldtypes[kind.fieldnames.index(name)] == "char" else [chance.randrange(100)] * length)
            if (length := kind.array_lengths[kind.ordered_fieldnames.index(name)])
            else chance.randrange(100)
            for name in kind.fieldnames
        ]
        values = [b"x" if value == [] else value for value in values]
        packets.append(bytes(kind(*values).pack(link, force_mavlink1=version == 1)))
    assert len(packets) > 150
    data = b"".join(packets)
    assert streams.framed("mavlink", data) == packets == parsed(module, data)
