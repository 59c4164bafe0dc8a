"""What a new configuration changes: a table of pairs."""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.address import TcpAddress, UnixAddress
from relayd.config.keys import AT_START, DAEMON_KEYS, RELAY_KEYS
from relayd.config.kinds import Waits
from relayd.config.load import load_command_line
from relayd.config.settings import Config, RelayConfig
from relayd.observe.dump import Rotation
from relayd.policy.history import HistoryBound
from relayd.policy.overflow import SlowAfter
from relayd.reload import Change, Plan, diff
from relayd.wire.framings import LINE

ONE, TWO, THREE = (TcpAddress("192.0.2.1", port) for port in (1, 2, 3))
BASE = load_command_line([("source", str(ONE), ""), ("destination", ":2", "")], {})


def relay(name: str = "a", **changes: Any) -> RelayConfig:
    return replace(BASE.relays[0], name=name, **changes)


def config(*relays: RelayConfig, **changes: Any) -> Config:
    return replace(BASE, relays=relays, **changes)


def names(plan: Plan) -> tuple[str, str, str, str]:
    """Return what happens to whom: added, removed, changed, unchanged."""
    changed = [change.new.name for change in plan.changed]
    return (
        "".join(relay.name for relay in plan.added), "".join(relay.name for relay in plan.removed),
        "".join(changed), "".join(relay.name for relay in plan.unchanged),
    )  # fmt: skip


# -- which relays -------------------------------------------------------------------------------

OFF = {"enabled": False}


@pytest.mark.parametrize(
    ("old", "new", "plan"),
    [
        ([], [], ("", "", "", "")),
        ([relay("a")], [relay("a")], ("", "", "", "a")),
        ([], [relay("a")], ("a", "", "", "")),
        ([relay("a")], [], ("", "a", "", "")),
        ([relay("a")], [relay("a", buffer=1)], ("", "", "a", "")),
        ([relay("a")], [relay("b")], ("b", "a", "", "")),  # renamed
        ([relay("a"), relay("b")], [relay("b"), relay("a")], ("", "", "", "ba")),
        ([relay("a")], [relay("a", **OFF)], ("", "a", "", "")),
        ([relay("a", **OFF)], [relay("a")], ("a", "", "", "")),
        ([relay("a", **OFF)], [relay("a", buffer=1, **OFF)], ("", "", "", "")),
        ([relay("a", **OFF)], [], ("", "", "", "")),
        ([], [relay("a", **OFF)], ("", "", "", "")),
        (
            [relay("a"), relay("b"), relay("c"), relay("d", **OFF)],
            [relay("c", buffer=1), relay("d"), relay("a"), relay("e")],
            ("de", "b", "c", "a"),
        ),
    ],
)
def test_p9_what_is_touched(old: list[RelayConfig], new: list[RelayConfig], plan: tuple[str, ...]) -> None:
    found = diff(config(*old), config(*new))
    assert names(found) == plan
    assert found.empty == (not any(plan[:3]))


def test_a_change_has_both_sides_and_what_stays_is_the_old_one() -> None:
    old, new = relay("a"), relay("a", buffer=1)
    stays = relay("b")
    plan = diff(config(old, stays), config(new, replace(stays)))
    assert plan.changed == (Change(old, new),)
    assert plan.unchanged[0] is stays


def test_where_a_value_came_from_is_no_change() -> None:
    plan = diff(config(relay("a")), config(relay("a", secret_keys=frozenset({"source"})), path="/other"))
    assert names(plan) == ("", "", "", "a")
    assert plan.empty
    assert not plan.needs_restart


# -- the daemon's own keys ----------------------------------------------------------------------

DAEMON_CHANGES: dict[str, Any] = {
    "pidfile": "/p", "user": "u", "group": "g", "umask": 0o77, "chroot": "/c", "log": "journal", "log_level": "debug",
    "log_format": "json", "control": "/s", "control_mode": 0o660, "drain_timeout": 1.0,
}  # fmt: skip


def test_every_key_of_the_daemon_is_in_the_table() -> None:
    assert set(DAEMON_CHANGES) == set(DAEMON_KEYS) - {"include"}


@pytest.mark.parametrize("key", DAEMON_CHANGES)
def test_a_key_that_is_taken_at_the_start_waits_for_the_next_one(key: str) -> None:
    plan = diff(BASE, replace(BASE, **{key: DAEMON_CHANGES[key]}))
    assert plan.needs_restart == ((key,) if DAEMON_KEYS[key].reload == AT_START else ())
    assert plan.empty


def test_who_has_given_up_root_cannot_change_who_it_is() -> None:
    at_start = {key.name for key in DAEMON_KEYS.values() if key.reload == AT_START}
    assert at_start == {"pidfile", "user", "group", "umask", "chroot"}
    assert set(diff(BASE, replace(BASE, **DAEMON_CHANGES)).needs_restart) == at_start


# -- which links stay ---------------------------------------------------------------------------

# A value for each key that is another than the base's.
RELAY_CHANGES: dict[str, Any] = {
    "mode": "listen-connect", "source": (THREE,), "destination": (UnixAddress("/x"),), "enabled": False,
    "framing": LINE, "max_record": 100, "return": "all", "second_source": "refuse", "on_source_loss": "close",
    "source_idle": 5.0, "buffer": 5000, "overflow": "block", "slow_after": SlowAfter(9, 9.0),
    "stall_timeout": 1.0, "max_age": 1.0, "history": HistoryBound(9), "coalesce": 1.0, "notsent": 9,
    "reconnect": Waits(9, 9),
    "stable_after": 1.0, "connect_timeout": 1.0, "bind_source": "192.0.2.9", "keepalive": None, "linger_timeout": 1.0,
    "max_clients": 3, "max_clients_per_ip": 3, "allow": (ipaddress.ip_network("10.0.0.0/8"),),
    "deny": (ipaddress.ip_network("10.0.0.0/8"),), "source_allow": (ipaddress.ip_network("10.0.0.0/8"),),
    "source_deny": (ipaddress.ip_network("10.0.0.0/8"),), "unix_mode": 0o600, "backlog": 3, "nodelay": False,
    "send_buffer": 5000, "receive_buffer": 5000, "dump": "hex", "dump_file": "/d", "dump_max": Rotation(1, 1),
}  # fmt: skip

MODES = ["connect-listen", "listen-connect", "connect-connect", "listen-listen"]


def change_of(mode: str, key: str) -> Change:
    old = relay(mode=mode, source=(ONE,), destination=(TWO,))
    return Change(old, replace(old, **{RELAY_KEYS[key].field: RELAY_CHANGES[key]}))


def test_every_key_of_a_relay_is_in_the_table_and_a_change() -> None:
    assert set(RELAY_CHANGES) == set(RELAY_KEYS)
    assert {RELAY_KEYS[key].field for key in RELAY_CHANGES} == {found.name for found in fields(RelayConfig)} - {
        "name", "secret_keys",
    }  # fmt: skip
    for key in RELAY_CHANGES:
        change = change_of("connect-listen", key)
        plan = diff(config(change.old), config(change.new))
        assert not plan.empty, key


@pytest.mark.parametrize("key", [key.name for key in RELAY_KEYS.values() if key.reload == "live"])
@pytest.mark.parametrize("mode", MODES)
def test_p9_what_is_said_to_apply_live_cuts_no_link(mode: str, key: str) -> None:
    change = change_of(mode, key)
    assert change.keeps_source
    assert change.keeps_destination(None if mode.endswith("listen") else TWO)


@pytest.mark.parametrize(
    ("mode", "key", "source", "destination"),
    [
        *((mode, "framing", False, False) for mode in MODES),
        ("connect-listen", "source", False, True), ("connect-connect", "source", False, True),
        ("listen-connect", "source", True, True), ("listen-listen", "source", True, True),
        ("connect-listen", "destination", True, True), ("listen-listen", "destination", True, True),
        ("connect-connect", "destination", True, False), ("listen-connect", "destination", True, False),
        ("connect-listen", "bind_source", False, True), ("listen-connect", "bind_source", True, False),
        ("connect-connect", "bind_source", False, False), ("listen-listen", "bind_source", True, True),
        ("connect-listen", "mode", False, False), ("listen-listen", "mode", True, False),
        ("connect-connect", "mode", False, True),
    ],
)  # fmt: skip
def test_p9_what_a_changed_end_reopens(mode: str, key: str, source: bool, destination: bool) -> None:
    change = change_of(mode, key)
    assert change.keeps_source == source
    assert change.keeps_destination(None if mode.endswith("listen") else TWO) == destination


def test_p9_of_several_destinations_those_that_stay_keep_their_links() -> None:
    old = relay(mode="connect-connect", destination=(ONE, TWO))
    change = Change(old, replace(old, destination=(THREE, TWO)))
    assert [change.keeps_destination(address) for address in (ONE, TWO)] == [False, True]


# -- for every pair -----------------------------------------------------------------------------

relays = st.builds(
    relay, name=st.sampled_from("abcde"), buffer=st.sampled_from([1, 2]), enabled=st.booleans(),
    framing=st.sampled_from(["raw", "line"]),
)  # fmt: skip
configs = st.builds(
    lambda relays, umask: config(*relays, umask=umask),
    st.lists(relays, max_size=5, unique_by=lambda relay: relay.name), st.sampled_from([0o27, 0o77]),
)  # fmt: skip


@settings(deadline=None)
@given(configs)
def test_the_same_configuration_changes_nothing(one: Config) -> None:
    plan = diff(one, replace(one, relays=tuple(map(replace, one.relays))))
    assert plan.empty
    assert not plan.needs_restart
    assert plan.unchanged == tuple(relay for relay in one.relays if relay.enabled)


@settings(deadline=None)
@given(configs, configs)
def test_there_and_back_mirror_each_other(one: Config, other: Config) -> None:
    there, back = diff(one, other), diff(other, one)
    assert set(there.added) == set(back.removed)
    assert set(there.removed) == set(back.added)
    assert {(change.old, change.new) for change in there.changed} == {
        (change.new, change.old) for change in back.changed
    }
    assert set(there.unchanged) == set(back.unchanged)
    assert there.needs_restart == back.needs_restart


@settings(deadline=None)
@given(configs, configs)
def test_every_enabled_relay_is_in_the_plan_once(one: Config, other: Config) -> None:
    plan = diff(one, other)
    new = [*plan.added, *(change.new for change in plan.changed), *plan.unchanged]
    old = [*plan.removed, *(change.old for change in plan.changed), *plan.unchanged]
    assert Counter(new) == Counter(relay for relay in other.relays if relay.enabled)
    assert Counter(old) == Counter(relay for relay in one.relays if relay.enabled)
