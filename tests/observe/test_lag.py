"""The lag meter, against a model that remembers everything."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from relayd.observe.lag import LagMeter

# What the meter may be wrong by: it takes a sample at most each tenth of a second.
TENTH = 0.11

Steps = st.lists(
    st.tuples(st.integers(1, 1000), st.one_of(st.floats(0, 0.2), st.floats(0, 100))), min_size=1, max_size=60
)


@settings(deadline=None)
@given(Steps, st.floats(0, 100), st.data())
@example([(100, 0.0), (900, 0.05)], 60.0, None)
@example([(100, 0.0), (900, 0.05), (1, 60.0)], 1.0, None)
def test_the_lag_is_known_to_a_tenth_of_a_second(
    steps: list[tuple[int, float]], later: float, data: st.DataObject | None
) -> None:
    meter = LagMeter()
    now, position = 1000.0, 0
    passed = []  # (position after, when)
    for count, delay in steps:
        now += delay
        position += count
        meter.passed(position, now)
        passed.append((position, now))
    now += later
    place = position - 1 if data is None else data.draw(st.integers(0, position - 1))
    true = now - next(when for after, when in passed if after > place)
    assert abs(meter.lag(place, now) - true) <= TENTH


@settings(deadline=None)
@given(Steps)
def test_who_has_everything_has_no_lag(steps: list[tuple[int, float]]) -> None:
    meter = LagMeter()
    now, position = 0.0, 0
    assert meter.lag(0, 5.0) == 0.0
    for count, delay in steps:
        now += delay
        position += count
        meter.passed(position, now)
        assert meter.lag(position, now) == 0.0
        assert meter.lag(position, now + 1e6) == 0.0


@settings(deadline=None)
@given(Steps, st.integers(-5000, 70_000), st.floats(-10, 1e6))
def test_a_lag_is_never_negative_and_never_more_than_the_whole_time(
    steps: list[tuple[int, float]], place: int, later: float
) -> None:
    meter = LagMeter()
    now, position = 0.0, 0
    for count, delay in steps:
        now += delay
        position += count
        meter.passed(position, now)
    assert 0.0 <= meter.lag(place, now + later) <= max(0.0, now + later)


def test_who_is_further_behind_lags_no_less() -> None:
    meter = LagMeter()
    for second in range(100):
        meter.passed(10 * second, float(second))
    lags = [meter.lag(place, 100.0) for place in range(990)]
    assert lags == sorted(lags, reverse=True)
    assert (lags[0], lags[-1]) == (99.0, 1.0)


def test_memory_is_bounded_and_what_is_forgotten_lags_at_least_as_long_as_what_is_not() -> None:
    meter = LagMeter()
    for step in range(100_000):  # nearly three hours at ten chunks a second
        meter.passed(step, step / 10)
        assert len(meter._positions) == len(meter._times) <= 2048
    assert meter.lag(0, 10_000.0) >= 100
    assert 1.0 <= meter.lag(99_980, 10_000.0) <= 2.2


def test_a_burst_of_chunks_costs_one_sample() -> None:
    meter = LagMeter()
    for step in range(10_000):
        meter.passed(step, 5.0 + step / 1e6)
    assert len(meter._positions) <= 2
