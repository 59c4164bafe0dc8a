"""Which peers may come in, by their address."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.policy.access import AccessList, parse_network


def access(allow: str = "", deny: str = "") -> AccessList:
    return AccessList([parse_network(text) for text in allow.split()], [parse_network(text) for text in deny.split()])


@pytest.mark.parametrize(
    ("allow", "deny", "host", "permitted"),
    [
        ("", "", "192.0.2.1", True),
        ("192.0.2.0/24", "", "192.0.2.1", True),
        ("192.0.2.0/24", "", "192.0.3.1", False),
        ("192.0.2.0/24", "", "2001:db8::1", False),
        ("", "192.0.2.0/24", "192.0.2.1", False),
        ("", "192.0.2.0/24", "192.0.3.1", True),
        ("192.0.2.0/24", "192.0.2.66", "192.0.2.66", False),
        ("192.0.2.66", "192.0.2.0/24", "192.0.2.66", False),
        ("2001:db8::/32", "", "2001:db8::1", True),
        ("fe80::/10", "", "fe80::1%eth0", True),
        ("", "fe80::/10", "fe80::1%eth0", False),
        ("127.0.0.0/8", "", "::1", False),
        ("::1", "", "127.0.0.1", False),
        ("0.0.0.0/0", "", "::1", False),
        ("0.0.0.0/0", "", "192.0.2.1", True),
    ],
)
def test_deny_is_looked_at_first_then_allow_must_name_the_peer(
    allow: str, deny: str, host: str, permitted: bool
) -> None:
    assert access(allow, deny).permits(host) == permitted


@pytest.mark.parametrize("network", ["10.0.0.0/8", "::ffff:10.0.0.0/104", "::ffff:a00:0/104"])
@pytest.mark.parametrize("host", ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:a00:1"])
def test_l16_mapped_addresses_are_the_ipv4_ones(network: str, host: str) -> None:
    assert access(allow=network).permits(host)
    assert not access(deny=network).permits(host)
    assert not access(allow=network).permits("::ffff:11.0.0.1")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("::1", "::1/128"),
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("::/0", "::/0"),
    ],
)
def test_networks_are_folded(text: str, shown: str) -> None:
    assert str(parse_network(text)) == shown


@pytest.mark.parametrize(
    "text", ["127.1", "0x7f000001", "2130706433", "0", "1.2.3", "\uff11.2.3.4", "10.0.0.1/8", "host", "", "10.0.0.0/33"]
)
def test_d7_networks_are_canonical(text: str) -> None:
    with pytest.raises(ValueError):
        parse_network(text)


@given(st.ip_addresses(), st.integers(0, 32))
def test_a_network_holds_its_own_address(ip: object, bits: int) -> None:
    assert access(allow=str(ip)).permits(str(ip))
    assert not access(deny=str(ip)).permits(str(ip))
