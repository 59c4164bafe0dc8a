"""The bound of a history."""

from __future__ import annotations

from relayd.policy.history import HistoryBound


def test_no_bound_is_no_history() -> None:
    assert not HistoryBound()
    assert all((HistoryBound(size=1), HistoryBound(records=1), HistoryBound(seconds=0.001)))
