"""One direction: producers -> taps -> sinks, and who may hold it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from relayd.pipeline import SWEEP, Pipeline
from relayd.wire.chunk import Chunk
from tests.fakes import FakeReactor, FakeTransport


class Taker:
    """A sink that notes what it is put."""

    idle, sent = None, 0

    def __init__(self) -> None:
        self.got: list[Chunk] = []

    def put(self, chunk: Chunk) -> None:
        self.got.append(chunk)


def pipeline_with(*producers: FakeTransport) -> Pipeline:
    pipeline = Pipeline(FakeReactor())
    for producer in producers:
        pipeline.add_producer(producer)
    return pipeline


def test_every_tap_and_sink_gets_the_same_object() -> None:
    pipeline, takers, seen = Pipeline(FakeReactor()), [Taker(), Taker()], []
    pipeline.sinks.update(dict.fromkeys(takers))  # type: ignore[arg-type]
    pipeline.taps += (lambda chunk, peer: seen.append((chunk, peer)),)
    data = b"chunk"
    pipeline.put(data, 3, "peer")
    assert seen == [(data, "peer")]
    assert takers[0].got[0] is takers[1].got[0]
    chunk = takers[0].got[0]
    assert (chunk.data is data, chunk.records, chunk.at) == (True, 3, FakeReactor().now)


def test_producers_pause_with_the_first_holder_and_go_on_after_the_last() -> None:
    one, two = FakeTransport(FakeReactor()), FakeTransport(FakeReactor())
    pipeline = pipeline_with(one, two)
    assert (one.resumes, two.resumes) == (1, 1)  # who comes to a pipeline that is not held may read
    for holder in ("a", "b", "a"):
        pipeline.hold(holder)
    assert (one.pauses, two.pauses, pipeline.held) == (1, 1, True)
    pipeline.release("a")
    assert one.paused and two.paused and pipeline.held
    pipeline.release("b")
    assert (one.resumes, two.resumes, one.paused, pipeline.held) == (2, 2, False, False)


def test_releasing_what_is_not_held_is_harmless() -> None:
    one = FakeTransport(FakeReactor())
    pipeline = pipeline_with(one)
    pipeline.release("nobody")
    assert one.resumes == 1  # that of its coming


def test_a_producer_that_comes_while_held_starts_paused() -> None:
    pipeline, late = Pipeline(FakeReactor()), FakeTransport(FakeReactor())
    pipeline.hold("a")
    pipeline.add_producer(late)
    assert late.paused
    pipeline.release("a")
    assert not late.paused


def test_a_producer_that_was_paused_elsewhere_goes_on_where_nothing_is_held() -> None:
    former, pipeline, link = Pipeline(FakeReactor()), Pipeline(FakeReactor()), FakeTransport(FakeReactor())
    former.add_producer(link)
    former.hold("a")
    former.remove_producer(link)
    assert link.paused
    pipeline.add_producer(link)
    assert not link.paused
    former.release("a")
    assert (link.pauses, link.resumes) == (1, 2)  # who has left hears nothing more of it


def test_who_holds_can_be_asked() -> None:
    pipeline = Pipeline(FakeReactor())
    pipeline.hold("a")
    assert pipeline.is_held_by("a") and not pipeline.is_held_by("b")
    pipeline.release("a")
    assert not pipeline.is_held_by("a")


def test_a_producer_that_left_is_not_touched() -> None:
    gone = FakeTransport(FakeReactor())
    pipeline = pipeline_with(gone)
    pipeline.remove_producer(gone)
    pipeline.remove_producer(gone)
    pipeline.hold("a")
    pipeline.release("a")
    assert (gone.pauses, gone.resumes) == (0, 1)  # that of its coming


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_s12_every_pause_has_its_resume(steps: list[tuple[str, bool]]) -> None:
    producer = FakeTransport(FakeReactor())
    pipeline, holders = pipeline_with(producer), set()
    for holder, hold in steps:
        if hold:
            pipeline.hold(holder)
            holders.add(holder)
        else:
            pipeline.release(holder)
            holders.discard(holder)
        assert producer.paused == pipeline.held == bool(holders)
        assert producer.pauses - (producer.resumes - 1) == bool(holders)


def crowd(reactor: FakeReactor, count: int) -> tuple[Pipeline, FakeTransport, list[Taker]]:
    """Return a pipeline with a producer and so many sinks."""
    pipeline, producer = Pipeline(reactor), FakeTransport(reactor)  # type: ignore[arg-type]
    takers = [Taker() for _ in range(count)]
    pipeline.add_producer(producer)
    pipeline.sinks.update(dict.fromkeys(takers))  # type: ignore[arg-type]
    return pipeline, producer, takers


def got(takers: list[Taker]) -> list[list[bytes]]:
    """Return what the takers got, each kind of list once, in their order."""
    found: list[list[bytes]] = []
    for taker in takers:
        data = [chunk.data for chunk in taker.got]
        if data not in found:
            found.append(data)
    return found


def test_r4_a_crowd_gets_a_chunk_in_turns_and_the_producer_waits() -> None:
    reactor = FakeReactor()
    pipeline, producer, takers = crowd(reactor, 2 * SWEEP + 1)
    pipeline.put(b"one", 1, "peer")
    for turn in (1, 2, 3):
        assert sum(len(taker.got) for taker in takers) == min(turn * SWEEP, len(takers))
        assert producer.paused == (turn < 3) == bool(reactor.timers)
        reactor.jump(0)
    assert got(takers) == [[b"one"]]


def test_r4_as_many_as_fit_into_a_turn_do_not_wait() -> None:
    reactor = FakeReactor()
    pipeline, producer, takers = crowd(reactor, SWEEP)
    pipeline.put(b"one", 1, "peer")
    assert (got(takers), producer.pauses, reactor.timers) == ([[b"one"]], 0, 0)


def test_r4_a_chunk_that_comes_all_the_same_comes_behind() -> None:
    """A producer may have read more than one before it heard that it is to wait."""
    reactor = FakeReactor()
    pipeline, producer, takers = crowd(reactor, 2 * SWEEP)
    pipeline.put(b"one", 1, "peer")
    pipeline.put(b"two", 1, "peer")
    assert got(takers) == [[b"one", b"two"], [b"one"]] and producer.paused
    reactor.advance(0)
    assert got(takers) == [[b"one", b"two"]]
    assert (producer.paused, reactor.timers) == (False, 0)


def test_r4_who_is_gone_gets_nothing_and_who_comes_gets_the_next() -> None:
    reactor = FakeReactor()
    pipeline, _, takers = crowd(reactor, 2 * SWEEP)
    pipeline.put(b"one", 1, "peer")
    gone, late = takers[-1], Taker()
    del pipeline.sinks[gone]  # type: ignore[arg-type]
    pipeline.sinks[late] = None  # type: ignore[index]
    reactor.advance(0)
    pipeline.put(b"two", 1, "peer")
    pipeline.settle()
    assert got([gone]) == [[]] and got([late]) == [[b"two"]] and got(takers[:-1]) == [[b"one", b"two"]]


def test_r4_what_is_settled_is_done_with() -> None:
    reactor = FakeReactor()
    pipeline, producer, takers = crowd(reactor, 5 * SWEEP)
    pipeline.settle()
    pipeline.put(b"one", 1, "peer")
    pipeline.settle()
    assert (got(takers), producer.paused, reactor.timers) == ([[b"one"]], False, 0)
    reactor.advance(0)
    assert got(takers) == [[b"one"]]
