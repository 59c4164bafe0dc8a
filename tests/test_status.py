"""What the ends of a relay look like from outside: every field is there, and is what it says."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.service import Service
from tests.fakes import House

SOURCE = {
    "state", "peer", "for", "bytes", "records", "last_data", "reconnects", "last_reason", "last_error", "next_attempt",
}  # fmt: skip
SINK = {"sent", "repeated", "dropped", "dropped_records", "stale_records", "queued", "lag"}
LINK = {"state", "peer", "for", "returned", *SINK}
DOWN = {"state", "peer", "for", "last_reason", "last_error", "next_attempt", *SINK}
TOTALS = {
    "source_links",
    "destination_links",
    "refused",
    "bytes_in",
    "bytes_out",
    "repeated",
    "dropped",
    "dropped_records",
    "spliced",
    "stale_records",
    "records_in",
    "unframed",
    "returned",
    "discarded",
}

MEETING = "[relay a]\nmode = listen-listen\nsource = unix:in\ndestination = unix:out\nlinger_timeout = 100ms\n"
PUSHING = (
    "[relay a]\nmode = listen-connect\nsource = unix:in\ndestination = unix:far\nreconnect = 1h\n"
    "framing = line\nreturn = all\nlinger_timeout = 100ms\n"
)


class Seen:
    """A service of one relay, and its status."""

    def __init__(self, house: House, text: str) -> None:
        self.house = house
        self.ended = False
        self.service = Service(house.config("[relayd]\ndrain_timeout = 0s\n" + text), house.shared, self._end)
        self.service.start()

    def _end(self) -> None:
        self.ended = True

    @property
    def relay(self) -> dict[str, Any]:
        """The one relay's status, checked on the way."""
        status = self.service.status()
        assert set(status) == {"version", "uptime", "stopping", "relays"}
        assert json.loads(json.dumps(status, allow_nan=False)) == status
        never_negative(status)
        (relay,) = status["relays"]
        assert set(relay) == {"name", "settings", "source", "destinations", "totals"}
        assert set(relay["source"]) == SOURCE
        assert set(relay["totals"]) == TOTALS
        for link in relay["destinations"]:
            assert set(link) == (LINK if link["state"] == "up" else DOWN)
        return dict(relay)

    def until(self, what: str, wanted: Any) -> None:
        """Turn until a value of the status, `source.bytes` or `destinations.0.sent`, is as wanted."""
        self.house.until(lambda: self.value(what) == wanted, f"{what} = {wanted}, not {self.relay}")

    def until_not(self, what: str, unwanted: Any) -> None:
        """Turn until a value is another."""
        self.house.until(lambda: self.value(what) != unwanted, f"{what} other than {unwanted}")

    def value(self, what: str) -> Any:
        found: Any = self.relay
        for name in what.split("."):
            if isinstance(found, list) and int(name) >= len(found):
                return None
            found = found[int(name)] if isinstance(found, list) else found[name]
        return found


def never_negative(value: Any) -> None:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            never_negative(inner)
    elif isinstance(value, (int, float)):
        assert value >= 0


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


def seen_in(house: House, text: str) -> Iterator[Seen]:
    seen = Seen(house, text)
    yield seen
    seen.service.stop()
    house.until(lambda: seen.ended, "the end")


@pytest.fixture
def meeting(house: House) -> Iterator[Seen]:
    yield from seen_in(house, MEETING)


@pytest.fixture
def pushing(house: House) -> Iterator[Seen]:
    yield from seen_in(house, PUSHING)


def test_a_relay_that_waits_for_everybody(meeting: Seen) -> None:
    relay = meeting.relay
    assert relay["name"] == "a"
    source = relay["source"]
    assert (source["state"], source["peer"], source["bytes"], source["last_data"]) == ("listening", None, 0, None)
    assert (source["reconnects"], source["last_reason"], source["last_error"]) == (0, "", "")
    assert source["next_attempt"] is None
    assert relay["destinations"] == []
    assert set(relay["totals"].values()) == {0}


def test_a_stream_that_flows(meeting: Seen) -> None:
    with meeting.house.connect("in") as source, meeting.house.connect("out") as one, meeting.house.connect("out"):
        meeting.until("totals.destination_links", 2)
        source.send(b"x" * 1000)
        one.send(b"back")
        meeting.until("source.bytes", 1000)
        meeting.until("totals.discarded", 4)
        relay = meeting.relay
        assert relay["source"]["state"] == "up"
        assert relay["source"]["peer"]
        assert [link["sent"] for link in relay["destinations"]] == [1000, 1000]
        assert sorted(link["returned"] for link in relay["destinations"]) == [0, 4]
        assert [(link["queued"], link["lag"], link["dropped"]) for link in relay["destinations"]] == [(0, 0.0, 0)] * 2
        assert relay["totals"]["bytes_in"] == 1000
        assert relay["totals"]["bytes_out"] == 2000


def test_totals_never_go_backwards_when_links_leave(meeting: Seen) -> None:
    with meeting.house.connect("in") as source:
        with meeting.house.connect("out"):
            meeting.until("totals.destination_links", 1)
            source.send(b"x" * 1000)
            meeting.until("totals.bytes_out", 1000)
        meeting.until("destinations", [])
        meeting.house.until(lambda: meeting.relay["totals"]["bytes_out"] >= 1000)
    meeting.until("source.state", "listening")
    relay = meeting.relay
    assert relay["totals"]["bytes_in"] == relay["totals"]["bytes_out"] == 1000
    assert relay["source"]["last_reason"] == "eof"
    assert (relay["source"]["bytes"], relay["source"]["peer"], relay["source"]["last_data"]) == (0, None, None)


def test_a_client_that_reads_nothing_is_behind(meeting: Seen) -> None:
    with meeting.house.connect("in") as source, meeting.house.connect("out") as client:
        meeting.until("totals.destination_links", 1)
        sent = 0
        while not meeting.value("destinations.0.queued"):
            sent += source.send(b"x" * 50_000)
            meeting.house.reactor.turn(0.01)
            assert sent < 4_000_000
        meeting.until("source.bytes", sent)
        link = meeting.relay["destinations"][0]
        assert link["sent"] + link["queued"] == sent
        meeting.house.until(lambda: meeting.value("destinations.0.lag") >= 0.3, "a lag")
        assert len(meeting.house.receive(client, sent)) == sent
        meeting.until("destinations.0.queued", 0)
        assert meeting.value("destinations.0.lag") == 0.0


def test_a_destination_that_is_down_is_shown_with_what_waits_for_it(pushing: Seen) -> None:
    pushing.house.until(lambda: "No such file" in pushing.value("destinations.0.last_error"))
    with pushing.house.connect("in") as source:
        source.send(b"one\ntwo\ntor")
        pushing.until("totals.bytes_in", 8)
        (link,) = pushing.relay["destinations"]
        assert link["peer"] == f"unix:{pushing.house.folder}/far"
        assert link["state"] == "waiting"
        assert 0 < link["next_attempt"] <= 3600
        assert (link["queued"], link["sent"], link["dropped"]) == (8, 0, 0)
    pushing.until("totals.unframed", 3)


def test_a_destination_that_is_down_is_gone_when_it_is_given_up(pushing: Seen) -> None:
    """`status` while the daemon stops."""
    assert pushing.relay["destinations"]
    pushing.service.stop()
    assert pushing.relay["destinations"] == []


def test_a_destination_that_is_connected_to_and_lost(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as far:
        far.bind(str(house.folder / "far"))
        far.listen()
        for seen in seen_in(house, PUSHING):
            seen.until("destinations.0.state", "up")
            link, _ = far.accept()
            with house.connect("in") as source, link:
                source.send(b"one\n")
                link.send(b"back\n")
                seen.until("destinations.0.sent", 4)
                seen.until("destinations.0.returned", 5)
                seen.until("totals.returned", 5)
            seen.until_not("destinations.0.state", "up")
            (down,) = seen.relay["destinations"]
            assert down["sent"] == 4
            assert down["last_reason"]
            assert seen.relay["totals"]["destination_links"] == 1


def test_a_replay_is_a_source_like_any_other(house: House) -> None:
    (house.folder / "feed").write_bytes(b"line\n" * 10)
    text = "[relay a]\nsource = replay:feed\ndestination = unix:out\nframing = line\n"
    for seen in seen_in(house, text):
        seen.until("source.state", "up")
        with house.connect("out") as client:
            assert house.receive(client, 50) == b"line\n" * 10
            assert seen.value("source.peer") == "replay:feed"
            assert seen.value("source.bytes") == 50
            assert seen.value("source.last_data") < 20


def test_the_summary_counts_sources_that_are_up(meeting: Seen) -> None:
    assert meeting.service.summary() == "0 of 1 sources up"
    with meeting.house.connect("in"):
        meeting.until("source.state", "up")
        assert meeting.service.summary() == "1 of 1 sources up"
