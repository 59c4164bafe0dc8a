"""Addresses: parsed once, printed back the same, never guessed at."""

from __future__ import annotations

import pytest

from relayd.address import (
    ReplayAddress,
    TcpAddress,
    UnixAddress,
    check_connect,
    check_listen,
    parse_address,
    parse_addresses,
    rebased,
)
from relayd.errors import AddressError

# text -> what it prints as, where that is not the text itself
FORMS = {
    "127.0.0.1:80": "",
    "10.0.0.1:1": "",
    "255.255.255.254:65535": "",
    "0.0.0.0:80": "",
    "192.0.2.1:00080": "192.0.2.1:80",
    ":80": "",
    "localhost:80": "",
    "LocalHost:80": "",
    "example.org:5000": "",
    "example.org.:5000": "",
    "a-b.c-d.example:5000": "",
    "under_score.lan:5000": "",
    "3com.example:80": "",
    "1.2.3.example:80": "",
    "x:1": "",
    "xn--bcher-kva.example:80": "",
    "[::1]:80": "",
    "[::]:80": "",
    "[2001:db8::1]:5000": "",
    "[2001:DB8:0:0:0:0:0:1]:5000": "[2001:db8::1]:5000",
    "[0:0:0:0:0:0:0:0]:1": "[::]:1",
    "[fe80::1%eth0]:5000": "",
    "[fe80::1%3]:5000": "",
    "[fe80:0::1%wlan0.7]:5000": "[fe80::1%wlan0.7]:5000",
    "[ff02::1%eth0]:5000": "",
    "unix:/run/relayd/feed.sock": "",
    "unix:feed.sock": "",
    "unix:./feed.sock": "",
    "unix:/tmp/with blank": "",
    "unix:/tmp/a:b": "",
    "unix:/tmp/100%": "",
    "replay:etc/demo.nmea": "",
    "replay:/var/feed.bin": "",
    "replay:etc/demo.nmea?rate=10": "",
    "replay:etc/demo.nmea?rate=0.5": "",
    "replay:etc/demo.nmea?rate=10&loop=yes": "",
    "replay:etc/demo.nmea?loop=yes": "",
    "replay:etc/demo.nmea?loop=no": "replay:etc/demo.nmea",
    "replay:etc/demo.nmea?loop=yes&rate=10": "replay:etc/demo.nmea?rate=10&loop=yes",
    "replay:etc/demo.nmea?": "replay:etc/demo.nmea",
    "replay:a?rate=1234567": "",
    "replay:a?rate=0.000001": "",
    "replay:a?rate=1234.567891": "",
}


@pytest.mark.parametrize("text", FORMS)
def test_c13_parse_print_parse_is_identical(text: str) -> None:
    address = parse_address(text)
    assert str(address) == (FORMS[text] or text)
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "127.1:80", "0x7f000001:80", "0X7F.1:80", "2130706433:80", "0:80", "1.2.3:80", "1.2.3.4.5:80", "256.1.1.1:80",
        "01.2.3.4:80", "1.2.3.4.:80", "\uff11\uff12\uff17.0.0.1:80", "127.0.0.\uff11:80",
        "\xb2:80", "a.0x10:80", "example.1:80",
    ],
)  # fmt: skip
def test_d7_only_canonical_numbers_are_addresses(text: str) -> None:
    with pytest.raises(AddressError, match=r"is no IPv4 address; write all four numbers"):
        parse_address(text)


@pytest.mark.parametrize(
    "port",
    [
        "",
        "0",
        "-1",
        "65536",
        "99999999999",
        "1e3",
        "0x50",
        "80.0",
        " 80",
        "80 ",
        "+80",
        "8_0",
        "٨٠",
        "\uff18\uff10",
        "http",
    ],
)
def test_c12_ports_are_ascii_digits_only(port: str) -> None:
    for host in ("host", "", "[::1]"):
        with pytest.raises(AddressError, match="is no port; write a number from 1 to 65535"):
            parse_address(f"{host}:{port}")


@pytest.mark.parametrize(
    "text",
    [
        "", "host", "127.0.0.1", "::1:80", "2001:db8::1:80", "[::1]", "[::1]80", "[::1", "[]:80", "[1.2.3.4]:80",
        "[::g]:80", "[fe80::1%]:80", "[::1]:80:90", "a:b:80", "-a.example:80", "a-.example:80", "a..b:80", ".a:80",
        ".:80", "a b:80", "a/b:80", "user@host:80", "*:80", "bücher.example:80", f"{'a' * 64}:80", f"{'a.' * 150}b:80",
        "unix:", "unix:@abstract", f"unix:/{'a' * 107}", f"unix:/{'é' * 54}", "replay:", "replay:?rate=1",
        "replay:f?rate=0", "replay:f?rate=-1", "replay:f?rate=nan", "replay:f?rate=1e9", "replay:f?rate=inf",
        "replay:f?rate=", "replay:f?loop=maybe", "replay:f?speed=1", "unixx:/path", "UNIX:/path",
    ],
)  # fmt: skip
def test_c13_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("host", ["a..", "a...", "example.org.."])
def test_d6_a_name_ends_in_one_dot_at_most(host: str) -> None:
    with pytest.raises(AddressError):
        parse_address(f"{host}:80")


def test_the_longest_unix_path_is_107_bytes() -> None:
    assert parse_address("unix:/" + "a" * 106) == UnixAddress("/" + "a" * 106)


def test_what_would_be_right_is_said() -> None:
    with pytest.raises(AddressError, match=r"put the IPv6 address in brackets: \[::1\]:5000"):
        parse_address("::1:80")
    with pytest.raises(AddressError, match="did you mean 'rate'"):
        parse_address("replay:f?rat=1")


def test_a_list_keeps_its_order_and_names_each_once() -> None:
    assert parse_addresses("b:2, a:1 ,:3") == (TcpAddress("b", 2), TcpAddress("a", 1), TcpAddress("", 3))
    with pytest.raises(AddressError, match="'a:1' is named twice"):
        parse_addresses("a:1,b:2,a:1")
    for text in ("", "a:1,", ",a:1", "a:1,,b:2"):
        with pytest.raises(AddressError):
            parse_addresses(text)


def test_c7_a_scope_survives() -> None:
    assert parse_address("[fe80::1%eth0]:80") == TcpAddress("fe80::1%eth0", 80)


@pytest.mark.parametrize(
    "text",
    [
        ":80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80", "[ff02::1%eth0]:80", "255.255.255.255:80", "[fe80::1]:80",
    ],
)  # fmt: skip
def test_n17_what_is_no_single_host_cannot_be_connected_to(text: str) -> None:
    with pytest.raises(AddressError):
        check_connect(parse_address(text))


@pytest.mark.parametrize("text", ["host:80", "127.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "unix:/a", "replay:a"])
def test_one_host_can_be_connected_to(text: str) -> None:
    check_connect(parse_address(text))


@pytest.mark.parametrize("text", ["replay:a", "224.0.0.1:80", "[ff02::1%eth0]:80", "[fe80::1]:80"])
def test_n16_n17_what_cannot_be_listened_on(text: str) -> None:
    with pytest.raises(AddressError):
        check_listen(parse_address(text))


@pytest.mark.parametrize("text", [":80", "0.0.0.0:80", "[::]:80", "host:80", "unix:/a", "[fe80::1%eth0]:80"])
def test_what_can_be_listened_on(text: str) -> None:
    check_listen(parse_address(text))


def test_relative_paths_are_seen_from_a_directory() -> None:
    assert rebased(UnixAddress("a/../b.sock"), "/run") == UnixAddress("/run/b.sock")
    assert rebased(UnixAddress("/b.sock"), "/run") == UnixAddress("/b.sock")
    assert rebased(ReplayAddress("f", 2.0, True), "/etc") == ReplayAddress("/etc/f", 2.0, True)
    assert rebased(TcpAddress("f", 1), "/etc") == TcpAddress("f", 1)


def test_ip_is_none_for_a_name() -> None:
    assert str(TcpAddress("::1", 1).ip) == "::1"
    assert TcpAddress("localhost", 1).ip is None
    assert TcpAddress("", 1).ip is None
