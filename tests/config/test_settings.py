"""The frozen values that the rest of the program sees."""

from __future__ import annotations

import dataclasses

import pytest

from relayd.address import ReplayAddress, TcpAddress
from relayd.config.load import load_command_line
from relayd.config.settings import RelayConfig, dependent_default, is_unpaced


def relay(*options: tuple[str, str]) -> RelayConfig:
    return load_command_line([(key, value, key) for key, value in options], {}).relays[0]


def test_a_mode_is_two_roles() -> None:
    config = relay(("mode", "listen-connect"), ("source", ":1"), ("destination", "a:2"))
    assert (config.source_role, config.destination_role) == ("listen", "connect")


@pytest.mark.parametrize(
    ("mode", "source", "destination", "listening"),
    [
        ("connect-listen", "a:1", ":2", [2]),
        ("listen-connect", ":1", "a:2", [1]),
        ("listen-listen", ":1,:3", ":2", [1, 3, 2]),
        ("connect-connect", "a:1", "a:2", []),
    ],
)
def test_what_is_listened_on(mode: str, source: str, destination: str, listening: list[int]) -> None:
    config = relay(("mode", mode), ("source", source), ("destination", destination))
    assert [address.port for _, address in config.listening if isinstance(address, TcpAddress)] == listening


def test_settings_cannot_be_changed() -> None:
    config = relay(("source", "a:1"), ("destination", ":2"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.buffer = 1  # type: ignore[misc]


def test_two_loads_of_one_text_are_equal() -> None:
    options = (("source", "a:1"), ("destination", ":2"), ("allow", "10.0.0.0/8"), ("dump_max", "8K x 2"))
    assert relay(*options) == relay(*options)
    assert relay(*options) != relay(*options, ("nodelay", "no"))


def test_a_replay_without_a_rate_is_unpaced() -> None:
    assert is_unpaced((TcpAddress("a", 1), ReplayAddress("f")))
    assert not is_unpaced((ReplayAddress("f", 1.0), TcpAddress("a", 1)))


def test_a_fixed_default_does_not_depend() -> None:
    with pytest.raises(AssertionError):
        dependent_default("buffer", {"mode": "connect-listen", "destination": ()})
