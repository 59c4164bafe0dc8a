"""The watch over a destination that does not keep up."""

from __future__ import annotations

from relayd.policy.overflow import NEVER_SLOW, SlowAfter
from relayd.slowness import SlownessWatch
from tests.fakes import FakeReactor


class Slow:
    """What is watched: `size` waits, `taken` was acknowledged."""

    def __init__(self, stall_timeout: float = 0.0, slow_after: SlowAfter = NEVER_SLOW) -> None:
        self.reactor = FakeReactor()
        self.size, self.taken = 10, 0
        self.told: list[tuple[str, float]] = []
        self.began = self.reactor.now
        self.watch = SlownessWatch(
            self.reactor, self, stall_timeout, slow_after, lambda: self._tell("ended")  # type: ignore[arg-type]
        )  # fmt: skip

    def _tell(self, what: str) -> None:
        self.told.append((what, self.reactor.now - self.began))

    def waiting(self) -> int:
        return self.size

    def acknowledged(self) -> int | None:
        return self.taken

    def has_stalled(self) -> None:
        self._tell("stalled")
        self.watch.cancel()

    def is_slow(self) -> None:
        self._tell("slow")

    def resize(self, size: int) -> None:
        self.size = size
        self.watch.size_changed(size)


def test_s10_nothing_taken_for_the_timeout_is_a_stall() -> None:
    slow = Slow(stall_timeout=60)
    slow.reactor.advance(300)
    assert slow.told == [("stalled", 60.0)]


def test_a_byte_taken_puts_it_off() -> None:
    slow = Slow(stall_timeout=60)
    slow.reactor.advance(50)
    slow.taken = 1
    slow.reactor.advance(300)
    assert slow.told == [("stalled", 120.0)]  # found at the look after


def test_with_nothing_waiting_it_is_over() -> None:
    slow = Slow(stall_timeout=60)
    slow.resize(0)
    slow.reactor.advance(300)
    assert slow.told == [("ended", 15.0)]
    assert slow.reactor.timers == 0


def test_too_much_for_too_long_is_slow_at_most_a_quarter_late() -> None:
    slow = Slow(slow_after=SlowAfter(5, 10.0))
    slow.reactor.advance(11)
    assert slow.told == [("slow", 10.0)]
    slow.reactor.advance(10)
    assert len(slow.told) == 2  # still too much: again


def test_a_dip_starts_the_time_anew() -> None:
    slow = Slow(slow_after=SlowAfter(5, 10.0))
    slow.reactor.advance(9)
    slow.resize(5)
    slow.resize(6)
    slow.reactor.advance(9)
    assert slow.told == []
    slow.reactor.advance(4)
    assert [what for what, _ in slow.told] == ["slow"]


def test_as_much_as_is_allowed_is_not_slow() -> None:
    slow = Slow(slow_after=SlowAfter(10, 10.0))
    slow.reactor.advance(100)
    assert slow.told == []


def test_p16_our_own_late_timer_is_neither() -> None:
    for slow in (Slow(stall_timeout=60), Slow(slow_after=SlowAfter(5, 60.0))):
        slow.reactor.jump(3600)
        assert slow.told == []
        slow.reactor.advance(61)
        assert len(slow.told) == 1


def test_another_link_starts_with_a_clean_sheet() -> None:
    slow = Slow(stall_timeout=60)
    slow.reactor.advance(50)
    slow.watch.restart()
    slow.reactor.advance(50)
    assert slow.told == []
    slow.reactor.advance(25)
    assert [what for what, _ in slow.told] == ["stalled"]


def test_a_watch_that_was_cancelled_leaves_no_timer() -> None:
    slow = Slow(stall_timeout=60)
    slow.watch.cancel()
    assert slow.reactor.timers == 0
