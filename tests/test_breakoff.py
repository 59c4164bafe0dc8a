"""A link that ends because of an error elsewhere: all that waits arrives, and then an error, not an end."""

from __future__ import annotations

from relayd.breakoff import BreakOff
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.sink import Sink, SinkSettings
from relayd.wire.framings import LINE
from tests.fakes import FakeReactor, FakeTransport, bound_log, chunk


class Setting:
    """A sink with a link that takes `room` bytes."""

    def __init__(self, room: int | None = None, relief: Relief = Relief.CUT, buffer: int = 1000) -> None:
        self.reactor = FakeReactor()
        settings = SinkSettings(self.reactor, Pipeline(self.reactor), LINE, buffer, relief, kept=False)  # type: ignore[arg-type]
        self.sink = Sink(settings, bound_log(self.reactor)[0])
        self.link = FakeTransport(self.reactor, room)
        self.link.protocol = self  # type: ignore[assignment]
        self.sink.attach(self.link)

    def ready_to_send(self) -> None:
        self.sink.flush()

    def connection_lost(self, reason: str) -> None:
        self.break_off.cancel()
        self.sink.detach()

    def begin(self) -> None:
        self.break_off = BreakOff(self.reactor, self.sink, self.link, "source_lost", patience=2.0)


def test_with_nothing_on_its_way_it_is_reset_at_once() -> None:
    setting = Setting()
    setting.sink.put(chunk(b"one\n"))
    setting.begin()
    assert (setting.link.aborts, setting.link.closes) == (["source_lost"], [])
    setting.reactor.advance(1)
    assert not setting.reactor.timers


def test_what_waits_is_sent_and_acknowledged_before() -> None:
    setting = Setting(room=2)
    setting.sink.put(chunk(b"one\n"))
    setting.link.acknowledged = 0
    setting.begin()
    setting.reactor.advance(1)
    assert not setting.link.aborts
    setting.link.make_room()
    setting.reactor.advance(1)
    assert bytes(setting.link.received) == b"one\n" and not setting.link.aborts
    setting.link.acknowledged = 4
    setting.reactor.advance(0.1)
    assert setting.link.aborts == ["source_lost"] and not setting.reactor.timers


def test_what_the_next_source_sends_meanwhile_is_not_waited_for() -> None:
    setting = Setting()
    setting.sink.put(chunk(b"one\n"))
    setting.link.acknowledged = 0
    setting.begin()
    setting.sink.put(chunk(b"two\n"))
    setting.link.acknowledged = 4
    setting.reactor.advance(0.1)
    assert setting.link.aborts == ["source_lost"]


def test_what_is_dropped_is_not_waited_for_for_ever() -> None:
    setting = Setting(room=0, relief=Relief.DROP_OLDEST, buffer=8)
    for line in (b"one\n", b"two\n", b"six\n"):
        setting.sink.put(chunk(line))
    setting.begin()
    setting.sink.put(chunk(b"ten\n"))  # "two" goes for it, and "one" went before
    setting.link.make_room(8)
    setting.reactor.advance(0.1)
    assert bytes(setting.link.received) == b"six\nten\n" and setting.link.aborts == ["source_lost"]


def test_what_the_next_source_loses_is_no_progress() -> None:
    setting = Setting(room=0, relief=Relief.DROP_NEWEST, buffer=8)
    for line in (b"one\n", b"two\n"):
        setting.sink.put(chunk(line))
    setting.begin()
    for line in (b"six\n", b"ten\n"):
        setting.sink.put(chunk(line))
    setting.link.make_room(4)
    setting.reactor.advance(0.1)
    assert (bytes(setting.link.received), setting.link.aborts) == (b"one\n", [])
    setting.link.make_room(4)
    setting.reactor.advance(0.1)
    assert (bytes(setting.link.received), setting.link.aborts) == (b"one\ntwo\n", ["source_lost"])


def test_what_the_kernel_has_is_waited_for_though_the_sink_has_let_go() -> None:
    setting = Setting()
    setting.link.acknowledged = 0
    setting.sink.put(chunk(b"one\n"))
    setting.sink.hold_back()
    setting.begin()
    setting.reactor.advance(1)
    assert not setting.link.aborts
    setting.link.acknowledged = 4
    setting.reactor.advance(0.1)
    assert setting.link.aborts == ["source_lost"]


def test_a_peer_that_acknowledges_nothing_more_is_not_waited_for_for_ever() -> None:
    """Nothing waits in the queue, so nobody else watches it."""
    setting = Setting()
    setting.link.acknowledged = 0
    setting.sink.put(chunk(b"one\n"))
    setting.begin()
    for acknowledged in (1, 2, 3):
        setting.reactor.advance(1.5)
        setting.link.acknowledged = acknowledged
    setting.reactor.advance(1.5)
    assert not setting.link.aborts
    setting.reactor.advance(1)
    assert setting.link.aborts == ["source_lost"] and not setting.reactor.timers


def test_a_link_that_is_lost_meanwhile_is_let_go() -> None:
    setting = Setting(room=0)
    setting.sink.put(chunk(b"one\n"))
    setting.begin()
    setting.link.lose()
    assert not setting.reactor.timers and not setting.link.aborts
