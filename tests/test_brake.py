"""When the source of a spliced stream waits for its destination."""

from __future__ import annotations

from relayd.brake import Brake
from tests.fakes import FakeReactor


class Setting:
    """A brake, and how often it has let go."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.released = 0
        self.brake = Brake(self.reactor, self._release)  # type: ignore[arg-type]

    def _release(self) -> None:
        assert not self.brake.on
        self.released += 1


def test_the_source_waits_a_moment_and_no_longer() -> None:
    setting = Setting()
    assert setting.brake.pipe_left()
    setting.reactor.advance(0.019)
    assert (setting.brake.on, setting.released) == (True, 0)
    setting.reactor.advance(0.002)
    assert (setting.brake.on, setting.released) == (False, 1)
    assert not setting.brake.pipe_left()  # it has waited for this one


def test_each_wait_has_a_moment_of_its_own() -> None:
    setting = Setting()
    for _ in range(100):
        assert setting.brake.pipe_left()
        setting.reactor.advance(0.015)
        setting.brake.emptied()
        assert not setting.brake.on
    assert setting.released == 0
    setting.reactor.advance(1)
    assert (setting.released, setting.reactor.timers) == (0, 0)


def test_after_a_full_buffer_it_waits_for_as_long_as_it_takes() -> None:
    setting = Setting()
    setting.brake.buffer_full()
    setting.reactor.advance(60)
    assert setting.brake.on
    setting.brake.emptied()
    assert setting.brake.pipe_left()
    setting.reactor.advance(60)
    assert (setting.brake.on, setting.released) == (True, 0)


def test_a_source_that_runs_dry_is_no_longer_the_faster_one() -> None:
    setting = Setting()
    setting.brake.buffer_full()
    setting.brake.emptied()
    setting.brake.ran_dry()
    assert setting.brake.pipe_left()
    setting.reactor.advance(1)
    assert (setting.brake.on, setting.released) == (False, 1)


def test_a_lost_link_is_not_waited_for() -> None:
    setting = Setting()
    setting.brake.pipe_left()
    setting.brake.link_lost()
    assert (setting.brake.on, setting.reactor.timers) == (False, 0)
    assert setting.brake.pipe_left()
