"""The tape: the newest part of a stream, as long as somebody has to send it."""

from __future__ import annotations

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from relayd.sendqueue import SendQueue
from relayd.tape import Tape
from relayd.wire.chunk import Chunk
from tests.fakes import chunk


class Tracked(Chunk):
    """A chunk whose end can be seen."""

    __slots__ = ("__weakref__",)


def test_the_newest_chunk_is_added_once_however_many_read_it() -> None:
    tape = Tape()
    one, two = chunk(b"one\n"), chunk(b"two\n")
    assert [tape.add(one), tape.add(one), tape.add(two), tape.add(two)] == [0, 0, 1, 1]
    assert (len(tape), tape.end, tape[1], list(tape.part(0, 2))) == (2, 2, two, [one, two])


def test_numbers_go_on_when_the_tape_was_empty() -> None:
    tape = Tape()
    queue = SendQueue(tape, 100)
    queue.append(chunk(b"one\n"))
    queue.consume(4)
    assert (len(tape), tape.end) == (0, 1)
    queue.append(chunk(b"two\n"))
    assert (queue.first, tape.end) == (1, 2)


def test_what_nobody_needs_is_freed_though_others_still_read() -> None:
    tape = Tape()
    fast, slow = SendQueue(tape, 1 << 30), SendQueue(tape, 1 << 30)
    first = Tracked(b"x" * 65536, 0, 0.0)
    gone = weakref.ref(first)
    fast.append(first)
    slow.append(first)
    del first
    for _ in range(8):
        fast.append(chunk(b"x" * 65536))
        slow.append(tape[tape.end - 1])
    assert gone() is not None
    fast.consume(65536)
    slow.consume(65536 + 1)
    for _ in range(8):
        fast.append(chunk(b"x" * 65536))
        slow.append(tape[tape.end - 1])
    gc.collect()
    assert gone() is None
    assert tape[slow.first - 1 + 1].data == b"x" * 65536


def test_a_thousand_readers_cost_one_tape() -> None:
    tape = Tape()
    queues = [SendQueue(tape, 1 << 30) for _ in range(1000)]
    for _ in range(100):
        piece = chunk(b"x" * 100)
        for queue in queues:
            queue.append(piece)
    assert len(tape) == 100
    for queue in queues:
        assert (queue.size, len(queue._ranges)) == (10_000, 1)
        queue.clear(None)  # type: ignore[arg-type]  # with nothing begun no border is looked for
    assert len(tape) == 0


def test_another_tape_goes_on_with_all_readers() -> None:
    former, tape = Tape(), Tape()
    one, two = SendQueue(former, 100), SendQueue(former, 100)
    for text in (b"a\n", b"b\n", b"c\n"):
        piece = chunk(text)
        one.append(piece)
        if text != b"a\n":
            two.append(piece)
    tape.take_over(former)
    assert (len(former), one.tape, two.tape) == (0, tape, tape)
    late = chunk(b"d\n")
    one.append(late)
    two.append(late)
    assert b"".join(one.buffers()) == b"a\nb\nc\nd\n"
    assert b"".join(two.buffers()) == b"b\nc\nd\n"
    assert former.add(chunk(b"x")) == 3  # numbers never come twice


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300_000)), max_size=80))
def test_readers_find_what_they_were_given(steps: list[tuple[int, int]]) -> None:
    """Reader 3 stands for a new chunk of that size, which all get; the others send so much."""
    tape = Tape()
    queues = [SendQueue(tape, 1 << 30) for _ in range(3)]
    waiting = [bytearray() for _ in queues]
    for number, (who, size) in enumerate(steps):
        if who == 3:
            piece = chunk(bytes([number % 256]) * (size + 1))
            for queue, expected in zip(queues, waiting, strict=True):
                queue.append(piece)
                expected += piece.data
        else:
            count = min(size, sum(map(len, queues[who].buffers())))
            queues[who].consume(count)
            del waiting[who][:count]
        for queue, expected in zip(queues, waiting, strict=True):
            assert b"".join(queue.buffers()) == expected
    assert bool(len(tape)) == any(queue.on_tape for queue in queues)
