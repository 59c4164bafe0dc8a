"""The choices for `overflow`."""

from __future__ import annotations

from relayd.policy.overflow import OVERFLOW, Relief


def test_every_choice_is_a_way_of_relief_and_explained() -> None:
    assert {name: rule.relief for name, rule in OVERFLOW.items()} == {"disconnect": Relief.CUT, "block": Relief.HOLD}
    assert all(rule.name == name and rule.help for name, rule in OVERFLOW.items())
