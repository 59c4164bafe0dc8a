"""`coalesce`: few reads for many small records, and nothing else is different (SPEC 4)."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemons import Site, daemon, relay
from tests.support import (
    CELL,
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
    reset_connection,
    wait_until,
)


class Ends:
    """A listen-listen relay, its source and one client."""

    def __init__(self, folder: Path, stack: ExitStack, **keys: object) -> None:
        self.stack = stack
        self.source_port, self.port = free_port(), free_port()
        self.site: Site = stack.enter_context(daemon(folder, self.text(**keys)))
        self.client = stack.enter_context(connect(self.port))
        wait_until(lambda: self.totals()["destination_links"] == 1, "the client")
        self.source = self.new_source()

    def text(self, **keys: object) -> str:
        return relay("one", self.source_port, self.port, **{"linger_timeout": "0.5s", **keys})

    def new_source(self) -> socket.socket:
        before = self.totals()["source_links"]
        sock = self.stack.enter_context(connect(self.source_port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wait_until(lambda: self.totals()["source_links"] == before + 1, "the source")
        return sock

    def reload(self, **keys: object) -> None:
        self.site.configure(self.text(**keys))
        self.site.reload()

    def totals(self) -> dict[str, int]:
        found: dict[str, int] = self.site.relay("one")["totals"]
        return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def drip(source: socket.socket, count: int, begin: int = 0) -> float:
    """Send so many cells, about a thousand a second; return the seconds it took."""
    began = time.monotonic()
    for number in range(begin, begin + count):
        source.sendall(keyed("drip", number, 1))
        time.sleep(max(0.0, began + (number - begin + 1) / 1000 - time.monotonic()))
    return time.monotonic() - began


class Counting(Collector):
    """Counts the pieces in which it came."""

    def __init__(self, sock: socket.socket) -> None:
        self.pieces = 0
        super().__init__(sock)

    def run(self) -> None:
        self._sock.settimeout(None)
        with contextlib.suppress(OSError):
            while data := self._sock.recv(1 << 18):
                self.data += data
                self.pieces += 1


@pytest.mark.parametrize("framing", ["raw", "line"])
@pytest.mark.parametrize("interval", [5, 50])
def test_a_thousand_records_a_second_come_in_few_pieces(
    tmp_path: Path, stack: ExitStack, interval: int, framing: str
) -> None:
    ends = Ends(tmp_path, stack, coalesce=f"{interval}ms", framing=framing)
    got = Counting(ends.client)
    took = drip(ends.source, 1000)
    assert check_keyed("drip", got.wait_for(1000 * CELL), 0) == range(1000)
    assert got.pieces <= took * 1000 / interval + 2
    assert ends.totals()["spliced"] == 0


def test_without_it_every_record_comes_at_once(tmp_path: Path, stack: ExitStack) -> None:
    """What the test above counts is there to be counted."""
    ends = Ends(tmp_path, stack)
    got = Counting(ends.client)
    drip(ends.source, 200)
    got.wait_for(200 * CELL)
    assert got.pieces > 100


def test_the_first_of_a_quiet_stream_does_not_wait(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="10s")
    ends.source.sendall(keyed("drip", 0, 1))
    assert receive(ends.client, CELL) == keyed("drip", 0, 1)


@pytest.mark.parametrize("end", ["FIN", "RST"])
def test_what_came_while_it_rested_comes_before_the_end(tmp_path: Path, stack: ExitStack, end: str) -> None:
    ends = Ends(tmp_path, stack, coalesce="300ms")
    ends.source.sendall(keyed("drip", 0, 1))
    receive(ends.client, CELL)  # now it rests
    ends.source.sendall(keyed("drip", 1, 99))
    (reset_connection if end == "RST" else socket.socket.close)(ends.source)
    assert check_keyed("drip", receive(ends.client, 99 * CELL), 1) == range(1, 100)
    ends.site.wait_log(" source=", "event=closed", f"reason={'eof' if end == 'FIN' else 'reset'}")


@pytest.mark.parametrize("interval", ["5ms", "50ms"])
def test_bulk_is_not_throttled(tmp_path: Path, stack: ExitStack, interval: str) -> None:
    ends = Ends(tmp_path, stack, coalesce=interval, overflow="block")
    got = Collector(ends.client)
    data = bulk(2_000_000)[: 24 << 20]
    began = time.monotonic()
    Sender(ends.source, data).wait_end()
    assert got.wait_for(len(data)) == data
    assert time.monotonic() - began < 2 * SLOWNESS  # it takes a tenth of that


def test_bulk_over_a_unix_socket_is_not_throttled(tmp_path: Path, stack: ExitStack) -> None:
    """Its buffer holds less than the largest read, so that none is ever full."""
    port, path = free_port(), tmp_path / "source"
    stack.enter_context(daemon(tmp_path, relay("one", f"unix:{path}", port, coalesce="50ms", overflow="block")))
    got = Collector(stack.enter_context(connect(port)))
    source = stack.enter_context(socket.socket(socket.AF_UNIX))
    source.connect(str(path))
    data = bulk(2_000_000)[: 24 << 20]
    began = time.monotonic()
    Sender(source, data).wait_end()
    assert got.wait_for(len(data)) == data
    assert time.monotonic() - began < 2 * SLOWNESS


def test_a_reload_turns_it_on_and_off(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack)
    got = Counting(ends.client)
    pieces = []
    for number, value in enumerate(("0", "50ms", "0", "50ms")):
        ends.reload(coalesce=value)
        before = got.pieces
        drip(ends.source, 300, number * 300)
        check_keyed("drip", got.wait_for((number + 1) * 300 * CELL), 0)
        pieces.append(got.pieces - before)
    assert pieces[0] > 3 * pieces[1] and pieces[2] > 3 * pieces[3], pieces
    assert not ends.site.lines("event=closed")


def test_a_reload_ends_the_rest_of_what_was_turned_off(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="10s")
    ends.source.sendall(b"1")
    assert receive(ends.client, 1) == b"1"
    ends.source.sendall(b"2")
    ends.reload(coalesce="0")
    ends.client.settimeout(5)
    assert ends.client.recv(1) == b"2"


def test_a_source_that_is_replaced_while_it_rests_loses_nothing(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="10s")
    ends.source.sendall(b"1")
    receive(ends.client, 1)
    ends.source.sendall(b"2345")
    second = ends.new_source()
    second.sendall(b"678")
    assert receive(ends.client, 7) == b"2345678"


def test_a_source_that_is_silent_is_idle_all_the_same(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="50ms", source_idle="1s")
    ends.source.sendall(b"x")
    ends.site.wait_log("event=closed", "reason=idle")


def test_a_stop_while_it_rests_delivers_what_has_come(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="2s")
    ends.source.sendall(b"1")
    receive(ends.client, 1)
    ends.source.sendall(b"2345")
    pid = ends.site.pid
    ends.site.send(signal.SIGTERM)
    assert receive_all(ends.client) == b"2345"
    ends.client.close()
    ends.source.close()
    ends.site.wait_gone(pid)


def test_a_reload_that_drops_the_source_delivers_what_has_come(tmp_path: Path, stack: ExitStack) -> None:
    with listener() as first, listener() as other:
        ports = [sock.getsockname()[1] for sock in (first, other)]
        port = free_port()

        def text(source: int) -> str:
            return relay("one", source, port, mode="connect-listen", coalesce="5s", linger_timeout="0.5s")

        site = stack.enter_context(daemon(tmp_path, text(ports[0])))
        source = stack.enter_context(first.accept()[0])
        client = stack.enter_context(connect(port))
        wait_until(lambda: site.relay("one")["totals"]["destination_links"] == 1)
        source.sendall(b"1")
        receive(client, 1)
        source.sendall(b"2345")
        site.configure(text(ports[1]))
        site.reload()
        second = stack.enter_context(other.accept()[0])
        second.sendall(b"678")
        assert receive(client, 7) == b"2345678"


def test_many_sources_that_rest_cost_nothing(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="10s")
    ends.source.sendall(b"1")
    receive(ends.client, 1)
    ends.source.sendall(b"2345")
    reset_connection(ends.source)
    before = cpu(ends.site)
    time.sleep(0.5)
    assert cpu(ends.site) - before < 0.1


def cpu(site: Site) -> float:
    fields = Path(f"/proc/{site.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_what_goes_back_is_not_coalesced(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, coalesce="10s", return_="all")
    ends.source.sendall(b"1")
    receive(ends.client, 1)
    for number in range(20):
        ends.client.sendall(b"%02d" % number)
        assert receive(ends.source, 2) == b"%02d" % number
