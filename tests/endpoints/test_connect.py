"""A connecting end: tried for ever, never in a hurry, one line for each change of state."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from relayd.address import Address, ReplayAddress, TcpAddress, UnixAddress
from relayd.endpoints.connect import ConnectEndpoint
from relayd.endpoints.replay import ReplaySettings
from relayd.net.connector import Connector, DialSettings
from relayd.net.resolver import Resolver
from relayd.net.sockets import SocketOptions
from relayd.observe.log import EventLog
from relayd.policy.backoff import Backoff
from relayd.policy.loops import End, LoopGuard
from relayd.wire.framings import LINE
from tests.net.helpers import Lines, Loop, Owner, descriptors, resolver_threads, running_loop
from tests.support import PATIENCE, free_port

loop = pytest.fixture(running_loop)

TIMEOUT = 10.0
STABLE = 30.0
LOW, HIGH = 1.0, 8.0  # without jitter: the waits are 1, 2, 4, 8, 8


class Caller:
    """A connecting endpoint with all that it needs; its jitter is nought."""

    def __init__(
        self, loop: Loop, *addresses: Address, lookup: Callable[..., Any] = socket.getaddrinfo, high: float = HIGH
    ) -> None:
        self.loop = loop
        self.guard = LoopGuard()
        self.owner = Owner()
        self.log = Lines()
        self.timers = loop.timers
        self.descriptors = len(descriptors())
        connector = Connector(
            loop, Resolver(loop, lookup), DialSettings(SocketOptions(), TIMEOUT), self.guard, End("test", True)
        )
        self.endpoint = ConnectEndpoint(
            loop, addresses, connector, SocketOptions(), ReplaySettings(LINE, 65536),
            Backoff(LOW, high, lambda: 0.5), STABLE, 2.0,
            self.guard, self.owner, EventLog(loop, self.log, "debug").bind(relay="test"),
        )  # fmt: skip
        loop.stack.callback(self.close)

    def close(self) -> None:
        self.endpoint.stop()
        for link in self.owner.links:
            link.transport.abort("test over")

    def start(self) -> Caller:
        self.endpoint.open()
        self.endpoint.start()
        return self

    def wait(self) -> float:
        """Turn until it waits for the next attempt; return how long it will, to the millisecond."""

        def waits() -> bool:
            # A timer that is due already is the next address of the same round.
            return self.endpoint._timer is not None and self.endpoint._timer.when > self.loop.now

        self.loop.until(waits, "the wait for the next attempt")
        assert self.endpoint._timer is not None
        return round(self.endpoint._timer.when - self.loop.now, 3)

    def next_attempt(self) -> None:
        """Let the wait pass."""
        self.loop.advance(self.wait() + 0.001)

    def assert_nothing_left(self) -> None:
        self.loop.advance(1.0)  # the reactor's check of dormant handlers, if there were any, ends by itself
        assert self.loop.handlers == 0
        assert self.loop.timers == self.timers
        assert not self.guard._dialled
        assert len(descriptors()) == self.descriptors


@contextlib.contextmanager
def server(port: int = 0) -> Iterator[tuple[socket.socket, TcpAddress]]:
    with socket.create_server(("127.0.0.1", port)) as listening:
        listening.settimeout(PATIENCE)
        yield listening, TcpAddress("127.0.0.1", listening.getsockname()[1])


def nobody() -> TcpAddress:
    return TcpAddress("127.0.0.1", free_port())


# -- up and down ----------------------------------------------------------------------------------------


def test_a_link_comes_up_and_is_the_owners(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        peer, _ = listening.accept()
        with peer:
            loop.until(lambda: caller.owner.links)
            link = caller.owner.links[0]
            assert link.name == str(address)
            peer.send(b"hello")
            loop.until(lambda: link.data == b"hello")
            assert caller.log.having("event=dialled", "attempts=1")
            assert not caller.log.having("warning")


def test_the_state_says_when_the_next_attempt_comes_and_that_none_does(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        loop.until(lambda: caller.owner.links)
        assert caller.endpoint.state().next_attempt is None
        listening.accept()[0].close()
        caller.loop.until(lambda: not caller.owner.up)
        assert caller.wait() == 1.0
        loop.advance(0.25)
        assert round(caller.endpoint.state().next_attempt or 0, 3) == 0.75
        caller.endpoint.stop()
        assert caller.endpoint.state().next_attempt is None


def test_a_lost_link_is_dialled_again_after_a_wait(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        for expected in (1.0, 2.0):
            listening.accept()[0].close()
            loop.until(lambda: caller.owner.links and not caller.owner.up)
            assert caller.wait() == expected
            assert loop.turns() == 0
            caller.next_attempt()
        listening.accept()[0].close()
        loop.until(lambda: len(caller.owner.links) == 3)


def test_n1_waits_double_up_to_the_highest(loop: Loop) -> None:
    caller = Caller(loop, nobody()).start()
    waits = []
    for _ in range(6):
        waits.append(caller.wait())
        caller.next_attempt()
    assert waits == [1, 2, 4, 8, 8, 8]


def test_n1_a_fixed_wait_stays_fixed(loop: Loop) -> None:
    caller = Caller(loop, nobody(), high=LOW).start()
    for _ in range(4):
        assert caller.wait() == LOW
        caller.next_attempt()


def test_n1_one_line_for_a_night_of_refusals_and_one_for_each_change(loop: Loop) -> None:
    port = free_port()
    address = TcpAddress("127.0.0.1", port)
    caller = Caller(loop, address).start()
    for _ in range(100):
        caller.next_attempt()
    caller.wait()
    lines = caller.log.having("event=connect_failed")
    assert len(lines) == 1
    assert f'error="{address}: Connection refused"' in lines[0]
    with server(port) as (listening, _):
        caller.next_attempt()
        listening.accept()[0].close()
        loop.until(lambda: caller.owner.links and not caller.owner.up)
        assert caller.log.having("event=dialled", "attempts=102")
    for _ in range(5):
        caller.next_attempt()
    caller.wait()
    assert len(caller.log.having("event=connect_failed")) == 2  # a state that came back is a change


def test_n1_another_error_is_another_line(loop: Loop) -> None:
    errors: list[Exception] = [socket.gaierror(-2, "no such name"), socket.gaierror(-3, "try again")]

    def lookup(*_: object) -> None:
        raise errors[0]

    caller = Caller(loop, TcpAddress("feed.example", 80), lookup=lookup).start()
    for _ in range(3):
        caller.next_attempt()
    caller.wait()
    errors.reverse()
    for _ in range(3):
        caller.next_attempt()
    caller.wait()
    lines = caller.log.having("event=connect_failed")
    assert ["no such name" in line for line in lines] == [True, False]


def test_n11_a_peer_that_accepts_and_closes_at_once_does_not_reset_the_waits(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        waits = []
        for number in range(6):
            listening.accept()[0].close()
            loop.until(lambda count=number: len(caller.owner.links) > count and not caller.owner.up)
            waits.append(caller.wait())
            caller.next_attempt()
        assert waits == [1, 2, 4, 8, 8, 8]


def test_n11_a_thousand_flaps_leave_nothing(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        before = len(descriptors())
        for number in range(1000):
            listening.accept()[0].close()
            loop.until(lambda count=number: len(caller.owner.links) > count and not caller.owner.up)
            caller.next_attempt()
        listening.accept()[0].close()
        loop.until(lambda: len(caller.owner.links) == 1001 and not caller.owner.up)
        assert abs(len(descriptors()) - before) <= 1
        assert len(caller.guard._dialled) == 0
        assert len(caller.log.lines) <= 1001 + 5  # the `dialled` of each, at debug


@pytest.mark.parametrize(("lived", "expected"), [(STABLE - 0.1, 4.0), (STABLE, 1.0), (STABLE * 100, 1.0)])
def test_n11_a_link_that_was_stable_starts_the_waits_over(loop: Loop, lived: float, expected: float) -> None:
    port = free_port()
    caller = Caller(loop, TcpAddress("127.0.0.1", port)).start()
    caller.next_attempt()
    assert caller.wait() == 2.0
    with server(port) as (listening, _):
        caller.next_attempt()
        loop.until(lambda: caller.owner.up)
        peer, _ = listening.accept()
        with peer:
            loop.advance(lived)
    loop.until(lambda: not caller.owner.up)
    assert caller.wait() == expected


# -- several addresses -----------------------------------------------------------------------------------


def test_addresses_are_tried_in_turn_without_a_wait_between_them(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, nobody(), nobody(), address).start()
        loop.until(lambda: caller.owner.links)
        listening.accept()[0].close()
        assert caller.owner.links[0].name == str(address)
        assert not caller.log.having("event=connect_failed")


def test_n15_when_all_have_failed_all_are_told_in_one_line_and_the_wait_begins(loop: Loop) -> None:
    addresses = [nobody(), nobody()]
    caller = Caller(loop, *addresses).start()
    assert caller.wait() == 1.0
    (line,) = caller.log.having("event=connect_failed")
    assert all(line.count(str(address)) == 1 for address in addresses)
    caller.next_attempt()
    assert caller.wait() == 2.0


def test_after_a_lost_link_the_first_address_is_tried_first_again(loop: Loop) -> None:
    port = free_port()
    with server() as (second, address):
        caller = Caller(loop, TcpAddress("127.0.0.1", port), address).start()
        loop.until(lambda: caller.owner.up)
        with server(port) as (first, _):
            second.accept()[0].close()
            loop.until(lambda: not caller.owner.up)
            caller.next_attempt()
            loop.until(lambda: caller.owner.up)
            assert caller.owner.up[0].name == f"127.0.0.1:{port}"
            first.accept()[0].close()


def test_n15_hundreds_of_addresses_that_fail_at_once_are_no_recursion(loop: Loop, tmp_path: Path) -> None:
    caller = Caller(loop, *(UnixAddress(str(tmp_path / f"{n}.sock")) for n in range(400)))
    caller.start()
    assert caller.wait() == 1.0
    caller.next_attempt()
    assert caller.wait() == 2.0


# -- stop, whatever it is doing ---------------------------------------------------------------------------


@contextlib.contextmanager
def syn_hole() -> Iterator[TcpAddress]:
    """An address where every connect hangs (HOLE-SYN)."""
    with socket.socket() as listening, contextlib.ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex(listening.getsockname()) in (0, errno.EINPROGRESS)
        yield TcpAddress(*listening.getsockname())


def test_p3_stop_while_connecting_leaves_nothing(loop: Loop) -> None:
    with syn_hole() as address:
        caller = Caller(loop, address).start()
        assert loop.handlers == 1
        caller.endpoint.stop()
        caller.endpoint.stop()
        caller.assert_nothing_left()
        loop.advance(100.0)
    assert not caller.owner.links
    assert not caller.log.having("event=connect_failed")


def test_p3_stop_while_resolving_leaves_nothing(loop: Loop) -> None:
    release = threading.Event()

    def lookup(*_: object) -> list[Any]:
        release.wait(PATIENCE)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", 1))]

    caller = Caller(loop, TcpAddress("feed.example", 80), lookup=lookup).start()
    caller.endpoint.stop()
    release.set()
    loop.until(lambda: not resolver_threads())
    loop.turns(3)
    caller.assert_nothing_left()
    assert not caller.log.lines


def test_p3_stop_while_waiting_leaves_nothing(loop: Loop) -> None:
    caller = Caller(loop, nobody()).start()
    caller.wait()
    caller.endpoint.stop()
    caller.assert_nothing_left()
    loop.advance(100.0)
    assert loop.turns() == 0
    caller.assert_nothing_left()


def test_p3_stop_before_start_is_harmless(loop: Loop) -> None:
    caller = Caller(loop, nobody())
    caller.endpoint.stop()
    caller.assert_nothing_left()


def test_p3_stop_leaves_the_link_which_is_not_dialled_again(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address).start()
        loop.until(lambda: caller.owner.up)
        peer, _ = listening.accept()
        caller.endpoint.stop()
        peer.send(b"goes on")
        loop.until(lambda: caller.owner.links[0].data == b"goes on")
        peer.close()
        loop.until(lambda: not caller.owner.up)
        loop.advance(100.0)
    loop.turn(0)
    assert len(caller.owner.links) == 1
    assert not caller.guard._dialled
    assert loop.timers == caller.timers


def test_p3_an_owner_that_stops_the_end_when_the_link_comes_up(loop: Loop) -> None:
    with server() as (listening, address):
        caller = Caller(loop, address)
        caller.owner.on_link = lambda link: caller.endpoint.stop()
        caller.start()
        loop.until(lambda: caller.owner.links)
        listening.accept()[0].close()
        loop.until(lambda: not caller.owner.up)
        loop.advance(100.0)
        assert len(caller.owner.links) == 1


# -- names and files ---------------------------------------------------------------------------------------


def test_d3_a_name_is_looked_up_anew_for_each_attempt(loop: Loop) -> None:
    asked: list[str] = []

    def lookup(host: str, *_: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, 1, 6, "", ("127.0.0.1", port))]

    port = free_port()
    caller = Caller(loop, TcpAddress("feed.example", 80), lookup=lookup).start()
    for _ in range(3):
        caller.next_attempt()
    caller.wait()
    with server() as (listening, address):
        port = address.port
        caller.next_attempt()
        loop.until(lambda: caller.owner.links)
        listening.accept()[0].close()
    assert asked == ["feed.example"] * 5
    assert caller.owner.links[0].name == "feed.example:80"


def test_d1_a_look_up_that_hangs_is_dropped_and_tried_again(loop: Loop) -> None:
    release = threading.Event()
    caller = Caller(loop, TcpAddress("feed.example", 80), lookup=lambda *_: release.wait(PATIENCE) and []).start()
    loop.advance(TIMEOUT)
    assert caller.wait() == 1.0
    assert caller.log.having("event=connect_failed", "timed out")
    release.set()
    loop.until(lambda: not resolver_threads())


def test_a_replay_is_a_link_and_a_file_that_is_gone_is_tried_again(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "feed.nmea"
    caller = Caller(loop, ReplayAddress(str(path))).start()
    assert caller.wait() == 1.0
    assert caller.log.having("event=connect_failed", "No such file")
    path.write_bytes(b"one\ntwo\n")
    caller.next_attempt()
    loop.until(lambda: caller.owner.links and caller.owner.links[0].data == b"one\ntwo\n")
    assert caller.owner.links[0].name == "replay:feed.nmea"


def test_a_replay_whose_file_is_a_fifo_now_or_cannot_be_read_is_tried_again(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "feed.nmea"
    os.mkfifo(path)
    caller = Caller(loop, ReplayAddress(str(path))).start()
    assert caller.wait() == 1.0
    assert caller.log.having("event=connect_failed", f"{path}: no regular file")
    path.unlink()
    path.symlink_to("/proc/self/mem")
    caller.next_attempt()
    caller.wait()
    assert caller.owner.links[0].lost == ["EIO"]
    path.unlink()
    path.write_bytes(b"one\ntwo\n")
    caller.next_attempt()
    loop.until(lambda: caller.owner.up and caller.owner.up[0].data == b"one\ntwo\n")


def test_n18_many_ends_on_one_dead_peer_wait_each_its_own_time(loop: Loop) -> None:
    address = nobody()
    callers: Sequence[Caller] = [Caller(loop, address).start() for _ in range(20)]
    for caller in callers:
        assert caller.wait() == 1.0
    assert loop.turns() == 0


# -- what is seen, and a reload -----------------------------------------------------------------------------


def test_the_state_tells_what_it_is_about_and_why(loop: Loop) -> None:
    port = free_port()
    caller = Caller(loop, TcpAddress("127.0.0.1", port)).start()
    assert caller.endpoint.state().name == "connecting"
    caller.wait()
    state = caller.endpoint.state()
    assert (state.name, state.reconnects) == ("waiting", 0)
    assert "Connection refused" in state.last_error
    with server(port) as (listening, _):
        for _ in range(3):
            caller.next_attempt()
            loop.until(lambda: caller.owner.up)
            assert caller.endpoint.state().last_error == ""
            listening.accept()[0].close()
            loop.until(lambda: not caller.owner.up)
    assert caller.endpoint.state().reconnects == 2


def go_over(before: Caller, *addresses: Address) -> Caller:
    """Return the end of the next configuration, which has taken the link over, if there is one."""
    after = Caller(before.loop, *addresses)
    after.guard = after.endpoint._guard = before.guard
    after.endpoint.open()
    before.endpoint.stop()
    after.endpoint.follow(before.endpoint)
    for link in before.owner.up:
        after.endpoint.adopt(link.transport, before.endpoint)
        link.endpoint = after.endpoint
    after.endpoint.start()
    return after


def test_r_an_adopted_link_is_not_dialled_again_until_it_is_lost(loop: Loop) -> None:
    with server() as (listening, address):
        before = Caller(loop, address).start()
        loop.until(lambda: before.owner.up)
        peer, _ = listening.accept()
        after = go_over(before, address)
        loop.advance(100.0)
        loop.turns(3)
        assert not after.owner.links and not before.owner.links[0].lost
        peer.send(b"goes on")
        loop.until(lambda: before.owner.links[0].data == b"goes on")
        assert after.endpoint.peer_name(before.owner.links[0].transport) == str(address)
        peer.close()
        loop.until(lambda: not before.owner.up)
        assert not after.guard._dialled
        after.next_attempt()
        loop.until(lambda: after.owner.up)
        listening.accept()[0].close()
        assert len(before.owner.links) == 1  # the former end dials no more
        assert after.endpoint.state().reconnects == 1


def test_r_reconnects_are_counted_on_though_the_peer_is_away_just_then(loop: Loop) -> None:
    port = free_port()
    address = TcpAddress("127.0.0.1", port)
    before = Caller(loop, address).start()
    for _ in range(3):
        with server(port) as (listening, _):
            before.next_attempt()
            loop.until(lambda: before.owner.up)
            listening.accept()[0].close()
            loop.until(lambda: not before.owner.up)
    after = go_over(before, address)
    assert after.endpoint.state().reconnects == 2
    with server(port) as (listening, _):
        after.next_attempt()
        loop.until(lambda: after.owner.up)
        listening.accept()[0].close()
        assert after.endpoint.state().reconnects == 3


def test_r_a_link_to_the_second_of_several_addresses_is_still_called_so(loop: Loop) -> None:
    with server() as (listening, address):
        addresses = (nobody(), address)
        before = Caller(loop, *addresses).start()
        loop.until(lambda: before.owner.up)
        with listening.accept()[0]:
            after = go_over(before, *addresses)
            assert after.endpoint.address == address


def test_r_an_adopted_link_gets_the_new_options(loop: Loop) -> None:
    with server() as (listening, address):
        before = Caller(loop, address).start()
        loop.until(lambda: before.owner.up)
        with listening.accept()[0]:
            sock = before.owner.links[0].transport._sock
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            after = Caller(loop, address)
            after.endpoint._options = SocketOptions(nodelay=False)
            after.endpoint.adopt(before.owner.links[0].transport, before.endpoint)
            assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            before.owner.links[0].transport.abort("test over")
            loop.turn(0)


def test_r_an_end_that_was_waiting_is_followed_by_one_that_tries_at_once(loop: Loop) -> None:
    port = free_port()
    address = TcpAddress("127.0.0.1", port)
    before = Caller(loop, address).start()
    before.wait()
    with server(port) as (listening, _):
        after = go_over(before, address)
        loop.until(lambda: after.owner.up)
        listening.accept()[0].close()
        loop.until(lambda: not after.owner.up)
    assert not before.owner.links
