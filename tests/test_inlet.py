"""The source end: at most one live link, whose records go down the pipeline."""

from __future__ import annotations

import pytest

from relayd.inlet import Inlet
from relayd.observe.counters import Counters
from relayd.pipeline import Pipeline
from relayd.policy.overflow import Relief
from relayd.sink import SinkSettings
from relayd.wire.framing import Framing
from relayd.wire.framings import LINE, UBX
from tests.fakes import FakeEndpoint, FakeReactor, FakeTransport, bound_log, chunk
from tests.wire import streams


class Setting:
    """An inlet; `got` is what went down the pipeline, `told` what the relay was told."""

    def __init__(
        self, replace: bool = True, idle_timeout: float = 0.0, max_record: int = 100, buffer: int = 100,
        former: Setting | None = None, framing: Framing = LINE, coalesce: float = 0.0,
    ) -> None:  # fmt: skip
        """`former`: the setting of the configuration before, whose counters go on."""
        self.reactor = former.reactor if former else FakeReactor()
        self.pipeline, self.backward = Pipeline(self.reactor), Pipeline(self.reactor)  # type: ignore[arg-type]
        self.counters = former.counters if former else Counters()
        self.got: list[tuple[bytes, str]] = []
        self.pipeline.taps += (lambda chunk, peer: self.got.append((chunk, peer)),)
        sinks = SinkSettings(self.reactor, self.backward, LINE, buffer, Relief.HOLD, kept=True)  # type: ignore[arg-type]
        self.told: list[str] = []
        log, self.lines = bound_log(FakeReactor())
        self.endpoint = FakeEndpoint()
        self.inlet = Inlet(
            self.reactor, self.pipeline, sinks, lambda: framing.framer(max_record), self.counters, log,
            replace, idle_timeout,
            changed=lambda: self.told.append("changed"), lost=lambda reason: self.told.append("lost"),
            coalesce=coalesce,
        )  # type: ignore[arg-type]  # fmt: skip

    def link(self, number: int = 1) -> FakeTransport:
        transport = FakeTransport(self.reactor, peer=("192.0.2.1", number))
        transport.start(self.inlet.link_made(transport, self.endpoint))
        return transport

    @property
    def data(self) -> bytes:
        return b"".join(chunk for chunk, _ in self.got)


def test_whole_records_go_down_with_the_peer_s_name() -> None:
    setting = Setting()
    link = setting.link()
    link.deliver(b"one\ntw")
    link.deliver(b"o\n")
    assert setting.got == [(b"one\n", "192.0.2.1:1"), (b"two\n", "192.0.2.1:1")]
    assert (setting.counters.bytes_in, setting.counters.source_links) == (8, 1)
    assert setting.lines.having("event=connected", "source=192.0.2.1:1")


def test_of_noise_little_is_read_in_one_turn() -> None:
    """It may cost a hundred times what records cost, and the other links wait for it."""
    setting = Setting(max_record=4)
    link = setting.link()
    link.deliver(b"one\ntoo long\ntwo\nsix\n")
    assert link.small_reads == 0
    link.deliver(b"too long\ntwo\n")
    assert link.small_reads == 1
    assert setting.counters.unframed == 18


def test_a_second_source_replaces_the_first_at_once() -> None:
    setting = Setting()
    one = setting.link(1)
    one.deliver(b"one\ncut")
    two = setting.link(2)
    assert one.closes == ["replaced"]
    two.deliver(b"two\n")
    setting.reactor.end_turn()
    assert setting.data == b"one\ntwo\n"  # the record that was cut is not glued to the next
    assert setting.told == ["changed"] * 3  # two came, one went; the source was not lost
    assert setting.lines.having(" info ", "event=closed", "source=192.0.2.1:1", "reason=replaced", "received=7")
    assert setting.counters.unframed == 3


FALSE_HEADER = b"\xb5\x62\1\7\x40\0"  # claims 64 bytes, which never come
GOOD = streams.ubx(b"good")


def test_whole_records_behind_what_was_none_are_passed_on_when_the_source_ends() -> None:
    setting = Setting(framing=UBX)
    link = setting.link()
    link.deliver(FALSE_HEADER + GOOD)
    assert setting.data == b""
    setting.inlet.sink.put(chunk(b"back\n"))
    link.lose()
    assert setting.got == [(GOOD, "192.0.2.1:1")]
    counters = setting.counters
    assert (counters.bytes_in, counters.records_in, counters.unframed) == (len(GOOD), 1, len(FALSE_HEADER))


def test_a_replaced_source_s_last_records_come_before_the_next_one_s() -> None:
    setting = Setting(framing=UBX)
    setting.link(1).deliver(FALSE_HEADER + GOOD)
    next_one = streams.ubx(b"next")
    setting.link(2).deliver(next_one)
    assert setting.got == [(GOOD, "192.0.2.1:1"), (next_one, "192.0.2.1:2")]


def test_a_second_source_may_be_refused_until_the_first_is_gone() -> None:
    setting = Setting(replace=False)
    assert setting.inlet.refusal() == ""
    link = setting.link()
    assert setting.inlet.refusal() == "second_source"
    link.lose()
    assert setting.inlet.refusal() == ""
    assert Setting(replace=True).inlet.refusal() == ""


def test_a_source_that_ends_is_let_go_and_reported_once() -> None:
    setting = Setting()
    link = setting.link()
    link.deliver(b"cut")
    assert link.protocol is not None
    link.protocol.eof_received()
    assert setting.inlet.link is None
    assert setting.inlet.links  # still on its way out
    assert setting.told == ["changed"]  # that it came
    setting.reactor.end_turn()
    assert (setting.told[1:], setting.endpoint.lost, setting.inlet.links) == (["lost", "changed"], ["eof"], set())
    assert setting.counters.unframed == 3


def test_s1_a_broken_source_is_reported_with_its_reason() -> None:
    setting = Setting()
    setting.link().lose("reset")
    assert (setting.told, setting.endpoint.lost) == (["changed", "lost", "changed"], ["reset"])
    assert setting.inlet.last_reason == "reset"
    assert setting.lines.having(" warning ", "event=source_lost", "reason=reset")


def test_what_goes_back_waits_for_the_next_source() -> None:
    setting = Setting()
    one = setting.link()
    one.room = 2
    setting.inlet.sink.put(chunk(b"command\n"))
    one.lose()
    two = setting.link()
    two.make_room()
    assert bytes(two.received) == b"command\n"  # whole again


def test_a_source_that_comes_while_held_waits() -> None:
    setting = Setting()
    setting.pipeline.hold("a sink")
    link = setting.link()
    assert link.paused
    setting.pipeline.release("a sink")
    assert not link.paused


def test_s24_a_silent_source_is_closed() -> None:
    setting = Setting(idle_timeout=10)
    link = setting.link()
    setting.reactor.advance(9)
    link.deliver(b"one\n")
    setting.reactor.advance(9.5)
    assert link.closes == []
    setting.reactor.advance(1)
    assert link.closes == ["idle"]
    assert setting.endpoint.lost == ["idle"]
    assert setting.reactor.timers == 0


def test_a_source_that_is_closed_as_silent_is_no_source_while_it_lingers() -> None:
    setting = Setting(replace=False, idle_timeout=10)
    link = setting.link()
    link.close = link.closes.append  # type: ignore[method-assign]
    setting.reactor.advance(10)
    assert (link.closes, setting.inlet.link, setting.inlet.refusal()) == (["idle"], None, "")


def test_silence_while_we_do_not_read_is_ours() -> None:
    setting = Setting(idle_timeout=10)
    link = setting.link()
    setting.pipeline.hold("a sink")
    setting.reactor.advance(1000)
    assert link.closes == []
    setting.pipeline.release("a sink")
    setting.reactor.advance(21)
    assert link.closes == ["idle"]


def test_silence_that_ended_just_before_the_timer_is_still_ours() -> None:
    setting = Setting(idle_timeout=10)
    link = setting.link()
    setting.pipeline.hold("a sink")
    setting.reactor.advance(99.9)
    setting.pipeline.release("a sink")
    setting.reactor.advance(0.2)
    assert link.closes == []


def test_p16_our_own_late_timer_is_no_silence() -> None:
    setting = Setting(idle_timeout=10)
    link = setting.link()
    setting.reactor.jump(3600)
    assert link.closes == []
    setting.reactor.advance(10.1)
    assert link.closes == ["idle"]


def test_a_replaced_source_leaves_no_timer() -> None:
    setting = Setting(idle_timeout=10)
    setting.link(1)
    setting.link(2)
    assert setting.reactor.timers == 1


def test_finish_reads_no_more_and_closes_when_all_is_sent_back() -> None:
    setting = Setting()
    link = setting.link()
    link.room = 2
    setting.inlet.sink.put(chunk(b"command\n"))
    setting.inlet.finish()
    assert link.paused and link.closes == []
    setting.pipeline.hold("x")
    setting.pipeline.release("x")
    assert link.paused  # nobody wakes it up again
    link.make_room()
    assert (link.closes, bytes(link.received)) == (["stopped"], b"command\n")


def test_finish_passes_on_whole_records_behind_what_was_none() -> None:
    setting = Setting(framing=UBX)
    setting.link().deliver(FALSE_HEADER + GOOD)
    setting.inlet.finish()
    assert setting.got == [(GOOD, "192.0.2.1:1")]
    setting.reactor.end_turn()
    assert (setting.counters.records_in, setting.counters.unframed) == (1, len(FALSE_HEADER))


def test_a_source_is_concluded_once() -> None:
    """Between the two of a reload something may come: without what stood before it, it is no record's beginning."""
    setting = Setting(coalesce=5.0)
    link = setting.link()
    link.deliver(b"one\ncut")
    setting.inlet.conclude()
    link.waiting.append(b" here\ntwo\n")
    setting.inlet.finish()
    assert setting.data == b"one\n" and setting.counters.unframed == 3


def test_finish_and_abort_without_a_source_are_harmless() -> None:
    setting = Setting()
    setting.inlet.finish()
    setting.inlet.abort()


def test_abort_resets_every_link() -> None:
    setting = Setting()
    one, two = setting.link(1), setting.link(2)
    setting.inlet.abort()
    assert (one.aborts, two.aborts) == (["stopped"], ["stopped"])


def test_unframed_bytes_are_counted_while_the_link_is_up() -> None:
    setting = Setting()
    setting.link().deliver(b"x" * 101 + b"\n")
    assert setting.counters.unframed == 102


# -- a reload -------------------------------------------------------------------------------------


def adopted(former: Setting, **settings: object) -> Setting:
    """Return the setting of the next configuration, which has taken over."""
    after = Setting(former=former, **settings)  # type: ignore[arg-type]
    after.inlet.adopt(former.inlet, after.endpoint)
    return after


def test_an_adopted_source_goes_on_in_the_middle_of_a_record() -> None:
    before = Setting()
    link = before.link()
    link.deliver(b"one\ntw")
    after = adopted(before)
    link.deliver(b"o\nthree\n")
    assert (before.data, after.data) == (b"one\n", b"two\nthree\n")
    assert (after.counters.bytes_in, after.counters.unframed, after.counters.source_links) == (14, 0, 1)
    assert after.endpoint.adopted == [(link, before.endpoint)]
    assert (link.closes, link.aborts, link.paused) == ([], [], False)
    assert (before.inlet.link, before.inlet.links) == (None, set())
    assert after.inlet.link is not None and after.inlet.links == {after.inlet.link}


def test_the_end_of_an_adopted_source_is_told_to_the_new_end_alone() -> None:
    before = Setting()
    link = before.link()
    told = list(before.told)
    after = adopted(before)
    link.deliver(b"cut")
    link.lose("reset")
    assert (after.told, after.endpoint.lost, after.inlet.last_reason) == (["lost", "changed"], ["reset"], "reset")
    assert (before.told, before.endpoint.lost) == (told, [])
    assert after.counters.unframed == 3


def test_the_former_inlet_s_end_does_not_touch_what_was_adopted() -> None:
    before = Setting()
    link = before.link()
    after = adopted(before)
    before.inlet.finish()
    before.inlet.abort()
    link.deliver(b"one\n")
    assert (after.data, link.closes, link.aborts) == (b"one\n", [], [])


def test_what_waits_to_go_back_moves_whole_and_is_sent_once() -> None:
    before = Setting()
    link = before.link()
    link.room = 3
    before.inlet.sink.put(chunk(b"command\n"))
    after = adopted(before)
    after.inlet.sink.put(chunk(b"next\n"))
    link.make_room()
    assert bytes(link.received) == b"command\nnext\n"
    assert list(after.backward.sinks) == [after.inlet.sink]
    assert before.backward.sinks == {}
    before.inlet.sink.put(chunk(b"nobody's\n"))
    assert bytes(link.received) == b"command\nnext\n"


def test_what_waits_to_go_back_moves_without_a_link_too() -> None:
    before = Setting()
    before.backward.put(b"command\n", 1, "client")
    after = adopted(before)
    assert after.inlet.link is None
    link = after.link()
    link.make_room()
    assert bytes(link.received) == b"command\n"


def test_who_held_the_destinations_while_the_source_takes_nothing_goes_on_holding() -> None:
    before = Setting(buffer=10)
    link = before.link()
    link.room = 0
    before.backward.put(b"1234567\n", 1, "client")
    before.backward.put(b"12345\n", 1, "client")
    assert before.backward.held
    after = adopted(before, buffer=10)
    assert after.backward.held and not before.backward.held
    link.make_room()
    assert not after.backward.held


def test_an_adopted_source_is_read_when_the_new_pipeline_is_and_paused_when_it_is_held() -> None:
    before = Setting()
    link = before.link()
    before.pipeline.hold("a sink of the former")
    after = adopted(before)
    assert not link.paused
    before.pipeline.release("a sink of the former")
    after.pipeline.hold("x")
    assert link.paused
    held = Setting(former=after)
    held.pipeline.hold("y")
    held.inlet.adopt(after.inlet, held.endpoint)
    after.pipeline.release("x")
    assert link.paused
    held.pipeline.release("y")
    assert not link.paused


def test_the_new_max_record_is_live() -> None:
    before = Setting()
    link = before.link()
    link.deliver(b"x" * 30)
    after = adopted(before, max_record=20)
    link.deliver(b"x\nshort\n")
    assert (after.data, after.counters.unframed) == (b"short\n", 32)


def test_the_new_idle_timeout_is_live() -> None:
    before = Setting()
    link = before.link()
    after = adopted(before, idle_timeout=10)
    after.reactor.advance(11)
    assert (link.closes, after.endpoint.lost) == (["idle"], ["idle"])
    assert after.reactor.timers == 0


def test_a_former_idle_timer_does_not_fire() -> None:
    before = Setting(idle_timeout=10)
    link = before.link()
    after = adopted(before)
    after.reactor.advance(1000)
    assert (link.closes, after.reactor.timers) == ([], 0)


def test_a_source_that_was_replaced_stays_with_the_former_and_is_drained_there() -> None:
    before = Setting()
    old, live = before.link(1), before.link(2)
    after = adopted(before)
    assert len(before.inlet.links) == 1
    after.reactor.end_turn()
    assert (old.protocol, before.inlet.links, before.endpoint.lost) == (None, set(), ["replaced"])
    live.deliver(b"one\n")
    assert (after.data, after.told) == (b"one\n", [])


def test_an_adopted_source_can_be_replaced_and_kicked() -> None:
    before = Setting()
    one = before.link(1)
    after = adopted(before)
    after.link(2)
    assert one.closes == ["replaced"]
    assert after.inlet.kick("192.0.2.1:2") == 1
    assert before.inlet.kick("192.0.2.1:2") == 0


def test_kick_resets_the_links_of_a_peer_and_no_other() -> None:
    setting = Setting()
    link = setting.link(1)
    assert (setting.inlet.kick("192.0.2.1:9"), link.aborts) == (0, [])
    assert (setting.inlet.kick("192.0.2.1:1"), link.aborts) == (1, ["kicked"])


# -- a source that comes back before its end was seen ---------------------------------------------


def test_what_a_source_has_sent_before_it_restarted_comes_first() -> None:
    setting = Setting()
    one = setting.link(1)
    one.waiting.extend([b"one\n", b"two\ncut"])
    two = setting.link(2)
    two.deliver(b"three\n")
    assert setting.data == b"one\ntwo\nthree\n"
    assert one.closes == ["replaced"]
    assert setting.counters.unframed == 3


def test_a_source_that_had_ended_is_not_replaced_but_followed() -> None:
    setting = Setting()
    one = setting.link(1)
    one.waiting.extend([b"one\n", None])
    two = setting.link(2)
    assert (one.closes, setting.data) == (["eof"], b"one\n")
    assert setting.inlet.link is not None and setting.inlet.link.transport is two


def test_a_source_that_had_ended_stands_in_nobody_s_way() -> None:
    setting = Setting(replace=False)
    one = setting.link(1)
    one.waiting.extend([b"one\n", None])
    assert setting.inlet.refusal() == ""
    assert setting.data == b"one\n"
    setting.link(2).waiting.append(b"two\n")
    assert setting.inlet.refusal() == "second_source"
    assert setting.data == b"one\ntwo\n"


@pytest.mark.parametrize("replace", [True, False])
def test_s26_further_sources_wait_for_what_had_come_of_this_one_when_there_is_no_room(replace: bool) -> None:
    setting = Setting(replace)
    assert not setting.inlet.is_behind()
    one = setting.link(1)
    one.waiting.append(b"one\n")
    assert not setting.inlet.is_behind()  # there is room
    setting.pipeline.hold("a sink")
    assert setting.inlet.is_behind()
    one.waiting.append(b"late\n")  # it does not end, and must not keep others out for ever
    setting.pipeline.release("a sink")
    one.deliver(one.waiting.popleft() or b"")
    setting.pipeline.hold("a sink")
    assert not setting.inlet.is_behind()
    assert setting.inlet.is_behind()  # for the next


def test_sources_that_are_on_their_way_out_are_never_many() -> None:
    setting = Setting()
    links = [setting.link(number) for number in range(15)]
    assert not setting.inlet.is_behind()
    setting.link(15)
    assert setting.inlet.is_behind()
    links[0].lose("replaced")
    assert not setting.inlet.is_behind()


def test_s26_a_source_of_which_nothing_waits_keeps_nobody_out() -> None:
    setting = Setting()
    link = setting.link()
    setting.pipeline.hold("a sink")
    assert not setting.inlet.is_behind()
    link.waiting.append(b"one\n")
    assert setting.inlet.is_behind()
    link.lose()
    assert not setting.inlet.is_behind()
