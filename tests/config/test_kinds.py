"""The types of values: what is read is shown so that it reads the same."""

from __future__ import annotations

import ipaddress
import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.config import kinds
from relayd.config.keys import DAEMON_KEYS, LOG_NAMES, RELAY_KEYS
from relayd.config.kinds import Kind

DIGITS = st.integers(0, 10**10).map(str)
UNITS = st.sampled_from(["", "ms", "s", "m", "h", "d", "K", "M", "G", "k"])
NUMBERS = st.tuples(DIGITS, st.sampled_from(["", ".5", ".001", ".25"]), UNITS).map("".join)
NETWORKS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: str(ipaddress.ip_network(pair, strict=False)))
HOSTS = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.text(string.ascii_letters + string.digits + "-.", max_size=12),
)
ADDRESSES = st.one_of(
    st.tuples(HOSTS, st.integers(0, 70000)).map(lambda pair: f"{pair[0]}:{pair[1]}"),
    st.text(string.printable, max_size=10).map(lambda text: f"unix:{text}"),
    st.tuples(st.text("abc/", max_size=4), NUMBERS).map(lambda pair: f"replay:{pair[0]}?rate={pair[1]}&loop=yes"),
)
TEXTS = st.one_of(
    NUMBERS,
    ADDRESSES,
    NETWORKS,
    st.lists(ADDRESSES, max_size=3).map(",".join),
    st.lists(NETWORKS, max_size=3).map(", ".join),
    st.tuples(NUMBERS, NUMBERS).map("..".join),
    st.tuples(NUMBERS, NUMBERS, DIGITS).map("/".join),
    st.tuples(NUMBERS, DIGITS).map(" x ".join),
    st.tuples(NUMBERS, NUMBERS).map(" ".join),
    DIGITS.map(lambda digits: f"{digits}r"),
    st.sampled_from(["", "yes", "no", "off", "0660", "777", "line", "1s..1s", "5s..1h", "30s/10s/3"]),
    st.text(max_size=8),
)
KINDS = {key.name: key.kind for key in (*RELAY_KEYS.values(), *DAEMON_KEYS.values())}


@pytest.mark.parametrize("name", KINDS)
@given(text=TEXTS)
def test_what_is_shown_reads_the_same(name: str, text: str) -> None:
    kind = KINDS[name]
    try:
        value = kind.read(text)
    except ValueError:
        return  # and nothing else is raised
    assert kind.read(kind.show(value)) == value
    assert "\n" not in kind.show(value) or "\n" in text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("10", 10),
        ("10s", 10),
        ("500ms", 0.5),
        ("5m", 300),
        ("1h", 3600),
        ("1d", 86400),
        ("0.5s", 0.5),
        ("1.5h", 5400),
    ],
)
def test_c14_durations(text: str, seconds: float) -> None:
    assert kinds.read_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "1h30m",
        "-1",
        "+1",
        "1e9",
        "inf",
        "nan",
        "1 s",
        "1S",
        "1.",
        ".5",
        "1.0005",
        "1_0",
        "\u0661s",
        "366d",
        "99999999999",
        "0x10",
        "10w",
    ],
)
def test_c14_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no duration|longer than a year"):
        kinds.read_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("4096", 4096), ("64K", 65536), ("64k", 65536), ("4M", 4194304), ("1G", 1 << 30)]
)
def test_c14_sizes(text: str, size: int) -> None:
    assert kinds.read_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "-1", "10mbs", "1.5M", "64KB", "1e6", "inf", "nan", "6_4", "\uff16\uff14K", "65G", "64 K"]
)
def test_c14_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|is more than"):
        kinds.read_size(text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0"),
        (0.5, "500ms"),
        (1.0, "1s"),
        (60.0, "1m"),
        (90.0, "90s"),
        (3600.0, "1h"),
        (86400.0, "1d"),
        (1.001, "1001ms"),
    ],
)
def test_durations_are_shown_short(seconds: float, shown: str) -> None:
    assert kinds.show_duration(seconds) == shown


@pytest.mark.parametrize("text", ["1.001s", "2.003s", "0.333s", "0.001h", "1.001m", "1001ms"])
def test_a_duration_that_is_not_0_is_not_shown_as_another(text: str) -> None:
    seconds = kinds.read_duration(text)
    assert kinds.read_duration(kinds.show_duration(seconds)) == seconds


@pytest.mark.parametrize("text", ["0.001ms", "0.4ms", "1.5ms", "1.0005s"])
def test_c14_no_duration_is_finer_than_a_millisecond(text: str) -> None:
    with pytest.raises(ValueError):
        kinds.read_duration(text)


def test_a_bound_is_said() -> None:
    kind = kinds.duration(0.05, 3600)
    assert (kind.read("50ms"), kind.read("1h")) == (0.05, 3600)
    for text in ("49ms", "3601"):
        with pytest.raises(ValueError, match="is not between 50ms and 1h"):
            kind.read(text)
    with pytest.raises(ValueError, match="is not between 4K and 1M"):
        kinds.size(4096, 1 << 20).read("4095")
    with pytest.raises(ValueError, match="is not between 1 and 10"):
        kinds.number(1, 10).read("11")


def test_a_choice_names_all_and_the_nearest() -> None:
    kind = kinds.choice(["raw", "line", "nmea"])
    with pytest.raises(ValueError, match=r"'lin' is not known; choose raw, line or nmea; did you mean 'line'\?"):
        kind.read("lin")
    assert kind.name == "raw | line | nmea"


LOG = kinds.name_or_path(LOG_NAMES)


@pytest.mark.parametrize("text", ["", "syslog", "stderr", "/var/log/relayd", "./syslogs", "relayd.log", "log/relayd"])
def test_a_log_is_a_name_or_a_path(text: str) -> None:
    assert LOG.read(text) == text


@pytest.mark.parametrize(("text", "near"), [("sysolg", "; did you mean 'syslog'?"), ("x", "")])
def test_a_word_that_is_no_log_is_no_file_s_name(text: str, near: str) -> None:
    told = f"'{text}' is not known; choose stderr, syslog, journal or a path like ./{text}{near}"
    with pytest.raises(ValueError, match=re.escape(told) + "$"):
        LOG.read(text)


REFUSED = [
    (kinds.YES_NO, ["", "true", "Yes", "1", "on"]),
    (kinds.FILE_MODE, ["", "8", "66", "06600", "0o660", "999", "-660", "٦٦٠"]),
    (kinds.UMASK, ["8", "66", "06600", "0o660", "999", "-660"]),
    (kinds.WAITS, ["", "0", "5ms", "..", "1s..", "..1s", "2s..1s", "1s..2s..3s", "1s .. 2s", "-1s"]),
    (kinds.KEEPALIVE, ["", "30s", "30s/10s", "30s/10s/3/1", "0/10/3", "30/0/3", "30/10/0", "1/1/128", "1.5/1/1"]),
    (kinds.ROTATION, ["", "10 x", "x 10", "1M x 0", "1M x 1001", "4095 x 1", "1M y 2", "1M x 2 x 3", "1M x -1"]),
    (kinds.LOCAL_ADDRESS, ["eth0", "localhost", "127.1", "0x7f000001", "1.2.3", "::1/128", "[::1]", "10.0.0.1:80"]),
    (kinds.NETWORKS, ["127.1", "2130706433", "0x7f000001", "10.0.0.1/8", "1.2.3/24", "host", "10.0.0.0/33", "::/129"]),
    (kinds.PATH, ["a\0b"]),
    (kinds.SLOW_AFTER, ["", "1M", "10s", "10s 1M", "0 10s", "1M 0", "1M 10s 5", "off"]),
    (kinds.HISTORY, ["", "r", "-1r", "1.5r", "1R", "s", "64KB", "10 r", "off", "64K 10s"]),
    (kinds.FRAMING, ["", "Line", "line:", "lines", "fixed", "fixed:0", "length:u24", "delimiter:", "rtcm"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in REFUSED for text in texts])
def test_what_a_kind_refuses(kind: Kind, text: str) -> None:
    with pytest.raises(ValueError):
        kind.read(text)


@pytest.mark.parametrize(
    ("kind", "text", "shown"),
    [
        (kinds.YES_NO, "yes", "yes"),
        (kinds.FILE_MODE, "660", "0660"),
        (kinds.UMASK, "077", "0077"),
        (kinds.UMASK, "", ""),
        (kinds.WAITS, "1s..30s", "1s..30s"),
        (kinds.WAITS, "5", "5s"),
        (kinds.WAITS, "2s..2s", "2s"),
        (kinds.KEEPALIVE, "off", "off"),
        (kinds.KEEPALIVE, "60s/10/3", "1m/10s/3"),
        (kinds.ROTATION, "100M x 10", "100M x 10"),
        (kinds.ROTATION, "4096x1", "4K x 1"),
        (kinds.ROTATION, "8K", "8K x 1"),
        (kinds.LOCAL_ADDRESS, "2001:DB8::0", "2001:db8::"),
        (kinds.LOCAL_ADDRESS, "", ""),
        (kinds.NETWORKS, "10.0.0.1 ::1,,192.0.2.0/24", "10.0.0.1/32, ::1/128, 192.0.2.0/24"),
        (kinds.NETWORKS, "", ""),
        (kinds.SLOW_AFTER, "1024K 60s", "1M 1m"),
        (kinds.SLOW_AFTER, "0", "0"),
        (kinds.HISTORY, "65536", "64K"),
        (kinds.HISTORY, "0100r", "100r"),
        (kinds.HISTORY, "5m", "5m"),
        (kinds.HISTORY, "5M", "5M"),
        (kinds.HISTORY, "0", "0"),
        (kinds.HISTORY, "1500ms", "1500ms"),
        (kinds.FRAMING, "line", "line"),
        (kinds.ADDRESSES, "a:1 , [::1]:2", "a:1, [::1]:2"),
    ],
)
def test_how_a_value_is_shown(kind: Kind, text: str, shown: Any) -> None:
    assert kind.show(kind.read(text)) == shown
