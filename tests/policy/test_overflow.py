"""The choices for `overflow`."""

from __future__ import annotations

from relayd.policy.overflow import OVERFLOW, Relief


def test_every_choice_is_a_way_of_relief_and_explained() -> None:
    assert {name: rule.relief for name, rule in OVERFLOW.items()} == {
        "disconnect": Relief.CUT,
        "drop_oldest": Relief.DROP_OLDEST,
        "drop_newest": Relief.DROP_NEWEST,
        "block": Relief.HOLD,
    }
    assert all(rule.name == name and rule.help for name, rule in OVERFLOW.items())


def test_only_records_can_be_left_out() -> None:
    assert {name for name, rule in OVERFLOW.items() if rule.needs_records} == {"drop_oldest", "drop_newest"}
