"""Counters begin at nothing, are all there, and never go backwards."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from relayd.observe.counters import Counters


@dataclass(eq=False)
class Tally:
    """What a sink counts."""

    sent: int = 0
    repeated: int = 0
    dropped: int = 0
    dropped_records: int = 0
    stale_records: int = 0


def test_all_begin_at_zero() -> None:
    counters = Counters()
    assert {name: getattr(counters, name) for name in Counters.__slots__} == dict.fromkeys(Counters.__slots__, 0)
    assert counters.snapshot([]) == dict.fromkeys(Counters.__slots__, 0)


def test_r13_counters_do_not_wrap() -> None:
    counters = Counters()
    counters.bytes_in = 2**64
    counters.bytes_in += 1
    assert counters.bytes_in == 2**64 + 1


def test_a_sink_that_is_gone_is_in_the_totals() -> None:
    counters = Counters()
    counters.add(Tally(sent=10, repeated=2, dropped=3))
    counters.add(Tally(sent=1, repeated=1, dropped=1))
    assert (counters.bytes_out, counters.repeated, counters.dropped) == (11, 3, 4)


def test_a_snapshot_has_the_living_and_changes_nothing() -> None:
    counters = Counters()
    counters.bytes_in = 7
    counters.add(Tally(1, 2, 3))
    living = [Tally(10, 20, 30), Tally(100, 200, 300)]
    for _ in range(2):
        snapshot = counters.snapshot(living)
        assert (snapshot["bytes_out"], snapshot["repeated"], snapshot["dropped"]) == (111, 222, 333)
        assert (snapshot["bytes_in"], snapshot["refused"]) == (7, 0)
    assert set(snapshot) == set(Counters.__slots__)
    assert counters.bytes_out == 1


STEP = st.tuples(st.sampled_from(["come", "go", "sent", "repeated", "dropped"]), st.integers(0, 9))


@given(st.lists(STEP))
def test_totals_never_go_backwards_whoever_comes_and_goes(steps: list[tuple[str, int]]) -> None:
    counters, living, before = Counters(), [Tally()], Counters().snapshot([])
    for action, number in steps:
        if action == "come":
            living.append(Tally())
        elif action == "go" and living:
            counters.add(living.pop(number % len(living)))
        elif living and action != "go":
            sink = living[number % len(living)]
            setattr(sink, action, getattr(sink, action) + number)
        after = counters.snapshot(living)
        assert all(after[name] >= before[name] for name in after)
        before = after
