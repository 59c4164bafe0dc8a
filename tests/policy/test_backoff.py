"""How long to wait before the next attempt."""

from __future__ import annotations

import pytest

from relayd.policy.backoff import Backoff


def waits(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_delay() for _ in range(count)]


def test_n1_waits_double_up_to_the_highest() -> None:
    assert waits(Backoff(1, 30, lambda: 0.5), 7) == [1, 2, 4, 8, 16, 30, 30]


@pytest.mark.parametrize(("random", "factor"), [(0.0, 0.8), (0.5, 1.0), (0.999999, 1.2)])
def test_n19_each_wait_is_spread_by_a_fifth(random: float, factor: float) -> None:
    assert waits(Backoff(1, 4, lambda: random), 4) == pytest.approx([factor * wait for wait in (1, 2, 4, 4)], rel=1e-5)


def test_jitter_does_not_add_up() -> None:
    values = iter([0.999, 0.0] * 50)
    assert all(wait <= 30 * 1.2 for wait in waits(Backoff(1, 30, lambda: next(values)), 100))


def test_one_value_is_fixed_and_exact() -> None:
    assert waits(Backoff(5, 5, lambda: 0.9), 3) == [5, 5, 5]


def test_n11_only_reset_starts_over() -> None:
    backoff = Backoff(1, 30, lambda: 0.5)
    waits(backoff, 4)
    backoff.reset()
    assert waits(backoff, 2) == [1, 2]
