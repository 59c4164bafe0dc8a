"""Many names are looked up at the same time, and there is an end to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relayd.address import TcpAddress
from relayd.net.lookups import Answers, Lookups
from relayd.net.resolver import Resolver
from tests.net.helpers import Loop, resolver_threads, running_loop
from tests.support import wait_until

loop = pytest.fixture(running_loop)

A, B, GONE, SLOW = (TcpAddress(name, 5000) for name in ("a", "b", "gone", "slow"))


class Names:
    """A name service that knows most names at once, and one only after it was released."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.asked: list[str] = []

    def __call__(self, host: str, port: int, *_: object) -> list[tuple[Any, Any, Any, Any, Any]]:
        self.asked.append(host)
        if host == "slow":
            self.released.wait()
        if host == "gone":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"10.0.0.{ord(host[0])}", port))]


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.released.set()
    wait_until(lambda: not resolver_threads(), "the end of the threads")


def start(
    loop: Loop, names: Names, addresses: list[TcpAddress], timeout: float, ended: Callable[[Answers], None]
) -> Lookups:
    return Lookups(loop, Resolver(loop, names), addresses, timeout, ended)


def test_all_answers_come_together_errors_among_them(loop: Loop, names: Names) -> None:
    ends: list[Answers] = []
    start(loop, names, [A, GONE, B], 60, ends.append)
    assert ends == []
    loop.until(lambda: ends)
    (answers,) = ends
    assert set(answers) == {A, GONE, B}
    assert answers[A] == [(socket.AF_INET, ("10.0.0.97", 5000))]
    assert answers[B] == [(socket.AF_INET, ("10.0.0.98", 5000))]
    assert str(answers[GONE]) == "[Errno -2] Name or service not known"
    assert loop.timers == 0


def test_what_has_not_come_in_time_is_an_error_of_its_own(loop: Loop, names: Names) -> None:
    ends: list[Answers] = []
    start(loop, names, [A, SLOW], 8, ends.append)
    wait_until(lambda: resolver_threads() == 1, "the answer for one")
    loop.turns()
    loop.advance(7.9)
    assert ends == []
    loop.advance(0.2)
    (answers,) = ends
    assert answers[A] == [(socket.AF_INET, ("10.0.0.97", 5000))]
    slow = answers[SLOW]
    assert isinstance(slow, OSError) and slow.strerror == "look-up of slow timed out after 8 s"
    names.released.set()  # and the answer that comes after all is nobody's
    wait_until(lambda: not resolver_threads())
    loop.turn(0)
    assert len(ends) == 1


def test_nothing_comes_after_it_is_cancelled(loop: Loop, names: Names) -> None:
    ends: list[Answers] = []
    lookups = start(loop, names, [A, SLOW], 60, ends.append)
    lookups.cancel()
    assert loop.timers == 0
    names.released.set()
    wait_until(lambda: not resolver_threads())
    loop.turn(0)
    assert ends == []
    lookups.cancel()  # harmless


def test_who_asks_again_waits_for_the_look_up_that_is_under_way(loop: Loop, names: Names) -> None:
    resolver, ends = Resolver(loop, names), list[Answers]()
    Lookups(loop, resolver, [SLOW], 60, ends.append).cancel()
    Lookups(loop, resolver, [SLOW], 60, ends.append)
    names.released.set()
    loop.until(lambda: ends)
    assert names.asked == ["slow"]
