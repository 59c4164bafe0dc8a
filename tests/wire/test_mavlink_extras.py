"""The table of MAVLink's CRC_EXTRA."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from relayd.wire.mavlink_extras import EXTRAS, FORMER, TODAY

TEST_DIALECTS = {"test", "python_array_test"}


def test_a_few_that_the_standard_prints() -> None:
    assert (EXTRAS[0], EXTRAS[1], EXTRAS[33], EXTRAS[253]) == ((50,), (124,), (104,), (83,))
    for table in (TODAY, FORMER):
        assert list(table) == sorted(table)
        assert all(values == tuple(sorted(set(values))) for values in table.values())
        assert all(0 <= value < 256 for values in table.values() for value in values)


def test_former_values_are_of_ids_that_are_known_and_not_told_twice() -> None:
    assert EXTRAS.keys() == TODAY.keys() >= FORMER.keys()
    assert all(set(EXTRAS[number]) == {*TODAY[number], *FORMER.get(number, ())} for number in EXTRAS)
    assert all(not set(values) & set(TODAY[number]) for number, values in FORMER.items())


def test_it_holds_what_pymavlink_holds() -> None:
    dialects = pytest.importorskip("pymavlink.dialects.v20")
    known: dict[int, set[int]] = {}
    for path in Path(dialects.__path__[0]).glob("*.py"):
        if path.stem not in TEST_DIALECTS | {"__init__"}:
            module = importlib.import_module(f"{dialects.__name__}.{path.stem}")
            for number, kind in module.mavlink_map.items():
                known.setdefault(number, set()).add(kind.crc_extra)
    # A later pymavlink may know more; what it knows of our ids must be among ours.
    assert {number for number in TODAY if not set(TODAY[number]) <= known.get(number, set())} == set()
    assert {number for number in TODAY if not known[number] <= set(EXTRAS[number])} == set()
