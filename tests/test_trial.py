"""A destination that half-closed: it gets what it still takes, and nothing is lost if it takes nothing."""

from __future__ import annotations

from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.sink import Sink, SinkSettings
from relayd.trial import HalfCloseTrial
from relayd.wire.framings import LINE
from tests.fakes import FakeReactor, FakeTransport, bound_log, chunk


class Flusher:
    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def ready_to_send(self) -> None:
        self._sink.flush()

    def connection_lost(self, reason: str) -> None:
        self._sink.detach()


class Setting:
    """A kept sink whose link has just half-closed."""

    def __init__(
        self, room: int | None = None, before: bytes = b"", buffer: int = 1000, relief: Relief = Relief.CUT,
        max_age: float = 0.0,
    ) -> None:  # fmt: skip
        self.reactor = FakeReactor()
        settings = SinkSettings(
            self.reactor, Pipeline(self.reactor), LINE, buffer, relief, kept=True, max_age=max_age  # type: ignore[arg-type]
        )  # fmt: skip
        self.sink = Sink(settings, bound_log(FakeReactor())[0])
        self.transport = self.new_link(room)
        if before:
            self.sink.put(chunk(before))
        self.gone = 0

    def new_link(self, room: int | None = None) -> FakeTransport:
        transport = FakeTransport(self.reactor, room)
        transport.protocol = Flusher(self.sink)  # type: ignore[assignment]
        self.sink.attach(transport)
        return transport

    def half_close(self) -> HalfCloseTrial:
        self.transport.acknowledged = len(self.transport.received)
        return HalfCloseTrial(self.reactor, self.sink, self.transport, 2.0, self._gone)  # type: ignore[arg-type]

    def acknowledge(self) -> None:
        self.transport.acknowledged = len(self.transport.received)

    def _gone(self) -> None:
        self.gone += 1


def test_with_nothing_to_try_with_it_is_given_up_after_its_patience() -> None:
    setting = Setting()
    setting.half_close()
    setting.reactor.advance(1.9)
    assert setting.gone == 0
    setting.reactor.advance(0.2)
    assert setting.gone == 1
    setting.reactor.advance(10)
    assert (setting.gone, setting.reactor.timers) == (1, 0)


def test_a_peer_that_acknowledges_gets_the_stream_again() -> None:
    setting = Setting()
    setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.1)
    assert bytes(setting.transport.received) == b"one\n"
    setting.sink.put(chunk(b"two\n"))
    setting.reactor.advance(0.1)
    assert bytes(setting.transport.received) == b"one\n"  # nothing more before the answer
    setting.acknowledge()
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    setting.sink.put(chunk(b"three\n"))
    assert bytes(setting.transport.received) == b"one\ntwo\nthree\n"
    setting.reactor.advance(100)
    assert setting.gone == 0
    assert setting.sink.sent == 14


def test_what_was_only_tried_goes_to_the_next_link_whole() -> None:
    setting = Setting()
    trial = setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.1)
    trial.cancel()
    setting.transport.lose()
    fresh = setting.new_link()
    fresh.make_room()
    assert bytes(fresh.received) == b"one\n"
    assert (setting.sink.sent, setting.reactor.timers) == (4, 0)


def test_patience_ends_when_something_is_tried() -> None:
    setting = Setting()
    setting.half_close()
    setting.reactor.advance(1.9)
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(10)
    assert setting.gone == 0


def test_a_short_try_goes_on_where_it_ended() -> None:
    setting = Setting(room=2)
    setting.half_close()
    setting.sink.put(chunk(b"line\n"))
    setting.reactor.advance(0.1)
    setting.acknowledge()
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    assert bytes(setting.transport.received) == b"line\n"


def test_s6_a_record_partly_sent_before_the_fin_is_not_begun_again_on_the_same_link() -> None:
    setting = Setting(room=3, before=b"abcdef\n")
    setting.half_close()
    setting.transport.room = None
    setting.reactor.advance(0.1)
    setting.acknowledge()
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    assert bytes(setting.transport.received) == b"abcdef\n"


def test_what_was_passed_untried_is_not_tried_again() -> None:
    """The record that was half sent before is whole by now: that nothing is half sent any more is no fault."""
    setting = Setting(room=3, before=b"abcdef\n")
    trial = setting.half_close()
    trial.finish("source_lost")
    setting.transport.make_room(4)
    setting.sink.put(chunk(b"second\n"))
    trial.finish("stopped")
    assert setting.transport.aborts == []
    assert bytes(setting.transport.received).startswith(b"abcdef\n")


def test_an_overflow_during_the_trial_costs_whole_records_only() -> None:
    setting = Setting(buffer=10)
    setting.half_close()
    setting.sink.put(chunk(b"first\n"))
    setting.reactor.advance(0.1)  # "first" is on trial
    setting.sink.put(chunk(b"second\n"))  # does not fit beside it
    setting.acknowledge()
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    if setting.transport.open:
        assert bytes(setting.transport.received) == b"first\nsecond\n"
    else:
        fresh = setting.new_link()
        fresh.make_room()
        assert bytes(fresh.received) == b"second\n"


def test_nothing_is_done_to_a_link_that_is_closed_already() -> None:
    setting = Setting()
    setting.half_close()
    setting.transport.close("stopped")
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(10)
    assert (setting.gone, bytes(setting.transport.received)) == (0, b"")


# -- the end, and an overflow, while it is on trial -----------------------------------------------


def test_finish_with_nothing_on_trial_sends_what_waits_and_closes() -> None:
    setting = Setting()
    trial = setting.half_close()
    setting.sink.put(chunk(b"one\n"))  # in the queue; the next look is due
    trial.finish("stopped")
    setting.transport.make_room()
    assert (bytes(setting.transport.received), setting.transport.closes) == (b"one\n", ["stopped"])
    assert (setting.reactor.timers, setting.gone) == (0, 0)


def test_finish_with_nothing_at_all_closes_at_once() -> None:
    setting = Setting()
    setting.half_close().finish("stopped")
    assert (setting.transport.closes, setting.reactor.timers) == (["stopped"], 0)


def test_finish_waits_for_the_answer_to_what_is_on_trial() -> None:
    setting = Setting()
    trial = setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.1)
    setting.sink.put(chunk(b"two\n"))
    trial.finish("stopped")
    setting.reactor.advance(10)
    assert (bytes(setting.transport.received), setting.transport.closes) == (b"one\n", [])
    setting.acknowledge()
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    assert (bytes(setting.transport.received), setting.transport.closes) == (b"one\ntwo\n", ["stopped"])
    assert setting.sink.sent == 8


def test_a_peer_that_resets_after_finish_leaves_what_was_tried_in_the_queue() -> None:
    setting = Setting()
    trial = setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.1)
    trial.finish("stopped")
    trial.cancel()
    setting.transport.lose("reset")
    assert (setting.sink.queue.size, setting.sink.sent, setting.reactor.timers) == (4, 0, 0)


def test_finish_after_the_trial_was_passed_closes_once() -> None:
    setting = Setting()
    trial = setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.1)
    setting.acknowledge()
    setting.reactor.advance(0.1)
    trial.finish("stopped")
    setting.sink.finish("stopped")
    setting.transport.make_room()
    assert (bytes(setting.transport.received), setting.transport.closes) == (b"one\n", ["stopped"])


def test_an_overflow_during_the_trial_cuts_the_link() -> None:
    setting = Setting(buffer=10)
    setting.half_close()
    setting.sink.put(chunk(b"first\n"))
    setting.reactor.advance(0.1)
    setting.sink.put(chunk(b"second\n"))
    setting.acknowledge()
    setting.reactor.advance(0.1)
    assert setting.transport.aborts == ["slow"]
    assert setting.reactor.timers == 0
    fresh = setting.new_link()
    fresh.make_room()
    assert bytes(fresh.received) == b"second\n"


def test_an_overflow_before_finish_never_glues_a_record_to_a_cut_one() -> None:
    """Three bytes of a record are with the peer, the rest was dropped: nothing may follow them on this link."""
    setting = Setting(room=3, before=b"abcdef\n", buffer=10)
    trial = setting.half_close()
    setting.sink.put(chunk(b"second\n"))  # does not fit: "def" is dropped
    setting.transport.room = None
    trial.finish("stopped")
    setting.reactor.advance(0.1)
    setting.transport.make_room()
    assert bytes(setting.transport.received) == b"abc"
    assert not setting.transport.open


def test_a_source_that_was_held_for_what_is_too_old_by_now_flows_again() -> None:
    setting = Setting(room=0, buffer=16, relief=Relief.HOLD, max_age=3.0)
    pipeline = setting.sink._settings.pipeline
    pipeline.sinks[setting.sink] = None
    for number in range(3):
        pipeline.put(b"record %d\n" % number, 1, "")
    assert pipeline.held
    setting.reactor.advance(5)
    setting.half_close()
    assert setting.sink.queue.size == 0
    assert not pipeline.held


def test_a_peer_that_has_reset_is_found_at_the_next_look() -> None:
    """Nothing is asked of a half-closed link, so nobody tells of its end."""
    setting = Setting()
    setting.half_close()
    setting.sink.put(chunk(b"one\n"))
    setting.reactor.advance(0.06)
    setting.transport.dead = "reset"
    setting.reactor.advance(0.06)
    assert setting.transport.protocol is None
    assert (setting.sink.queue.size, setting.gone, setting.reactor.timers) == (4, 0, 0)
