"""The table: what an operator sees at a glance."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.statustable import amount, duration, relay_table, table


def link(**changes: Any) -> dict[str, Any]:
    return {
        "state": "up", "peer": "10.0.0.7:51344", "for": 3.0, "sent": 0, "queued": 0, "lag": 0.0, "dropped": 0,
        **changes,
    }  # fmt: skip


def down(last_error: str = "", last_reason: str = "", **changes: Any) -> dict[str, Any]:
    return link(
        **{"state": "waiting", "last_error": last_error, "last_reason": last_reason, "next_attempt": None, **changes}
    )


def relay(
    name: str = "ais", *links: dict[str, Any], bytes_in: int = 0, records_in: int = 0, dropped: int = 0, **source: Any
) -> Any:
    return {
        "name": name,
        "settings": {"source": ":7001"},
        "source": {
            "state": "up", "peer": "192.0.2.9:4001", "for": 12.0, "last_data": 0.3, "bytes": 1, "reconnects": 0,
            "last_error": "", "last_reason": "", "next_attempt": None, **source,
        },
        "destinations": list(links),
        "totals": {"bytes_in": bytes_in, "records_in": records_in, "dropped": dropped},
    }  # fmt: skip


def snapshot(*relays: Any, uptime: float = 100.0, error: str = "", stopping: bool = False) -> dict[str, Any]:
    return {
        "version": "1.2.3", "pid": 42, "uptime": uptime, "stopping": stopping,
        "loop_lag": {"last": 0.001, "max": 0.0123},
        "reload": {"failed": bool(error), "error": error}, "relays": list(relays),
    }  # fmt: skip


def cells(lines: list[str], name: str) -> dict[str, str]:
    """Return a relay's row by its columns."""
    head = lines[2]
    titles = ["RELAY", "SOURCE", "SINCE", "LAST DATA", "RATE", "LINKS", "QUEUED", "LAG", "DROPPED", "LAST ERROR"]
    starts = [head.index(title) for title in titles]
    (row,) = [line for line in lines[3:] if line.split()[0] == name]
    return {
        title: row[begin:end].strip() for title, begin, end in zip(titles, starts, [*starts[1:], None], strict=True)
    }


def test_a_row_says_what_there_is_to_know() -> None:
    links = [
        link(queued=1000, lag=0.4), link(queued=3096, lag=12.0),
        down("ECONNREFUSED"),
    ]  # fmt: skip
    before = snapshot(relay("ais"), relay("quiet"), uptime=90.0)
    status = snapshot(
        relay("ais", *links, bytes_in=500_000, dropped=2_500_000),
        relay("quiet", state="connecting", bytes_in=5000, last_data=None, **{"for": 3700}),
    )
    lines = table(status, 110, before)
    assert lines[:2] == [
        "relayd 1.2.3, pid 42, up 1m 40s, 1 of 2 sources up, loop lag 12 ms at most",
        "",
    ]
    assert cells(lines, "ais") == {
        "RELAY": "ais", "SOURCE": "up", "SINCE": "12s", "LAST DATA": "0.3s", "RATE": "49 KB/s", "LINKS": "2 (+1 down)",
        "QUEUED": "4.0K", "LAG": "12s", "DROPPED": "2.4M", "LAST ERROR": "ECONNREFUSED",
    }  # fmt: skip
    assert cells(lines, "quiet") == {
        "RELAY": "quiet", "SOURCE": "connecting", "SINCE": "1h 1m", "LAST DATA": "-", "RATE": "-", "LINKS": "0",
        "QUEUED": "0", "LAG": "-", "DROPPED": "-", "LAST ERROR": "-",
    }  # fmt: skip


def test_the_sources_error_comes_first() -> None:
    lines = table(snapshot(relay("a", down("theirs"), last_error="its own")), 100)
    assert cells(lines, "a")["LAST ERROR"] == "its own"


def test_where_no_attempt_has_failed_yet_it_is_why_the_link_ended() -> None:
    relays = [
        relay("a", link(), down(), down(last_reason="reset", peer="one:4001")), relay("b", last_reason="kicked"),
        relay("c", state="listening", last_reason="eof"),
        relay("d", down("one:4001: No route to host", "stalled", peer="one:4001")),
    ]  # fmt: skip
    lines = table(snapshot(*relays), 120)
    assert [cells(lines, name)["LAST ERROR"] for name in "abcd"] == [
        "one:4001: reset", "-", "eof", "one:4001: No route to host",
    ]  # fmt: skip


def test_no_relay_at_all() -> None:
    lines = table(snapshot(), 100)
    assert "0 of 0 sources up" in lines[0]
    assert len(lines) == 3


def test_a_daemon_that_drains_says_so_first() -> None:
    assert table(snapshot(relay(), stopping=True), 100)[0].startswith("relayd 1.2.3 is stopping, pid 42, ")


def test_a_failed_reload_is_shown_with_its_reason() -> None:
    lines = table(snapshot(relay(), error="f:3: broken"), 100)
    assert [line for line in lines if "last reload failed: f:3: broken" in line]


# -- width --------------------------------------------------------------------------------------

LONG = snapshot(
    relay("n" * 64, link(queued=10**12, lag=99999.0), bytes_in=10**15, dropped=10**14, last_error="e" * 300,
          state="connecting", **{"for": 9e8}),
    relay("short", last_error="ECONNREFUSED"),
    error="/etc/relayd/relayd.ini:12: [relay ais] destination: " + "x" * 200,
)  # fmt: skip


@pytest.mark.parametrize("width", [100, 80, 40])
def test_every_row_fits_the_terminal(width: int) -> None:
    rows = table(LONG, width)[1:]
    assert max(map(len, rows)) <= width
    assert rows[2].endswith("…")


def test_the_head_line_fits_too() -> None:
    assert all(len(line) <= 100 for line in table(LONG, 100))


def test_a_long_name_does_not_push_out_what_matters() -> None:
    head = table(LONG, 100)[2]
    assert [title for title in ("RATE", "LINKS", "LAG", "DROPPED") if title in head] == [
        "RATE", "LINKS", "LAG", "DROPPED",
    ]  # fmt: skip


def test_columns_stand_below_each_other() -> None:
    lines = table(snapshot(relay("a"), relay("a-longer-name")), 100)
    at = lines[2].index("SOURCE")
    assert [line[at:].split()[0] for line in lines[3:]] == ["up", "up"]


@pytest.mark.parametrize("failure", ["", "f:3: broken"])
@pytest.mark.parametrize("height", range(12))
def test_a_terminal_that_is_too_low_is_told_how_many_it_does_not_show(height: int, failure: str) -> None:
    status = snapshot(*(relay(f"r{number}") for number in range(5)), error=failure)
    whole, lines = table(status, 100), table(status, 100, height=height)
    if height == 0 or height > len(whole):
        assert lines == whole
        return
    assert len(lines) == max(1, height - 1)
    assert lines[:-1] == whole[: len(lines) - 1]
    rest = sum(line.startswith("r") and line[1].isdigit() for line in whole[len(lines) - 1 :])
    assert lines[-1] == f"… {rest} of 5 relays are not shown"


def test_what_several_wait_for_is_held_once_and_that_is_said_where_there_is_room() -> None:
    alone = snapshot(relay("a", link(queued=9), link()), relay("b", link(queued=9)))
    assert not [line for line in table(alone, 100) if "once" in line]
    crowd = snapshot(relay("a", link(queued=9), link(queued=9)), relay("b"))
    whole = table(crowd, 100)
    assert "held once, however many wait" in whole[-1]
    assert [len(table(crowd, 100, height=height)) for height in (5, 6, 7, 8)] == [4, 5, 6, 6]
    assert table(crowd, 100, height=6) == whole[:-1]
    assert table(crowd, 100, height=7) == whole


# -- rates and order --------------------------------------------------------------------------


def rates(status: dict[str, Any], before: dict[str, Any] | None) -> dict[str, str]:
    lines = table(status, 100, before)
    return {relay["name"]: cells(lines, relay["name"])["RATE"] for relay in status["relays"]}


def test_rates_are_those_since_the_status_before() -> None:
    before = snapshot(relay("a", bytes_in=10_000), uptime=100)
    now = snapshot(relay("a", bytes_in=13_072), relay("new", bytes_in=500), uptime=102)
    assert rates(now, before) == {"a": "1.5 KB/s", "new": "-"}
    assert rates(now, None) == {"a": "-", "new": "-"}


def test_a_source_that_is_down_or_silent_has_no_rate_of_the_past() -> None:
    before = snapshot(relay("dead", bytes_in=1), relay("silent", bytes_in=5000), uptime=100)
    now = snapshot(
        relay("dead", state="waiting", last_data=None, bytes_in=60_000),
        relay("silent", last_data=5.6, bytes_in=5000), relay("fresh", bytes=0, last_data=2.0), uptime=101,
    )  # fmt: skip
    assert rates(now, before) == {"dead": "-", "silent": "0 B/s", "fresh": "-"}
    lines = table(now, 100, before)
    assert [cells(lines, name)["LAST DATA"] for name in ("dead", "silent", "fresh")] == ["-", "5.6s", "none"]


def test_no_time_passed_is_no_rate() -> None:
    status = snapshot(relay("a", bytes_in=10), uptime=0.0)
    assert rates(status, status) == {"a": "-"}


def test_a_total_that_began_anew_is_no_negative_rate() -> None:
    """The relay was removed, and added again."""
    assert rates(snapshot(relay("a"), uptime=2.0), snapshot(relay("a", bytes_in=10), uptime=1.0)) == {"a": "0 B/s"}


def test_top_has_the_one_that_is_most_behind_first() -> None:
    status = snapshot(
        relay("none"), relay("some", link(lag=1.5), link(lag=0.1)), relay("up", link()), relay("most", link(lag=9.0))
    )

    def order(**how: Any) -> list[str]:
        return [line.split()[0] for line in table(status, 100, **how)[3:]]

    assert order(by_lag=True) == ["most", "some", "none", "up"]
    assert order() == ["none", "some", "up", "most"]
    assert [relay["name"] for relay in status["relays"]] == ["none", "some", "up", "most"]


# -- one relay ----------------------------------------------------------------------------------


def facts(lines: list[str]) -> dict[str, str]:
    """Return what is said of the relay and its source, by name."""
    rows = lines[2 : lines.index("", 2) if "" in lines[2:] else None]
    at = next(row.index("ais") for row in rows)
    return {row[:at].strip(): row[at:] for row in rows}


def peers(lines: list[str]) -> list[str]:
    """Return the first word of each row of links."""
    return [line.split()[0] for line in lines[lines.index("", 2) + 2 :]]


CROWD = [
    link(peer="10.0.0.7:1", sent=5000), link(peer="10.0.0.7:2", queued=3, lag=0.2),
    link(peer="[2001:db8:1234:5678:9abc:def0:1234:5678]:51344", queued=4096, lag=7.0, dropped=5000, **{"for": 725.0}),
    down("", "reset", peer="one.example:4001", next_attempt=3.2),
    down("two.example:4001: No route to host", "eof", peer="two.example:4001", state="connecting"),
]  # fmt: skip


def test_one_relay_is_its_source_and_its_links_with_the_slow_one_first() -> None:
    before = snapshot(relay("ais", bytes_in=1000, records_in=10), uptime=99.0)
    now = relay("ais", *CROWD, bytes_in=7000, records_in=24, reconnects=3, last_reason="eof")
    lines = relay_table(snapshot(now), 150, before)
    assert lines[0] == "relayd 1.2.3, pid 42, up 1m 40s, loop lag 12 ms at most"
    assert facts(lines) == {
        "relay": "ais", "source": "up for 12s, 192.0.2.9:4001", "last data": "0.3s ago",
        "rate": "5.9 KB/s, 14 records/s", "reconnects": "3", "last reason": "eof", "links": "3 (+2 down)",
    }  # fmt: skip
    titles, *rows = lines[lines.index("", 2) + 1 : -1]
    assert titles.split() == ["PEER", "UP", "FOR", "SENT", "QUEUED", "LAG", "DROPPED", "WHY", "DOWN"]
    assert [row.split() for row in rows[:3]] == [
        ["[2001:db8:1234:5678:9abc:def0:1234:5678]:51344", "12m", "5s", "0", "4.0K", "7.0s", "4.9K"],
        ["10.0.0.7:2", "3.0s", "0", "3", "0.2s", "-"], ["10.0.0.7:1", "3.0s", "4.9K", "0", "-", "-"],
    ]  # fmt: skip
    assert rows[3].split()[:2] == ["one.example:4001", "-"]
    assert rows[3].endswith("  reset (waiting for 3.0s, next attempt in 3.2s)")
    assert rows[4].endswith("  No route to host (connecting for 3.0s)")
    assert "held once" in lines[-1]


def test_one_relay_whose_source_is_away_says_why_and_when_it_is_tried_again() -> None:
    away = {
        "state": "waiting",
        "peer": None,
        "last_data": None,
        "bytes": 0,
        "last_error": "no route",
        "next_attempt": 4.0,
    }
    lines = relay_table(snapshot(relay("ais", bytes_in=9, records_in=1, **away)), 100)
    assert facts(lines) == {
        "relay": "ais", "source": "waiting for 12s, :7001", "next attempt": "in 4.0s", "reconnects": "0",
        "last error": "no route", "links": "0",
    }  # fmt: skip
    assert len(lines) == 8


def test_links_that_are_all_up_have_no_reasons() -> None:
    assert not [line for line in relay_table(snapshot(relay("ais", link())), 100) if "WHY" in line]


@pytest.mark.parametrize("width", [100, 80, 40])
def test_one_relay_fits_the_terminals_width_with_all_figures_in_a_hundred(width: int) -> None:
    crowd = [link(peer="n" * 260, queued=10**12, sent=10**15, lag=9e8, dropped=10**14), *CROWD]
    lines = relay_table(snapshot(relay("ais" + "n" * 61, *crowd, last_error="e" * 300)), width)
    assert max(map(len, lines)) <= width
    assert width < 100 or "DROPPED" in lines[lines.index("", 2) + 1]


@pytest.mark.parametrize("height", range(20))
def test_one_relay_fits_the_terminals_height_and_says_how_many_links_it_does_not_show(height: int) -> None:
    status = snapshot(relay("ais", *(link(lag=float(number), peer=f"10.0.0.7:{number}") for number in range(5))))
    whole, lines = relay_table(status, 100), relay_table(status, 100, height=height)
    assert peers(whole) == [f"10.0.0.7:{number}" for number in (4, 3, 2, 1, 0)]
    if height == 0 or height > len(whole):
        assert lines == whole
        return
    assert lines[:-1] == whole[: height - 2 if height > 1 else 0]
    rest = sum(line.startswith("10.0.0.7:") for line in whole[len(lines) - 1 :])
    assert lines[-1] == f"… {rest} of 5 links are not shown"


# -- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0s"), (0.44, "0.4s"), (9.9, "9.9s"), (10, "10s"), (59, "59s"), (60, "1m 0s"), (725, "12m 5s"),
        (3599.4, "59m 59s"), (3600, "1h 0m"), (86399, "23h 59m"), (86400, "1d 0h"), (273600, "3d 4h"),
        (40 * 86400, "40d 0h"),
    ],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"), (1, "1"), (999, "999"), (1000, "1.0K"), (1536, "1.5K"), (10 * 1024, "10K"), (999 * 1024, "999K"),
        (1024**2, "1.0M"), (12 * 1024**2, "12M"), (1024**3, "1.0G"), (1024**4, "1.0T"), (5000 * 1024**4, "5000T"),
    ],
)  # fmt: skip
def test_amounts(count: float, shown: str) -> None:
    assert amount(count) == shown


@settings(deadline=None)
@given(st.floats(0, 1e15))
def test_figures_are_short(value: float) -> None:
    assert len(amount(value)) <= 6
    assert len(duration(min(value, 1e8))) <= 8
