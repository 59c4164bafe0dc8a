"""What relayctl asks of a daemon is done to the relays it names, and what cannot be done is said."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.controller import RefusedError
from relayd.observe.dump import DumpStream
from relayd.observe.writer import Lost
from relayd.process.operator import Operator, _host
from tests.process.test_reloader import RELAY, Living

FEED = "[relay feed]\nsource = replay:{0}/feed?rate=1000&loop=yes\ndestination = unix:out\nframing = line\n"


class Terminal(DumpStream):
    """Where a live dump goes."""

    def __init__(self) -> None:
        super().__init__(self._show, lambda: not self.full)
        self.shown: list[bytes] = []
        self.full = False

    def _show(self, data: bytes, lost: Lost) -> bool:
        if not self.full:
            self.shown.append(data)
        return not self.full


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    living = Living(tmp_path)
    yield living
    if not living.service.stopping:
        living.controller.close()
    living.close()


@pytest.fixture
def operator(living: Living) -> Operator:
    (living.house.folder / "feed").write_bytes(b"one\n\x1b[2J\n")
    living.reload(RELAY.format("a") + FEED.format(living.house.folder))
    return Operator(living.house.reactor, living.service, living.reloader, living.house.shared.log, living.service.stop)


def test_the_status_is_json_and_holds_the_daemon(living: Living, operator: Operator) -> None:
    living.house.until(lambda: "1 of 2" in living.service.summary())
    status = operator.status()
    assert json.loads(json.dumps(status, allow_nan=False)) == status
    assert set(status) == {
        "pid", "version", "uptime", "stopping", "loop", "loop_lag", "config", "reload", "relays",
    }  # fmt: skip
    assert status["pid"] == os.getpid()
    assert status["config"]["path"] == str(living.house.folder / "relayd.ini")
    assert abs(status["config"]["loaded_at"] - living.reloader.loaded_at) < 0.001
    assert status["reload"] == {"failed": False, "error": ""}
    assert [relay["name"] for relay in status["relays"]] == ["a", "feed"]
    assert status["loop"] == {"timers": living.house.reactor.timers, "watched": living.house.reactor.watched}
    assert 0 <= status["loop_lag"]["last"] <= status["loop_lag"]["max"] + 0.0001


def reload(operator: Operator) -> dict[str, Any]:
    """Return the answer to a reload; raises RefusedError."""
    answers: list[dict[str, Any] | RefusedError] = []
    operator.reload(answers.append)
    (answer,) = answers
    if isinstance(answer, RefusedError):
        raise answer
    return answer


def test_a_reload_answers_with_the_summary(living: Living, operator: Operator) -> None:
    assert reload(operator)["summary"].endswith("of 2 sources up")


def test_a_reload_answers_with_what_has_changed(living: Living, operator: Operator) -> None:
    unchanged: dict[str, list[str]] = {"added": [], "removed": [], "changed": [], "needs_restart": []}
    answer = reload(operator)
    assert {name: answer[name] for name in unchanged} == unchanged
    living.write("[relayd]\numask = 0077\n" + RELAY.format("a") + "max_clients = 7\n" + RELAY.format("b"))
    answer = reload(operator)
    assert {name: answer[name] for name in unchanged} == {
        "added": ["b"], "removed": ["feed"], "changed": ["a"], "needs_restart": ["umask"],
    }  # fmt: skip


def test_p8_a_reload_that_is_not_done_answers_with_every_reason_and_the_status_shows_it(
    living: Living, operator: Operator
) -> None:
    living.write("[relay a]\nsource = :0\nmoed = x\n")
    with pytest.raises(RefusedError) as caught:
        reload(operator)
    lines = str(caught.value).split("\n")
    assert len(lines) >= 2
    assert all("relayd.ini" in line for line in lines)
    assert operator.status()["reload"] == {"failed": True, "error": lines[0]}
    living.write(RELAY.format("a"))
    reload(operator)
    assert operator.status()["reload"] == {"failed": False, "error": ""}


def test_stop_stops_after_the_answer(living: Living, operator: Operator) -> None:
    assert operator.stop() == {}
    assert not living.service.stopping
    living.house.until(lambda: living.ended)


def test_kick_resets_the_links_of_a_peer(living: Living, operator: Operator) -> None:
    with living.house.connect("a.out") as client, living.house.connect("a.in"):
        living.house.until(lambda: len(living.logged("relay=a", "event=connected")) == 2)
        (link,) = operator.status()["relays"][0]["destinations"]
        peer = link["peer"]
        assert operator.kick("a", peer)["links"] >= 1
        assert living.house.receive(client, 1) == b""
        living.house.until(lambda: not operator.status()["relays"][0]["destinations"])
        assert living.logged("event=closed", "reason=kicked")
        with pytest.raises(RefusedError, match=r"relay a has no peer 10\.0\.0\.7:1; `relayctl status a` shows them"):
            operator.kick("a", "10.0.0.7:1")


def test_kick_resets_the_one_unix_client_that_is_named(living: Living, operator: Operator) -> None:
    with living.house.connect("a.out") as one, living.house.connect("a.out") as other:
        living.house.until(lambda: len(operator.status()["relays"][0]["destinations"]) == 2)
        peer = operator.status()["relays"][0]["destinations"][0]["peer"]
        assert operator.kick("a", peer) == {"links": 1}
        assert living.house.receive(one, 1) == b""
        with pytest.raises(BlockingIOError):
            other.recv(1)


def test_kick_of_nobody_names_those_of_that_host(living: Living, operator: Operator) -> None:
    with living.house.connect("a.out"), living.house.connect("a.in"):
        living.house.until(lambda: len(living.logged("relay=a", "event=connected")) == 2)
        status = operator.status("a")["relays"][0]
        peers = f"{status['source']['peer']}, {status['destinations'][0]['peer']}"
        for asked in ("unix", "unix:pid1-2"):
            with pytest.raises(RefusedError) as caught:
                operator.kick("a", asked)
            assert str(caught.value) == f"relay a has no peer {asked}; of that host there are {peers}"


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("10.0.0.7:51344", "10.0.0.7"), ("10.0.0.7", "10.0.0.7"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("::1", "::1"),
        ("2001:db8::7", "2001:db8::7"), ("feed.example:4001", "feed.example"), ("feed.example", "feed.example"),
        ("unix:pid1-2", "unix"), ("unix", "unix"), ("", ""),
    ],
)  # fmt: skip
def test_the_host_of_a_peer_that_is_written_with_a_port_or_without(peer: str, host: str) -> None:
    assert _host(peer) == host


def test_the_status_of_one_relay_holds_that_alone(operator: Operator) -> None:
    whole, alone = operator.status(), operator.status("feed")
    assert set(alone) == set(whole)
    assert [relay["name"] for relay in alone["relays"]] == ["feed"]


def test_an_unknown_relay_is_refused_with_the_nearest_first(operator: Operator) -> None:
    with pytest.raises(RefusedError, match=r"there is no relay 'fede'; there are feed, a$"):
        operator.status("fede")


@pytest.mark.parametrize("name", ["", "b", "A", "relay a"])
def test_an_unknown_relay_is_refused_with_those_there_are(operator: Operator, name: str) -> None:
    with pytest.raises(RefusedError, match=f"there is no relay '{name}'; there are a, feed"):
        operator.kick(name, "x")
    with pytest.raises(RefusedError, match=f"there is no relay '{name}'; there are a, feed"):
        operator.status(name)
    with pytest.raises(RefusedError, match=f"there is no relay '{name}'; there are a, feed"):
        operator.watch(name, "text", Terminal())


def test_an_unknown_format_is_refused_with_those_there_are(operator: Operator) -> None:
    with pytest.raises(RefusedError, match="unknown format 'txt'; there are text, hex, raw"):
        operator.watch("a", "txt", Terminal())


def test_a_watch_shows_what_passes_until_it_ends(living: Living, operator: Operator) -> None:
    terminal = Terminal()
    shown = terminal.shown
    with living.house.connect("out"):
        unwatch = operator.watch("feed", "text", terminal)
        living.house.until(lambda: len(shown) >= 2)
        unwatch()
        count = len(shown)
        living.house.until(lambda: operator.status()["relays"][1]["totals"]["bytes_in"] > 100)
        assert len(shown) == count
    text = b"".join(shown).decode()
    assert " feed > from replay:" in text
    assert " one\n" in text
    assert r"\x1b[2J" in text
    unwatch()  # harmless


def test_a_watch_outlives_a_reload_that_changes_its_relay(living: Living, operator: Operator) -> None:
    terminal = Terminal()
    shown = terminal.shown
    with living.house.connect("out"):
        unwatch = operator.watch("feed", "raw", terminal)
        living.house.until(lambda: shown)
        assert living.reload(FEED.format(living.house.folder) + "max_clients = 7\n") == ()
        shown.clear()
        living.house.until(lambda: shown)
        unwatch()
        living.house.reactor.turn(0)
        shown.clear()
        for _ in range(20):
            living.house.reactor.turn(0.01)
        assert not shown


def test_a_watch_of_a_relay_that_is_removed_ends_quietly(living: Living, operator: Operator) -> None:
    unwatch = operator.watch("feed", "raw", Terminal())
    assert living.reload(RELAY.format("a")) == ()
    unwatch()


def test_who_watches_a_relay_over_the_socket_is_let_go_when_it_is_removed(living: Living, operator: Operator) -> None:
    head = f"[relayd]\ncontrol = {living.house.folder}/control\n"
    feed = FEED.format(living.house.folder)
    assert living.reload(head + RELAY.format("a") + feed) == ()
    living.controller.serve(operator)
    with living.house.connect("control") as stays, living.house.connect("control") as goes:
        for sock, name in ((stays, "a"), (goes, "feed")):
            sock.send(json.dumps({"command": "dump", "relay": name, "format": "text"}).encode() + b"\n")
            assert living.house.receive(sock, 13) == b'{"ok": true}\n'
        assert living.reload(head + RELAY.format("a") + feed + "max_clients = 7\n") == ()
        assert {caller.watching for caller in living.controller.callers} == {"a", "feed"}
        assert living.reload(head + RELAY.format("a") + feed + "enabled = no\n") == ()
        assert living.house.receive(goes, 1) == b""
        goes.close()
        living.house.until(lambda: [caller.watching for caller in living.controller.callers] == ["a"])
        stays.setblocking(False)
        with pytest.raises(BlockingIOError):
            stays.recv(1)
    living.house.until(lambda: not living.controller.callers)


def test_a_watcher_that_takes_nothing_does_not_hold_the_stream(living: Living, operator: Operator) -> None:
    with living.house.connect("out"):
        terminal = Terminal()
        terminal.full = True
        unwatch = operator.watch("feed", "hex", terminal)
        living.house.until(lambda: operator.status()["relays"][1]["totals"]["bytes_out"] > 100)
        unwatch()
