"""What of the past somebody gets who joins."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.history import History
from relayd.observe.counters import Counters
from relayd.outlet import ClientsOutlet
from relayd.pipeline import Pipeline
from relayd.policy.history import HistoryBound
from relayd.policy.overflow import Relief
from relayd.policy.returns import RETURNS
from relayd.returnpath import ReturnPath
from relayd.sendqueue import SendQueue
from relayd.sink import SinkSettings
from relayd.tape import Tape
from relayd.wire.framings import LINE, RAW
from tests.fakes import FakeEndpoint, FakeReactor, FakeTransport, bound_log, chunk


class Setting:
    """A history and its clock."""

    def __init__(self, bound: HistoryBound, limit: int = 1000, framing: object = LINE) -> None:
        self.now = 100.0
        self.tape = Tape()
        self.framing = framing
        self.history = History(self.tape, bound, limit, framing, lambda: self.now)  # type: ignore[arg-type]

    def put(self, *texts: bytes) -> None:
        for text in texts:
            self.history.put(chunk(text, self.framing, self.now))  # type: ignore[arg-type]

    def joiner(self) -> SendQueue:
        queue = SendQueue(self.tape, 1000)
        self.history.fill(queue)
        return queue

    @property
    def told(self) -> bytes:
        """What somebody gets who joins now."""
        queue = self.joiner()
        told = b"".join(queue.buffers())
        assert queue.size == len(told)
        queue.clear(self.framing)  # type: ignore[arg-type]
        return told


def test_bytes_begin_at_a_border_within_the_bound() -> None:
    setting = Setting(HistoryBound(size=8))
    setting.put(b"one\ntwo two\n", b"three\n")
    assert setting.told == b"three\n"  # with "two two" it would be fourteen
    setting.put(b"4\n")
    assert setting.told == b"three\n4\n"
    setting.put(b"5\n6\n7\n8\n")
    assert setting.told == b"5\n6\n7\n8\n"


def test_raw_has_a_border_everywhere() -> None:
    setting = Setting(HistoryBound(size=5), framing=RAW)
    setting.put(b"abc", b"defg")
    assert setting.told == b"cdefg"


def test_records_are_counted_over_chunks() -> None:
    setting = Setting(HistoryBound(records=3))
    setting.put(b"1\n2\n")
    assert setting.told == b"1\n2\n"
    setting.put(b"3\n4\n")
    assert setting.told == b"2\n3\n4\n"
    setting.put(b"5\n6\n7\n8\n")
    assert setting.told == b"6\n7\n8\n"


def test_time_is_that_of_the_reading() -> None:
    setting = Setting(HistoryBound(seconds=10))
    setting.put(b"old\n")
    setting.now += 6
    setting.put(b"new\n")
    assert setting.told == b"old\nnew\n"
    setting.now += 6
    assert setting.told == b"new\n"
    setting.now += 6
    assert setting.told == b""
    setting.put(b"newest\n")
    assert setting.told == b"newest\n"


def test_it_never_holds_more_than_its_limit() -> None:
    for bound in (HistoryBound(records=10_000), HistoryBound(seconds=10_000.0)):
        setting = Setting(bound, limit=100)
        for number in range(1000):
            setting.put(b"%07d\n" % number)
        assert setting.told == b"".join(b"%07d\n" % number for number in range(988, 1000))
        setting.put(b"x" * 200 + b"\n")
        assert setting.told == b"x" * 200 + b"\n"


def test_who_joins_goes_on_with_the_stream() -> None:
    setting = Setting(HistoryBound(records=1))
    setting.put(b"1\n2\n")
    queue = setting.joiner()
    live = chunk(b"3\n")
    setting.history.put(live)
    queue.append(live)
    assert b"".join(queue.buffers()) == b"2\n3\n"
    queue.consume(1)
    assert queue.clear(LINE) == (3, 2)
    assert setting.told == b"3\n"


def test_those_who_join_share_it() -> None:
    setting = Setting(HistoryBound(size=1000))
    setting.put(*[b"line\n"] * 50)
    queues = [setting.joiner() for _ in range(1000)]
    assert all(queue.size == 250 for queue in queues)
    assert len({id(block) for queue in queues for block in queue._stretch._blocks}) == 1  # type: ignore[union-attr]


def test_a_reload_hands_it_on_within_the_new_bound() -> None:
    before, after = Setting(HistoryBound(records=5)), Setting(HistoryBound(records=2))
    before.put(b"1\n", b"2\n", b"3\n")
    after.history.adopt(before.history)
    assert after.told == b"2\n3\n"
    after.put(b"4\n")
    assert after.told == b"3\n4\n"


def test_what_another_stream_put_on_the_tape_is_not_history() -> None:
    setting = Setting(HistoryBound(records=5))
    setting.put(b"1\n")
    setting.tape.add(chunk(b"another's\n"))
    setting.put(b"2\n")
    assert setting.told == b"2\n"


@pytest.mark.parametrize("records", [True, False])
@given(
    chunks=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), max_size=20),
    amount=st.integers(1, 40),
)
def test_it_is_the_longest_run_within_the_bound(records: bool, chunks: list[list[int]], amount: int) -> None:
    setting = Setting(HistoryBound(records=amount) if records else HistoryBound(size=amount))
    lines = [[b"x" * length + b"\n" for length in lengths] for lengths in chunks]
    for run in lines:
        setting.put(b"".join(run))
    newest: list[bytes] = []
    for line in reversed([line for run in lines for line in run]):
        if (len(newest) + 1 if records else len(b"".join([line, *newest]))) > amount:
            break
        newest.insert(0, line)
    assert setting.told == b"".join(newest)


def test_a_chunk_larger_than_the_limit_is_told_from_a_border_within_it() -> None:
    """Half of the buffer is all that somebody gets who joins, or the next chunk would make them slow."""
    lines = [b"%07d\n" % number for number in range(100)]
    for bound in (HistoryBound(records=1000), HistoryBound(seconds=1000.0)):
        setting = Setting(bound, limit=100)
        setting.put(b"".join(lines))
        assert setting.told == b"".join(lines[-12:])


def clients_of(former: ClientsOutlet | None, bound: HistoryBound, reactor: FakeReactor) -> ClientsOutlet:
    """Return clients that get the past first; they take over from the former ones, as at a reload."""
    pipeline = Pipeline(reactor)  # type: ignore[arg-type]
    history = History(pipeline.tape, bound, 1000, LINE, lambda: reactor.now) if bound else None
    settings = SinkSettings(reactor, pipeline, LINE, 2000, Relief.CUT, kept=False)  # type: ignore[arg-type]
    back: Any = ReturnPath(RETURNS["none"], Pipeline(reactor), lambda: LINE.framer(100), Counters())  # type: ignore[arg-type]
    outlet = ClientsOutlet(settings, back, Counters(), bound_log(FakeReactor())[0], lambda: None, 2.0, history)
    if former is not None:
        outlet.adopt(former, FakeEndpoint())  # type: ignore[arg-type]
    return outlet


def join(outlet: ClientsOutlet, reactor: FakeReactor, room: int | None = None) -> FakeTransport:
    transport = FakeTransport(reactor, room)
    transport.start(outlet.link_made(transport, FakeEndpoint()))  # type: ignore[arg-type]
    return transport


def feed(outlet: ClientsOutlet, *lines: bytes) -> None:
    for line in lines:
        outlet._pipeline.put(line, 1, "source")


def test_history_and_live_data_join_over_reloads() -> None:
    reactor = FakeReactor()
    outlet = clients_of(None, HistoryBound(records=3), reactor)
    feed(outlet, b"1\n", b"2\n", b"3\n", b"4\n")
    slow, quick = join(outlet, reactor, room=1), join(outlet, reactor)
    feed(outlet, b"5\n")
    outlet = clients_of(outlet, HistoryBound(records=2), reactor)
    late = join(outlet, reactor)
    feed(outlet, b"6\n")
    slow.make_room()
    assert bytes(slow.received) == bytes(quick.received) == b"2\n3\n4\n5\n6\n"
    assert bytes(late.received) == b"4\n5\n6\n"
    outlet = clients_of(outlet, HistoryBound(records=4), reactor)  # what is no longer there does not come back
    assert bytes(join(outlet, reactor).received) in (b"5\n6\n", b"4\n5\n6\n", b"3\n4\n5\n6\n")
    assert [link.sink.sent for link in outlet.links][:3] == [10, 10, 6]


def test_two_reloads_with_nothing_put_between_them() -> None:
    """The first brings the history, while a client is behind; the second finds it empty."""
    reactor = FakeReactor()
    outlet = clients_of(None, HistoryBound(), reactor)
    slow = join(outlet, reactor, room=1)
    feed(outlet, b"1\n", b"2\n")
    outlet = clients_of(outlet, HistoryBound(records=2), reactor)
    outlet = clients_of(outlet, HistoryBound(records=3), reactor)
    feed(outlet, b"3\n")
    slow.make_room()
    assert bytes(slow.received) == b"1\n2\n3\n"
    assert bytes(join(outlet, reactor).received) == b"3\n"


def test_a_reload_that_ends_the_history_keeps_nothing_for_it() -> None:
    reactor = FakeReactor()
    outlet = clients_of(None, HistoryBound(records=2), reactor)
    slow = join(outlet, reactor, room=1)
    feed(outlet, b"1\n", b"2\n")
    outlet = clients_of(outlet, HistoryBound(), reactor)
    feed(outlet, b"3\n")
    slow.make_room()
    assert bytes(slow.received) == b"1\n2\n3\n"
    gc.collect()
    assert outlet._pipeline.tape._newest() is None
