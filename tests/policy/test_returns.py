"""The choices for `return`."""

from __future__ import annotations

import pytest

from relayd.policy.returns import RETURNS


@pytest.mark.parametrize(("rule", "admitted"), [("none", ""), ("all", "abc"), ("first", "a")])
def test_who_may_send_back(rule: str, admitted: str) -> None:
    order = dict.fromkeys("abc")
    assert "".join(link for link in order if RETURNS[rule].admits(link, order)) == admitted


def test_first_goes_to_the_next_when_one_leaves() -> None:
    order = dict.fromkeys("abc")
    del order["a"]
    order["a"] = None  # back, at the end of the line
    assert [link for link in "abc" if RETURNS["first"].admits(link, order)] == ["b"]


def test_every_choice_is_explained() -> None:
    assert all(rule.name == name and rule.help for name, rule in RETURNS.items())
