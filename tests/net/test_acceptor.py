"""Accepting: a budget, and no spinning when the kernel has nothing to give."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from relayd.net.acceptor import Acceptor
from tests.net.helpers import Loop, descriptors, no_more_descriptors, running_loop
from tests.support import PATIENCE, reset_connection

loop = pytest.fixture(running_loop)


class Door:
    """An acceptor on loopback, and what came through it."""

    def __init__(self, loop: Loop, sock: socket.socket | None = None) -> None:
        self.loop = loop
        self.server = loop.stack.enter_context(sock or socket.create_server(("127.0.0.1", 0), backlog=4096))
        self.server.setblocking(False)
        self.accepted: list[tuple[socket.socket, Any]] = []
        self.exhausted: list[str] = []
        self.behind = 0  # so many times it is, when it is asked
        self.acceptor = Acceptor(loop, self.server, self.take, self.exhausted.append, self.is_behind)
        loop.stack.callback(self.acceptor.close)
        self.acceptor.start()

    def is_behind(self) -> bool:
        self.behind -= 1
        return self.behind >= 0

    def take(self, sock: socket.socket, peer: Any) -> None:
        self.loop.stack.enter_context(sock)
        self.accepted.append((sock, peer))

    def knock(self, count: int = 1) -> list[socket.socket]:
        """Return so many peers that are connected as far as they can tell."""
        peers = [socket.create_connection(self.server.getsockname(), timeout=PATIENCE) for _ in range(count)]
        for peer in peers:
            self.loop.stack.enter_context(peer)
        return peers


class FailingServer(socket.socket):
    """A listening socket whose accept fails with each of `errors` first."""

    def __init__(self) -> None:
        super().__init__()
        self.bind(("127.0.0.1", 0))
        self.listen(64)
        self.errors: list[int] = []
        self.calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return super().accept()


def failing_door(loop: Loop) -> tuple[Door, FailingServer]:
    server = FailingServer()
    return Door(loop, server), server


def test_peers_are_accepted_non_blocking_with_their_names(loop: Loop) -> None:
    door = Door(loop)
    peers = door.knock(3)
    loop.until(lambda: len(door.accepted) == 3)
    assert [name for _, name in door.accepted] == [peer.getsockname() for peer in peers]
    assert not any(sock.getblocking() for sock, _ in door.accepted)
    assert not any(sock.get_inheritable() for sock, _ in door.accepted)
    assert loop.turns() == 0


def test_nothing_is_accepted_before_start_and_after_close(loop: Loop) -> None:
    door = Door(loop)
    door.acceptor.close()
    door.knock()
    loop.turns(3)
    assert door.accepted == []
    assert loop.handlers == 0


def test_l11_a_turn_has_a_budget_and_the_rest_waits(loop: Loop) -> None:
    door = Door(loop)
    door.knock(150)
    counts = []
    for _ in range(3):
        loop.turn(0)
        counts.append(len(door.accepted))
    assert counts == [64, 128, 150]


def test_l18_closing_in_the_midst_of_a_burst_accepts_no_more(loop: Loop) -> None:
    door = Door(loop)
    take = door.take

    def take_and_stop(sock: socket.socket, peer: Any) -> None:
        take(sock, peer)
        door.acceptor.close()

    door.acceptor._accepted = take_and_stop
    door.knock(5)
    loop.turns(3)
    assert len(door.accepted) == 1


def test_s26_nobody_is_accepted_while_that_is_behind(loop: Loop) -> None:
    door = Door(loop)
    door.behind = 3
    peers = door.knock(2)
    loop.until(lambda: door.exhausted)
    for left in (2, 1, 0):
        assert loop.turns() == 0  # it does not spin meanwhile
        assert (door.accepted, door.behind) == ([], left)
        loop.advance(0.1)
        loop.turn(PATIENCE)
    assert [name for _, name in door.accepted] == [peer.getsockname() for peer in peers]
    assert door.exhausted == ["behind"]
    assert door.behind < 0


def test_l6_a_peer_that_was_reset_before_it_was_accepted_is_accepted(loop: Loop) -> None:
    door = Door(loop)
    (peer,) = door.knock()
    name = peer.getsockname()
    reset_connection(peer)
    loop.until(lambda: door.accepted)
    assert door.accepted[0][1] == name
    assert not loop.failures


@pytest.mark.parametrize(
    "code",
    ["ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
     "EOPNOTSUPP", "ENETUNREACH", "EPERM", "ETIMEDOUT"],
)  # fmt: skip
def test_l7_an_error_of_one_connection_holds_up_no_other(loop: Loop, code: str) -> None:
    door, server = failing_door(loop)
    server.errors = [getattr(errno, code)] * 3
    door.knock()
    loop.turn(PATIENCE)
    assert len(door.accepted) == 1
    assert door.exhausted == []


def test_l7_errors_without_end_have_the_same_budget(loop: Loop) -> None:
    door, server = failing_door(loop)
    server.errors = [errno.ECONNABORTED] * 1000
    door.knock()
    loop.turn(PATIENCE)
    assert server.calls == 64
    server.errors.clear()


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_l9_exhaustion_is_one_pause_told_once_and_no_spin(loop: Loop, code: str) -> None:
    door, server = failing_door(loop)
    server.errors = [getattr(errno, code)]
    door.knock(3)
    loop.turn(PATIENCE)
    assert door.exhausted == [code]
    assert server.calls == 1
    assert loop.turns(50) == 0
    loop.advance(0.99)
    assert server.calls == 1
    loop.advance(0.01)
    loop.turn(PATIENCE)
    assert len(door.accepted) == 3
    assert door.exhausted == [code]


def test_l9_exhaustion_that_lasts_costs_one_call_a_second(loop: Loop) -> None:
    door, server = failing_door(loop)
    server.errors = [errno.EMFILE] * 1000
    door.knock()
    for _ in range(100):
        loop.advance(0.1)
    assert 9 <= server.calls <= 11
    server.errors.clear()


def test_l8_a_real_lack_of_descriptors_pauses_and_resumes(loop: Loop) -> None:
    door = Door(loop)
    peers = door.knock(10)
    with no_more_descriptors(spare=3):
        loop.turn(PATIENCE)
        assert len(door.accepted) == 3
        assert door.exhausted == ["EMFILE"]
        assert loop.turns(50) == 0
        peers[0].send(b"alive")
        assert door.accepted[0][0].recv(5) == b"alive"  # links that run are not hurt
    loop.advance(1.0)
    loop.until(lambda: len(door.accepted) == 10)
    assert door.exhausted == ["EMFILE"]


def test_l9_close_during_the_pause_stays_closed(loop: Loop) -> None:
    door, server = failing_door(loop)
    server.errors = [errno.EMFILE]
    door.knock()
    loop.turn(PATIENCE)
    door.acceptor.close()
    loop.advance(5.0)
    loop.turns(3)
    assert door.accepted == []
    assert loop.handlers == 0
    assert loop.timers <= 1  # the check of dormant handlers, which ends by itself


def test_s28_an_owner_who_raises_loses_one_connection_not_the_listener(loop: Loop) -> None:
    door = Door(loop)
    take = door.take

    def take_second(sock: socket.socket, peer: Any) -> None:
        take(sock, peer)
        if len(door.accepted) == 1:
            raise RuntimeError("on purpose")

    door.acceptor._accepted = take_second
    door.knock(3)
    loop.until(lambda: len(door.accepted) == 3)
    assert len(loop.failures) == 1
    loop.failures.clear()


def test_l7_an_error_that_nobody_knows_and_that_stays_does_not_spin(loop: Loop) -> None:
    door, server = failing_door(loop)
    server.errors = [errno.EINVAL] * 1000
    door.knock()
    loop.turns(100)
    loop.failures.clear()
    assert server.calls < 50, "a failing accept keeps the loop at 100 % CPU"
    server.errors.clear()


def test_l12_connect_and_close_ten_thousand_times_leaves_nothing(loop: Loop) -> None:
    door = Door(loop)
    count = 0

    def take_and_close(sock: socket.socket, peer: Any) -> None:
        nonlocal count
        count += 1
        sock.close()

    door.acceptor._accepted = take_and_close
    before = len(descriptors())
    for _ in range(100):
        for _ in range(100):
            reset_connection(socket.create_connection(door.server.getsockname()))
        loop.until(lambda: not loop.turns(1))
    assert count == 10_000
    assert len(descriptors()) == before
