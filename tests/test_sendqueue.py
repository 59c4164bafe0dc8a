"""What waits for one link: a place on the tape, and in front of it the chunk that is being sent."""

from __future__ import annotations

import os
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from relayd.net.pipe import Pipe
from relayd.net.transport import Buffer
from relayd.sendqueue import SendQueue
from relayd.tape import Tape
from relayd.wire.framings import LINE, RAW
from tests.fakes import chunk


def joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def queue_of(*lines: bytes, limit: int = 100) -> SendQueue:
    queue = SendQueue(Tape(), limit)
    for line in lines:
        queue.append(chunk(line))
    return queue


def test_an_idle_queue_has_nothing_to_send() -> None:
    queue = queue_of()
    assert (queue.size, queue.buffers(), queue.clear(LINE), queue.rewind(LINE)) == (0, [], (0, 0), 0)
    assert queue.front is None


def test_chunks_are_shared_not_copied() -> None:
    tape, shared = Tape(), chunk(b"chunk\n")
    one, two = SendQueue(tape, 10), SendQueue(tape, 10)
    one.append(shared)
    two.append(shared)
    assert one.buffers()[0] is two.buffers()[0] is shared.data


def test_s22_the_offset_of_a_short_write_is_kept() -> None:
    queue = queue_of()
    queue.begin(chunk(b"abcdef"), 2)
    queue.append(chunk(b"ghi"))
    assert (queue.size, joined(queue.buffers())) == (7, b"cdefghi")
    assert isinstance(queue.buffers()[0], memoryview)
    queue.consume(5)
    assert (queue.size, queue.offset, joined(queue.buffers())) == (2, 1, b"hi")
    queue.consume(2)
    assert (queue.size, queue.offset, queue.buffers(), queue.front) == (0, 0, [], None)


def test_an_empty_queue_takes_a_chunk_of_any_size() -> None:
    queue = queue_of(limit=4)
    assert queue.fits(chunk(b"12345678"))
    queue.begin(chunk(b"12345678"), 7)
    assert queue.fits(chunk(b"123"))
    assert not queue.fits(chunk(b"1234"))


def test_the_limit_itself_fits() -> None:
    queue = queue_of(b"12", limit=4)
    assert queue.fits(chunk(b"34"))
    assert not queue.fits(chunk(b"345"))


def test_one_call_gets_a_bounded_number_of_buffers() -> None:
    queue = queue_of(*[b"x"] * 5000)
    assert 0 < len(queue.buffers()) <= 1024  # IOV_MAX


def test_a_lost_link_rewinds_to_the_record_it_cut() -> None:
    queue = queue_of()
    queue.begin(chunk(b"one\ntwo\nthree\n"), 10)
    assert queue.rewind(LINE) == 2
    assert joined(queue.buffers()) == b"three\n"
    assert queue.rewind(LINE) == 0  # offset 8 is a border


def test_raw_goes_on_at_the_first_unsent_byte() -> None:
    queue = queue_of()
    queue.begin(chunk(b"abcdef", RAW), 4)
    assert queue.rewind(RAW) == 0
    assert joined(queue.buffers()) == b"ef"


def test_clear_counts_the_record_that_was_begun_and_forgets_the_offset() -> None:
    queue = queue_of()
    queue.begin(chunk(b"one\ntwo\nthree\n"), 5)
    queue.append(chunk(b"four\n"))
    assert queue.clear(LINE) == (9 + 5, 3)
    queue.append(chunk(b"new\n"))
    assert (joined(queue.buffers()), queue.clear(LINE)) == (b"new\n", (4, 1))


# -- what is dropped ----------------------------------------------------------------------------


def test_drop_oldest_drops_whole_chunks_and_says_what() -> None:
    queue = queue_of(b"a\nb\n", b"c\n")
    assert queue.drop_oldest(LINE) == (4, 2)
    assert queue.drop_oldest(LINE) == (2, 1)
    assert queue.drop_oldest(LINE) == (0, 0)
    assert (queue.size, queue.front) == (0, None)


def test_drop_oldest_keeps_the_record_that_is_being_sent() -> None:
    queue = queue_of()
    queue.begin(chunk(b"one\ntwo\nthree\n"), 5)
    queue.append(chunk(b"four\n"))
    assert queue.drop_oldest(LINE) == (6, 1)  # three
    assert joined(queue.buffers()) == b"wo\nfour\n"
    assert queue.drop_oldest(LINE) == (5, 1)  # four
    assert queue.drop_oldest(LINE) == (0, 0)
    assert (queue.size, queue.rewind(LINE), joined(queue.buffers())) == (3, 1, b"two\n")
    assert queue.clear(LINE) == (4, 1)


def test_drop_oldest_keeps_nothing_of_a_record_that_was_not_begun() -> None:
    queue = queue_of()
    queue.begin(chunk(b"one\ntwo\n"), 4)
    queue.append(chunk(b"three\n"))
    assert queue.drop_oldest(LINE) == (4, 1)
    assert joined(queue.buffers()) == b"three\n"


def test_drop_newest_drops_from_the_end_but_not_what_was_begun() -> None:
    queue = queue_of()
    queue.begin(chunk(b"one\n"), 1)
    queue.append(chunk(b"two\n"))
    queue.append(chunk(b"three\nfour\n"))
    assert queue.drop_newest() == (11, 2)
    assert queue.drop_newest() == (4, 1)
    assert queue.drop_newest() == (0, 0)
    assert joined(queue.buffers()) == b"ne\n"


def test_what_was_left_out_is_no_part_of_the_queue() -> None:
    tape = Tape()
    one, other = SendQueue(tape, 100), SendQueue(tape, 100)
    for number in range(9):
        line = chunk(b"%d\n" % number)
        other.append(line)
        if number not in (3, 4, 7):
            one.append(line)
    assert joined(one.buffers()) == b"0\n1\n2\n5\n6\n8\n"
    one.consume(9)
    assert joined(one.buffers()) == b"\n8\n"
    assert one.clear(LINE) == (3, 2)
    assert joined(other.buffers()) == b"".join(b"%d\n" % number for number in range(9))


# -- what never entered the process ---------------------------------------------------------------


def test_what_is_in_the_pipe_comes_first_when_it_is_poured() -> None:
    queue = queue_of()
    queue.pipe = Pipe()
    reader, writer = os.pipe()
    os.write(writer, b"spliced ")
    queue.size += queue.pipe.fill_from(reader, 100, 0.0)
    queue.append(chunk(b"read", RAW))
    queue.pour()
    assert (queue.size, joined(queue.buffers()), queue.pipe) == (12, b"spliced read", None)
    os.close(reader)
    os.close(writer)


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.integers(0, 12)), max_size=60))
def test_what_is_consumed_is_what_was_appended(steps: list[bytes | int]) -> None:
    queue = queue_of()
    put, got = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            queue.append(chunk(step))
            put += step
        else:
            front = joined(queue.buffers())
            assert len(front) == queue.size or len(queue.buffers()) >= 64
            count = min(step, len(front))
            got += front[:count]
            queue.consume(count)
        assert got + joined(queue.buffers()) == put[: len(got) + len(joined(queue.buffers()))]
        assert len(got) + queue.size == len(put)
        assert bool(queue.size) == (queue.front is not None)
