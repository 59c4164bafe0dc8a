"""The log: one line for each change of state, which nobody outside can forge."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.observe.targets import timestamp
from tests.fakes import FakeReactor, Lines, bound_log, event_log

STAMP = "1970-01-01T00:00:00.000Z"


def test_a_line_is_time_level_and_fields_in_order() -> None:
    log, lines = bound_log(FakeReactor())
    log.bind(relay="ais").bind(client="10.0.0.7:51344").info("closed", reason="slow", sent=12, up=1.5, x=None)
    assert list(lines) == [
        f"{STAMP} info relay=ais client=10.0.0.7:51344 event=closed reason=slow sent=12 up=1.5 x=None"
    ]


def test_binding_does_not_change_the_log_that_is_bound() -> None:
    log, lines = bound_log(FakeReactor())
    log.bind(relay="a")
    log.info("x")
    assert "relay" not in lines.lines[0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nevent=closed", r'"a\nevent=closed"'), ("\x1b[2J", r'"\u001b[2J"'), ('say "hi"', r'"say \"hi\""'),
        ("", '""'),
        ("a b", '"a b"'), ("a=b", '"a=b"'), ("\\", "\\"), ("\x7f", r'"\u007f"'), ("é", r'"\u00e9"'),
        ("\udcff", r'"\udcff"'),
        ("a\u2028b", r'"a\u2028b"'), ("[::1]:80", "[::1]:80"), (True, "True"), (1e9, "1000000000"),
        (1209667.0, "1209667"), (123456.7, "123456.7"), (0.05, "0.05"), (30.0, "30"), (0.0, "0"), (1.0004, "1"),
        (float("inf"), "inf"), (b"x", "b'x'"),
    ],
)  # fmt: skip
def test_values_are_plain_or_quoted(value: object, shown: str) -> None:
    log, lines = bound_log(FakeReactor())
    log.info("x", value=value)
    assert lines.lines == [f"{STAMP} info event=x value={shown}"]


def fields(line: str) -> dict[str, str]:
    """Read a line back, as a log shipper would."""
    found, rest = {}, line.split(" ", 2)[2]
    while rest:
        key, _, rest = rest.partition("=")
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
        else:
            end = len(rest.partition(" ")[0])
            value = rest[:end]
        assert key not in found
        found[key] = value
        rest = rest[end:].removeprefix(" ")
    return found


@given(st.dictionaries(st.sampled_from(["peer", "error", "reason"]), st.text()))
def test_no_value_forges_a_line_or_a_field(values: dict[str, str]) -> None:
    log, lines = bound_log(FakeReactor())
    log.warning("refused", **values)
    (line,) = lines
    assert line.isascii() and line.isprintable()
    assert fields(line) == {"event": "refused", **values}


def test_less_than_the_level_is_not_written() -> None:
    log, lines = event_log(FakeReactor(), "warning")
    bound = log.bind()
    bound.debug("a")
    bound.info("b")
    bound.warning("c")
    assert [line.split()[-1] for line in lines] == ["event=c"]


def test_a_burst_is_one_line_and_one_that_counts() -> None:
    reactor = FakeReactor()
    log, lines = bound_log(reactor)
    for number in range(42):
        log.burst("refused", peer=f"10.0.0.{number}", reason="full")
    assert len(lines.lines) == 1
    reactor.advance(60)
    assert len(lines.lines) == 2
    assert lines.lines[1].endswith("reason=full repeated 41 times")
    assert reactor.timers == 0


def test_a_burst_that_is_still_open_at_the_end_is_told() -> None:
    reactor = FakeReactor()
    log, lines = event_log(reactor)
    for reason in ("full", "full", "full", "denied"):
        log.bind().burst("refused", reason=reason)
    log.close()
    assert lines.closed
    assert len(lines.lines) == 3
    assert lines.lines[2].endswith("reason=full repeated 2 times")
    reactor.advance(60)
    assert len(lines.lines) == 3


def test_what_is_counted_of_a_crowd_stands_under_no_client_s_name() -> None:
    reactor = FakeReactor()
    log, lines = event_log(reactor)
    for number in range(3):
        log.bind(relay="ais", client=f"10.0.0.{number}").burst("closed", reason="slow", sent=number)
    reactor.advance(60)
    assert [line.split(" ", 2)[2] for line in lines] == [
        "relay=ais client=10.0.0.0 event=closed reason=slow sent=0",
        "relay=ais client=any event=closed reason=slow repeated 2 times",
    ]


def test_a_single_event_is_not_repeated() -> None:
    reactor = FakeReactor()
    log, lines = bound_log(reactor)
    log.burst("refused", reason="full")
    reactor.advance(60)
    log.burst("refused", reason="full")
    assert len(lines.lines) == 2
    assert not lines.having("repeated")


def test_bursts_of_other_causes_and_relays_are_their_own() -> None:
    log, lines = bound_log(FakeReactor())
    for relay in ("a", "b"):
        for reason in ("full", "denied"):
            for _ in range(3):
                log.bind(relay=relay).burst("refused", reason=reason)
    assert len(lines.lines) == 4


def test_a_burst_without_end_is_a_line_each_interval() -> None:
    reactor = FakeReactor()
    log, lines = bound_log(reactor)
    for _ in range(1000):
        log.burst("refused", reason="full")
        reactor.advance(0.1)
    assert len(lines.lines) <= 2 * 100 / 10 + 2
    reactor.advance(20)
    told = sum(int(line.split("repeated ")[1].split()[0]) if "repeated" in line else 1 for line in lines)
    assert told == 1000


def test_an_unexpected_error_is_one_line_with_its_traceback() -> None:
    reactor = FakeReactor()
    log, lines = event_log(reactor)
    for _ in range(5):
        try:
            raise RuntimeError("two\nlines")
        except RuntimeError as error:
            log.failed(error)
    (line,) = lines
    assert "event=internal_error" in line
    assert "test_log.py" in fields(line)["traceback"]


def test_lost_lines_are_told_once_there_is_room() -> None:
    log, lines = bound_log(FakeReactor())
    lines.full = True
    log.info("a")
    log.info("b")
    lines.full = False
    log.info("c")
    assert [line.split(" ", 1)[1] for line in lines] == ["warning event=log_lost lines=2", "info event=c"]


def test_a_notice_of_lost_lines_that_is_lost_too_is_not_forgotten() -> None:
    log, lines = bound_log(FakeReactor())
    lines.full = True
    for number in range(5):
        log.info("x", number=number)
    lines.full = False
    log.info("after")
    log.info("and")
    assert len(lines.having("log_lost", "lines=5")) == 1
    assert len(lines.lines) == 3


def test_target_and_level_can_be_changed_while_it_runs() -> None:
    log, before = event_log(FakeReactor(), "info")
    bound = log.bind(relay="a")
    after = Lines()
    bound.info("one")
    log.target, log.level = after, "warning"
    bound.info("two")
    bound.warning("three")
    assert (len(before.lines), len(after.lines)) == (1, 1)
    assert after.having("relay=a", "event=three")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1.5, "1970-01-01T00:00:01.500Z"),
        (1795367058.123, "2026-11-22T17:04:18.123Z"),
        (0.9999, None),
    ],
)
def test_timestamps_are_utc_in_milliseconds(seconds: float, shown: str | None) -> None:
    assert len(timestamp(seconds)) == len("1970-01-01T00:00:00.000Z")
    assert shown is None or timestamp(seconds) == shown
