"""The loop: order, time, closing within a batch, and never spinning."""

from __future__ import annotations

import errno
import random
import select
import socket
import threading
from collections.abc import Callable

import pytest

from relayd.net.reactor import READ, WRITE, Reactor, UnwatchedError
from tests.net.helpers import Loop, descriptors, running_loop, tcp_pair
from tests.support import PATIENCE, reset_connection

loop = pytest.fixture(running_loop)


class Watcher:
    """A handler that notes what the reactor tells it; it closes its socket by the rules."""

    def __init__(self, reactor: Reactor, sock: socket.socket) -> None:
        self.reactor = reactor
        self.sock = sock
        self.number = sock.fileno()
        self.closed = self.feeds = False
        self.seen: list[int] = []
        self.hang_ups = 0
        self.errors: list[Exception] = []
        self.on_ready: Callable[[], object] = lambda: None
        self.on_hang_up: Callable[[], object] = lambda: None

    def fileno(self) -> int:
        return self.sock.fileno()

    def ready(self, events: int) -> None:
        self.seen.append(events)
        self.on_ready()

    def hung_up(self) -> None:
        self.hang_ups += 1
        self.on_hang_up()

    def failed(self, error: Exception) -> None:
        self.errors.append(error)
        self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.reactor.forget(self)
            self.reactor.at_turn_end(self.sock.close)


def watcher(loop: Loop, sock: socket.socket, events: int = READ) -> Watcher:
    """Return a watcher of a socket that the test closes at its end."""
    watching = Watcher(loop, sock)
    loop.stack.callback(watching.close)
    loop.set_interest(watching, events)
    return watching


def watched_pair(loop: Loop, events: int = READ) -> tuple[Watcher, socket.socket]:
    """Return the watcher of one end of a socketpair, and the other end."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    return watcher(loop, ours, events), loop.stack.enter_context(peer)


# -- timers -----------------------------------------------------------------------------------------


def test_timers_run_in_the_order_of_their_times(loop: Loop) -> None:
    ran: list[int] = []
    delays = list(range(200))
    random.Random(7).shuffle(delays)
    for delay in delays:
        loop.call_later(delay / 10, lambda delay=delay: ran.append(delay))
    for _ in range(201):
        loop.advance(0.1)
    assert ran == sorted(delays)


def test_timers_of_one_instant_run_in_the_order_they_were_set(loop: Loop) -> None:
    ran: list[int] = []
    for number in range(50):
        loop.call_later(1.0, lambda number=number: ran.append(number))
    loop.advance(1.0)
    assert ran == list(range(50))


def test_a_timer_never_runs_early_and_runs_once(loop: Loop) -> None:
    ran: list[float] = []
    loop.call_later(1.0, lambda: ran.append(loop.now))
    loop.advance(0.999)
    assert ran == []
    loop.advance(0.001)
    loop.advance(10.0)
    assert len(ran) == 1


def test_a_cancelled_timer_never_runs(loop: Loop) -> None:
    ran: list[str] = []
    timer = loop.call_later(1.0, lambda: ran.append("cancelled"))
    loop.call_later(1.0, lambda: ran.append("kept"))
    timer.cancel()
    timer.cancel()
    loop.advance(2.0)
    assert ran == ["kept"]


def test_cancelling_a_timer_that_ran_is_harmless(loop: Loop) -> None:
    timer = loop.call_later(1.0, lambda: None)
    loop.advance(2.0)
    timer.cancel()
    assert loop.timers == 0


def test_a_timer_may_cancel_another_that_is_due_in_the_same_turn(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(1.0, lambda: second.cancel())
    second = loop.call_later(1.0, lambda: ran.append("second"))
    loop.advance(1.0)
    loop.advance(1.0)
    assert ran == []


def test_a_timer_for_now_set_inside_a_timer_runs_next_turn(loop: Loop) -> None:
    turns: list[int] = []
    turn = 0

    def again() -> None:
        turns.append(turn)
        if len(turns) < 5:
            loop.call_later(0.0, again)

    loop.call_later(0.0, again)
    for turn in range(7):  # noqa: B007 - again() looks at it
        loop.turn(0)
    assert turns == [0, 1, 2, 3, 4]


def test_p16_after_a_long_pause_each_timer_fires_once(loop: Loop) -> None:
    beats: list[float] = []

    def beat() -> None:
        beats.append(loop.now)
        loop.call_later(1.0, beat)

    loop.call_later(1.0, beat)
    loop.advance(3600.0)
    loop.turns(5)
    assert len(beats) == 1


def test_r2_a_million_re_arms_leave_a_small_heap(loop: Loop) -> None:
    timers = [loop.call_later(60.0, lambda: None) for _ in range(1000)]
    largest = 0
    for index in range(1_000_000):
        slot = index % 1000
        timers[slot].cancel()
        timers[slot] = loop.call_later(60.0, lambda: None)
        if not index % 1000:
            largest = max(largest, len(loop._timers))
    assert max(largest, len(loop._timers)) < 4000
    assert loop.timers == 1000


def test_r2_the_sweep_keeps_every_living_timer_and_its_order(loop: Loop) -> None:
    dice = random.Random(3)
    ran: list[float] = []
    living: dict[object, float] = {}
    for _ in range(20_000):
        delay = dice.random() * 100
        timer = loop.call_later(delay, lambda delay=delay: ran.append(delay))
        living[timer] = delay
        if dice.random() < 0.9:
            victim = dice.choice(tuple(living)) if len(living) < 20 else timer
            victim.cancel()
            del living[victim]
    loop.advance(200.0)
    assert ran == sorted(living.values())


def test_r2_the_count_of_dead_timers_survives_cancelling_within_a_batch(loop: Loop) -> None:
    """A timer that is due and cancelled by another of its batch is not in the heap any more: it must not count."""
    for _ in range(20):
        batch = [loop.call_later(0.0, lambda: None) for _ in range(2000)]
        batch[0].callback = lambda batch=batch: [timer.cancel() for timer in batch[1:]]
        loop.turn(0)
    largest = 0
    timer = loop.call_later(60.0, lambda: None)
    for _ in range(50_000):
        timer.cancel()
        timer = loop.call_later(60.0, lambda: None)
        largest = max(largest, len(loop._timers))
    assert largest < 4000


# -- readiness ----------------------------------------------------------------------------------------


def test_who_feeds_others_is_read_after_them(loop: Loop) -> None:
    """Whichever was ready first: an end that came before the data is known before the data is sent."""
    order: list[Watcher] = []
    pairs = [watched_pair(loop) for _ in range(4)]
    for index, (watching, peer) in enumerate(pairs):
        watching.feeds = index % 2 == 0
        watching.on_ready = lambda watching=watching: order.append(watching)  # type: ignore[misc]
        peer.send(b"x")
    loop.turn(0)
    assert [watching.feeds for watching in order] == [False, False, True, True]


def test_readiness_is_delivered_as_asked_for(loop: Loop) -> None:
    watching, peer = watched_pair(loop, READ | WRITE)
    peer.send(b"x")
    loop.turn(0)
    assert watching.seen == [READ | WRITE]
    loop.set_interest(watching, WRITE)
    loop.turn(0)
    loop.set_interest(watching, READ)
    loop.turn(0)
    assert watching.seen == [READ | WRITE, WRITE, READ]


def test_no_interest_means_no_events_and_interest_can_come_back(loop: Loop) -> None:
    watching, peer = watched_pair(loop)
    loop.set_interest(watching, 0)
    loop.set_interest(watching, 0)
    peer.send(b"x")
    assert loop.turns() == 0
    loop.set_interest(watching, READ)
    loop.turn(0)
    assert watching.seen == [READ]
    assert loop.handlers == 1


def close_of_the_other(loop: Loop) -> tuple[Watcher, Watcher, list[socket.socket]]:
    """Return two watchers, both readable; whichever is served first closes the other and opens sockets."""
    opened: list[socket.socket] = []
    pairs = [watched_pair(loop) for _ in range(2)]
    (one, _), (two, _) = pairs

    def kill(victim: Watcher) -> None:
        victim.close()
        opened.extend(loop.stack.enter_context(socket.socket()) for _ in range(4))

    one.on_ready = lambda: kill(two)
    two.on_ready = lambda: kill(one)
    for _, peer in pairs:
        peer.send(b"x")
    return one, two, opened


def test_s27_a_handler_closed_in_a_batch_never_gets_the_stale_event(loop: Loop) -> None:
    one, two, _ = close_of_the_other(loop)
    loop.turn(0)
    assert len(one.seen) + len(two.seen) == 1


def test_s27_a_number_is_not_reused_within_the_turn(loop: Loop) -> None:
    one, two, opened = close_of_the_other(loop)
    loop.turn(0)
    victim = one if one.closed else two
    assert opened
    assert victim.number not in [sock.fileno() for sock in opened]
    with socket.socket() as later:
        assert later.fileno() == victim.number  # the turn is over: now it is


def test_s28_a_handler_that_raises_costs_only_itself_and_is_told_once(loop: Loop) -> None:
    pairs = [watched_pair(loop) for _ in range(3)]
    bad = pairs[1][0]

    def fail() -> None:
        raise RuntimeError("on purpose")

    bad.on_ready = fail
    for _, peer in pairs:
        peer.send(b"x")
    loop.turn(0)
    loop.turn(0)
    assert [str(error) for error in loop.failures] == ["on purpose"]
    assert [len(watching.errors) for watching, _ in pairs] == [0, 1, 0]
    assert [watching.closed for watching, _ in pairs] == [False, True, False]
    assert [len(watching.seen) for watching, _ in pairs] == [2, 1, 2]
    loop.failures.clear()


def test_s28_a_handler_whose_failed_raises_too_does_not_end_the_loop(loop: Loop) -> None:
    bad, peer = watched_pair(loop)
    loop.stack.callback(bad.close)

    def fail(*_: object) -> None:
        bad.close()
        raise RuntimeError("on purpose")

    bad.on_ready = bad.failed = fail  # type: ignore[method-assign]
    peer.send(b"x")
    loop.turn(0)
    assert len(loop.failures) == 2
    loop.failures.clear()
    loop.turn(0)


@pytest.mark.parametrize("kind", ["timer", "post", "turn end"])
def test_s28_a_callback_that_raises_is_told_once_and_the_others_run(loop: Loop, kind: str) -> None:
    schedule = {"timer": lambda call: loop.call_later(0, call), "post": loop.post, "turn end": loop.at_turn_end}[kind]
    ran: list[int] = []

    def fail() -> None:
        raise RuntimeError("on purpose")

    schedule(lambda: ran.append(1))
    schedule(fail)
    schedule(lambda: ran.append(2))
    loop.turn(0)
    loop.turn(0)
    assert ran == [1, 2]
    assert len(loop.failures) == 1
    loop.failures.clear()


def test_s28_without_anybody_appointed_the_traceback_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    reactor = Reactor()
    reactor.call_later(0, lambda: 1 // 0)
    reactor.turn(0)
    reactor.close()
    assert "ZeroDivisionError" in capsys.readouterr().err


# -- never spinning -----------------------------------------------------------------------------------


def test_s3_no_spin_after_fin_without_interest(loop: Loop) -> None:
    ours, peer = tcp_pair(loop)
    watching = watcher(loop, ours)
    watching.on_ready = lambda: loop.set_interest(watching, 0)
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: watching.seen)
    assert loop.turns() == 0
    assert watching.hang_ups == 0  # the peer has only ended its side
    loop.advance(1.0)
    loop.advance(1.0)
    assert watching.hang_ups == 0


def test_s4_no_spin_after_rst_without_interest_and_hung_up_within_a_second(loop: Loop) -> None:
    ours, peer = tcp_pair(loop)
    watching = watcher(loop, ours)
    watching.on_hang_up = watching.close
    loop.set_interest(watching, 0)
    reset_connection(peer)
    assert loop.turns(50) == 0
    assert watching.hang_ups == 0
    loop.advance(1.0)
    assert watching.hang_ups == 1
    assert loop.handlers == 0


def test_s4_a_handler_that_was_never_interested_is_told_too(loop: Loop) -> None:
    ours, peer = tcp_pair(loop)
    watching = watcher(loop, ours, 0)
    reset_connection(peer)
    loop.advance(1.0)
    assert watching.hang_ups == 1
    loop.advance(1.0)
    assert watching.hang_ups == 2  # as long as it stays


def test_s4_one_hang_up_may_close_another_handler(loop: Loop) -> None:
    watchers = []
    for _ in range(2):
        ours, peer = tcp_pair(loop)
        watchers.append(watcher(loop, ours, 0))
        reset_connection(peer)
    one, two = watchers
    one.on_hang_up, two.on_hang_up = two.close, one.close
    loop.advance(1.0)
    assert one.hang_ups + two.hang_ups == 1


def test_s4_interest_regained_ends_the_dormant_check(loop: Loop) -> None:
    watching, _ = watched_pair(loop)
    loop.set_interest(watching, 0)
    assert loop.timers == 1
    loop.set_interest(watching, READ)
    loop.advance(1.0)
    assert loop.timers == 0


def test_s28_a_hang_up_that_raises_costs_only_itself(loop: Loop) -> None:
    watchers = []
    for _ in range(3):
        ours, peer = tcp_pair(loop)
        watchers.append(watcher(loop, ours, 0))
        reset_connection(peer)
    watchers[1].on_hang_up = lambda: 1 // 0
    loop.advance(1.0)
    assert [watching.hang_ups for watching in watchers] == [1, 1, 1]
    assert [len(watching.errors) for watching in watchers] == [0, 1, 0]
    loop.failures.clear()


def test_an_idle_loop_sleeps(loop: Loop) -> None:
    watched_pair(loop)
    assert loop.turns() == 0


# -- lag ----------------------------------------------------------------------------------------------


def busy(loop: Loop, seconds: float) -> None:
    """Let a callback take so long."""
    loop.clock.now += seconds


def test_lag_is_how_long_a_turn_took(loop: Loop) -> None:
    loop.call_later(0.0, lambda: busy(loop, 0.25))
    loop.turn(0)
    assert loop.lag.last == loop.lag.max == pytest.approx(0.25)
    loop.turn(0)
    assert (loop.lag.last, loop.lag.max) == (0.0, pytest.approx(0.25))


def test_lag_is_how_late_the_first_timer_was(loop: Loop) -> None:
    """SIGSTOP, a suspended host, a machine that is overloaded: nothing of ours took long."""
    loop.call_later(1.0, lambda: None)
    loop.call_later(2.0, lambda: None)
    loop.advance(4.0)
    assert loop.lag.last == pytest.approx(3.0)


def test_lag_of_an_idle_loop_is_nought(loop: Loop) -> None:
    loop.call_later(10.0, lambda: None)
    loop.advance(9.0)
    assert (loop.lag.last, loop.lag.max) == (0.0, 0.0)
    loop.advance(1.0)
    assert loop.lag.max == pytest.approx(0.0)


def test_a_cancelled_timer_is_no_lag(loop: Loop) -> None:
    loop.call_later(1.0, lambda: None).cancel()
    loop.call_later(5.0, lambda: None)
    loop.advance(4.0)
    assert loop.lag.max == 0.0


def test_lag_over_the_limit_is_told_with_what_ran(loop: Loop) -> None:
    told: list[tuple[float, str]] = []
    loop.lag.tell(0.1, lambda seconds, ran: told.append((round(seconds, 3), ran)))
    ours, peer = tcp_pair(loop)
    watching = watcher(loop, ours)
    watching.on_ready = lambda: (ours.recv(10), busy(loop, 0.5))
    peer.send(b"x")
    loop.until(lambda: watching.seen)
    loop.call_later(0.0, lambda: busy(loop, 0.2))
    loop.turn(0)
    loop.call_later(0.0, lambda: busy(loop, 0.05))
    loop.turn(0)
    assert told == [(0.5, "1 Watcher"), (0.2, "timers")]


# -- wake-ups and the end of a turn ----------------------------------------------------------------------


def test_a_post_from_another_thread_ends_the_wait(loop: Loop) -> None:
    ran: list[str] = []
    waiting = threading.Event()

    def post() -> None:
        waiting.wait()
        loop.post(lambda: ran.append(threading.current_thread().name))

    thread = threading.Thread(target=post)
    thread.start()
    waiting.set()
    loop.turn(PATIENCE)
    thread.join()
    loop.turn(0)
    assert ran == [threading.main_thread().name]


def test_posts_of_many_threads_all_run_each_thread_in_order(loop: Loop) -> None:
    ran: list[tuple[int, int]] = []

    def post_all(thread: int) -> None:
        for number in range(2000):
            loop.post(lambda pair=(thread, number): ran.append(pair))

    threads = [threading.Thread(target=post_all, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    loop.until(lambda: len(ran) == 8000)
    for thread in threads:
        thread.join()
    assert sorted(ran) == [(thread, number) for thread in range(4) for number in range(2000)]
    for thread in range(4):
        assert [number for owner, number in ran if owner == thread] == list(range(2000))
    loop.turn(0)
    assert loop.turns() == 0


def test_at_turn_end_comes_after_readiness_and_timers(loop: Loop) -> None:
    order: list[str] = []
    watching, peer = watched_pair(loop)

    def ready() -> None:
        loop.at_turn_end(lambda: order.append("end"))
        order.append("ready")
        loop.set_interest(watching, 0)

    watching.on_ready = ready
    loop.call_later(0, lambda: order.append("timer"))
    peer.send(b"x")
    loop.turn(0)
    assert order == ["ready", "timer", "end"]


def test_what_a_turns_end_leaves_for_the_turns_end_is_done_in_the_same_turn(loop: Loop) -> None:
    order: list[int] = []
    loop.at_turn_end(lambda: loop.at_turn_end(lambda: order.append(1)))
    loop.turn(PATIENCE)  # does not wait: something is to be freed
    assert order == [1]


def test_run_ends_after_stop(loop: Loop) -> None:
    loop.post(lambda: loop.call_later(0, loop.stop))
    loop.run()


def test_close_gives_every_descriptor_back() -> None:
    before = descriptors()
    reactor = Reactor()
    reactor.turn(0)
    reactor.close()
    assert descriptors() == before


def test_the_wake_up_descriptor_never_blocks(loop: Loop) -> None:
    poll = select.poll()
    poll.register(loop.wakeup_fd, select.POLLOUT)
    for _ in range(100_000):
        loop.post(lambda: None)
    assert not poll.poll(0)  # full, and nobody was stopped by that
    loop.until(lambda: not loop._posted)
    loop.turn(0)
    assert loop.turns() <= 20
    loop.turns()
    assert loop.turns() == 0


def test_wake_ends_the_wait_and_tells_who_asked_after_the_posts(loop: Loop) -> None:
    seen: list[str] = []
    loop.on_wakeup(lambda: seen.append("woken"))
    loop.post(lambda: seen.append("posted"))
    loop.turn(PATIENCE)
    assert seen == ["posted", "woken"]
    loop.wake()
    loop.turn(PATIENCE)
    assert seen == ["posted", "woken", "woken"]
    assert loop.turns() == 0


def test_s28_a_wake_up_that_raises_is_told_and_the_next_is_heard(loop: Loop) -> None:
    seen: list[int] = []

    def woken() -> None:
        seen.append(1)
        raise RuntimeError("on purpose")

    loop.on_wakeup(woken)
    for count in (1, 2):
        loop.wake()
        loop.turn(PATIENCE)
        assert len(seen) == count
    assert [str(error) for error in loop.failures] == ["on purpose"] * 2
    loop.failures.clear()


def test_waking_a_thousand_times_never_blocks(loop: Loop) -> None:
    for _ in range(100_000):
        loop.wake()
    loop.turns(100)
    assert loop.turns() == 0


def test_guard_reports_what_is_raised_and_goes_on(loop: Loop) -> None:
    seen: list[int] = []
    loop.guard(lambda: seen.append(1))
    loop.guard(lambda: seen[7])
    assert seen == [1]
    assert [type(error) for error in loop.failures] == [IndexError]
    loop.failures.clear()


# -- a kernel without memory --------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["register", "modify"])
def test_k2_who_cannot_be_watched_is_told_at_the_end_of_the_turn(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    watching, _ = watched_pair(loop, READ if call == "modify" else 0)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop.counting, call, refuse)
    loop.set_interest(watching, READ | WRITE)
    assert not watching.errors
    loop.turn(0)
    (error,) = watching.errors
    assert isinstance(error, UnwatchedError) and error.errno == errno.ENOSPC
    assert not loop.handlers and not loop.failures


def test_k2_a_wake_up_that_cannot_be_sent_does_not_raise_into_whatever_runs(loop: Loop) -> None:
    loop._waker._writer.close()
    loop.wake()
