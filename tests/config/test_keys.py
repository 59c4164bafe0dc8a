"""The one table of keys, held against the values that the program sees."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import replace

import pytest

from relayd.address import parse_address
from relayd.config.keys import CONNECT, DAEMON_KEYS, LISTEN, MODES, RELAY_KEYS, Key
from relayd.config.load import load_command_line
from relayd.config.settings import Config, RelayConfig, dependent_default
from relayd.reload import Change, diff

ALL = [*RELAY_KEYS.values(), *DAEMON_KEYS.values()]


def fields(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_key_of_a_relay_has_a_field_and_the_other_way_round() -> None:
    assert {key.field for key in RELAY_KEYS.values()} == fields(RelayConfig) - {"name", "secret_keys"}


def test_every_key_of_the_daemon_has_a_field_and_the_other_way_round() -> None:
    assert {key.field for key in DAEMON_KEYS.values()} == fields(Config) - {
        "relays", "path", "secret_keys", "warnings"
    }  # fmt: skip


def test_the_tables_do_not_share_a_key() -> None:
    assert not set(RELAY_KEYS) & set(DAEMON_KEYS)


@pytest.mark.parametrize("key", [key for key in ALL if key.default and not key.default_help], ids=lambda key: key.name)
def test_every_default_is_read_and_shown_back(key: Key) -> None:
    assert key.default is not None
    assert key.kind.show(key.kind.read(key.default)) == key.default


@pytest.mark.parametrize(
    "key", [key for key in ALL if key.default == "" and not key.default_help], ids=lambda key: key.name
)
def test_an_empty_default_is_a_value(key: Key) -> None:
    assert key.kind.show(key.kind.read("")) == ""


@pytest.mark.parametrize("key", [key for key in RELAY_KEYS.values() if key.default_help], ids=lambda key: key.name)
@pytest.mark.parametrize("mode", MODES)
def test_every_dependent_default_is_read(key: Key, mode: str) -> None:
    for destination in (("one",), ("one", "two")):
        for overflow in ("block", "disconnect"):
            values = {"mode": mode, "source": (), "destination": destination, "overflow": overflow}
            key.kind.read(dependent_default(key.name, values))


def test_a_key_that_must_be_given_has_no_default() -> None:
    assert {key.name for key in ALL if key.default is None} == {"source", "destination"}


@pytest.mark.parametrize("key", ALL, ids=lambda key: key.name)
def test_every_key_is_explained_in_a_line(key: Key) -> None:
    assert key.help
    assert "\n" not in key.help
    assert key.only_for in ("", "source listen", "source connect", "destination listen", "destination connect")


def test_the_modes_are_all_pairs_of_roles_by_their_names() -> None:
    assert {
        f"{source}-{destination}": (source, destination)
        for source in (CONNECT, LISTEN)
        for destination in (CONNECT, LISTEN)
    } == MODES
    assert next(iter(MODES)) == RELAY_KEYS["mode"].default or RELAY_KEYS["mode"].default in MODES


# -- what a reload does with each ---------------------------------------------------------------------

# A value for each key that is neither its default nor that of SETTINGS.
OTHER = {
    "mode": "", "source": "", "destination": "", "enabled": "no", "framing": "line", "bind_source": "127.0.0.2",
    "max_record": "1K", "return": "first", "second_source": "refuse", "on_source_loss": "close", "source_idle": "5m",
    "buffer": "1M", "overflow": "", "stall_timeout": "7s", "reconnect": "5s", "stable_after": "1m",
    "connect_timeout": "3s", "keepalive": "off", "linger_timeout": "5s", "max_clients": "7", "max_clients_per_ip": "3",
    "allow": "10.0.0.0/8", "deny": "10.0.0.0/8", "source_allow": "10.0.0.0/8", "source_deny": "10.0.0.0/8",
    "unix_mode": "0666", "backlog": "7", "nodelay": "no", "send_buffer": "64K", "receive_buffer": "64K",
    "slow_after": "1M 10s", "max_age": "5s", "history": "30s", "coalesce": "5ms", "notsent": "1M",
    "dump": "text", "dump_file": "dump", "dump_max": "1M x 3",
}  # fmt: skip

SETTINGS = {"source": "192.0.2.1:1", "destination": "192.0.2.2:2,192.0.2.3:3"}
LISTENING = {"source": ":1", "destination": ":2,:3"}


def relay(mode: str, **settings: str) -> RelayConfig:
    """Return a relay of the mode, with addresses that suit it."""
    roles = dict(zip(("source", "destination"), MODES[mode], strict=True))
    given = {end: (SETTINGS if role == CONNECT else LISTENING)[end] for end, role in roles.items()}
    given |= {"mode": mode, **settings}
    return load_command_line([(key, value, key) for key, value in given.items()], {}).relays[0]


def modes_for(key: Key) -> Iterator[str]:
    """Yield the modes in which the key has an effect."""
    for mode, (source, destination) in MODES.items():
        if not key.only_for or key.only_for in (f"source {source}", f"destination {destination}"):
            yield mode


def kept(change: Change) -> tuple[bool, set[str]]:
    """Return whether the source stays, and which of the former destinations; of clients, "all of them"."""
    role, addresses = change.old.destination_role, change.old.destination
    if role == LISTEN:
        return change.keeps_source, {"clients"} if change.keeps_destination(None) else set()
    return change.keeps_source, {str(address) for address in addresses if change.keeps_destination(address)}


def everything(old: RelayConfig) -> tuple[bool, set[str]]:
    return True, {"clients"} if old.destination_role == LISTEN else set(map(str, old.destination))


def test_every_key_has_another_value_to_change_to() -> None:
    assert set(OTHER) == set(RELAY_KEYS)


LIVE = [key for key in RELAY_KEYS.values() if key.reload == "live"]


@pytest.mark.parametrize("key", LIVE, ids=lambda key: key.name)
def test_r_a_live_key_keeps_source_and_destinations(key: Key) -> None:
    for mode in modes_for(key):
        old = relay(mode, framing="line")
        other = OTHER[key.name] or ("disconnect" if old.overflow == "block" else "block")
        new = relay(mode, framing="line", **{key.name: other})
        assert getattr(old, key.field) != getattr(new, key.field)
        assert kept(Change(old, new)) == kept(Change(new, old)) == everything(old)


def test_the_keys_that_are_not_live_are_these() -> None:
    """Each has a test below, of what its text says."""
    names = {key.name for key in RELAY_KEYS.values()} - {key.name for key in LIVE}
    assert names == {"mode", "source", "destination", "enabled", "framing", "bind_source"}


@pytest.mark.parametrize(("before", "after"), [*itertools.permutations(MODES, 2)])
def test_r_mode_reopens_the_end_whose_role_changes(before: str, after: str) -> None:
    old, new = relay(before), relay(after)
    source, destinations = kept(Change(old, new))
    assert source == (MODES[before][0] == MODES[after][0])
    assert destinations == (everything(old)[1] if MODES[before][1] == MODES[after][1] else set())


@pytest.mark.parametrize("mode", MODES)
def test_r_source_reopens_a_connecting_one_and_leaves_a_listening_one_s_link(mode: str) -> None:
    old = relay(mode)
    for source in ("192.0.2.9:9", "192.0.2.1:1,192.0.2.9:9"):
        new = replace(old, source=tuple(map(parse_address, source.split(","))))
        assert kept(Change(old, new)) == (MODES[mode][0] == LISTEN, everything(old)[1])


@pytest.mark.parametrize("mode", MODES)
def test_r_destination_touches_only_what_was_added_and_removed(mode: str) -> None:
    old = relay(mode)
    stays, goes = old.destination
    new = replace(old, destination=(parse_address("192.0.2.9:9"), stays))
    expected = {"clients"} if MODES[mode][1] == LISTEN else {str(stays)}
    assert kept(Change(old, new)) == (True, expected)
    assert kept(Change(old, replace(old, destination=(goes, stays)))) == everything(old)


@pytest.mark.parametrize("mode", MODES)
def test_r_framing_reopens_both_ends(mode: str) -> None:
    old = relay(mode)
    assert kept(Change(old, relay(mode, framing="line"))) == (False, set())


@pytest.mark.parametrize("mode", MODES)
def test_r_bind_source_reopens_what_connects(mode: str) -> None:
    old = relay(mode)
    source, destination = MODES[mode]
    expected = (source == LISTEN, {"clients"} if destination == LISTEN else set())
    assert kept(Change(old, relay(mode, bind_source=OTHER["bind_source"]))) == expected


def test_r_enabled_starts_the_relay_or_drains_it() -> None:
    given = {**SETTINGS, "mode": "connect-connect"}
    on, off = (
        load_command_line([(key, value, key) for key, value in {**given, "enabled": word}.items()], {})
        for word in ("yes", "no")
    )
    assert (diff(off, on).added, diff(off, on).changed) == (on.relays, ())
    assert (diff(on, off).removed, diff(on, off).changed) == (on.relays, ())
    assert diff(off, off).empty and diff(on, on).unchanged == on.relays
