"""The destination ends: clients with a sink each, and the one sink that outlives its links."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from relayd.observe.counters import Counters
from relayd.outlet import ClientsOutlet, KeptOutlet
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.policy.returns import RETURNS
from relayd.returnpath import ReturnPath
from relayd.sink import SinkSettings
from relayd.wire.framings import LINE
from tests.fakes import FakeEndpoint, FakeReactor, FakeTransport, bound_log, chunk


class Setting:
    """An outlet of either kind; `returned` is what came back."""

    def __init__(
        self, kept: bool, rule: str = "all", relief: Relief = Relief.CUT, buffer: int = 100,
        former: Setting | None = None,
    ) -> None:  # fmt: skip
        """`former`: the setting of the configuration before, whose counters go on."""
        self.kept = kept
        self.reactor = former.reactor if former else FakeReactor()
        self.pipeline, self.backward = Pipeline(self.reactor), Pipeline(self.reactor)  # type: ignore[arg-type]
        self.counters = former.counters if former else Counters()
        self.returned: list[tuple[bytes, str]] = []
        self.backward.taps += (lambda chunk, peer: self.returned.append((chunk, peer)),)
        back = ReturnPath(RETURNS[rule], self.backward, lambda: LINE.framer(100), self.counters)
        sinks = SinkSettings(self.reactor, self.pipeline, LINE, buffer, relief, kept)  # type: ignore[arg-type]
        log, self.lines = bound_log(self.reactor)
        self.endpoint, self.changes = FakeEndpoint(), 0
        parts: tuple[Any, ...] = (sinks, back, self.counters, log, self._changed)
        self.outlet = KeptOutlet(*parts, "b.example:1", 2.0) if kept else ClientsOutlet(*parts, 2.0)

    def _changed(self) -> None:
        self.changes += 1

    def link(self, number: int = 1, room: int | None = None) -> FakeTransport:
        transport = FakeTransport(self.reactor, room, peer=("192.0.2.1", number))
        transport.start(self.outlet.link_made(transport, self.endpoint))
        return transport

    def put(self, data: bytes) -> None:
        self.pipeline.put(data, chunk(data).records, "source")

    def adopted(self, **settings: Any) -> Setting:
        """Return the setting of the next configuration, which has taken over."""
        after = Setting(self.kept, former=self, **settings)
        after.outlet.adopt(self.outlet, after.endpoint)
        return after

    def totals(self, *others: Setting) -> dict[str, int]:
        return self.counters.snapshot([sink for setting in (self, *others) for sink in setting.outlet.sinks])

    def end_of_input(self, link: FakeTransport) -> None:
        assert link.protocol is not None
        link.acknowledged = len(link.received)
        link.protocol.eof_received()


# -- clients ------------------------------------------------------------------------------------


def test_every_client_gets_the_stream_from_when_it_came() -> None:
    setting = Setting(kept=False)
    setting.put(b"before\n")
    one = setting.link(1)
    setting.put(b"one\n")
    two = setting.link(2)
    setting.put(b"two\n")
    assert (bytes(one.received), bytes(two.received)) == (b"one\ntwo\n", b"two\n")
    assert setting.counters.destination_links == 2


def test_s16_a_late_client_never_sees_another_s_backlog() -> None:
    setting = Setting(kept=False)
    setting.link(1, room=0)
    setting.put(b"old\n")
    late = setting.link(2)
    setting.put(b"new\n")
    assert bytes(late.received) == b"new\n"


def test_a_client_that_leaves_is_counted_and_logged() -> None:
    setting = Setting(kept=False)
    link = setting.link(room=4)
    setting.put(b"one\ntwo\n")
    setting.reactor.advance(1.25)
    link.lose("reset")
    assert setting.lines.having(
        " info ", "event=closed", "client=192.0.2.1:1", "reason=reset", "sent=4", "dropped=4", "up=1.2"
    )
    assert (setting.counters.bytes_out, setting.counters.dropped, setting.pipeline.sinks) == (4, 4, {})
    assert (setting.endpoint.lost, setting.outlet.links, setting.changes) == (["reset"], {}, 2)
    setting.put(b"nobody\n")


def test_what_the_log_says_of_a_client_adds_up_to_what_was_put() -> None:
    setting = Setting(kept=False)
    link = setting.link(room=2)
    setting.put(b"line\n")
    link.lose("reset")
    assert setting.lines.having("event=closed", "sent=2", "dropped=3")


def test_s13_a_slow_client_is_cut_with_its_reason() -> None:
    setting = Setting(kept=False, buffer=10)
    slow, good = setting.link(1, room=0), setting.link(2)
    for _ in range(5):
        setting.put(b"12345\n")
    setting.reactor.end_turn()
    assert setting.lines.having(" info ", "event=closed", "client=192.0.2.1:1", "reason=slow")
    assert setting.lines.having(" warning ", "event=cut", "client=192.0.2.1:1", "reason=slow")
    assert not slow.open
    assert bytes(good.received) == b"12345\n" * 5


def test_a_client_s_fin_is_a_half_close() -> None:
    setting = Setting(kept=False, rule="first")
    one, two = setting.link(1), setting.link(2)
    one.deliver(b"one\ncut")
    setting.end_of_input(one)
    setting.put(b"still here\n")
    two.deliver(b"my turn\n")
    assert bytes(one.received) == b"still here\n"
    assert setting.returned == [(b"one\n", "192.0.2.1:1"), (b"my turn\n", "192.0.2.1:2")]
    assert (one.closes, setting.reactor.timers) == ([], 0)


def test_finish_sends_what_waits_and_abort_does_not() -> None:
    setting = Setting(kept=False)
    slow, good = setting.link(1, room=1), setting.link(2)
    setting.put(b"line\n")
    setting.outlet.finish("stopped")
    assert (slow.closes, good.closes) == ([], ["stopped"])
    slow.make_room()
    assert slow.closes == ["stopped"]
    setting.outlet.abort()
    assert slow.aborts == ["stopped"]


def test_clients_wait_while_the_source_takes_nothing_back() -> None:
    setting = Setting(kept=False)
    link = setting.link()
    setting.backward.hold("source")
    late = setting.link(2)
    assert link.paused and late.paused
    setting.backward.release("source")
    assert not link.paused and not late.paused


# -- one address that is connected to -------------------------------------------------------------


def test_a_kept_destination_gets_what_came_while_it_was_down() -> None:
    setting = Setting(kept=True)
    setting.put(b"one\n")
    one = setting.link(room=0)
    setting.put(b"two two\n")
    one.make_room(8)
    one.lose()
    setting.put(b"three\n")
    two = setting.link()
    two.make_room()
    assert bytes(one.received) == b"one\ntwo "
    assert bytes(two.received) == b"two two\nthree\n"


def test_a_kept_destination_that_is_down_says_what_it_drops() -> None:
    setting = Setting(kept=True, buffer=10)
    for _ in range(3):
        setting.put(b"12345\n")
    assert setting.lines.having("event=overflow", "destination=b.example:1", "dropped=6")


def test_stopping_while_down_says_what_was_not_delivered() -> None:
    setting = Setting(kept=True)
    setting.put(b"12345\n")
    setting.outlet.stop()
    assert setting.lines.having("event=undelivered", "destination=b.example:1", "dropped=6")


def test_a_half_closed_destination_with_nothing_to_send_is_given_up() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.end_of_input(link)
    setting.reactor.advance(3)
    assert link.closes == ["eof"]
    assert setting.endpoint.lost == ["eof"]
    assert setting.reactor.timers == 0


def test_a_half_closed_destination_that_is_gone_costs_nothing() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.end_of_input(link)
    setting.put(b"one\n")
    setting.reactor.advance(0.1)
    link.lose("reset")  # the answer to what was tried
    fresh = setting.link()
    fresh.make_room()
    assert bytes(fresh.received) == b"one\n"
    assert setting.reactor.timers == 0


def test_a_half_closed_destination_that_is_there_gets_everything_once() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.end_of_input(link)
    for number in range(10):
        setting.put(b"line %d\n" % number)
        setting.reactor.advance(0.03)
        link.acknowledged = len(link.received)
    setting.reactor.advance(0.2)
    link.make_room()
    assert bytes(link.received) == b"".join(b"line %d\n" % number for number in range(10))


def test_s6_stopping_during_the_trial_sends_nothing_twice() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.end_of_input(link)
    setting.put(b"one\n")
    setting.put(b"two\n")
    setting.reactor.advance(0.01)
    setting.reactor.advance(0.06)  # "one" is on trial, not yet acknowledged
    assert bytes(link.received) == b"one\n"
    setting.outlet.stop()
    setting.reactor.advance(0.2)
    link.make_room()
    assert (bytes(link.received), link.closes) == (b"one\n", [])  # nothing more before the answer
    link.acknowledged = len(link.received)
    setting.reactor.advance(0.06)
    link.make_room()
    assert bytes(link.received) == b"one\ntwo\n"
    assert link.closes == ["stopped"]


def test_a_trial_ends_with_its_link() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.end_of_input(link)
    link.lose()
    assert setting.reactor.timers == 0
    fresh = setting.link()
    setting.put(b"one\n")
    assert bytes(fresh.received) == b"one\n"


def test_finish_of_a_kept_destination_waits_for_what_is_queued() -> None:
    setting = Setting(kept=True)
    link = setting.link(room=0)
    setting.put(b"one\n")
    setting.outlet.finish("source_lost")
    assert link.closes == []
    link.make_room()
    assert link.closes == ["source_lost"]
    setting.reactor.end_turn()
    fresh = setting.link(room=1)
    setting.put(b"two\n")
    fresh.make_room()
    assert fresh.closes == []


def test_the_wish_to_close_outlasts_a_half_close() -> None:
    """The peer ends its side while what waits for it is being sent: it is closed all the same, and not forgotten."""
    setting = Setting(kept=True)
    link = setting.link(room=0)
    setting.put(b"one\n")
    setting.outlet.stop()
    assert link.closes == []
    setting.end_of_input(link)
    link.make_room()
    setting.reactor.advance(0.1)
    link.acknowledged = len(link.received)
    setting.reactor.advance(0.1)
    link.make_room()
    assert bytes(link.received) == b"one\n"
    assert link.closes == ["stopped"]


def test_kick_resets_the_links_of_a_peer_and_no_other() -> None:
    setting = Setting(kept=False)
    one, two = setting.link(1), setting.link(2)
    assert setting.outlet.kick("192.0.2.1:1") == 1
    assert (one.aborts, two.aborts) == (["kicked"], [])
    assert setting.outlet.kick("192.0.2.1:9") == 0


@pytest.mark.parametrize("kept", [False, True])
def test_totals_hold_what_is_up_and_what_has_left_and_never_go_backwards(kept: bool) -> None:
    setting = Setting(kept)
    link = setting.link(room=6)
    seen = [setting.totals()]
    steps: list[Callable[[], object]] = [
        lambda: setting.put(b"one\ntwo\n"),
        link.lose,
        lambda: setting.link(room=1),
        setting.outlet.stop,
    ]
    for step in steps:
        step()
        setting.reactor.end_turn()
        seen.append(setting.totals())
    for before, after in itertools.pairwise(seen):
        assert all(after[name] >= before[name] for name in after), (before, after)
    assert setting.totals()["bytes_out"] >= 6


# -- a reload -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [False, True])
def test_an_adopted_link_brings_its_queue_and_its_counts(kept: bool) -> None:
    before = Setting(kept)
    link = before.link(room=2)
    before.put(b"one\n")
    totals = before.totals()
    after = before.adopted()
    assert after.totals(before) == totals
    after.put(b"two\n")
    before.put(b"nobody's\n")
    link.make_room()
    assert bytes(link.received) == b"one\ntwo\n"
    assert after.endpoint.adopted == [(link, before.endpoint)]
    assert (link.closes, link.aborts) == ([], [])
    assert (before.outlet.links, len(after.outlet.links)) == ({}, 1)
    link.lose("reset")
    assert (before.endpoint.lost, after.endpoint.lost) == ([], ["reset"])
    assert (before.changes, after.changes) == (1, 1)
    assert after.lines.having("event=closed", "reason=reset", "sent=8", "dropped=0")
    assert after.totals()["bytes_out"] == 8


@pytest.mark.parametrize("kept", [False, True])
def test_the_end_of_the_former_says_and_drops_nothing_that_was_adopted(kept: bool) -> None:
    before = Setting(kept)
    link = before.link(room=0)
    before.put(b"one\n")
    after = before.adopted()
    before.outlet.stop()
    before.outlet.abort()
    before.reactor.end_turn()
    assert not before.lines.having("event=undelivered")
    assert not before.lines.having("event=closed")
    assert (link.closes, link.aborts) == ([], [])
    link.make_room()
    assert bytes(link.received) == b"one\n"
    assert after.totals() == after.totals(before)
    assert after.totals()["dropped"] == 0


def test_a_kept_destination_that_is_down_is_adopted_with_what_waits() -> None:
    before = Setting(kept=True)
    link = before.link(room=6)
    before.put(b"one\ntwo two\n")
    link.lose("reset")
    after = before.adopted()
    before.outlet.stop()
    after.put(b"three\n")
    assert not before.lines.having("event=undelivered")
    fresh = after.link()
    fresh.make_room()
    assert bytes(fresh.received) == b"two two\nthree\n"
    assert after.outlet.last_reason == "reset"
    assert (before.outlet.sinks, before.pipeline.sinks) == ([], {})
    assert after.pipeline.sinks == dict.fromkeys(after.outlet.sinks)
    assert len(after.outlet.sinks) == 1


def test_a_kept_destination_that_was_adopted_says_its_overflow_under_its_new_settings() -> None:
    before = Setting(kept=True)
    before.put(b"12345\n")
    after = before.adopted(buffer=10)
    after.put(b"12345\n")
    assert after.lines.having("event=overflow", "dropped=6")
    assert not before.lines.having("event=overflow")


def test_what_was_adopted_and_is_stopped_then_is_told_as_undelivered_once() -> None:
    before = Setting(kept=True)
    before.put(b"12345\n")
    after = before.adopted()
    before.outlet.stop()
    after.outlet.stop()
    assert len(after.lines.having("event=undelivered", "dropped=6")) == 1
    assert after.totals()["dropped"] == 6


def test_every_client_is_adopted_in_the_order_of_its_coming() -> None:
    before = Setting(kept=False, rule="first")
    one, two = before.link(1), before.link(2, room=0)
    before.put(b"a\n")
    after = before.adopted(rule="first")
    late = after.link(3)
    after.put(b"b\n")
    two.make_room()
    assert [bytes(link.received) for link in (one, two, late)] == [b"a\nb\n", b"a\nb\n", b"b\n"]
    for link in (late, two, one):
        link.deliver(b"%d\n" % link.peer[1])
    assert after.returned == [(b"1\n", "192.0.2.1:1")]
    assert before.returned == []
    assert after.outlet.kick("192.0.2.1:2") == 1


def test_a_client_on_its_way_out_is_adopted_and_goes() -> None:
    before = Setting(kept=False, buffer=10)
    slow = before.link(room=0)
    for _ in range(3):
        before.put(b"12345\n")
    assert slow.aborts == ["slow"]
    after = before.adopted()
    after.reactor.end_turn()
    assert (after.outlet.links, after.endpoint.lost, after.pipeline.sinks) == ({}, ["slow"], {})
    assert after.totals()["dropped"] == 18


def test_return_data_in_the_middle_of_a_record_goes_on() -> None:
    before = Setting(kept=False)
    link = before.link()
    link.deliver(b"one\ntw")
    after = before.adopted()
    link.deliver(b"o\n")
    assert (before.returned, after.returned) == ([(b"one\n", "192.0.2.1:1")], [(b"two\n", "192.0.2.1:1")])


def test_a_link_that_held_the_former_pipeline_holds_the_new_one_alone() -> None:
    before = Setting(kept=False, relief=Relief.HOLD, buffer=10)
    link = before.link(room=0)
    before.put(b"1234567\n")
    before.put(b"12345\n")
    after = before.adopted(relief=Relief.HOLD, buffer=10)
    assert (before.pipeline.held, after.pipeline.held) == (False, True)
    link.lose()
    assert not after.pipeline.held


def test_a_trial_goes_on_after_a_reload() -> None:
    before = Setting(kept=True)
    link = before.link()
    before.end_of_input(link)
    before.put(b"one\n")
    before.reactor.advance(0.06)
    assert bytes(link.received) == b"one\n"  # on trial
    after = before.adopted()
    before.outlet.stop()
    after.put(b"two\n")
    after.reactor.advance(0.06)
    assert bytes(link.received) == b"one\n"
    link.acknowledged = len(link.received)
    after.reactor.advance(0.06)
    link.make_room()
    assert bytes(link.received) == b"one\ntwo\n"
    assert (after.reactor.timers, after.totals()["bytes_out"]) == (0, 8)


def test_a_trial_that_was_adopted_ends_with_its_link() -> None:
    before = Setting(kept=True)
    link = before.link()
    before.end_of_input(link)
    before.put(b"one\n")
    before.reactor.advance(0.06)
    after = before.adopted()
    link.lose("reset")
    assert after.reactor.timers == 0
    fresh = after.link()
    fresh.make_room()
    assert bytes(fresh.received) == b"one\n"


def test_a_trial_that_was_adopted_gives_up_after_its_patience() -> None:
    before = Setting(kept=True)
    link = before.link()
    before.end_of_input(link)
    after = before.adopted()
    after.reactor.advance(3)
    assert (link.closes, after.endpoint.lost) == (["eof"], ["eof"])
