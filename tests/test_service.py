"""The service: all relays, from opening the ports to the last byte sent."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.address import Address
from relayd.errors import StartError
from relayd.net.listener import Listener, ListenerPool, ListenSettings
from relayd.reload import Plan
from relayd.service import Service
from tests.fakes import House
from tests.support import free_port, keyed

RELAY = "[relay {0}]\nmode = listen-listen\nsource = unix:{0}.in\ndestination = unix:{0}.out\nlinger_timeout = 100ms\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path)
    yield house
    house.close()


class Running:
    """A service and whether it has ended."""

    def __init__(self, house: House, text: str) -> None:
        self.house, self.ended = house, 0
        self.service = Service(house.config(text), house.shared, self._end)

    def _end(self) -> None:
        self.ended += 1

    def start(self) -> None:
        self.service.start()

    def stop(self) -> None:
        self.service.stop()
        self.house.until(lambda: self.ended, "the end")
        assert self.ended == 1


def test_every_relay_runs_and_all_end(house: House) -> None:
    running = Running(house, RELAY.format("a") + RELAY.format("b"))
    running.start()
    links = [(house.connect(f"{name}.in"), house.connect(f"{name}.out")) for name in "ab"]
    house.until(lambda: len(house.lines.having("event=connected")) == 4)
    for number, (source, client) in enumerate(links):
        source.send(b"%d" % number)
        assert house.receive(client, 1) == b"%d" % number
    running.service.stop()
    for source, client in links:
        assert house.receive(client, 1) == b""
        client.close()
        source.close()
    house.until(lambda: running.ended)
    assert running.ended == 1
    assert sorted(path.name for path in house.folder.iterdir()) == ["relayd.ini"]
    assert house.lines.having("event=started", "relays=2")
    assert house.lines.having("event=stopped")


def test_a_disabled_relay_does_not_run(house: House) -> None:
    running = Running(house, RELAY.format("a") + RELAY.format("b") + "enabled = no\n")
    running.start()
    assert not (house.folder / "b.in").exists()
    assert house.lines.having("event=started", "relays=1")
    running.stop()


def test_no_relay_at_all_ends_at_once(house: House) -> None:
    running = Running(house, RELAY.format("a") + "enabled = no\n")
    running.start()
    running.service.stop()
    assert running.ended == 1


def test_l1_all_ports_that_cannot_be_had_are_told_and_none_is_kept(house: House) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for sock, name in ((one, "b.in"), (two, "c.out")):
            sock.bind(str(house.folder / name))
            sock.listen()
        running = Running(house, "".join(map(RELAY.format, "abc")))
        with pytest.raises(StartError) as caught:
            running.start()
        assert [reason.partition(": ")[0] for reason in caught.value.reasons] == [
            f"[relay b] cannot listen on unix:{house.folder}/b.in",
            f"[relay c] cannot listen on unix:{house.folder}/c.out",
        ]
        assert sorted(path.name for path in house.folder.iterdir()) == ["b.in", "c.out", "relayd.ini"]


def test_dump_files_that_cannot_be_had_are_told_together(house: House) -> None:
    text = "".join(RELAY.format(name) + f"dump = raw\ndump_file = no/{name}\n" for name in "ab")
    with pytest.raises(StartError) as caught:
        Running(house, text).start()
    assert [reason.partition(" cannot")[0] for reason in caught.value.reasons] == ["[relay a]", "[relay b]"]


def test_p5_a_client_that_takes_nothing_is_cut_at_the_drain_timeout(house: House) -> None:
    running = Running(house, "[relayd]\ndrain_timeout = 50ms\n" + RELAY.format("a"))
    running.start()
    with house.connect("a.in") as source, house.connect("a.out"):
        house.until(lambda: len(house.lines.having("event=connected")) == 2)
        source.setblocking(True)
        for _ in range(30):
            source.send(b"x" * 50_000)
            house.reactor.turn(0.01)  # small splices rest a millisecond, and the next send must not wait for us
        running.service.stop()
        house.reactor.turn(0)
        assert not running.ended
        house.until(lambda: running.ended)
    assert house.lines.having("event=closed", "client=", "reason=stopped")


def test_p4_a_second_stop_ends_it_at_once(house: House) -> None:
    running = Running(house, "[relayd]\ndrain_timeout = 1h\n" + RELAY.format("a"))
    running.start()
    with house.connect("a.in") as source, house.connect("a.out"):
        house.until(lambda: len(house.lines.having("event=connected")) == 2)
        source.setblocking(True)
        for _ in range(30):
            source.send(b"x" * 50_000)
            house.reactor.turn(0.01)  # small splices rest a millisecond, and the next send must not wait for us
        running.service.stop()
        running.stop()
    running.service.stop()  # and a third is harmless
    house.reactor.turn(0)
    assert running.ended == 1


# -- reload ---------------------------------------------------------------------------------------


LINE = RELAY + "framing = line\nmax_record = 1K\n"


class Linked(Running):
    """A service that is running, and links into it."""

    def __init__(self, house: House, text: str) -> None:
        super().__init__(house, text)
        self.start()
        self.links: list[socket.socket] = []

    def __enter__(self) -> Linked:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links:
            link.close()
        if not self.ended:
            self.service.stop()
            self.service.stop()
            self.house.until(lambda: self.ended, "the end")

    def link(self, name: str) -> socket.socket:
        """Return a link that a relay has taken."""
        before = len(self.house.lines.having("event=connected"))
        self.links.append(self.house.connect(name))
        self.house.until(lambda: len(self.house.lines.having("event=connected")) > before)
        return self.links[-1]

    def reload(self, text: str) -> Plan:
        return self.service.reload(self.house.config(text))

    def files(self) -> dict[str, int]:
        """Return the sockets in the folder, by name, with their inodes: one that was closed and opened has another."""
        return {path.name: path.stat().st_ino for path in self.house.folder.iterdir() if path.is_socket()}


def test_r_a_relay_that_did_not_change_is_not_touched(house: House) -> None:
    with Linked(house, LINE.format("a") + LINE.format("b")) as running:
        source, client = running.link("a.in"), running.link("a.out")
        before, files = running.service.relays[0], running.files()
        lines = len(house.lines.lines)
        source.send(b"on")
        plan = running.reload(LINE.format("b") + "buffer = 8K\n" + LINE.format("a"))
        assert [relay.name for relay in plan.unchanged] == ["a"]
        assert [change.new.name for change in plan.changed] == ["b"]
        assert [relay.name for relay in running.service.relays] == ["b", "a"]
        assert running.service.relays[1] is before
        assert running.files() == files
        source.send(b"e\n")
        assert house.receive(client, 4) == b"one\n"
        assert not [line for line in house.lines.lines[lines:] if "relay=a" in line]


def test_r_the_same_again_changes_nothing(house: House) -> None:
    with Linked(house, LINE.format("a")) as running:
        before = running.service.relays
        assert running.reload(LINE.format("a") + "# another comment\n").empty
        assert running.service.relays == before


def test_r_a_changed_relay_keeps_its_links_its_ports_and_its_place_in_the_record(house: House) -> None:
    with Linked(house, LINE.format("a")) as running:
        source, client = running.link("a.in"), running.link("a.out")
        files = running.files()
        source.send(b"one\ntw")
        assert house.receive(client, 4) == b"one\n"
        house.until(lambda: running.service.status()["relays"][0]["source"]["bytes"] == 6)
        running.reload(LINE.format("a") + "buffer = 8K\nstall_timeout = 5s\nreturn = all\n")
        assert running.files() == files
        source.send(b"o\n")
        assert house.receive(client, 4) == b"two\n"
        client.send(b"up\n")
        assert house.receive(source, 3) == b"up\n"
        late = running.link("a.out")
        source.send(b"three\n")
        assert house.receive(late, 6) == b"three\n"
        totals = running.service.status()["relays"][0]["totals"]
        assert (totals["bytes_in"], totals["source_links"], totals["destination_links"]) == (14, 1, 2)
        assert not house.lines.having("event=closed")


def test_r_l1_where_one_port_is_taken_nothing_changes_and_all_reasons_are_told(house: House) -> None:
    with Linked(house, LINE.format("a") + LINE.format("gone")) as running, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(house.folder / "c.in"))
        taken.listen()
        source, client = running.link("a.in"), running.link("a.out")
        before, files, config = running.service.relays, running.files(), running.service.config
        text = LINE.format("a") + "buffer = 8K\n" + "".join(map(LINE.format, "bc"))
        with pytest.raises(StartError) as caught:
            running.reload(text)
        assert [reason.partition(": ")[0] for reason in caught.value.reasons] == [
            f"[relay c] cannot listen on unix:{house.folder}/c.in"
        ]
        assert (running.service.relays, running.files(), running.service.config) == (before, files, config)
        source.send(b"one\n")
        assert house.receive(client, 4) == b"one\n"
        running.link("gone.in")
        taken.close()
        running.reload(text)  # and it can be done when the port is free
        assert [relay.name for relay in running.service.relays] == ["a", "b", "c"]
        source.send(b"two\n")
        assert house.receive(client, 4) == b"two\n"


def test_r_a_reload_that_is_not_done_leaves_the_mode_of_a_socket_that_stays(house: House) -> None:
    """Who could not connect before must not be able to because of a configuration that was refused."""
    with Linked(house, LINE.format("a") + "unix_mode = 0600\n") as running, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(house.folder / "b.in"))
        taken.listen()
        with pytest.raises(StartError):
            running.reload(LINE.format("a") + "unix_mode = 0666\n" + LINE.format("b"))
        assert (house.folder / "a.out").stat().st_mode & 0o777 == 0o600


def test_r_what_nobody_has_thought_of_changes_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    with Linked(house, LINE.format("a")) as running:
        before, files, config = running.service.relays, running.files(), running.service.config
        take = ListenerPool.take

        def fail_at_the_last(pool: ListenerPool, address: Address, settings: ListenSettings) -> Listener:
            if str(address).endswith("c.in"):
                raise LookupError("unknown encoding")
            return take(pool, address, settings)

        monkeypatch.setattr(ListenerPool, "take", fail_at_the_last)
        with pytest.raises(LookupError):
            running.reload("".join(map(LINE.format, "bc")))
        assert (running.service.relays, running.files(), running.service.config) == (before, files, config)
        monkeypatch.undo()
        running.reload("".join(map(LINE.format, "bc")))
        running.link("c.in")


def test_r_a_dump_file_that_cannot_be_had_changes_nothing(house: House) -> None:
    with Linked(house, LINE.format("a")) as running:
        before, files = running.service.relays, running.files()
        with pytest.raises(StartError, match="cannot write dump_file"):
            running.reload(LINE.format("b") + LINE.format("a") + "dump = raw\ndump_file = no/dump\n")
        assert (running.service.relays, running.files()) == (before, files)


def test_r_a_port_moves_from_one_relay_to_another_and_is_never_closed(house: House) -> None:
    with Linked(house, LINE.format("a")) as running:
        old_source, old = running.link("a.in"), running.link("a.out")
        files = running.files()
        waiting = house.connect("a.out")  # in the backlog, or with the former: never refused
        running.reload("[relay b]\nmode = listen-listen\nsource = unix:b.in\ndestination = unix:a.out\n")
        assert running.files()["a.out"] == files["a.out"]
        assert "a.in" not in running.files()
        assert house.receive(old, 1) == b"" and house.receive(old_source, 1) == b""
        source = running.link("b.in")
        client = running.link("a.out")
        source.send(b"one\n")
        assert house.receive(client, 4) == b"one\n"
        assert house.receive(waiting, 4) in (b"", b"one\n")
        waiting.close()


def test_r_two_relays_swap_their_ports(house: House) -> None:
    pair = "[relay {}]\nmode = listen-listen\nsource = unix:{}.in\ndestination = unix:{}.out\nlinger_timeout = 10ms\n"
    with Linked(house, pair.format("a", 1, 1) + pair.format("b", 2, 2)) as running:
        one, two = running.link("1.in"), running.link("2.in")
        client = running.link("1.out")
        files = running.files()
        running.reload(pair.format("a", 1, 2) + pair.format("b", 2, 1))
        assert running.files() == files
        one.send(b"one")
        assert house.receive(client, 3) == b"one"  # it was a's client and stays so
        fresh = running.link("1.out")
        two.send(b"two")
        assert house.receive(fresh, 3) == b"two"


@pytest.mark.parametrize(("before", "after"), [("127.0.0.1", ""), ("", "127.0.0.1")])
def test_r_a_listener_goes_over_to_a_wider_or_narrower_address_of_its_port(
    house: House, before: str, after: str
) -> None:
    """A changed end is reopened: that it is ourselves who have the port must not stand in the way."""
    port = free_port()
    text = "[relay a]\nmode = listen-listen\nsource = unix:a.in\ndestination = {}:{}\n"
    with Linked(house, text.format(before, port)) as running:
        running.reload(text.format(after, port))
        with socket.create_connection(("127.0.0.1", port)) as client:
            house.until(lambda: house.lines.having("event=connected", "client="))
            running.link("a.in").send(b"one")
            client.setblocking(False)
            assert house.receive(client, 3) == b"one"


@pytest.mark.parametrize(("before", "after"), [("127.0.0.1", ""), ("", "127.0.0.1")])
def test_r_a_listener_that_made_way_for_a_configuration_that_is_refused_goes_on(
    house: House, before: str, after: str
) -> None:
    port = free_port()
    text = "[relay a]\nmode = listen-listen\nsource = unix:a.in\ndestination = {}:{}\n"
    with Linked(house, text.format(before, port)) as running, socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(house.folder / "b.in"))
        taken.listen()
        with pytest.raises(StartError) as caught:
            running.reload(text.format(after, port) + RELAY.format("b"))
        (reason,) = caught.value.reasons
        assert reason.startswith("[relay b] cannot listen on unix:")
        with socket.create_connection(("127.0.0.1", port)) as client:
            house.until(lambda: house.lines.having("event=connected", "client="))
            running.link("a.in").send(b"one")
            client.setblocking(False)
            assert house.receive(client, 3) == b"one"


def test_r_a_removed_relay_is_drained_and_closed_and_its_ports_are_free(house: House) -> None:
    with Linked(house, LINE.format("a") + LINE.format("b")) as running:
        source, client = running.link("b.in"), running.link("b.out")
        source.send(b"one\n")
        house.until(lambda: running.service.relays[1].counters.bytes_in == 4)
        plan = running.reload(LINE.format("a"))
        assert [relay.name for relay in plan.removed] == ["b"]
        assert sorted(running.files()) == ["a.in", "a.out"]
        assert house.receive(client, 5) == b"one\n"
        assert [relay["name"] for relay in running.service.status()["relays"]] == ["a"]
        client.close()
        source.close()
        house.until(lambda: len(running.service._running) == 1, "the end of the relay")
        running.reload(LINE.format("a") + LINE.format("b"))  # and it can come back
        running.link("b.out")


def test_r_enabled_starts_and_drains(house: House) -> None:
    with Linked(house, LINE.format("a") + "enabled = no\n") as running:
        assert running.files() == {}
        running.reload(LINE.format("a"))
        running.link("a.in")
        running.reload(LINE.format("a") + "enabled = no\n")
        assert (running.files(), list(running.service.relays)) == ({}, [])


def test_r_stop_waits_for_what_a_reload_is_still_draining(house: House) -> None:
    with Linked(house, "[relayd]\ndrain_timeout = 1h\n" + RELAY.format("a")) as running:
        source, client = running.link("a.in"), running.link("a.out")
        source.setblocking(True)
        sent = bytearray()
        for number in range(30):
            piece = b"%d" % (number % 10) * 50_000
            source.sendall(piece)
            sent += piece
            house.reactor.turn(0.01)
        house.until(lambda: running.service.relays[0].counters.bytes_in == len(sent))
        running.reload(RELAY.format("b"))
        running.service.stop()
        house.reactor.turn(0)
        assert not running.ended
        assert house.receive(client, len(sent)) == bytes(sent)
        client.close()
        house.until(lambda: running.ended)
        assert not house.lines.having("event=undelivered")


def test_r_the_second_stop_ends_what_a_reload_is_still_draining(house: House) -> None:
    with Linked(house, "[relayd]\ndrain_timeout = 1h\n" + RELAY.format("a")) as running:
        source, _client = running.link("a.in"), running.link("a.out")
        source.setblocking(True)
        for _ in range(30):
            source.sendall(b"x" * 50_000)
            house.reactor.turn(0.01)
        running.reload(RELAY.format("b"))
        running.service.stop()
        running.service.stop()
        house.until(lambda: running.ended)


def test_r_a_key_of_the_daemon_is_taken_over_without_touching_a_relay(house: House) -> None:
    with Linked(house, LINE.format("a")) as running:
        before = running.service.relays
        plan = running.reload("[relayd]\ndrain_timeout = 1s\npidfile = other\n" + LINE.format("a"))
        assert plan.empty and plan.needs_restart == ("pidfile",)
        assert running.service.relays == before
        assert running.service.config.drain_timeout == 1


def test_r_reloading_under_load_loses_and_doubles_nothing(house: House) -> None:
    """A keyed stream through forty reloads, by a fast client and a slow one."""
    data = keyed("load", 0, 20_000)
    text = LINE.format("a") + "overflow = block\nbuffer = {}K\n"
    with Linked(house, text.format(16)) as running:
        source, fast, slow = running.link("a.in"), running.link("a.out"), running.link("a.out")
        sent, got_fast, got_slow, number = 0, bytearray(), bytearray(), 0

        def step() -> bool:
            nonlocal sent, number
            if sent < len(data):
                with contextlib.suppress(BlockingIOError):
                    sent += source.send(data[sent : sent + 7777])
            for sock, got, size in ((fast, got_fast, 1 << 20), (slow, got_slow, 4096)):
                with contextlib.suppress(BlockingIOError):
                    got += sock.recv(size)
            number += 1
            if number % 3 == 0 and number < 120:
                running.reload(text.format(16 + number % 5))
            return len(got_fast) == len(got_slow) == len(data)

        house.until(step, "the whole stream at both")
        assert bytes(got_fast) == bytes(got_slow) == data
        assert running.service.status()["relays"][0]["totals"]["bytes_in"] == len(data)
        assert len(running.service._running) == 1
    assert not house.lines.having("event=undelivered")


def test_the_status_and_the_summary_are_of_every_relay_in_its_order(house: House) -> None:
    with Linked(house, RELAY.format("b") + RELAY.format("a")) as running:
        assert running.service.summary() == "0 of 2 sources up"
        running.link("a.in")
        assert running.service.summary() == "1 of 2 sources up"
        status = running.service.status()
        assert [relay["name"] for relay in status["relays"]] == ["b", "a"]
        assert [relay["source"]["state"] for relay in status["relays"]] == ["listening", "up"]
        assert not status["stopping"]


def test_stopping_with_several_idle_relays_is_told_once(house: House) -> None:
    running = Running(house, RELAY.format("a") + RELAY.format("b"))
    running.start()
    running.service.stop()
    assert running.ended == 1
    assert len(house.lines.having("event=stopped")) == 1
