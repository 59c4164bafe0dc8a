"""Names are looked up in threads, and nothing that hangs there stands in anybody's way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from relayd.net.resolver import Answer, Resolver, literal
from tests.net.helpers import Loop, resolver_threads, running_loop
from tests.support import PATIENCE

loop = pytest.fixture(running_loop)

Found = list[tuple[Any, Any, Any, Any, Any]]


def found(*hosts: str, port: int = 80) -> Found:
    """Return what getaddrinfo would answer."""
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]


class Names:
    """A look-up in which names hang until they are released."""

    def __init__(self, loop: Loop) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, Found | Exception] = {}
        self._released = threading.Event()
        self._loop = loop

    def __call__(self, host: str, port: int, family: int, kind: int) -> Found:
        assert threading.get_ident() != threading.main_thread().ident, "a look-up blocks the loop"
        assert kind == socket.SOCK_STREAM
        self.asked.append(host)
        if host.startswith("dead"):
            assert self._released.wait(PATIENCE)
        answer = self.answers.get(host, found("192.0.2.1", port=port))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def release(self) -> None:
        """Let every name that hangs be answered, and see all threads end."""
        self._released.set()
        self._loop.until(lambda: not resolver_threads(), "the end of all look-ups")
        self._loop.turns(3)


@pytest.fixture
def names(loop: Loop) -> Iterator[Names]:
    names = Names(loop)
    yield names
    names.release()


def ask(resolver: Resolver, host: str, port: int = 80) -> list[Answer]:
    """Return the list that the answer will be put into."""
    answers: list[Answer] = []
    resolver.resolve(host, port, answers.append)
    return answers


def test_an_answer_comes_in_the_loop_and_never_at_once(loop: Loop, names: Names) -> None:
    names.answers["feed.example"] = found("192.0.2.1", "192.0.2.2", port=5000)
    seen: list[tuple[Answer, threading.Thread]] = []
    Resolver(loop, names).resolve(
        "feed.example", 5000, lambda answer: seen.append((answer, threading.current_thread()))
    )
    assert not seen
    loop.until(lambda: seen)
    answer, thread = seen[0]
    assert answer == [(socket.AF_INET, ("192.0.2.1", 5000)), (socket.AF_INET, ("192.0.2.2", 5000))]
    assert thread is threading.main_thread()


def test_d1_a_name_that_hangs_holds_up_no_other(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    dead = ask(resolver, "dead.example")
    for number in range(50):
        living = ask(resolver, f"living{number}.example")
        loop.until(lambda answers=living: answers)
    assert dead == []
    names.release()
    assert len(dead) == 1


def test_d1_the_loop_sleeps_while_a_name_hangs(loop: Loop, names: Names) -> None:
    ask(Resolver(loop, names), "dead.example")
    loop.turns(2)
    assert loop.turns() == 0


def test_d1_those_who_want_the_same_name_share_one_look_up(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    waiting = [ask(resolver, "dead.example") for _ in range(100)]
    other_port = ask(resolver, "dead.example", 81)
    assert resolver_threads() == 2
    names.release()
    assert names.asked == ["dead.example"] * 2
    assert all(len(answers) == 1 for answers in [*waiting, other_port])


def test_d3_a_name_is_looked_up_anew_each_time(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    for host in ("192.0.2.1", "192.0.2.2"):
        names.answers["feed.example"] = found(host)
        answers = ask(resolver, "feed.example")
        loop.until(lambda answers=answers: answers)
        assert answers == [[(socket.AF_INET, (host, 80))]]


def test_n12_a_cancelled_resolution_is_never_answered_the_others_are(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    unwanted: list[Answer] = []
    resolution = resolver.resolve("dead.example", 80, unwanted.append)
    wanted = ask(resolver, "dead.example")
    resolution.cancel()
    resolution.cancel()
    names.release()
    assert unwanted == []
    assert len(wanted) == 1


def test_n12_one_that_is_cancelled_by_another_of_the_same_name_is_not_answered(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    seen: list[str] = []
    resolver.resolve("dead.example", 80, lambda answer: second.cancel())
    second = resolver.resolve("dead.example", 80, lambda answer: seen.append("second"))
    names.release()
    assert seen == []


def test_d1_more_than_32_names_queue_and_all_are_answered(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    waiting = [ask(resolver, f"dead{number}.example") for number in range(100)]
    loop.turns(3)
    assert resolver_threads() == 32
    names.release()
    loop.until(lambda: all(waiting))
    assert len(names.asked) == 100
    assert sorted(names.asked) == sorted(f"dead{number}.example" for number in range(100))


def test_d1_a_second_wait_for_a_queued_name_shares_its_place(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    waiting = [ask(resolver, f"dead{number % 50}.example") for number in range(100)]
    names.release()
    loop.until(lambda: all(waiting))
    assert len(names.asked) == 50


def test_d1_threads_end_with_their_look_ups(loop: Loop, names: Names) -> None:
    before = resolver_threads()
    resolver = Resolver(loop, names)
    answers = [ask(resolver, f"{number}.example") for number in range(200)]
    loop.until(lambda: all(answers))
    loop.until(lambda: resolver_threads() == before)


@pytest.mark.parametrize(
    "error",
    [
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        UnicodeError("label empty or too long"),
        UnicodeEncodeError("idna", "a..b", 1, 2, "label empty"),
        OSError(24, "Too many open files"),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_d2_d6_an_error_is_an_answer(loop: Loop, names: Names, error: Exception) -> None:
    names.answers["bad.example"] = error
    answers = ask(Resolver(loop, names), "bad.example")
    loop.until(lambda: answers)
    assert answers == [error]


def test_d6_the_real_look_up_survives_a_name_the_codec_cannot_write(loop: Loop) -> None:
    answers = ask(Resolver(loop), "a..b")
    loop.until(lambda: answers)
    assert isinstance(answers[0], UnicodeError)
    loop.until(lambda: not resolver_threads())


def test_d5_of_a_thousand_addresses_eight_are_handed_on(loop: Loop, names: Names) -> None:
    names.answers["many.example"] = found(*(f"10.0.{n // 250}.{n % 250}" for n in range(1000)))
    answers = ask(Resolver(loop, names), "many.example")
    loop.until(lambda: answers)
    assert [name[0] for _, name in answers[0]] == [f"10.0.0.{n}" for n in range(8)]  # type: ignore[union-attr]


def test_s28_one_who_raises_takes_the_answer_from_nobody(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    resolver.resolve("dead.example", 80, lambda answer: 1 // 0)
    other = ask(resolver, "dead.example")
    names.release()
    assert len(loop.failures) == 1
    loop.failures.clear()
    assert len(other) == 1


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_p26_no_thread_to_be_had_is_an_answer_and_the_name_can_be_looked_up_later(
    loop: Loop, names: Names, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """At the limit of threads (ulimit -u, a cgroup's pids.max) RuntimeError is raised."""
    resolver = Resolver(loop, names)

    def refuse(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("relayd.net.resolver._thread.start_new_thread", refuse)
        answers = ask(resolver, "feed.example")
        loop.turns(3)
    assert isinstance(answers[0], Exception)
    later = ask(resolver, "feed.example")
    loop.until(lambda: later)
    assert isinstance(later[0], list)


def test_k10_a_thread_that_ended_without_a_word_is_replaced(
    loop: Loop, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was short of memory when it began, and nobody can be told of that."""
    resolver = Resolver(loop, names)
    with monkeypatch.context() as patch:
        patch.setattr("relayd.net.resolver._thread.start_new_thread", lambda *_: 0)
        lost = ask(resolver, "feed.example")
        loop.advance(0.4)
        lost_too = ask(resolver, "feed.example")
    assert not names.asked
    loop.advance(0.2)
    later = ask(resolver, "feed.example")
    loop.until(lambda: lost and lost_too and later)
    assert isinstance(later[0], list) and len(names.asked) == 1
    assert resolver._threads == 0 and not resolver._running


def test_k10_a_look_up_that_lasts_is_not_begun_twice(loop: Loop, names: Names) -> None:
    resolver = Resolver(loop, names)
    first = ask(resolver, "dead.example")
    loop.until(lambda: resolver._running)
    loop.advance(50)
    second = ask(resolver, "dead.example")
    names.release()
    loop.until(lambda: first and second)
    assert len(names.asked) == 1


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6), ("fe80::1%lo", socket.AF_INET6)]
)
def test_d1_a_literal_needs_no_look_up(host: str, family: int) -> None:
    answer = literal(host, 80)
    assert [entry[0] for entry in answer] == [family]
    assert answer[0][1][:2] == (host.partition("%")[0] if "%" not in host else answer[0][1][0], 80)


def test_n16_a_scope_reaches_the_socket_address_and_an_unknown_one_is_an_error() -> None:
    assert literal("fe80::1%lo", 80)[0][1][3] == socket.if_nametoindex("lo")
    with pytest.raises(OSError, match="not known"):
        literal("fe80::1%nosuch", 80)


def test_a_name_is_no_literal() -> None:
    lookup: Callable[[str, int], object] = literal
    with pytest.raises(OSError):
        lookup("localhost", 80)
