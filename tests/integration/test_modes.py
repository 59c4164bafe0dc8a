"""Four modes, one code path: every byte, in order, to every link."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support import (
    CELL,
    HELD_UP,
    Collector,
    Relayd,
    Sender,
    bulk,
    cells_of,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    receive_all,
    relayd,
    reset_connection,
    stalled_client,
    wait_until,
)

MODES = ("connect-listen", "listen-connect", "connect-connect", "listen-listen")
TO_CLIENTS = ("connect-listen", "listen-listen")
TO_CONNECTED = ("listen-connect", "connect-connect")
KILLS: dict[str, Callable[[socket.socket], None]] = {"FIN": socket.socket.close, "RST": reset_connection}

LINE = ("-o", "framing=line")


class Setting:
    """A relay in one mode, with ends that this test plays."""

    def __init__(self, mode: str, stack: ExitStack, destinations: int) -> None:
        source, _, destination = mode.partition("-")
        self.source_listener = stack.enter_context(listener()) if source == "connect" else None
        self.source_port = self.source_listener.getsockname()[1] if self.source_listener else free_port()
        self.destination_listeners = (
            [stack.enter_context(listener()) for _ in range(destinations)] if destination == "connect" else []
        )
        self.destination_ports = [sock.getsockname()[1] for sock in self.destination_listeners] or [free_port()]
        self._stack = stack
        self.running: Relayd  # set when it runs
        self.destinations_met: Counter[str] = Counter()
        self.sources_met = 0

    def source(self) -> socket.socket:
        """Return a new source link, which is the live one."""
        self.sources_met += 1
        sock = self._end(self.source_listener, self.source_port)
        self.running.wait_log(" source=", "event=connected", times=self.sources_met)
        return sock

    def destination(self, index: int = 0) -> socket.socket:
        """Return a new destination link, which takes part from now on."""
        if self.destination_listeners:
            sock = self._end(self.destination_listeners[index], 0)
            peer = f" destination=127.0.0.1:{self.destination_ports[index]}"
        else:
            sock = self._end(None, self.destination_ports[0])
            peer = " client="
        self.destinations_met[peer] += 1
        self.running.wait_log(peer, "event=connected", times=self.destinations_met[peer])
        return sock

    def _end(self, listening: socket.socket | None, port: int) -> socket.socket:
        sock = listening.accept()[0] if listening else connect(port)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._stack.enter_context(sock)


@contextmanager
def setting(mode: str, *options: str, destinations: int = 1) -> Iterator[Setting]:
    """Run a relay in a mode; `destinations` is the number of addresses, where they are connected to."""
    with ExitStack() as stack:
        ends = Setting(mode, stack, destinations)
        source = f"127.0.0.1:{ends.source_port}"
        destination = ",".join(f"127.0.0.1:{port}" for port in ends.destination_ports)
        words = (source, destination, "--mode", mode, "--retry", "0.05", "-o", "linger_timeout=0.2s")
        ends.running = stack.enter_context(relayd(*words, *options))
        yield ends


# -- every byte, in order -------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["raw", "line"])
@pytest.mark.parametrize("mode", MODES)
def test_one_byte_per_send_arrives_in_order(mode: str, framing: str) -> None:
    with setting(mode, "-o", f"framing={framing}") as ends:
        destination, source = ends.destination(), ends.source()
        data = keyed(mode[:4], 0, 500)
        for byte in data:
            source.sendall(bytes([byte]))
        assert check_keyed(mode[:4], receive(destination, len(data)), 0) == range(500)


@pytest.mark.parametrize("framing", ["raw", "line"])
@pytest.mark.parametrize("mode", MODES)
def test_a_bulk_stream_arrives_in_order(mode: str, framing: str) -> None:
    data = bulk(2_000_000)
    with setting(mode, "-o", f"framing={framing}", "-o", "overflow=block") as ends:
        got, sender = Collector(ends.destination()), Sender(ends.source(), data)
        sender.wait_end()
        same = got.wait_for(len(data)) == data
        if not same:
            check_keyed("bulk", bytes(got.data), 0)
        assert same


@pytest.mark.parametrize("mode", MODES)
def test_several_destinations_get_the_same(mode: str) -> None:
    data = bulk(2_000_000)[: 4 << 20]
    with setting(mode, "-o", "overflow=block", destinations=3) as ends:
        collectors = [Collector(ends.destination(index)) for index in range(3)]
        Sender(ends.source(), data).wait_end()
        for collector in collectors:
            assert collector.wait_for(len(data)) == data


@pytest.mark.parametrize("source_first", [True, False], ids=["source-first", "client-first"])
def test_listen_listen_with_either_side_first(source_first: bool) -> None:
    with setting("listen-listen", *LINE) as ends:
        if source_first:
            source = ends.source()
            source.sendall(keyed("feed", 0, 100))  # nobody is there: a live feed is not kept
            destination = ends.destination()
        else:
            destination = ends.destination()
            source = ends.source()
        source.sendall(keyed("feed", 1000, 100))
        got = receive(destination, 100 * CELL)
        numbers = cells_of("feed", got)
        while numbers[-1] != 1099:
            numbers += cells_of("feed", receive(destination, CELL))
        assert [number for number in numbers if number >= 1000] == list(range(1000, 1100))


# -- the source comes back ------------------------------------------------------------------------


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("mode", MODES)
def test_source_killed_in_a_record_comes_back(mode: str, kill: str) -> None:
    """FAULTS S1, S26: the cut record is thrown away, not glued to the next source's first bytes."""
    with setting(mode, *LINE) as ends:
        destination, source = ends.destination(), ends.source()
        source.sendall(keyed("feed", 0, 101)[:-3])
        assert check_keyed("feed", receive(destination, 100 * CELL), 0) == range(100)
        KILLS[kill](source)
        back = ends.source()
        back.sendall(keyed("feed", 200, 100))
        assert check_keyed("feed", receive(destination, 100 * CELL), 200) == range(200, 300)
        assert ends.running.stop() == 0
        assert receive_all(destination) == b""


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("mode", MODES)
def test_source_killed_in_full_flow_again_and_again(mode: str, kill: str) -> None:
    """Nothing torn, nothing doubled, nothing out of order; with FIN nothing missing either."""
    with setting(mode, *LINE) as ends:
        got = Collector(ends.destination())
        sent = []
        for life in range(5):
            source = ends.source()
            first = life * 10_000
            source.sendall(keyed("feed", first, 5001)[: -1 - life])
            sent += range(first, first + 5000)
            KILLS[kill](source)
            ends.running.wait_log(" source=", "event=closed", times=life + 1)
        last = ends.source()
        last.sendall(keyed("feed", 90_000, 1))
        wait_until(lambda: keyed("feed", 90_000, 1) in got.data, "the last cell")
        numbers = cells_of("feed", bytes(got.data))
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == 90_000
        if kill == "FIN":
            assert numbers[:-1] == sent
        else:
            assert set(numbers[:-1]) <= set(sent)


@pytest.mark.parametrize("mode", ["listen-connect", "listen-listen"])
def test_what_a_source_sent_before_it_restarted_is_not_lost_to_its_own_return(mode: str) -> None:
    """It ended with FIN and came back at once; the link it came back on must not throw away what it sent before."""
    with setting(mode, *LINE) as ends:
        got = Collector(ends.destination())
        for life in range(20):
            source = connect(ends.source_port)
            source.sendall(keyed("feed", life * 5000, 5000))
            source.close()
        wait_until(lambda: keyed("feed", 99_999, 1) in got.data, "the last cell")
        check_keyed("feed", bytes(got.data), 0)


@pytest.mark.parametrize("mode", ["listen-connect", "listen-listen"])
@pytest.mark.parametrize("second", ["replace", "refuse"])
def test_a_second_source_replaces_the_first_or_is_refused(mode: str, second: str) -> None:
    with setting(mode, *LINE, "-o", f"second_source={second}") as ends:
        destination, first = ends.destination(), ends.source()
        first.sendall(keyed("feed", 0, 10) + b"feed:cut")
        receive(destination, 10 * CELL)
        if second == "replace":
            newer = ends.source()
            assert receive_all(first) == b""
            newer.sendall(keyed("feed", 10, 10))
        else:
            with pytest.raises(ConnectionResetError), connect(ends.source_port) as refused:
                refused.recv(1)
            ends.running.wait_log("event=refused", "reason=second_source")
            first.sendall(b"\n")
            assert receive(destination, 9) == b"feed:cut\n"
            first.sendall(keyed("feed", 10, 10))
        assert check_keyed("feed", receive(destination, 10 * CELL), 10) == range(10, 20)


@pytest.mark.parametrize("mode", MODES)
def test_on_source_loss_close_ends_the_destination_links(mode: str) -> None:
    with setting(mode, *LINE, "-o", "on_source_loss=close") as ends:
        destination, source = ends.destination(), ends.source()
        source.sendall(keyed("feed", 0, 100))
        source.close()
        assert check_keyed("feed", receive_all(destination), 0) == range(100)
        destination.close()
        back, source = ends.destination(), ends.source()
        source.sendall(keyed("feed", 0, 10))
        assert check_keyed("feed", receive(back, 10 * CELL), 0) == range(10)


# -- clients come and go --------------------------------------------------------------------------


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("mode", TO_CLIENTS)
def test_client_killed_comes_back_and_gets_the_stream_from_the_next_record_on(mode: str, kill: str) -> None:
    with setting(mode, *LINE) as ends:
        staying, leaving, source = ends.destination(), ends.destination(), ends.source()
        source.sendall(keyed("feed", 0, 100) + b"feed:00")
        receive(leaving, 700)
        KILLS[kill](leaving)
        back = ends.destination()
        source.sendall(keyed("feed", 100, 100)[7:])
        assert check_keyed("feed", receive(back, 100 * CELL), 100) == range(100, 200)
        assert check_keyed("feed", receive(staying, 200 * CELL), 0) == range(200)
        ends.running.wait_log(" client=", "event=closed", "reason=reset")


@pytest.mark.parametrize("mode", TO_CLIENTS)
def test_a_late_client_starts_at_a_record(mode: str) -> None:
    """FAULTS S16: whatever moment of a busy stream it joins at."""
    with setting(mode, *LINE) as ends, ExitStack() as stack:
        source, clients = ends.source(), []
        data = bulk(2_000_000)[: 1 << 20]
        for begin in range(0, len(data), 4001):
            source.sendall(data[begin : begin + 4001])
            if begin % 20 == 0:
                clients.append(Collector(stack.enter_context(connect(ends.destination_ports[0]))))
        ends.running.wait_log(" client=", "event=connected", times=len(clients))
        source.sendall(keyed("bulk", len(data) // CELL, 1))
        assert len(clients) > 10
        for client in clients:
            wait_until(lambda client=client: client.data.endswith(keyed("bulk", len(data) // CELL, 1)), "the last cell")
            assert check_keyed("bulk", bytes(client.data)).stop == len(data) // CELL + 1


@pytest.mark.parametrize("mode", TO_CLIENTS)
def test_a_client_that_half_closes_goes_on_receiving(mode: str) -> None:
    """FAULTS S2, S3."""
    with setting(mode) as ends:
        client, source = ends.destination(), ends.source()
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        for first in range(0, 1000, 100):
            source.sendall(keyed("feed", first, 100))
            assert check_keyed("feed", receive(client, 100 * CELL), first)
        assert ends.running.cpu_share(0.5) < 0.1
        assert not ends.running.logged(" client=", "event=closed")


# -- connected destinations come and go -----------------------------------------------------------

# Records of all lengths: whatever a kernel takes at once, it hardly ever ends where a record does. 32 MB: more than the
# kernels on the way have been seen to take.
UNEVEN = b"".join(b"record:%07d:%s\n" % (number, b"x" * (number % 61)) for number in range(700_000))


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_connected_destination_killed_while_data_waits_for_it(mode: str, kill: str) -> None:
    """What the kernel had taken is gone; what relayd held is not, and a record that was cut is sent whole."""
    with setting(mode, *LINE, *HELD_UP, "-o", "buffer=1M") as ends:
        destination, source = ends.destination(), ends.source()
        sender = Sender(source, UNEVEN)
        sender.wait_stuck()
        assert UNEVEN.startswith(receive(destination, 100_001))
        KILLS[kill](destination)
        closed = ends.running.wait_log(" destination=", "event=closed", "reason=reset")
        taken = int(closed.partition(" sent=")[2].split()[0])
        back = Collector(ends.destination())
        sender.wait_end()
        border = UNEVEN.rfind(b"\n", 0, taken) + 1
        assert back.wait_for(len(UNEVEN) - border) == UNEVEN[border:]


@pytest.mark.parametrize("kill", KILLS)
@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_connected_destination_killed_between_records(mode: str, kill: str) -> None:
    """Nothing at all is lost; after a FIN relayd finds out whether anybody is left before it lets go of data."""
    with setting(mode, *LINE) as ends:
        source = ends.source()
        for life in range(3):
            source.sendall(keyed("feed", life * 100, 100))
            destination = ends.destination()
            assert check_keyed("feed", receive(destination, 100 * CELL), life * 100)
            KILLS[kill](destination)
            if kill == "RST":
                ends.running.wait_log(" destination=", "event=closed", times=life + 1)


@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_a_destination_that_ended_while_nothing_was_sent_is_connected_again(mode: str) -> None:
    with setting(mode) as ends:
        source, destination = ends.source(), ends.destination()
        destination.close()
        back = ends.destination()
        source.sendall(keyed("feed", 0, 100))
        assert check_keyed("feed", receive(back, 100 * CELL), 0)


@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_what_came_while_the_destination_was_down_is_kept(mode: str) -> None:
    with setting(mode, *LINE) as ends:
        source, destination = ends.source(), ends.destination()
        reset_connection(destination)
        ends.running.wait_log(" destination=", "event=closed")
        port = ends.destination_ports[0]
        ends.destination_listeners.pop().close()
        source.sendall(keyed("feed", 0, 10_000))
        ends.running.wait_log("event=connect_failed")
        with listener(port) as again:
            back = again.accept()[0]
            with back:
                assert check_keyed("feed", receive(back, 10_000 * CELL), 0) == range(10_000)


@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_a_connected_destination_that_half_closes_goes_on_receiving(mode: str) -> None:
    """FAULTS S2, as `ncat -l --recv-only` does."""
    with setting(mode) as ends:
        destination, source = ends.destination(), ends.source()
        destination.shutdown(socket.SHUT_WR)
        for first in range(0, 500, 100):
            source.sendall(keyed("feed", first, 100))
            assert check_keyed("feed", receive(destination, 100 * CELL), first)
        assert not ends.running.logged(" destination=", "event=closed")


@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_one_of_several_connected_destinations_is_down(mode: str) -> None:
    """The others miss nothing; it comes back live."""
    with setting(mode, *LINE, "-o", "buffer=64K", destinations=2) as ends:
        staying, leaving, source = ends.destination(0), ends.destination(1), ends.source()
        source.sendall(keyed("feed", 0, 100))
        receive(leaving, 100 * CELL)
        reset_connection(leaving)
        ends.running.wait_log(" destination=", "event=closed")
        port = ends.destination_ports[1]
        ends.destination_listeners.pop().close()
        got = Collector(staying)
        for first in range(100, 20_000, 100):  # more than its buffer
            source.sendall(keyed("feed", first, 100))
        assert check_keyed("feed", got.wait_for(20_000 * CELL), 0) == range(20_000)
        with listener(port) as again, again.accept()[0] as back:
            source.sendall(keyed("feed", 20_000, 100))
            got_back = Collector(back)
            wait_until(lambda: got_back.data.endswith(keyed("feed", 20_099, 1)), "the live stream")
            assert check_keyed("feed", bytes(got_back.data))[-1] == 20_099
            got_back._sock.shutdown(socket.SHUT_RD)
            got_back.join()


def test_a_destination_that_comes_back_to_a_full_queue_is_not_cut_as_slow() -> None:
    """What filled while it was down says nothing of the new link, which must get its chance to take it."""
    with setting("connect-connect", *LINE, "-o", "buffer=64K", destinations=2) as ends:
        Collector(ends.destination(0))
        destination, source = ends.destination(1), ends.source()
        name = f" destination=127.0.0.1:{ends.destination_ports[1]}"
        for life in range(10):
            reset_connection(destination)
            while len(ends.running.logged(name, "event=connected")) < life + 2:
                source.sendall(bulk(2_000_000)[: 40 << 10])  # two of them are more than its buffer
            destination = ends.destination(1)
            assert not ends.running.logged(name, "reason=slow", "sent=0 ")  # cut before it was given anything


# -- return data ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_return_all_brings_back_what_every_destination_sends(mode: str) -> None:
    """Two never interleave inside a record."""
    with setting(mode, *LINE, "-o", "return=all", destinations=2) as ends:
        one, two, source = ends.destination(0), ends.destination(1), ends.source()
        streams = keyed("one_", 0, 500), keyed("two_", 0, 500)
        for begin in range(0, len(streams[0]), 5):
            one.sendall(streams[0][begin : begin + 5])
            two.sendall(streams[1][begin : begin + 5])
        got = receive(source, 1000 * CELL)
        lines = got.splitlines(keepends=True)
        for key, stream in zip((b"one_", b"two_"), streams, strict=True):
            assert b"".join(line for line in lines if line.startswith(key)) == stream


@pytest.mark.parametrize("mode", MODES)
def test_a_return_record_cut_by_its_sender_is_thrown_away(mode: str) -> None:
    with setting(mode, *LINE, "-o", "return=all", destinations=2) as ends:
        one, two, source = ends.destination(0), ends.destination(1), ends.source()
        one.sendall(b"whole\nhal")
        assert receive(source, 6) == b"whole\n"
        reset_connection(one)
        ends.running.wait_log("event=closed")
        two.sendall(b"next\n")
        assert receive(source, 5) == b"next\n"


@pytest.mark.parametrize("mode", MODES)
def test_settings_go_back_to_a_beast_receiver_whose_records_they_are_not(mode: str) -> None:
    with setting(mode, "-o", "framing=beast", "-o", "return=all") as ends:
        destination, source = ends.destination(), ends.source()
        heard = b"\x1a1timeinsAC"
        source.sendall(heard)
        assert receive(destination, len(heard)) == heard
        destination.sendall(b"\x1a1J")
        assert receive(source, 3) == b"\x1a1J"


@pytest.mark.parametrize("mode", MODES)
def test_return_none_brings_nothing_back(mode: str) -> None:
    with setting(mode, "-o", "return=none") as ends:
        destination, source = ends.destination(), ends.source()
        destination.sendall(keyed("back", 0, 10_000))
        source.sendall(keyed("feed", 0, 100))
        assert check_keyed("feed", receive(destination, 100 * CELL), 0) == range(100)
        destination.close()
        assert ends.running.stop() == 0
        assert receive_all(source) == b""


@pytest.mark.parametrize("mode", TO_CLIENTS)
def test_return_first_is_the_longest_connected_client(mode: str) -> None:
    with setting(mode, *LINE, "-o", "return=first") as ends:
        first, second, source = ends.destination(), ends.destination(), ends.source()
        second.sendall(b"second one\nsecond ha")
        first.sendall(b"first\n")
        assert receive(source, 6) == b"first\n"
        reset_connection(first)
        ends.running.wait_log(" client=", "event=closed")
        second.sendall(b"lf\nsecond two\n")
        assert receive(source, 23) == b"second half\nsecond two\n"


@pytest.mark.parametrize("mode", TO_CONNECTED)
def test_return_is_on_with_one_connected_destination(mode: str) -> None:
    with setting(mode) as ends:
        destination, source = ends.destination(), ends.source()
        back = Collector(source)
        Sender(destination, bulk(2_000_000)[: 4 << 20]).wait_end()
        assert back.wait_for(4 << 20) == bulk(2_000_000)[: 4 << 20]


@pytest.mark.parametrize("mode", TO_CLIENTS)
def test_return_is_off_with_clients(mode: str) -> None:
    with setting(mode) as ends:
        destination, source = ends.destination(), ends.source()
        destination.sendall(b"intruder\n")
        source.sendall(b"feed\n")
        assert receive(destination, 5) == b"feed\n"
        assert ends.running.stop() == 0
        assert receive_all(source) == b""


def test_a_stalled_client_does_not_count_in_the_others() -> None:
    """The keyed stream of one client is untouched by another one's backlog."""
    with setting("listen-listen", *LINE, "-o", "buffer=8M") as ends:
        source, reading = ends.source(), Collector(ends.destination())
        with stalled_client(ends.destination_ports[0]) as stalled:
            ends.running.wait_log(" client=", "event=connected", times=2)
            data = bulk(2_000_000)[: 4 << 20]
            Sender(source, data).wait_end()
            assert reading.wait_for(len(data)) == data
            assert receive(stalled, len(data)) == data
