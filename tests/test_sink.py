"""A destination's queue and link: the fast path, overflow, stalls, and what survives a lost link."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from relayd.history import History
from relayd.pipeline import Pipeline
from relayd.policy.history import HistoryBound
from relayd.policy.overflow import Relief, SlowAfter
from relayd.sink import Sink, SinkSettings
from relayd.trial import HalfCloseTrial
from relayd.wire.chunk import Chunk
from relayd.wire.framings import LINE, RAW
from tests.fakes import FakeReactor, FakeTransport, bound_log, chunk


class Setting:
    """A sink in a pipeline with one producer; `put_bytes` counts what was put."""

    def __init__(
        self, relief: Relief = Relief.CUT, kept: bool = False, buffer: int = 100, stall_timeout: float = 0.0,
        line: bool = True,
    ) -> None:  # fmt: skip
        self.reactor = FakeReactor()
        self.pipeline = Pipeline(self.reactor)  # type: ignore[arg-type]
        self.producer = FakeTransport(self.reactor)
        self.pipeline.add_producer(self.producer)
        self.framing = LINE if line else RAW
        self.log, self.lines = bound_log(self.reactor)
        self.settings = self.new_settings(relief, buffer, stall_timeout, kept)
        self.put_bytes = 0
        self.sink = self.new_sink()

    def new_settings(self, relief: Relief, buffer: int, stall_timeout: float, kept: bool) -> SinkSettings:
        return SinkSettings(self.reactor, self.pipeline, self.framing, buffer, relief, kept, stall_timeout)  # type: ignore[arg-type]

    def move(self, relief: Relief | None = None, buffer: int | None = None, stall_timeout: float | None = None) -> None:
        """Go over to another pipeline with other settings, producer and sink, as a reload does."""
        former, old = self.pipeline, self.settings
        self.pipeline = Pipeline(self.reactor)  # type: ignore[arg-type]
        self.settings = self.new_settings(
            old.relief if relief is None else relief, old.buffer if buffer is None else buffer,
            old.stall_timeout if stall_timeout is None else stall_timeout, old.kept,
        )  # fmt: skip
        former.remove_producer(self.producer)
        self.pipeline.add_producer(self.producer)
        self.sink.move(self.settings, self.log)
        assert (former.sinks, former.held) == ({}, False)
        assert list(self.pipeline.sinks) == [self.sink]

    def new_sink(self) -> Sink:
        sink = Sink(self.settings, self.log)
        self.pipeline.sinks[sink] = None
        return sink

    def link(self, room: int | None = None, short: tuple[int, ...] = ()) -> FakeTransport:
        transport = FakeTransport(self.reactor, room, short)
        transport.protocol = Flusher(self.sink)
        self.sink.attach(transport)
        return transport

    def put(self, data: bytes) -> None:
        self.pipeline.put(data, chunk(data, self.framing).records, "source")
        self.put_bytes += len(data)

    def conserved(self) -> bool:
        sink = self.sink
        return self.put_bytes == sink.sent - sink.repeated + sink.dropped + sink.queue.size


class Flusher:
    """The protocol of a link whose sink it is."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def ready_to_send(self) -> None:
        self._sink.flush()

    def connection_lost(self, reason: str) -> None:
        self._sink.detach()


# -- the fast path ------------------------------------------------------------------------------


def test_what_the_kernel_takes_at_once_asks_for_nothing() -> None:
    setting = Setting(stall_timeout=60)
    link = setting.link()
    setting.put(b"line\n")
    assert (bytes(link.received), link.writing, setting.reactor.timers, setting.sink.queue.size) == (
        b"line\n",
        False,
        0,
        0,
    )


def test_s22_only_the_rest_of_a_short_write_waits() -> None:
    setting = Setting()
    link = setting.link(room=3)
    setting.put(b"line\n")
    assert (setting.sink.queue.size, link.writing) == (2, True)
    setting.put(b"more\n")  # must not overtake
    link.make_room()
    assert (bytes(link.received), link.writing, setting.sink.queue.size) == (b"line\nmore\n", False, 0)
    assert setting.conserved()


def test_stalled_sinks_share_the_chunk() -> None:
    setting = Setting()
    other = setting.new_sink()
    shared = b"chunk\n"
    setting.put(b"first\n")
    setting.put(shared)
    assert setting.sink.queue.buffers()[1] is shared
    assert other.queue.buffers()[1] is shared


# -- overflow -----------------------------------------------------------------------------------


def test_s13_disconnect_cuts_with_reason_slow_and_counts() -> None:
    setting = Setting(Relief.CUT, buffer=10)
    link = setting.link(room=2)
    setting.put(b"12345678\n")  # 7 wait
    setting.put(b"abc\n")  # 11 would
    assert link.aborts == ["slow"]
    assert not setting.producer.pauses
    setting.reactor.end_turn()
    setting.put(b"after\n")
    assert setting.conserved()
    assert (setting.sink.sent, setting.sink.dropped, setting.sink.queue.size) == (2, 7 + 4 + 6, 0)
    assert bytes(link.received) == b"12"


def test_a_full_queue_to_the_byte_is_not_cut() -> None:
    setting = Setting(Relief.CUT, buffer=10)
    link = setting.link(room=0)
    setting.put(b"12345\n")
    setting.put(b"123\n")
    assert not link.aborts
    setting.put(b"\n")
    assert link.aborts == ["slow"]


def test_one_cut_link_leaves_the_others_alone() -> None:
    setting = Setting(Relief.CUT, buffer=10)
    slow = setting.link(room=0)
    other = setting.new_sink()
    good = FakeTransport(setting.reactor)
    other.attach(good)
    for _ in range(20):
        setting.put(b"line\n")
    assert slow.aborts == ["slow"]
    assert bytes(good.received) == b"line\n" * 20


def test_a_kept_sink_comes_back_live_after_a_cut() -> None:
    setting = Setting(Relief.CUT, kept=True, buffer=10)
    slow = setting.link(room=3)
    setting.put(b"12345678\n")
    setting.put(b"live one\n")
    assert slow.aborts == ["slow"]
    setting.reactor.end_turn()
    fresh = setting.link()
    fresh.make_room()
    assert bytes(fresh.received) == b"live one\n"  # from a border, nothing of the record that was cut
    assert setting.conserved()


def test_a_kept_sink_that_is_down_empties_its_queue_when_full() -> None:
    setting = Setting(Relief.CUT, kept=True, buffer=10)
    for number in range(5):
        setting.put(b"line %d\n" % number)
    assert setting.sink.dropped == 4 * 7
    link = setting.link()
    link.make_room()
    assert bytes(link.received) == b"line 4\n"
    assert setting.conserved()


def test_s11_block_holds_and_releases_at_half() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    assert not setting.producer.paused
    setting.put(b"1234\n")  # the one that did not fit is queued all the same
    assert setting.producer.paused
    assert setting.sink.queue.size == 13
    link.make_room(7)
    assert (setting.sink.queue.size, setting.producer.paused) == (6, True)
    link.make_room(1)
    assert (setting.sink.queue.size, setting.producer.paused) == (5, False)
    link.make_room()
    assert bytes(link.received) == b"1234567\n1234\n"
    assert setting.sink.dropped == 0


def test_a_link_that_leaves_lets_go_of_what_it_held() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567890\n")
    setting.put(b"1\n")
    assert setting.producer.paused
    link.lose()
    assert not setting.producer.paused
    assert setting.conserved()


def test_a_kept_sink_goes_on_holding_while_it_is_down() -> None:
    setting = Setting(Relief.HOLD, kept=True, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    link.lose()
    assert setting.producer.paused
    fresh = setting.link()
    fresh.make_room()
    assert not setting.producer.paused
    assert bytes(fresh.received) == b"1234567\n1234\n"


def test_two_sinks_hold_until_both_have_room() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    one = setting.link(room=0)
    other = setting.new_sink()
    two = FakeTransport(setting.reactor, room=0)
    two.protocol = Flusher(other)
    other.attach(two)
    before = setting.producer.resumes
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    one.make_room()
    assert setting.producer.paused
    two.make_room()
    assert not setting.producer.paused
    assert (setting.producer.pauses, setting.producer.resumes - before) == (1, 1)


# -- links that come and go ---------------------------------------------------------------------


def test_a_kept_sink_queues_while_down_and_resends_the_cut_record_whole() -> None:
    setting = Setting(kept=True)
    first = setting.link(room=8)
    setting.put(b"one\ntwo two\nthree\n")
    first.lose()
    assert setting.sink.repeated == 4  # "two " of the record that was cut
    setting.put(b"four\n")
    second = setting.link()
    second.make_room()
    assert bytes(first.received) == b"one\ntwo "
    assert bytes(second.received) == b"two two\nthree\nfour\n"
    assert setting.conserved()


def test_raw_goes_on_at_the_first_unsent_byte() -> None:
    setting = Setting(kept=True, line=False)
    first = setting.link(room=8)
    setting.put(b"one\ntwo two\n")
    first.lose()
    second = setting.link()
    second.make_room()
    assert bytes(first.received + second.received) == b"one\ntwo two\n"
    assert setting.sink.repeated == 0


def test_a_client_that_left_takes_its_queue_with_it() -> None:
    setting = Setting()
    link = setting.link(room=2)
    setting.put(b"line\n")
    link.lose()
    setting.put(b"line\n")
    # Nothing is ever sent again to a client that left: what it was sent and what it missed is what was put.
    assert (setting.sink.queue.size, setting.sink.sent, setting.sink.dropped, setting.sink.repeated) == (0, 2, 8, 0)


def test_s2_finish_closes_when_all_is_sent() -> None:
    setting = Setting()
    link = setting.link(room=2)
    setting.put(b"line\n")
    setting.sink.finish("stopped")
    assert link.closes == []
    link.make_room(2)
    assert link.closes == []
    link.make_room()
    assert (link.closes, bytes(link.received)) == (["stopped"], b"line\n")


def test_finish_closes_an_idle_link_at_once() -> None:
    setting = Setting()
    link = setting.link()
    setting.sink.finish("stopped")
    assert link.closes == ["stopped"]


def test_the_wish_to_close_ends_with_the_link() -> None:
    setting = Setting(kept=True)
    link = setting.link(room=2)
    setting.put(b"line\n")
    setting.sink.finish("source_lost")
    link.lose()
    fresh = setting.link(room=1)
    fresh.make_room()
    assert fresh.closes == []


# -- stalls -------------------------------------------------------------------------------------


def stalled(**settings: object) -> tuple[Setting, FakeTransport]:
    setting = Setting(stall_timeout=60, **settings)  # type: ignore[arg-type]
    link = setting.link(room=1)
    setting.put(b"line\n")
    return setting, link


def test_s10_a_peer_that_takes_nothing_is_cut_after_stall_timeout() -> None:
    setting, link = stalled()
    setting.reactor.advance(59)
    assert link.aborts == []
    setting.reactor.advance(2)
    assert link.aborts == ["stalled"]
    assert setting.reactor.timers == 0


def test_progress_puts_the_stall_off() -> None:
    setting, link = stalled()
    for _ in range(3):
        setting.reactor.advance(50)
        link.make_room(1)
    assert link.aborts == []
    setting.reactor.advance(120)
    assert link.aborts == ["stalled"]


def test_an_empty_queue_is_no_stall() -> None:
    setting, link = stalled()
    link.make_room()
    setting.reactor.advance(300)
    assert link.aborts == []
    assert setting.reactor.timers == 0


def test_a_stall_after_a_stall_is_found_too() -> None:
    setting, link = stalled()
    link.make_room()
    setting.reactor.advance(300)
    link.room = 0
    setting.put(b"line\n")
    setting.reactor.advance(61)
    assert link.aborts == ["stalled"]


def test_no_stall_timer_where_it_is_off() -> None:
    setting = Setting()
    link = setting.link(room=1)
    setting.put(b"line\n")
    assert setting.reactor.timers == 0
    setting.reactor.advance(86400)
    assert link.aborts == []


def test_p16_our_own_late_timer_is_no_stall() -> None:
    setting, link = stalled()
    setting.reactor.jump(3600)
    assert link.aborts == []
    setting.reactor.advance(61)  # a grace of one interval, then the truth
    assert link.aborts == ["stalled"]


def test_a_lost_link_leaves_no_timer_behind() -> None:
    for kept in (False, True):
        setting, link = stalled(kept=kept)
        link.lose()
        assert setting.reactor.timers == 0


def test_a_stalled_client_is_counted() -> None:
    setting, link = stalled()
    setting.reactor.advance(61)
    setting.reactor.end_turn()
    assert link.aborts == ["stalled"]
    assert setting.sink.sent == 1
    assert setting.conserved()


# -- what the kernel has room for -----------------------------------------------------------------


def test_a_link_that_comes_up_is_sent_what_waits_at_once() -> None:
    setting = Setting(Relief.HOLD, kept=True, buffer=10)
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    assert setting.producer.paused
    link = setting.link()
    assert (bytes(link.received), link.writing, setting.producer.paused) == (b"1234567\n1234\n", False, False)


def test_a_link_that_comes_up_with_little_room_waits_for_more() -> None:
    setting = Setting(kept=True)
    setting.put(b"line\n")
    link = setting.link(room=2)
    assert (bytes(link.received), link.writing) == (b"li", True)


def test_more_than_a_batch_is_sent_to_a_link_that_comes_up() -> None:
    setting = Setting(kept=True, buffer=10_000)
    for number in range(300):
        setting.put(b"%04d\n" % number)
    link = setting.link()
    assert (len(link.received), link.writing) == (1500, False)


@pytest.mark.parametrize("relief", Relief)
def test_room_that_nobody_has_been_told_of_is_no_overflow(relief: Relief) -> None:
    setting = Setting(relief, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    link.room = 4  # the kernel has sent something on; the reactor has not said so yet
    setting.put(b"1234\n")
    assert not link.aborts and not setting.producer.paused
    link.make_room()
    assert bytes(link.received) == b"1234567\n1234\n"


@pytest.mark.parametrize("relief", Relief)
def test_a_chunk_that_fits_because_all_before_it_went_out_goes_out_too(relief: Relief) -> None:
    """It must not lie in the queue until the queue is full again: sent at once, or with room asked for."""
    setting = Setting(relief, buffer=10, stall_timeout=60)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    link.room = None
    setting.put(b"1234\n")
    link.make_room()  # tells the sink if it has asked
    assert bytes(link.received) == b"1234567\n1234\n"
    assert setting.conserved()


def test_a_full_queue_that_is_to_be_closed_when_empty_is_closed() -> None:
    setting = Setting(buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    setting.sink.finish("stopped")
    link.room = None
    setting.put(b"1234\n")
    assert link.closes == ["stopped"]
    setting.reactor.end_turn()
    assert bytes(link.received).startswith(b"1234567\n")
    assert setting.put_bytes == setting.sink.sent + setting.sink.dropped


def test_s10_a_peer_that_acknowledges_is_not_stalled_though_the_kernel_takes_nothing_yet() -> None:
    """The kernel takes from us in large steps only: a slow reader is told by its acknowledgements."""
    setting = Setting(stall_timeout=60)
    link = setting.link(room=20)
    link.acknowledged = 0
    setting.put(b"x" * 30 + b"\n")
    for acknowledged in (1, 2, 3):
        link.acknowledged = acknowledged
        setting.reactor.advance(59)
    assert link.aborts == []
    setting.reactor.advance(121)
    assert link.aborts == ["stalled"]


# -- a reload: over to another pipeline ---------------------------------------------------------


def test_a_moved_sink_brings_its_queue_its_counts_and_its_link() -> None:
    setting = Setting()
    link = setting.link(room=3)
    setting.put(b"one\n")
    setting.put(b"two\n")
    setting.move()
    assert (setting.sink.sent, setting.sink.queue.size, link.writing) == (3, 5, True)
    setting.put(b"three\n")  # behind what waits
    link.make_room()
    assert bytes(link.received) == b"one\ntwo\nthree\n"
    assert link.closes == link.aborts == []
    assert setting.conserved()


def test_a_sink_that_is_moved_while_idle_is_on_the_fast_path() -> None:
    setting = Setting(stall_timeout=60)
    link = setting.link()
    setting.put(b"one\n")
    setting.move()
    setting.put(b"two\n")
    assert bytes(link.received) == b"one\ntwo\n"
    assert (link.writing, setting.reactor.timers) == (False, 0)


def test_the_former_pipeline_feeds_a_moved_sink_no_more() -> None:
    setting = Setting()
    link = setting.link()
    former = setting.pipeline
    setting.move()
    former.put(b"twice\n", 1, "source")
    assert bytes(link.received) == b""


def test_a_kept_sink_that_is_down_moves_with_what_waits_and_the_record_that_was_cut() -> None:
    setting = Setting(kept=True)
    first = setting.link(room=6)
    setting.put(b"one\ntwo two\n")
    first.lose()
    setting.move()
    setting.put(b"three\n")
    second = setting.link()
    second.make_room()
    assert bytes(second.received) == b"two two\nthree\n"
    assert setting.sink.repeated == 2
    assert setting.conserved()


def test_a_record_that_was_being_sent_when_it_moved_is_sent_again_whole_on_the_next_link() -> None:
    setting = Setting(kept=True)
    first = setting.link(room=6)
    setting.put(b"one\ntwo two\n")
    setting.move()
    first.lose()
    second = setting.link()
    second.make_room()
    assert bytes(second.received) == b"two two\n"
    assert setting.conserved()


def test_who_held_the_former_pipeline_holds_the_new_one() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    setting.move()
    assert setting.producer.paused
    link.make_room(8)
    assert (setting.sink.queue.size, setting.producer.paused) == (5, False)
    link.make_room()
    assert bytes(link.received) == b"1234567\n1234\n"


def test_a_larger_buffer_lets_go_and_a_smaller_one_holds_at_once() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    setting.move(buffer=100)
    assert not setting.producer.paused
    setting.move(buffer=8)
    assert setting.producer.paused
    link.make_room()
    assert not setting.producer.paused
    assert setting.conserved() and not setting.sink.dropped


def test_from_block_to_disconnect_nothing_is_held_and_the_next_that_does_not_fit_cuts() -> None:
    setting = Setting(Relief.HOLD, buffer=10)
    link = setting.link(room=0)
    setting.put(b"1234567\n")
    setting.put(b"1234\n")
    setting.move(Relief.CUT)
    assert not setting.producer.paused and not link.aborts
    setting.put(b"x\n")
    assert link.aborts == ["slow"]
    assert setting.conserved()


def test_from_disconnect_to_block_a_full_queue_holds_and_cuts_nobody() -> None:
    setting = Setting(Relief.CUT, buffer=100)
    link = setting.link(room=0)
    setting.put(b"1234567890\n")
    setting.move(Relief.HOLD, buffer=10)
    assert setting.producer.paused
    link.make_room()
    assert not setting.producer.paused
    assert (bytes(link.received), link.aborts) == (b"1234567890\n", [])


def test_another_stall_timeout_counts_from_the_move() -> None:
    setting, link = stalled()
    setting.reactor.advance(50)
    setting.move(stall_timeout=5)
    setting.reactor.advance(4)
    assert link.aborts == []
    setting.reactor.advance(2)
    assert link.aborts == ["stalled"]
    assert setting.reactor.timers == 0


@pytest.mark.parametrize("before", [0.0, 60.0])
def test_a_stall_timeout_can_be_turned_off_and_on(before: float) -> None:
    setting = Setting(stall_timeout=before)
    link = setting.link(room=1)
    setting.put(b"line\n")
    setting.move(stall_timeout=60.0 - before)
    setting.reactor.advance(1000)
    assert link.aborts == ([] if before else ["stalled"])


def test_where_an_overflow_is_logged_changes_with_the_move() -> None:
    setting = Setting(Relief.CUT, kept=True, buffer=10)
    setting.put(b"12345678\n")
    setting.log = setting.log.bind(destination="new")
    setting.move()
    setting.put(b"live\n")
    assert setting.lines.having("destination=new event=overflow reason=down dropped=9")


def test_a_sink_that_is_to_be_closed_is_closed_after_the_move() -> None:
    setting = Setting()
    link = setting.link(room=2)
    setting.put(b"line\n")
    setting.sink.finish("source_lost")
    setting.move()
    link.make_room()
    assert (link.closes, bytes(link.received)) == (["source_lost"], b"line\n")


def test_a_sink_that_is_held_back_stays_so() -> None:
    setting = Setting(kept=True)
    link = setting.link()
    setting.sink.hold_back()
    setting.put(b"one\n")
    setting.move()
    setting.put(b"two\n")
    assert bytes(link.received) == b""
    setting.sink.attach(link)
    link.make_room()
    assert bytes(link.received) == b"one\ntwo\n"


# -- conservation, over any schedule ------------------------------------------------------------

RECORDS = st.lists(st.integers(0, 7), min_size=1, max_size=4)  # lengths of the lines of a chunk
STEP = st.one_of(
    st.tuples(st.just("put"), RECORDS),
    st.tuples(st.just("drain"), st.integers(0, 30)),
    st.tuples(st.just("up"), st.integers(0, 12)),
    st.tuples(st.just("lose"), st.none()),
    st.tuples(st.just("time"), st.integers(0, 90)),
    st.tuples(st.just("move"), st.integers(8, 48)),
)


class Story:
    """Plays a schedule; every record is a line of its own, and `links` is what each link's peer got."""

    def __init__(self, relief: Relief, kept: bool, line: bool) -> None:
        self.setting = Setting(relief, kept, buffer=24, stall_timeout=60, line=line)
        self.links: list[FakeTransport] = []
        self.records: list[bytes] = []

    def play(self, steps: list[tuple[str, object]]) -> None:
        for action, argument in steps:
            getattr(self, action)(argument)
            self.setting.reactor.end_turn()
            assert self.setting.conserved(), (action, argument)
            sink = self.setting.sink
            assert self.setting.pipeline.held == self.setting.producer.paused
            if self.setting.producer.paused:
                assert sink.queue.size * 2 > sink.queue.limit

    @property
    def up_now(self) -> FakeTransport | None:
        return self.links[-1] if self.links and self.links[-1].protocol is not None else None

    def put(self, lengths: list[int]) -> None:
        if self.setting.producer.paused:
            return  # nothing is read
        records = [b"%d%s\n" % (len(self.records) + index, b"." * size) for index, size in enumerate(lengths)]
        self.records += records
        self.setting.put(b"".join(records))

    def drain(self, room: int) -> None:
        if self.up_now:
            self.up_now.make_room(room)

    def up(self, room: int) -> None:
        if self.up_now or (self.links and not self.setting.settings.kept):
            return
        self.links.append(self.setting.link(room))

    def lose(self, _: None) -> None:
        if self.up_now:
            self.up_now.lose()

    def move(self, buffer: int) -> None:
        self.setting.move(buffer=buffer)

    def time(self, seconds: int) -> None:
        self.setting.reactor.advance(seconds)


@given(st.sampled_from(Relief), st.booleans(), st.booleans(), st.lists(STEP, max_size=40))
def test_nothing_is_lost_uncounted(relief: Relief, kept: bool, line: bool, steps: list[tuple[str, object]]) -> None:
    story = Story(relief, kept, line)
    story.play(steps)
    assert sum(len(link.received) for link in story.links) == story.setting.sink.sent


@given(st.lists(STEP, max_size=40))
def test_s18_over_several_links_every_record_comes_whole_in_order_at_least_once(
    steps: list[tuple[str, object]],
) -> None:
    story = Story(Relief.HOLD, kept=True, line=True)
    story.play(steps)
    story.lose(None)
    story.up(0)
    while story.setting.sink.queue.size:
        story.drain(1000)
    got: list[bytes] = []
    for link in story.links:
        whole, _, cut = bytes(link.received).rpartition(b"\n")
        assert not cut or link is not story.links[-1]
        got += [line + b"\n" for line in whole.split(b"\n")] if whole else []
    # A record that a link cut is sent again: it is torn on the old link, whole on the next, so it is
    # not among the whole ones twice.
    assert got == story.records


@given(st.lists(STEP, max_size=40))
def test_a_cut_never_tears_a_record_on_a_later_link(steps: list[tuple[str, object]]) -> None:
    story = Story(Relief.CUT, kept=True, line=True)
    story.play(steps)
    places = {record: place for place, record in enumerate(story.records)}
    last = -1
    for link in story.links:
        for line in bytes(link.received).split(b"\n")[:-1]:
            place = places[line + b"\n"]  # KeyError: torn or glued
            assert place > last
            last = place


@pytest.mark.parametrize("kept", [False, True])
def test_nothing_sent_is_put_again_after_a_link_that_took_all(kept: bool) -> None:
    setting = Setting(kept=kept)
    link = setting.link()
    setting.put(b"line\n")
    link.lose()
    assert (setting.sink.repeated, setting.sink.queue.size, setting.sink.dropped) == (0, 0, 0)


# -- several sinks on one tape, over any schedule -------------------------------------------------


class Trial(HalfCloseTrial):
    """Tells its wire when it is over."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        wire.trial = self
        reactor = wire._reactor
        super().__init__(reactor, wire.taker.sink, wire, 2.0, lambda: wire.close("eof"))  # type: ignore[arg-type]

    def _pass(self) -> None:
        if not self._is_torn():
            self.wire.trial = None
        super()._pass()


class Wire(FakeTransport):
    """A link of a taker, and its protocol; `trial` while it is half-closed."""

    def __init__(self, taker: Taker, reactor: FakeReactor, room: int | None) -> None:
        super().__init__(reactor, room)
        self.taker = taker
        self.trial: HalfCloseTrial | None = None
        self.protocol = self  # type: ignore[assignment]

    @property
    def confirmed(self) -> bytes:
        """What the sink counts as sent."""
        tried = self.trial._tried if self.trial is not None else 0
        return bytes(self.received[: len(self.received) - tried])

    def ready_to_send(self) -> None:
        self.taker.sink.flush()

    def connection_lost(self, reason: str) -> None:
        taker, torn = self.taker, self.confirmed.rpartition(b"\n")[2]
        if taker.kept and taker.goes_on(torn):
            taker.repeated += len(torn)
        taker.sink.detach()
        taker.over_since = None
        if self.trial is not None:
            self.trial.cancel()
        if taker.left:
            taker.sink.drop_queue()


class Taker:
    """One sink of the machine, and all that is known of what it was given."""

    def __init__(self, number: int, machine: SlowMachine, kept: bool) -> None:
        self.number, self.machine, self.kept = number, machine, kept
        self.sink = Sink(replace(machine.settings, kept=kept), machine.log)
        self.wires: list[Wire] = []
        self.given: list[int] = []  # numbers of its records
        self.lost: set[int] = set()  # those that neither wait nor have gone out whole
        self.begun: set[int] = set()  # those of which a link has had a byte
        self.repeated = 0
        self.left = False  # its relay has gone over to another, without it
        self.gappy = False  # it may miss something on a link that stays
        self.over_since: float | None = None
        self.relieved_after = float("inf")  # the last relief came no earlier; over_since no later
        self.short_at = 0.0  # when the queue was short within a step: what may be dropped was gone, or was too old
        self.stale_before = 0
        self.note_settings()

    def __repr__(self) -> str:
        return f"<Taker {self.number}>"

    @property
    def wire(self) -> Wire | None:
        """The link that is up."""
        return self.wires[-1] if self.wires and self.wires[-1].protocol is not None else None

    @property
    def settings(self) -> SinkSettings:
        return self.sink._settings

    @property
    def dropped_as_slow(self) -> int:
        return self.sink.dropped_records - self.sink.stale_records

    def note_settings(self) -> None:
        self.gappy |= self.settings.relief in (Relief.DROP_OLDEST, Relief.DROP_NEWEST) or bool(self.settings.max_age)

    def waiting(self) -> bytes:
        """All that stands in the queue."""
        queue = self.sink.queue
        return b"".join(queue.buffers(1 << 30))

    def goes_on(self, torn: bytes) -> bool:
        """Whether the rest of the record that a link has the begin of stands first in the queue."""
        line = (torn + self.waiting()).partition(b"\n")[0] + b"\n"
        return self.sink.queue.size > 0 and line in self.machine.records

    def check(self) -> None:
        sink, queue, records = self.sink, self.sink.queue, self.machine.records
        waiting = self.waiting()
        assert queue.size == len(waiting)
        got: list[int] = []
        torn = b""
        for wire in self.wires:
            whole, _, torn = wire.confirmed.rpartition(b"\n")
            here = self.numbers(whole + b"\n") if whole else []
            got += here
            self.begun.update(here)
            if here and not self.gappy:
                assert here == self.given[self.given.index(here[0]) : self.given.index(here[-1]) + 1], "a gap"
        # A link on trial that lost the rest of what it has begun is cut at the next look.
        front = torn if self.wire is not None and (self.wire.trial is None or self.goes_on(torn)) else b""
        queued = self.numbers(front + waiting)
        self.begun.update(queued[: bool(front)])
        assert got + queued == sorted({*got, *queued}), "out of order, or twice"
        assert {*got, *queued} <= {*self.given}
        lost = {*self.given} - {*got} - {*queued}
        assert lost >= self.lost, "sent after it was counted as dropped"
        self.lost = lost
        assert sink.dropped_records == len(lost)
        assert sink.sent == sum(len(wire.confirmed) for wire in self.wires)
        assert sink.repeated == self.repeated
        put = sum(len(records[number]) for number in self.given)
        assert put == sink.sent - sink.repeated + sink.dropped + queue.size
        if queued:
            assert queue.oldest == self.machine.times[queued[0]]
        if self.wire is not None and queue.size and self.wire.trial is None and self.wire.open:
            assert self.wire.writing, "something waits, and nobody will say that there is room"

    def numbers(self, data: bytes) -> list[int]:
        """The records in the data, which must be whole and untouched."""
        lines = data.splitlines(keepends=True)
        for line in lines:
            assert line[:3].isdigit() and self.machine.records[int(line[:3])] == line, f"torn: {line!r} in {data!r}"
        return [int(line[:3]) for line in lines]


CHUNKS = st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=4), min_size=1, max_size=4)


class SlowMachine(RuleBasedStateMachine):
    """One stream, its tape, and sinks that come, stall, lose their links, move on or stay behind."""

    @initialize(
        relief=st.sampled_from(Relief), buffer=st.integers(16, 80), kept=st.integers(0, 2), slow=st.booleans(),
        max_age=st.sampled_from([0.0, 3.0]), history=st.sampled_from([0, 0, 1, 3]),
        rooms=st.lists(st.one_of(st.none(), st.integers(0, 40)), min_size=1, max_size=3),
    )  # fmt: skip
    def begin(
        self, relief: Relief, buffer: int, kept: int, slow: bool, max_age: float, history: int, rooms: list[int | None]
    ) -> None:
        self.reactor = FakeReactor()
        self.log, self.lines = bound_log(FakeReactor())  # whose timers are its own
        self.records: list[bytes] = []
        self.times: list[float] = []
        self.takers: list[Taker] = []
        self.late = 0.0  # until when what takes time may take longer, because our own timers were late
        self.configure(relief, buffer, slow, max_age, history)
        for _ in range(kept):
            self.add(kept=True)
        for number, room in enumerate(rooms):
            self.up(self.takers[number] if number < kept else self.add(kept=False), room)

    def configure(self, relief: Relief, buffer: int, slow: bool, max_age: float, history: int) -> None:
        self.pipeline = Pipeline(self.reactor)  # type: ignore[arg-type]
        self.producer = FakeTransport(self.reactor)
        self.pipeline.add_producer(self.producer)
        self.history: History | None = None
        if history:
            bound = HistoryBound(records=history)
            self.history = History(self.pipeline.tape, bound, buffer // 2, LINE, lambda: self.reactor.now)
            self.pipeline.sinks[self.history] = None
        slow_after = SlowAfter(buffer // 2, 2.0) if slow and relief is not Relief.HOLD else SlowAfter()
        self.settings = SinkSettings(
            self.reactor, self.pipeline, LINE, buffer, relief, False, 8.0, slow_after, max_age  # type: ignore[arg-type]
        )  # fmt: skip

    def add(self, kept: bool) -> Taker:
        taker = Taker(len(self.takers), self, kept)
        self.takers.append(taker)
        if self.history is not None and not kept:
            self.history.fill(taker.sink.queue)
            taker.given = taker.numbers(taker.waiting())
            if taker.given:
                assert taker.given == list(range(taker.given[0], len(self.records))), "history and live do not join"
            assert taker.sink.queue.size <= max(
                self.settings.buffer // 2, len(taker.waiting().rpartition(b"\n")[0]) + 1
            )
            assert len(taker.given) <= self.history._bound.records
        self.pipeline.sinks[taker.sink] = None
        return taker

    @property
    def some_link(self) -> bool:
        return any(taker.wire for taker in self.takers)

    def pick(self, index: int, condition: Callable[[Taker], object]) -> Taker | None:
        found = [taker for taker in self.takers if condition(taker)]
        return found[index % len(found)] if found else None

    # -- what happens ---------------------------------------------------------------------------

    @rule(chunks=CHUNKS, pause=st.sampled_from([0.0, 0.0, 1.5]))
    def flow(self, chunks: list[list[int]], pause: float) -> None:
        for lengths in chunks:
            self.put(lengths)
            self.nothing_is_lost_torn_or_doubled()
            if pause:
                self.time(pause)

    @rule(chunks=CHUNKS, index=st.integers(0, 9), room=st.integers(0, 20), old=st.sampled_from([0.0, 2.0, 4.0]))
    def flow_and_room(self, chunks: list[list[int]], index: int, room: int, old: float) -> None:
        for lengths in chunks:
            self.put(lengths)
            self.nothing_is_lost_torn_or_doubled()
            self.room(index, room)
            self.nothing_is_lost_torn_or_doubled()
            self.time(old)
            old = 0.0

    def put(self, lengths: list[int]) -> None:
        if self.producer.paused or len(self.records) > 900:
            return
        first = len(self.records)
        fresh = [b"%03d%s\n" % (first + index, b"." * size) for index, size in enumerate(lengths)]
        self.records += fresh
        self.times += [self.reactor.now] * len(fresh)
        data = b"".join(fresh)
        fed = [taker for taker in self.takers if taker.sink in self.pipeline.sinks]
        fits = [
            taker
            for taker in fed
            if not taker.sink.queue.size or len(data) + taker.sink.queue.size <= taker.settings.buffer
        ]
        before = {taker: taker.sink.dropped for taker in fed}
        for taker in fed:
            taker.given += range(first, len(self.records))
        self.pipeline.put(data, len(fresh), "source")
        for taker in fed:
            if self.settings.relief is Relief.CUT and taker.sink.dropped > before[taker]:
                taker.over_since = None
        for taker in fits:
            assert taker.sink.dropped == before[taker] or taker.sink._ended, "dropped what would have fitted"
        if self.settings.relief is Relief.HOLD:
            for taker in fed:
                stale = taker.sink.stale_records - taker.stale_before
                assert taker.sink.dropped == before[taker] or taker.sink._ended or stale, "block drops"
        for taker in fed:
            if self.settings.relief in (Relief.DROP_OLDEST, Relief.DROP_NEWEST) and taker.wire and not taker.wire.trial:
                assert "slow" not in taker.wire.aborts

    @precondition(lambda self: self.some_link)
    @rule(index=st.integers(0, 9), room=st.integers(0, 40))
    def room(self, index: int, room: int) -> None:
        taker = self.pick(index, lambda taker: taker.wire)
        if taker is not None and taker.wire is not None:
            begun, lost, stale = set(taker.begun), set(taker.lost), taker.sink.stale_records
            taker.wire.make_room(room)
            self.sent_something(taker, begun, lost, stale)

    @rule(room=st.one_of(st.none(), st.integers(0, 40)))
    def client(self, room: int | None) -> None:
        if len(self.takers) < 8:
            self.up(self.add(kept=False), room)

    @precondition(lambda self: any(taker.kept and not taker.wire for taker in self.takers))
    @rule(index=st.integers(0, 9), room=st.one_of(st.none(), st.integers(0, 40)))
    def link(self, index: int, room: int | None) -> None:
        taker = self.pick(index, lambda taker: taker.kept and not taker.wire and not taker.left)
        if taker is not None:
            self.up(taker, room)

    def up(self, taker: Taker, room: int | None) -> None:
        wire = Wire(taker, self.reactor, room)
        taker.wires.append(wire)
        begun, lost, stale = set(taker.begun), set(taker.lost), taker.sink.stale_records
        taker.sink.attach(wire)
        self.sent_something(taker, begun, lost, stale)

    def sent_something(self, taker: Taker, begun: set[int], lost: set[int], stale: int) -> None:
        """Where there was room and nothing new: what was dropped was too old, what was begun was not."""
        self.reactor.end_turn()
        taker.check()
        if taker.kept or taker.wire:
            assert taker.sink.stale_records - stale == len(taker.lost - lost)
        if taker.settings.max_age and taker.wire is not None:
            limit = self.reactor.now - taker.settings.max_age
            if not taker.sink._ended:
                assert all(self.times[number] < limit for number in taker.lost - lost), "dropped though it was fresh"
            if taker.wire.trial is None:
                assert all(self.times[number] >= limit for number in taker.begun - begun), "sent though it was stale"

    @precondition(lambda self: self.some_link)
    @rule(index=st.integers(0, 9))
    def lose(self, index: int) -> None:
        taker = self.pick(index, lambda taker: taker.wire)
        if taker is not None and taker.wire is not None:
            taker.wire.lose()
            taker.over_since = None

    @precondition(lambda self: self.some_link)
    @rule(index=st.integers(0, 9))
    def finish(self, index: int) -> None:
        taker = self.pick(index, lambda taker: taker.wire and taker.wire.trial is None)
        if taker is not None:
            taker.sink.finish("stopped")

    @precondition(lambda self: any(taker.kept and taker.wire for taker in self.takers))
    @rule(index=st.integers(0, 9))
    def half_close(self, index: int) -> None:
        taker = self.pick(
            index, lambda taker: taker.kept and taker.wire and taker.wire.trial is None and taker.wire.open
        )
        if taker is not None and taker.wire is not None:
            wire = taker.wire
            wire.acknowledged = len(wire.received)
            # What overflows while a link is on trial is missing on it.
            taker.gappy = True
            Trial(wire)
            taker.over_since = None

    @precondition(lambda self: any(taker.wire and taker.wire.trial for taker in self.takers))
    @rule(index=st.integers(0, 9), room=st.one_of(st.none(), st.integers(0, 40)))
    def acknowledge(self, index: int, room: int | None) -> None:
        taker = self.pick(index, lambda taker: taker.wire and taker.wire.trial is not None)
        if taker is not None and taker.wire is not None:
            taker.wire.room = room
            taker.wire.acknowledged = None
            self.time(0.06)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.5, 9.0]))
    def time(self, seconds: float) -> None:
        before = {taker: (taker.dropped_as_slow, taker.sink.queue.size) for taker in self.takers}
        began = self.reactor.now
        self.reactor.advance(seconds)
        for taker in self.takers:
            self.look_at_slowness(taker, *before[taker], began)

    def look_at_slowness(self, taker: Taker, dropped: int, size: int, began: float) -> None:
        slow = taker.settings.slow_after
        now = self.reactor.now
        if not slow.seconds or taker.over_since is None or taker.sink._ended or size <= slow.size:
            return
        relieved = taker.dropped_as_slow > dropped
        if relieved and not (taker.wires and (taker.wires[-1].trial or taker.wires[-1].aborts == ["stalled"])):
            since = min(taker.over_since, taker.relieved_after)
            assert now - since >= slow.seconds - 1e-6, "relieved too early"
        queue = taker.sink.queue
        if queue.front is queue.head and taker.settings.relief is not Relief.CUT:
            taker.short_at = now
        if now - max(taker.over_since, self.late, taker.short_at) > slow.seconds * 1.25 + 1e-6:
            assert relieved or queue.size <= slow.size, "too much for too long, and nothing was done"
        if relieved or queue.size <= slow.size:
            taker.over_since = None
            taker.relieved_after = began if relieved and queue.size > slow.size else float("inf")

    @rule(seconds=st.sampled_from([5.0, 60.0]))
    def stopped_for(self, seconds: float) -> None:
        """The process was stopped, or the host suspended."""
        aborted = {taker: list(taker.wire.aborts) for taker in self.takers if taker.wire}
        self.reactor.jump(seconds)
        self.late = self.reactor.now
        for taker, aborts in aborted.items():
            assert "stalled" not in aborts + (taker.wire.aborts if taker.wire else [])
        for taker in self.takers:
            taker.over_since = None

    @rule(
        stay=st.sets(st.integers(0, 9), max_size=3), relief=st.sampled_from(Relief), buffer=st.integers(16, 80),
        slow=st.booleans(), max_age=st.sampled_from([0.0, 3.0]), history=st.sampled_from([0, 1, 3]),
    )  # fmt: skip
    def reload(self, stay: set[int], relief: Relief, buffer: int, slow: bool, max_age: float, history: int) -> None:
        former, former_history = self.pipeline, self.history
        former.remove_producer(self.producer)
        self.configure(relief, buffer, slow, max_age, history)
        for taker in self.takers:
            if taker.sink not in former.sinks or taker.left:
                continue
            if taker.number in stay:
                taker.left = True
                continue
            taker.sink.move(replace(self.settings, kept=taker.kept), self.log)
            taker.note_settings()
            taker.over_since = None
        if former_history is not None and self.history is not None:
            self.history.adopt(former_history)
        if former_history is not None:
            former_history.end()  # as the outlet does when it is stopped
        for taker in self.takers:
            if taker.left and taker.wire is not None:
                if taker.wire.trial is not None:
                    taker.wire.trial.finish("stopped")
                else:
                    taker.sink.finish("stopped")
            elif taker.left:
                taker.sink.drop_queue()
        assert not any(taker.sink in former.sinks for taker in self.takers if not taker.left)

    # -- what holds -----------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_torn_or_doubled(self) -> None:
        if not hasattr(self, "takers"):
            return
        self.reactor.end_turn()
        for taker in self.takers:
            taker.check()
            if taker.sink.stale_records > taker.stale_before:
                taker.short_at = self.reactor.now
            taker.stale_before = taker.sink.stale_records
            if taker.sink._ended and taker.sink in self.pipeline.sinks and not taker.wire:
                del self.pipeline.sinks[taker.sink]
            slow = taker.settings.slow_after
            if taker.sink.queue.size <= slow.size:
                taker.over_since = None
            elif taker.over_since is None:
                taker.over_since = self.reactor.now

    @invariant()
    def nothing_is_held_that_nobody_needs(self) -> None:
        if not hasattr(self, "takers"):
            return
        needed = any(taker.sink.queue.size for taker in self.takers)
        if not needed and (self.history is None or not self.history._size):
            assert self.pipeline.tape._newest() is None

    @invariant()
    def who_is_full_holds(self) -> None:
        if not hasattr(self, "takers"):
            return
        assert self.pipeline.held == self.producer.paused
        if self.pipeline.held:
            assert any(
                self.pipeline.is_held_by(taker.sink) and taker.sink.queue.size * 2 > taker.sink.queue.limit
                for taker in self.takers
            )

    def teardown(self) -> None:
        if not hasattr(self, "takers"):
            return
        for taker in self.takers:
            while taker.sink.queue.size and taker.wire is not None and taker.wire.trial is None and taker.wire.open:
                taker.wire.make_room()
            if taker.wire is not None:
                taker.wire.lose()
            taker.sink.drop_queue()
        self.reactor.advance(100.0)
        assert self.reactor.timers == 0
        assert not self.pipeline.held
        for taker in self.takers:
            taker.check()
            assert taker.sink.queue.size == 0


TestSlowMachine = SlowMachine.TestCase
TestSlowMachine.settings = settings(
    deadline=None, stateful_step_count=30, max_examples=200, report_multiple_bugs=False,
    suppress_health_check=[*HealthCheck],
)  # fmt: skip


# -- what is dropped, what is said of it ----------------------------------------------------------


class Slowly(Setting):
    """A sink with rules of its own, and `records` of so many bytes that are put one at a time."""

    def __init__(self, relief: Relief, kept: bool = False, **rules: object) -> None:
        self.rules = rules
        super().__init__(relief, kept)

    def new_settings(self, *given: object) -> SinkSettings:
        return replace(super().new_settings(*given), **self.rules)  # type: ignore[arg-type]

    def put_lines(self, *texts: bytes) -> None:
        for text in texts:
            self.put(text + b"\n")


def test_a_stale_record_that_is_being_sent_takes_no_fresh_one_with_it() -> None:
    """The rest of the old one goes out, what has waited too long is dropped, what came just now is not."""
    setting = Slowly(Relief.CUT, max_age=10.0)
    link = setting.link(room=2)
    setting.put_lines(b"old", b"stale")
    setting.reactor.advance(11)
    setting.put_lines(b"fresh")
    link.make_room()
    assert bytes(link.received) == b"old\nfresh\n"
    assert (setting.sink.stale_records, setting.sink.dropped_records, setting.sink.dropped) == (1, 1, 6)
    assert setting.conserved()


def test_what_is_stale_goes_when_it_would_be_sent_and_not_before() -> None:
    setting = Slowly(Relief.CUT, kept=True, max_age=10.0)
    setting.put_lines(b"one", b"two")
    setting.reactor.advance(5)
    setting.put_lines(b"three")
    setting.reactor.advance(6)
    assert (setting.sink.dropped, setting.sink.queue.size) == (0, 14)
    link = setting.link()
    assert bytes(link.received) == b"three\n"
    assert (setting.sink.stale_records, setting.sink.dropped_records, setting.sink.dropped) == (2, 2, 8)


def test_the_record_that_a_lost_link_cut_goes_too_when_it_is_too_old_for_the_next() -> None:
    setting = Slowly(Relief.CUT, kept=True, max_age=10.0)
    link = setting.link(room=2)
    setting.put_lines(b"one")
    link.lose()
    setting.reactor.advance(11)
    setting.put_lines(b"two")
    assert bytes(setting.link().received) == b"two\n"
    assert (setting.sink.stale_records, setting.sink.repeated, setting.sink.sent) == (1, 2, 2 + 4)
    assert setting.conserved()


@pytest.mark.parametrize("relief", [Relief.DROP_OLDEST, Relief.DROP_NEWEST])
def test_a_gap_is_one_line_at_its_begin_and_one_at_its_end(relief: Relief) -> None:
    setting = Setting(relief, buffer=20)
    link = setting.link(room=0)
    for number in range(30):
        setting.put(b"%07d.\n" % number)
        setting.reactor.advance(0.5)
    assert len(setting.lines.having("event=dropping reason=slow")) == 1
    assert not setting.lines.having("event=caught_up")
    for _ in range(4):
        link.make_room(5)
    dropped = setting.sink.dropped_records
    assert dropped == 28
    assert setting.lines.having(f"event=caught_up dropped={dropped * 9} dropped_records={dropped} after=14")
    setting.reactor.advance(100)
    assert len(setting.lines.lines) == 2


def test_a_gap_of_stale_records_says_so() -> None:
    setting = Slowly(Relief.CUT, kept=True, max_age=10.0)
    setting.put_lines(b"one", b"two")
    setting.reactor.advance(11)
    setting.link()
    assert setting.lines.having("event=dropping reason=stale")
    assert setting.lines.having("event=caught_up dropped=8 dropped_records=2")
    assert not setting.lines.having("reason=slow")


def test_who_leaves_in_a_gap_has_not_caught_up() -> None:
    setting = Setting(Relief.DROP_OLDEST, buffer=20)
    link = setting.link(room=0)
    for number in range(30):
        setting.put(b"%07d.\n" % number)
    link.lose()
    assert setting.conserved()
    assert not setting.lines.having("event=caught_up")


# -- too much for too long --------------------------------------------------------------------------


@pytest.mark.parametrize("relief", [Relief.CUT, Relief.DROP_OLDEST, Relief.DROP_NEWEST])
def test_more_than_slow_after_for_so_long_is_an_overflow(relief: Relief) -> None:
    setting = Slowly(relief, slow_after=SlowAfter(10, 8.0))
    link = setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three", b"four")
    setting.reactor.advance(7.9)
    assert setting.sink.dropped == 0
    setting.reactor.advance(2.1)
    assert link.aborts == (["slow"] if relief is Relief.CUT else [])
    kept = {Relief.CUT: b"", Relief.DROP_OLDEST: b"four\n", Relief.DROP_NEWEST: b"one\ntwo\n"}[relief]
    link.make_room()
    assert bytes(link.received) == kept
    assert setting.conserved()
    assert setting.sink.dropped_records == 4 - kept.count(b"\n")


@pytest.mark.parametrize("relief", [Relief.DROP_OLDEST, Relief.DROP_NEWEST])
def test_the_time_starts_anew_when_what_was_too_much_was_dropped(relief: Relief) -> None:
    setting = Slowly(relief, slow_after=SlowAfter(10, 8.0))
    setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three", b"four")
    setting.reactor.advance(8.1)
    size, dropped = setting.sink.queue.size, setting.sink.dropped
    assert 0 < size <= 10 and dropped
    setting.reactor.advance(7.0)  # all the while it is not too much
    setting.put_lines(b"123456789")
    setting.reactor.advance(6.0)
    assert setting.sink.dropped == dropped
    setting.reactor.advance(4.1)
    assert setting.sink.dropped > dropped


def test_the_time_starts_anew_when_what_was_too_much_was_too_old() -> None:
    setting = Slowly(Relief.DROP_OLDEST, buffer=20, slow_after=SlowAfter(10, 8.0), max_age=5.0)
    setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three")
    setting.reactor.advance(6.0)
    setting.put_lines(b"1234567890")  # does not fit: the others are found to be too old
    assert setting.sink.stale_records == 3
    setting.put_lines(b"four")
    setting.reactor.advance(6.0)
    assert setting.sink.queue.size == 16
    setting.reactor.advance(4.1)
    assert setting.sink.queue.size == 5
    assert setting.conserved()


@pytest.mark.parametrize("relief", [Relief.CUT, Relief.DROP_OLDEST, Relief.DROP_NEWEST])
@pytest.mark.parametrize("stall_timeout", [0.0, 5.0])
def test_slow_after_holds_for_a_link_that_is_down_however_long(relief: Relief, stall_timeout: float) -> None:
    """That nothing is taken while there is no link is no stall, and hides nothing."""
    setting = Slowly(relief, kept=True, slow_after=SlowAfter(10, 8.0), stall_timeout=stall_timeout)
    for _ in range(3):
        dropped = setting.sink.dropped
        setting.put_lines(b"one", b"two", b"three", b"four")
        setting.reactor.advance(10.1)
        assert setting.sink.dropped > dropped
        assert setting.sink.queue.size <= 10
    assert setting.conserved()


def test_slow_after_goes_on_when_the_link_is_lost_and_the_source_is_silent() -> None:
    setting = Slowly(Relief.CUT, kept=True, slow_after=SlowAfter(10, 8.0))
    link = setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three", b"four")
    link.lose()
    setting.reactor.advance(10.1)
    assert setting.sink.dropped == 19
    assert setting.conserved()


def test_slow_after_does_not_start_over_with_each_link_that_is_lost() -> None:
    setting = Slowly(Relief.CUT, kept=True, slow_after=SlowAfter(10, 8.0))
    link = setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three", b"four")
    for _ in range(3):
        setting.reactor.advance(3)
        link.lose()
        link = setting.link(room=0)
    setting.reactor.advance(1.1)
    assert setting.sink.dropped == 19
    assert setting.conserved()


def test_slow_after_goes_on_while_a_half_closed_link_is_on_trial() -> None:
    setting = Slowly(Relief.CUT, kept=True, slow_after=SlowAfter(10, 8.0))
    setting.link(room=0)
    setting.put_lines(b"one", b"two", b"three", b"four")
    setting.sink.hold_back()
    setting.reactor.advance(10.1)
    assert setting.sink.dropped == 19


def test_drop_oldest_does_not_cut_a_half_closed_link_whose_record_it_left_alone() -> None:
    setting = Setting(Relief.DROP_OLDEST, kept=True, buffer=10)
    link = setting.link(room=2)
    setting.put(b"one\ntwo\n")
    link.acknowledged = 2
    HalfCloseTrial(setting.reactor, setting.sink, link, 2.0, lambda: None)  # type: ignore[arg-type]
    for number in range(5):
        setting.put(b"%d\n" % number)
    setting.reactor.advance(0.2)
    assert link.aborts == []
    link.room = link.acknowledged = None
    setting.reactor.advance(0.2)
    assert bytes(link.received).startswith(b"one\n")
    assert setting.conserved()


# -- the cost of many -----------------------------------------------------------------------------


class Counted(list[Chunk]):
    """Chunks of a tape that count how often they are looked at."""

    looked_at = 0

    def __getitem__(self, index: object) -> object:  # type: ignore[override]
        self.looked_at += 1
        return super().__getitem__(index)  # type: ignore[call-overload]


def test_cutting_a_thousand_with_deep_queues_touches_none_of_what_waits() -> None:
    setting = Setting(Relief.CUT, buffer=10_000 * 4)
    links = [setting.link(room=0)]
    for _ in range(999):
        sink = setting.new_sink()
        links.append(FakeTransport(setting.reactor, room=0))
        sink.attach(links[-1])
    shared = [chunk(b"%03d\n" % (number % 1000)) for number in range(10_000)]
    for sink in setting.pipeline.sinks:
        sink.put(shared[0])
    first = setting.sink.queue
    for piece in shared[1:]:
        first.append(piece)
    assert first._stretch is not None
    counted = []
    for block in first._stretch._blocks:
        block.chunks = Counted(block.chunks)
        counted.append(block.chunks)
    for sink in list(setting.pipeline.sinks)[1:]:  # as if each had got them one by one
        queue = sink.queue  # type: ignore[attr-defined]
        queue._stretch, queue.size, queue._records = first._stretch.copy(), first.size, first._records
    setting.put(b"one too many\n")
    assert all(link.aborts == ["slow"] for link in links)
    assert sum(chunks.looked_at for chunks in counted) < 10
    assert [sink.dropped_records for sink in setting.pipeline.sinks] == [10_001] * 1000  # type: ignore[union-attr]
