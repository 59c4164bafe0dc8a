"""Signals wake the loop, and what they mean happens there, once for a storm."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from relayd.net.reactor import Reactor
from relayd.process.signals import Signals
from tests.net.helpers import Loop, running_loop
from tests.support import PATIENCE

loop = pytest.fixture(running_loop)


@contextmanager
def routed(loop: Reactor, **actions: Callable[[], object]) -> Iterator[Signals]:
    """Route signals, by their names."""
    signals = Signals(loop, {signal.Signals[name]: action for name, action in actions.items()})  # type: ignore[misc]
    signals.install()
    try:
        yield signals
    finally:
        signals.restore()


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_ends_the_wait_and_acts_in_the_loop(loop: Loop) -> None:
    seen: list[str] = []
    with routed(loop, SIGUSR1=lambda: seen.append("usr1"), SIGUSR2=lambda: seen.append("usr2")):
        send(signal.SIGUSR1)
        assert seen == []  # the handler itself does nothing
        loop.turn(PATIENCE)
        assert seen == ["usr1"]
        send(signal.SIGUSR2)
        loop.turn(PATIENCE)
        assert seen == ["usr1", "usr2"]


def test_a_signal_that_comes_during_the_wait_ends_it(loop: Loop) -> None:
    seen: list[int] = []
    main = threading.main_thread().ident
    assert main is not None
    with routed(loop, SIGUSR1=lambda: seen.append(1)):
        thread = threading.Thread(target=signal.pthread_kill, args=(main, signal.SIGUSR1))
        loop.call_later(0, thread.start)
        loop.until(lambda: seen)
        thread.join()


def test_restore_gives_back_what_was_before(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before[1])
    with routed(loop, SIGUSR1=lambda: None):
        assert signal.getsignal(signal.SIGUSR1) != before[0]
    assert (signal.getsignal(signal.SIGUSR1), signal.set_wakeup_fd(-1)) == before
    signal.set_wakeup_fd(before[1])


def test_p19_a_signal_that_was_ignored_is_taken_and_ignored_again_after(loop: Loop) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen: list[int] = []
    try:
        with routed(loop, SIGHUP=lambda: seen.append(1)):
            send(signal.SIGHUP)
            loop.turn(PATIENCE)
        assert seen == [1]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_after_ignore_no_signal_disturbs_the_end(loop: Loop) -> None:
    before, handler = signal.set_wakeup_fd(-1), signal.getsignal(signal.SIGUSR1)
    signal.set_wakeup_fd(before)
    seen: list[int] = []
    signals = Signals(loop, {signal.SIGUSR1: lambda: seen.append(1)})
    signals.install()
    try:
        signals.ignore()
        send(signal.SIGUSR1)  # with SIG_DFL it would end the process
        loop.turns(3)
        assert (seen, signal.getsignal(signal.SIGUSR1)) == ([], signal.SIG_IGN)
        assert signal.set_wakeup_fd(before) == before
    finally:
        signal.signal(signal.SIGUSR1, handler)


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_p7_a_storm_is_few_actions_and_at_least_one_after_its_last(loop: Loop, name: str) -> None:
    count = 0

    def act() -> None:
        nonlocal count
        count += 1

    with routed(loop, **{name: act}):
        for number in range(20_000):
            send(signal.Signals[name])
            if number % 1000 == 999:
                loop.turn(0)
        loop.turns(5)
        assert 1 <= count <= 40
        before = count
        send(signal.Signals[name])
        loop.turn(PATIENCE)
        assert count == before + 1
        assert loop.turns() == 0


def test_p7_p11_a_storm_of_one_signal_does_not_swallow_another(loop: Loop) -> None:
    """SIGTERM after so many SIGHUP that the wake-up pipe is full must still end the program."""
    seen: list[str] = []
    with routed(loop, SIGHUP=lambda: seen.append("hup"), SIGTERM=lambda: seen.append("term")):
        for _ in range(5_000):
            send(signal.SIGHUP)
        send(signal.SIGTERM)
        loop.turns(10)
    assert "hup" in seen
    assert "term" in seen


def test_p7_a_flood_of_posts_does_not_swallow_a_signal(loop: Loop) -> None:
    seen: list[str] = []
    with routed(loop, SIGTERM=lambda: seen.append("term")):
        for _ in range(5_000):
            loop.post(lambda: None)
        send(signal.SIGTERM)
        loop.turns(10)
    assert seen == ["term"]


def test_p11_signals_that_come_together_all_act(loop: Loop) -> None:
    seen: list[str] = []
    names = ("SIGHUP", "SIGTERM", "SIGUSR1", "SIGINT")
    with routed(loop, **{name: lambda name=name: seen.append(name) for name in names}):
        for name in names:
            send(signal.Signals[name])
        loop.turn(PATIENCE)
    assert sorted(seen) == sorted(names)


def test_s28_an_action_that_raises_is_told_and_swallows_no_other(loop: Loop) -> None:
    seen: list[str] = []

    def fail() -> None:
        raise RuntimeError("on purpose")

    with routed(loop, SIGHUP=fail, SIGTERM=lambda: seen.append("term")):
        send(signal.SIGHUP)
        send(signal.SIGTERM)
        loop.turns(3)
        assert [str(error) for error in loop.failures] == ["on purpose"]
        loop.failures.clear()
        assert seen == ["term"]
        send(signal.SIGTERM)
        loop.turns(3)
    assert seen == ["term", "term"]


def test_a_signal_that_nobody_routed_is_no_failure(loop: Loop) -> None:
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    try:
        with routed(loop, SIGUSR1=lambda: None):
            send(signal.SIGUSR2)
            loop.turns(3)
    finally:
        signal.signal(signal.SIGUSR2, before)
