"""Configuration -> objects: what is written in a file is what the relay does."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.build import build_relay
from relayd.errors import StartError
from relayd.observe.counters import Counters
from relayd.relay import Relay
from tests.fakes import House

RELAY = "[relay a]\nmode = listen-listen\nsource = unix:in\ndestination = unix:out\n"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    house = House(tmp_path, max_links=7)
    yield house
    house.close()


class Built:
    """A relay of a text, open and started."""

    def __init__(self, house: House, options: str = "", text: str = RELAY) -> None:
        self.house = house
        self.relay: Relay = build_relay(house.config(text + options).relays[0], house.shared, Counters())
        self.relay.open()
        self.relay.start()
        self.links: list[socket.socket] = []

    def __enter__(self) -> Built:
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links:
            link.close()
        stopped: list[bool] = []
        self.relay.stop(lambda: stopped.append(True))
        self.relay.abort()
        self.house.until(lambda: stopped)

    def link(self, name: str) -> socket.socket:
        """Return a link that the relay has taken."""
        before = len(self.house.lines.having("event=connected"))
        sock = self.house.connect(name)
        self.links.append(sock)
        self.house.until(lambda: len(self.house.lines.having("event=connected")) > before)
        return sock


def test_a_stream_and_its_counters(house: House) -> None:
    with Built(house, "framing = line\n") as built:
        source, one, two = built.link("in"), built.link("out"), built.link("out")
        source.send(b"one\ntwo\ncut")
        assert house.receive(one, 8) == house.receive(two, 8) == b"one\ntwo\n"
        assert built.relay.counters.bytes_in == 8
        assert built.relay.source_up


def test_return_none_is_the_default_of_a_listening_destination(house: House) -> None:
    with Built(house) as built:
        source, client = built.link("in"), built.link("out")
        client.send(b"garbage")
        house.until(lambda: built.relay.counters.discarded == 7)
        with pytest.raises(BlockingIOError):
            source.recv(1)


def test_return_all_is_taken_from_the_file(house: House) -> None:
    with Built(house, "return = all\nframing = line\n") as built:
        source, client = built.link("in"), built.link("out")
        client.send(b"cut")
        client.send(b" short\nrest")
        assert house.receive(source, 10) == b"cut short\n"


def test_a_dump_shows_both_directions(house: House) -> None:
    with Built(house, "dump = text\nreturn = all\n") as built:
        source, client = built.link("in"), built.link("out")
        source.send(b"down\n")
        house.receive(client, 5)
        client.send(b"up\n")
        house.receive(source, 3)
    assert house.stdout.having(" a > from unix", " down")
    assert house.stdout.having(" a < from unix", " up")


def test_a_dump_file_takes_the_bytes(house: House) -> None:
    with Built(house, "dump = raw\ndump_file = dump\n") as built:
        source, client = built.link("in"), built.link("out")
        source.send(b"down\n")
        house.receive(client, 5)
    assert (house.folder / "dump").read_bytes() == b"down\n"
    assert not house.stdout.lines


def test_a_dump_file_that_cannot_be_had_is_told(house: House) -> None:
    with pytest.raises(StartError, match="cannot write dump_file"):
        Built(house, "dump = raw\ndump_file = no/dump\n")


def test_l10_max_clients_is_lowered_to_what_there_are_descriptors_for(house: House) -> None:
    with Built(house, "max_clients = 100\n"):
        assert house.lines.having("event=max_clients_lowered", "wanted=100", "to=7")


def test_l13_one_client_too_many_is_refused(house: House) -> None:
    with Built(house, "max_clients = 1\n") as built:
        built.link("out")
        with house.connect("out") as second:
            house.until(lambda: built.relay.counters.refused == 1)
            assert house.receive(second, 1) == b""
    assert not house.lines.having("max_clients_lowered")
    assert house.lines.having("event=refused", "reason=full")


def test_a_second_source_is_refused_where_that_is_written(house: House) -> None:
    with Built(house, "second_source = refuse\n") as built:
        built.link("in")
        with house.connect("in"):
            house.until(lambda: house.lines.having("event=refused", "reason=second_source"))


def test_on_source_loss_close(house: House) -> None:
    with Built(house, "on_source_loss = close\nlinger_timeout = 10ms\n") as built:
        source, client = built.link("in"), built.link("out")
        source.send(b"last")
        source.close()
        assert house.receive(client, 5) == b"last"


def test_an_unpaced_replay_loses_nothing_and_waits_for_a_client(house: House) -> None:
    data = b"".join(b"%07d\n" % number for number in range(100_000))
    (house.folder / "feed").write_bytes(data)
    text = "[relay a]\nsource = replay:feed\ndestination = unix:out\nframing = line\nbuffer = 128K\n"
    with Built(house, text=text) as built:
        for _ in range(3):
            house.reactor.turn(0)
        assert built.relay.counters.bytes_in == 0
        assert house.receive(built.link("out"), len(data)) == data


def test_several_connected_destinations_are_all_fed(house: House) -> None:
    listeners = []
    for name in ("one", "two"):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(house.folder / name))
        sock.listen()
        listeners.append(sock)
    text = "[relay a]\nmode = listen-connect\nsource = unix:in\ndestination = unix:one, unix:two\nreconnect = 10ms\n"
    with Built(house, text=text) as built:
        house.until(lambda: len(house.lines.having("event=connected", "destination=")) == 2)
        built.links += [listening.accept()[0] for listening in listeners]
        source = built.link("in")
        source.send(b"feed")
        for link in built.links[:2]:
            link.setblocking(False)
            assert house.receive(link, 4) == b"feed"
    for sock in listeners:
        sock.close()


def test_a_unix_socket_has_its_mode(house: House) -> None:
    with Built(house, "unix_mode = 0600\n"):
        assert (house.folder / "out").stat().st_mode & 0o777 == 0o600
