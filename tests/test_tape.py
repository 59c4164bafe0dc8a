"""The tape: the newest part of a stream, as long as somebody has to send it."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.sendqueue import SendQueue
from relayd.tape import Block, Stretch, Tape
from relayd.wire.chunk import Chunk
from relayd.wire.framings import RAW
from tests.fakes import chunk


class Tracked(Chunk):
    """A chunk whose end can be seen."""

    __slots__ = ("__weakref__",)


def tracked(data: bytes) -> tuple[Tracked, weakref.ref[Tracked]]:
    made = Tracked(data, 0, 0.0)
    return made, weakref.ref(made)


def blocks_of(*queues: SendQueue) -> set[Block]:
    """Return the blocks that the queues hold."""
    return {block for queue in queues if queue._stretch is not None for block in queue._stretch._blocks}


def data_of(stretch: Stretch) -> bytes:
    return b"".join(piece.data for piece in stretch.oldest(1 << 30))


def test_the_newest_chunk_is_added_once_however_many_hold_it() -> None:
    tape, one, two = Tape(), chunk(b"one\n"), chunk(b"two\n")
    block = tape.add(one)
    assert tape.add(one) is tape.add(two) is tape.add(two) is block
    assert block.chunks == [one, two]


def test_what_nobody_holds_is_gone() -> None:
    tape = Tape()
    piece, gone = tracked(b"x")
    queue = SendQueue(tape, 100)
    queue.append(piece)
    del piece
    assert gone() is not None
    queue.consume(1)
    gc.collect()
    assert gone() is None


def test_what_one_has_sent_is_freed_though_others_are_behind_it_no_more_than_a_block() -> None:
    tape = Tape()
    fast, slow = SendQueue(tape, 1 << 30), SendQueue(tape, 1 << 30)
    pieces = [tracked(b"x" * 1000) for _ in range(500)]
    seen = [gone for _, gone in pieces]
    for piece, _ in pieces:
        fast.append(piece)
        slow.append(piece)
    del piece, pieces
    fast.consume(500_000)
    slow.consume(300_000)
    gc.collect()
    left = sum(gone() is not None for gone in seen)
    assert 200 <= left <= 200 + 65
    slow.consume(200_000)
    gc.collect()
    assert not any(gone() for gone in seen)


def test_a_thousand_that_wait_cost_one_tape() -> None:
    tape = Tape()
    queues = [SendQueue(tape, 1 << 30) for _ in range(1000)]
    for _ in range(2000):
        piece = chunk(b"x" * 100)
        for queue in queues:
            queue.append(piece)
    held = blocks_of(*queues)
    assert sum(len(block.chunks) for block in held) == 2000
    assert len(held) <= 2000 * 200 // 65536 + 1
    assert all((queue.size, queue._loose) == (200_000, None) for queue in queues)
    for queue in queues:
        assert queue.clear(RAW) == (200_000, 0)
    assert not blocks_of(*queues)


def test_who_left_something_out_goes_on_by_itself_and_pins_nothing_between() -> None:
    """A destination that drops the newest may hold very old chunks and very new ones."""
    tape = Tape()
    picky, quick = SendQueue(tape, 100), SendQueue(tape, 1 << 30)
    picky.append(chunk(b"old"))
    seen = []
    for number in range(1000):
        piece, gone = tracked(b"x" * 1000)
        quick.append(piece)
        if number == 500:
            picky.append(piece)
        else:
            seen.append(gone)
        quick.consume(1000)
    del piece
    gc.collect()
    assert sum(gone() is not None for gone in seen) <= 65  # those in a block with "old"
    assert b"".join(picky.buffers()) == b"old" + b"x" * 1000
    picky.append(chunk(b"new"))
    picky.consume(1003)
    assert b"".join(picky.buffers()) == b"new"


def test_a_tape_that_follows_another_extends_what_stands_there() -> None:
    former, tape = Tape(), Tape()
    one, two = SendQueue(former, 100), SendQueue(former, 100)
    for text in (b"a\n", b"b\n", b"c\n"):
        piece = chunk(text)
        one.append(piece)
        if text != b"a\n":
            two.append(piece)
    tape.follow(former)
    one.tape = two.tape = tape
    late = chunk(b"d\n")
    one.append(late)
    two.append(late)
    assert b"".join(one.buffers()) == b"a\nb\nc\nd\n"
    assert b"".join(two.buffers()) == b"b\nc\nd\n"
    assert one._loose is two._loose is None


def test_two_tapes_that_follow_one_do_not_mix() -> None:
    former, tape = Tape(), Tape()
    one, two = SendQueue(former, 100), SendQueue(former, 100)
    first = chunk(b"1\n")
    one.append(first)
    two.append(first)
    tape.follow(former)
    two.tape = tape
    for number in (2, 4):
        one.append(chunk(b"%d\n" % number))
        two.append(chunk(b"%d\n" % (number + 1)))
    assert b"".join(one.buffers()) == b"1\n2\n4\n"
    assert b"".join(two.buffers()) == b"1\n3\n5\n"


@pytest.mark.parametrize("size", [1, 30_000, 100_000])
def test_a_stretch_is_taken_from_both_ends(size: int) -> None:
    tape, stretch = Tape(), Stretch()
    pieces = [chunk(bytes([number]) * size) for number in range(40)]
    for piece in pieces:
        assert stretch.extend(tape.add(piece))
    copy = stretch.copy()
    front, back = 0, 40
    while stretch:
        assert stretch.first is pieces[front]
        assert stretch.oldest(3) == pieces[front : min(front + 3, back)]
        assert stretch.pop_first() is pieces[front]
        front += 1
        if stretch:
            back -= 1
            assert stretch.pop_last() is pieces[back]
    assert front == back
    assert copy.oldest(100) == pieces
    assert stretch.extend(tape.add(chunk(b"x")))  # an empty one begins anywhere


def test_a_stretch_that_lost_its_end_is_not_extended_over_the_hole() -> None:
    tape, stretch = Tape(), Stretch()
    for _ in range(3):
        stretch.extend(tape.add(chunk(b"x")))
    stretch.pop_last()
    assert not stretch.extend(tape.add(chunk(b"y")))
    assert data_of(stretch) == b"xx"


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 300_000)), max_size=80))
def test_queues_hold_what_they_were_given(steps: list[tuple[int, int]]) -> None:
    """Queue 3 stands for a new chunk of that size (an odd one the first does not get); the others send so much."""
    tape = Tape()
    queues = [SendQueue(tape, 1 << 30) for _ in range(3)]
    waiting = [bytearray() for _ in queues]
    for number, (who, size) in enumerate(steps):
        if who == 3:
            piece = chunk(bytes([number % 256]) * (size + 1))
            for queue, expected in zip(queues, waiting, strict=True):
                if queue is queues[0] and size % 2:
                    continue
                queue.append(piece)
                expected += piece.data
        else:
            count = min(size, sum(map(len, queues[who].buffers())))
            queues[who].consume(count)
            del waiting[who][:count]
        for queue, expected in zip(queues, waiting, strict=True):
            assert queue.size == len(expected)
            assert expected.startswith(b"".join(queue.buffers()))
    for queue, expected in zip(queues, waiting, strict=True):
        assert b"".join(queue.buffers(1 << 30)) == expected
