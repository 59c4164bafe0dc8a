"""SIGHUP: what stays is not touched, what changes is changed, what fails changes nothing (SPEC 9, FAULTS P6-P11)."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemons import Feed, Site, daemon, relay, turned_away
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    receive_all,
    stalled_client,
    wait_until,
)


class Pair:
    """A listen-listen relay's two ports, and links to them."""

    def __init__(self, stack: ExitStack) -> None:
        self.source_port, self.port = free_port(), free_port()
        self._stack = stack

    def text(self, name: str, **keys: object) -> str:
        return relay(name, self.source_port, self.port, **keys)

    def source(self) -> socket.socket:
        return self._stack.enter_context(connect(self.source_port))

    def client(self) -> socket.socket:
        return self._stack.enter_context(connect(self.port))

    def links(self, running: Site, name: str, clients: int = 1) -> tuple[socket.socket, list[socket.socket]]:
        """Return a source and clients that are all up."""
        source, found = self.source(), [self.client() for _ in range(clients)]
        wait_until(lambda: up(running, name) == (True, clients), "the links")
        return source, found


def up(running: Site, name: str) -> tuple[bool, int]:
    """Return whether the source is up, and how many destination links."""
    found = running.relay(name)
    return found["source"]["state"] == "up", sum(link["state"] == "up" for link in found["destinations"])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def pair(stack: ExitStack) -> Pair:
    return Pair(stack)


def carries(source: socket.socket, clients: list[socket.socket], data: bytes = b"a record\n") -> None:
    """Fail unless these very links are up and connected with each other, with nothing else on its way."""
    source.sendall(data)
    for client in clients:
        assert receive(client, len(data)) == data


def ended(sock: socket.socket) -> bool:
    """Whether the link comes to an end, in whatever way, once what is on its way has been read."""
    try:
        receive_all(sock)
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def is_refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# -- what is not changed --------------------------------------------------------------------------


def test_an_untouched_relay_misses_nothing_in_100_reloads(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS P6."""
    still, other, extra = Pair(stack), Pair(stack), Pair(stack)

    def relays(number: int) -> list[str]:
        """Another relay changes each time, in another way."""
        kinds = [
            [other.text("other", buffer="1M")],
            [other.text("other", buffer="2M", framing="line")],
            [relay("other", other.source_port, extra.port)],
            [relay("other", [other.source_port, extra.source_port], other.port)],
            [],
            [other.text("renamed")],
            [relay("other", listening, other.port, mode="connect-listen")],
            [other.text("other", dump="text", dump_file=tmp_path / "dump")],
        ]
        return [still.text("still"), *kinds[number % len(kinds)]]

    upstream = stack.enter_context(listener())
    listening = upstream.getsockname()[1]
    with daemon(tmp_path, *relays(0)) as running:
        source, clients = still.links(running, "still", clients=5)
        collectors = [Collector(client) for client in clients]
        feed = Feed(source, "feed")
        before = running.relay("still")["totals"]
        for number in range(1, 101):
            running.configure(*relays(number))
            running.hang_up()
        total = feed.end()
        for collector in collectors:
            check_keyed("feed", collector.wait_for(total), 0)
            assert len(collector.data) == total
        after = running.relay("still")["totals"]
        assert total > 100 * CELL
        assert after["bytes_in"] == total and after["bytes_out"] == 5 * total
        for name in ("source_links", "destination_links", "dropped", "refused"):
            assert after[name] == before[name], name
        assert len(running.lines("event=reloaded")) == 100
        assert not running.lines("relay=still", "event=closed")


# -- limits and policies, live --------------------------------------------------------------------


def test_limits_apply_live(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one", clients=3)
        running.configure(pair.text("one", max_clients=2))
        running.hang_up()
        assert turned_away(pair.port)  # one too many, and so were two of them, who stay
        carries(source, clients)
        running.configure(pair.text("one", max_clients=4))
        running.hang_up()
        clients.append(pair.client())
        wait_until(lambda: up(running, "one") == (True, 4))
        assert turned_away(pair.port)
        carries(source, clients)
        running.configure(pair.text("one", max_clients_per_ip=4))
        running.hang_up()
        assert turned_away(pair.port)
        carries(source, clients)


def test_who_may_come_in_applies_live(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        running.configure(pair.text("one", deny="127.0.0.0/8", source_deny="127.0.0.0/8"))
        running.hang_up()
        assert turned_away(pair.port)
        assert turned_away(pair.source_port)
        carries(source, clients)
        running.configure(pair.text("one", allow="127.0.0.0/8"))
        running.hang_up()
        clients.append(pair.client())
        wait_until(lambda: up(running, "one") == (True, 2))
        carries(source, clients)


def test_the_dump_is_switched_live(tmp_path: Path, pair: Pair) -> None:
    dump = tmp_path / "dump"
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        carries(source, clients, b"before\n")
        running.configure(pair.text("one", dump="text", dump_file=dump))
        running.hang_up()
        carries(source, clients, b"during\n")
        wait_until(lambda: b"during" in dump.read_bytes())
        running.configure(pair.text("one", dump="raw", dump_file=f"{dump}.raw"))
        running.hang_up()
        carries(source, clients, b"raw\n")
        running.configure(pair.text("one"))
        running.hang_up()
        carries(source, clients, b"after\n")
        assert Path(f"{dump}.raw").read_bytes() == b"raw\n"
        text = dump.read_text()
        assert text.count("\n") == 1 and text.endswith("during\n")
        assert str(dump) not in "".join(running.descriptors().values()), "the dump is still open"


def test_overflow_and_buffer_apply_to_live_links(tmp_path: Path, pair: Pair) -> None:
    """A client that reads nothing blocks the source; with another rule it is the one that goes.

    Little stays in the kernel on the way in: what comes after that is less than the buffer, and whoever reads is safe.
    """
    data = bulk(2_000_000)[: 7 << 20]
    keys = {"receive_buffer": "64K"}
    with daemon(tmp_path, pair.text("one", overflow="block", buffer="1M", **keys)) as running:
        with stalled_client(pair.port) as stalled:
            source = pair.source()
            source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            reader = Collector(pair.client())
            wait_until(lambda: up(running, "one") == (True, 2))
            sender = Sender(source, data)
            stuck = sender.wait_stuck()
            running.configure(pair.text("one", overflow="block", buffer="4M", **keys))
            running.hang_up()
            more = sender.wait_stuck()
            assert more >= stuck + (2 << 20)  # the queue has three megabytes more
            running.configure(pair.text("one", overflow="disconnect", buffer="4M", **keys))
            running.hang_up()
            sender.wait_end()
            assert reader.wait_for(len(data)) == data  # the same link, and not a byte amiss
            running.wait_log("event=closed", "reason=slow")
            del stalled
        assert up(running, "one") == (True, 1)


def test_return_rule_applies_to_live_links(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        source, (client,) = pair.links(running, "one")
        client.sendall(b"thrown away\n")
        wait_until(lambda: running.relay("one")["totals"]["discarded"] == 12)
        running.configure(pair.text("one", return_="all"))
        running.hang_up()
        client.sendall(b"sent back\n")
        assert receive(source, 10) == b"sent back\n"
        running.configure(pair.text("one", return_="none"))
        running.hang_up()
        client.sendall(b"thrown away\n")
        wait_until(lambda: running.relay("one")["totals"]["discarded"] == 24)
        carries(source, [client])


# -- ends that change -----------------------------------------------------------------------------


def test_a_connecting_source_that_changes_is_reopened(tmp_path: Path, stack: ExitStack) -> None:
    port = free_port()
    old, new = stack.enter_context(listener()), stack.enter_context(listener())
    keys = {"mode": "connect-listen", "framing": "line"}
    with daemon(tmp_path, relay("one", old.getsockname()[1], port, **keys)) as running:
        first, _ = old.accept()
        stack.enter_context(first)
        client = stack.enter_context(connect(port))
        wait_until(lambda: up(running, "one") == (True, 1))
        carries(first, [client], b"from the old one\n")
        first.sendall(b"cut sho")
        running.configure(relay("one", new.getsockname()[1], port, **keys))
        running.hang_up()
        assert receive_all(first) == b""
        second, _ = new.accept()
        stack.enter_context(second)
        carries(second, [client], b"from the new one\n")  # nothing of the record that was cut
        assert up(running, "one") == (True, 1)


def test_connecting_destinations_are_added_and_drained(tmp_path: Path, stack: ExitStack) -> None:
    source_port = free_port()
    ends = [stack.enter_context(listener()) for _ in range(3)]
    ports = [end.getsockname()[1] for end in ends]

    def text(*destinations: int) -> str:
        return relay("one", source_port, list(destinations), mode="listen-connect", overflow="disconnect")

    with daemon(tmp_path, text(ports[0], ports[1])) as running:
        stays, leaves = (stack.enter_context(end.accept()[0]) for end in ends[:2])
        source = stack.enter_context(connect(source_port))
        wait_until(lambda: up(running, "one") == (True, 2))
        carries(source, [stays, leaves])
        data = bulk(2_000_000)[: 3 << 20]  # more than the kernel takes, less than the queue
        reader = Collector(stays)
        Sender(source, data).wait_end()
        reader.wait_for(len(data))
        running.configure(text(ports[0], ports[2]))
        running.hang_up()
        comes = stack.enter_context(ends[2].accept()[0])
        assert receive_all(leaves) == data  # drained, then closed
        wait_until(lambda: up(running, "one") == (True, 2))
        source.sendall(b"to those who are there\n")
        assert receive(comes, 23) == b"to those who are there\n"
        assert reader.wait_for(len(data) + 23)[len(data) :] == b"to those who are there\n"


def test_the_queue_of_a_destination_that_stays_survives(tmp_path: Path, stack: ExitStack) -> None:
    source_port, down = free_port(), free_port()
    old, new = stack.enter_context(listener()), stack.enter_context(listener())

    def text(other: socket.socket) -> str:
        destinations = [down, other.getsockname()[1]]
        keys = {"mode": "listen-connect", "overflow": "block", "reconnect": "100ms"}
        return relay("one", source_port, destinations, **keys)

    with daemon(tmp_path, text(old)) as running:
        source = stack.enter_context(connect(source_port))
        first = Collector(stack.enter_context(old.accept()[0]))
        wait_until(lambda: up(running, "one") == (True, 1))
        source.sendall(keyed("keep", 0, 1000))
        first.wait_for(1000 * CELL)
        running.configure(text(new))
        running.hang_up()
        second = Collector(stack.enter_context(new.accept()[0]))
        wait_until(lambda: up(running, "one") == (True, 1))
        source.sendall(keyed("keep", 1000, 1000))
        check_keyed("keep", second.wait_for(1000 * CELL), 1000)
        late = stack.enter_context(listener(down))
        client = stack.enter_context(late.accept()[0])
        check_keyed("keep", receive(client, 2000 * CELL), 0)


def test_a_port_is_added_and_removed(tmp_path: Path, pair: Pair, stack: ExitStack) -> None:
    extra = free_port()
    both = relay("one", pair.source_port, [pair.port, extra])
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one", clients=2)
        running.configure(both)
        running.hang_up()
        clients.append(stack.enter_context(connect(extra)))
        wait_until(lambda: up(running, "one") == (True, 3))
        carries(source, clients)
        running.configure(pair.text("one"))
        running.hang_up()
        assert is_refused(extra)
        carries(source, clients)  # who came by the port that is gone stays


def test_a_listening_source_port_is_moved(tmp_path: Path, pair: Pair, stack: ExitStack) -> None:
    """The source that is up stays; the next one comes by the new port."""
    moved = free_port()
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        running.configure(relay("one", moved, pair.port))
        running.hang_up()
        assert is_refused(pair.source_port)
        carries(source, clients)
        newer = stack.enter_context(connect(moved))
        assert ended(source)  # replaced
        carries(newer, clients)


class Knocker(threading.Thread):
    """Connects to a port again and again, and counts how often that fails."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.served = 0
        self.failures: list[str] = []
        self._port = port
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
                    assert sock.recv(1), "closed"
                    self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))

    def end(self) -> None:
        """Knock no more; fails where a door was shut."""
        self._ending.set()
        self.join(PATIENCE)
        assert not self.is_alive() and not self.failures, self.failures[:5]


def test_a_listener_that_stays_refuses_nobody(tmp_path: Path, pair: Pair) -> None:
    """Its relay changes in every reload, and connections never cease to come."""
    extra = free_port()
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        collector, feed = Collector(clients[0]), Feed(source, "feed")
        knockers = [Knocker(pair.port) for _ in range(2)]
        for number in range(60):
            ports = [pair.port, extra] if number % 2 else [pair.port]
            running.configure(relay("one", pair.source_port, ports, buffer=f"{number + 1}M", backlog=100 + number))
            running.hang_up()
        wait_until(lambda: all(knocker.served > 20 for knocker in knockers), "knocking")
        for knocker in knockers:
            knocker.end()
        total = feed.end()
        check_keyed("feed", collector.wait_for(total), 0)


# -- relays that come and go ----------------------------------------------------------------------


def test_a_relay_is_added(tmp_path: Path, stack: ExitStack) -> None:
    one, two = Pair(stack), Pair(stack)
    with daemon(tmp_path, one.text("one")) as running:
        links = one.links(running, "one")
        running.configure(one.text("one"), two.text("two"))
        running.hang_up()
        carries(*two.links(running, "two"))
        carries(*links)


def test_a_relay_that_is_removed_drains(tmp_path: Path, stack: ExitStack) -> None:
    one, two = Pair(stack), Pair(stack)
    data = bulk(2_000_000)[: 3 << 20]
    with daemon(tmp_path, one.text("one"), two.text("two")) as running:
        links = one.links(running, "one")
        source = two.source()
        late = stack.enter_context(stalled_client(two.port))
        wait_until(lambda: up(running, "two") == (True, 1))
        Sender(source, data).wait_end()
        wait_until(lambda: running.relay("two")["totals"]["bytes_in"] == len(data))
        running.configure(one.text("one"))
        running.hang_up()
        assert is_refused(two.port) and is_refused(two.source_port)
        assert receive_all(source) == b""
        assert receive_all(late) == data
        late.close()
        running.wait_log("relay=two", "event=closed", "reason=removed", f"sent={len(data)}")
        carries(*links)
        assert [found["name"] for found in running.status()["relays"]] == ["one"]


def test_a_relay_that_is_removed_does_not_drain_for_ever(tmp_path: Path, stack: ExitStack) -> None:
    """A client with a zero window holds it no longer than it would hold SIGTERM."""
    one, two = Pair(stack), Pair(stack)
    texts = one.text("one"), two.text("two", overflow="block", receive_buffer="512K")
    with daemon(tmp_path, *texts, drain_timeout="500ms") as running, stalled_client(two.port):
        source = two.source()
        wait_until(lambda: up(running, "two") == (True, 1))
        Sender(source, bulk(2_000_000)).wait_stuck()
        running.configure(one.text("one"))
        running.hang_up()
        deadline = time.monotonic() + 0.5 + 1.5 * SLOWNESS
        while not running.lines("relay=two", "client=", "event=closed"):
            assert time.monotonic() < deadline, "the removed relay has not ended"
            time.sleep(0.01)


def test_a_relay_that_is_renamed(tmp_path: Path, pair: Pair) -> None:
    """To relayd it is another one: what it had is drained, and whoever knocks meanwhile is let in."""
    with daemon(tmp_path, pair.text("old")) as running:
        source, clients = pair.links(running, "old")
        carries(source, clients)
        running.configure(pair.text("new"))
        running.hang_up()
        assert receive_all(source) == b"" and receive_all(clients[0]) == b""
        carries(*pair.links(running, "new"))


def test_a_port_moves_from_one_relay_to_another(tmp_path: Path, stack: ExitStack) -> None:
    """The sockets are never closed: nobody is refused in the meantime."""
    one, two = Pair(stack), Pair(stack)

    def texts(crossed: bool) -> list[str]:
        ports = [two.port, one.port] if crossed else [one.port, two.port]
        return [relay("one", one.source_port, ports[0]), relay("two", two.source_port, ports[1])]

    with daemon(tmp_path, *texts(False)) as running:
        sources = [one.source(), two.source()]
        wait_until(lambda: up(running, "one")[0] and up(running, "two")[0])
        feeds = [Feed(sources[0], "aaaa"), Feed(sources[1], "bbbb")]
        knockers = [Knocker(one.port), Knocker(two.port)]
        for number in range(1, 22):
            running.configure(*texts(number % 2 == 1))
            running.hang_up()
        for knocker in knockers:
            wait_until(lambda knocker=knocker: knocker.served > 10, "knocking")
            knocker.end()
        with connect(one.port) as client, connect(two.port) as other:
            assert receive(client, 4 * CELL)[:4] == b"bbbb"
            assert receive(other, 4 * CELL)[:4] == b"aaaa"
        for feed in feeds:
            feed.end()  # the sources have not been touched


def test_a_relay_is_disabled_and_enabled(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        running.configure(pair.text("one", enabled="no"))
        running.hang_up()
        assert ended(source) and ended(clients[0]) and is_refused(pair.port)
        running.configure(pair.text("one"))
        running.hang_up()
        carries(*pair.links(running, "one"))


def test_the_mode_changes(tmp_path: Path, pair: Pair, stack: ExitStack) -> None:
    """The end whose role stays keeps its links."""
    upstream = stack.enter_context(listener())
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        running.configure(relay("one", upstream.getsockname()[1], pair.port, mode="connect-listen"))
        running.hang_up()
        assert ended(source) and is_refused(pair.source_port)
        dialled = stack.enter_context(upstream.accept()[0])
        carries(dialled, clients)
        running.configure(pair.text("one"))
        running.hang_up()
        assert ended(dialled)
        again = pair.source()
        carries(again, clients)


def test_the_framing_changes(tmp_path: Path, pair: Pair) -> None:
    """Both ends are reopened, and from then on records are what they are now."""
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        carries(source, clients, b"half a li")
        running.configure(pair.text("one", framing="line"))
        running.hang_up()
        assert ended(source) and ended(clients[0])
        source, clients = pair.links(running, "one")
        source.sendall(b"one\ntw")
        assert receive(clients[0], 4) == b"one\n"
        source.sendall(b"o\n")
        assert receive(clients[0], 4) == b"two\n"


def test_an_address_that_widens(tmp_path: Path, pair: Pair, stack: ExitStack) -> None:
    """127.0.0.1:P becomes :P: our own listener is in the way, and must not be a reason to refuse."""
    with daemon(tmp_path, pair.text("one")) as running:
        source, clients = pair.links(running, "one")
        for destination in (f":{pair.port}", f"127.0.0.1:{pair.port}"):
            running.configure(relay("one", pair.source_port, destination))
            answer = running.ask("reload")
            assert answer["ok"], answer
            clients.append(pair.client())
            wait_until(lambda: up(running, "one") == (True, len(clients)))
            carries(source, clients)


# -- what cannot be done --------------------------------------------------------------------------


def test_what_needs_a_restart_is_said(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        links = pair.links(running, "one")
        pidfile = running.pidfile
        running.configure(pair.text("one"), pidfile=tmp_path / "other.pid", user="nobody")
        running.hang_up()
        for key in ("pidfile", "user"):
            running.wait_log("event=needs_restart", f"key={key}")
        assert pidfile.exists() and not (tmp_path / "other.pid").exists()
        carries(*links)


def test_log_and_control_socket_move(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        links = pair.links(running, "one")
        old_log, old_control = running.log, running.control
        running.configure(pair.text("one"), log=tmp_path / "new.log", control=tmp_path / "new.sock", log_format="json")
        running.send(signal.SIGHUP)
        running.log, running.control = tmp_path / "new.log", tmp_path / "new.sock"
        running.wait_log('"event": "reloaded"')
        assert not old_control.exists()
        carries(*links)
        assert str(old_log) not in running.descriptors().values(), "the old log is still open"


# -- many at once ---------------------------------------------------------------------------------


# -- for years ------------------------------------------------------------------------------------


def test_300_reloads_leave_nothing_behind(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS 2.2: memory and descriptors are what they were, whatever has changed in between."""
    one, two = Pair(stack), Pair(stack)
    upstream = stack.enter_context(listener())
    dump = tmp_path / "dump"
    kinds = [
        [one.text("one"), two.text("two", dump="text", dump_file=dump)],
        [one.text("one", buffer="8M"), relay("two", upstream.getsockname()[1], two.port, mode="connect-listen")],
        [one.text("one", return_="all", dump="raw", dump_file=dump), two.text("renamed", framing="line")],
        [one.text("one", max_clients=10)],
    ]
    with daemon(tmp_path, *kinds[0]) as running:
        source, clients = one.links(running, "one", clients=3)

        def reload(times: int) -> None:
            for number in range(times):
                running.configure(*kinds[number % len(kinds)])
                running.reload()
                carries(source, clients)
            running.configure(*kinds[0])
            running.reload()
            upstream.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    upstream.accept()[0].close()

        def settled() -> int:
            wait_until(lambda: len(running.descriptors()) <= descriptors, f"{descriptors} descriptors")
            return running.memory()

        reload(60)
        time.sleep(0.1)
        descriptors = len(running.descriptors())
        before = settled()
        reload(300)
        assert settled() < before + (2 << 20)


def test_reloads_that_change_the_log_leave_nothing_behind(tmp_path: Path, pair: Pair) -> None:
    with daemon(tmp_path, pair.text("one")) as running:
        logs = [running.log, tmp_path / "other.log"]

        def reload(times: int) -> None:
            for number in range(times):
                running.configure(pair.text("one"), log=logs[number % 2])
                running.reload()

        reload(10)
        before = len(running.descriptors())
        reload(50)
        # The daemon lets go of relayctl's connection a turn after relayctl has ended.
        wait_until(lambda: len(running.descriptors()) <= before, f"no more than {before} descriptors")


@pytest.mark.parametrize("key", ["", "log", "control"])
def test_reloads_that_fail_leave_nothing_behind(tmp_path: Path, stack: ExitStack, key: str) -> None:
    """All that a reload had taken before it failed is given back."""
    pair, other = Pair(stack), Pair(stack)
    taken = stack.enter_context(listener()).getsockname()[1]
    fresh = tmp_path / "fresh"
    with daemon(tmp_path, pair.text("one")) as running:
        before = len(running.descriptors())
        texts = [
            pair.text("one", dump="text", dump_file=tmp_path / "dump"),
            other.text("two"),
            relay("bad", free_port(), taken),
        ]
        running.configure(*texts, **({key: fresh} if key else {}))
        for _ in range(30):
            assert not running.ask("reload")["ok"]
        assert len(running.descriptors()) <= before + 5  # askers may be on their way out
        assert is_refused(other.port)
        assert key != "control" or not fresh.exists()
