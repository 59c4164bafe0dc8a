"""The send queue: references to shared chunks, and one offset."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from relayd.net.transport import Buffer
from relayd.sendqueue import SendQueue
from relayd.wire.framing import line_border_before, raw_border_before


def joined(buffers: Sequence[Buffer]) -> bytes:
    return b"".join(buffers)


def test_an_idle_queue_has_nothing_to_send() -> None:
    queue = SendQueue(10)
    assert (queue.size, list(queue.buffers()), queue.clear(), queue.rewind(line_border_before)) == (0, [], 0, 0)


def test_chunks_are_shared_not_copied() -> None:
    queue, chunk = SendQueue(10), b"chunk"
    queue.append(b"first")
    queue.append(chunk)
    assert queue.buffers()[1] is chunk
    assert isinstance(queue.buffers()[0], memoryview)


def test_s22_the_offset_of_a_short_write_is_kept() -> None:
    queue = SendQueue(100)
    queue.append(b"abcdef", 2)
    queue.append(b"ghi")
    assert (queue.size, joined(queue.buffers())) == (7, b"cdefghi")
    queue.consume(5)
    assert (queue.size, queue.offset, joined(queue.buffers())) == (2, 1, b"hi")
    queue.consume(2)
    assert (queue.size, queue.offset, list(queue.buffers())) == (0, 0, [])


def test_an_empty_queue_takes_a_chunk_of_any_size() -> None:
    queue = SendQueue(4)
    assert queue.fits(b"12345678")
    queue.append(b"12345678", 7)
    assert queue.fits(b"123")
    assert not queue.fits(b"1234")


def test_the_limit_itself_fits() -> None:
    queue = SendQueue(4)
    queue.append(b"12")
    assert queue.fits(b"34")
    assert not queue.fits(b"345")


def test_one_call_gets_a_bounded_number_of_buffers() -> None:
    queue = SendQueue(1 << 20)
    for _ in range(5000):
        queue.append(b"x")
    assert 0 < len(queue.buffers()) <= 1024  # IOV_MAX


def test_a_lost_link_rewinds_to_the_record_it_cut() -> None:
    queue = SendQueue(100)
    queue.append(b"one\ntwo\nthree\n", 10)
    assert queue.rewind(line_border_before) == 2
    assert joined(queue.buffers()) == b"three\n"
    assert queue.rewind(line_border_before) == 0  # offset 8 is a border


def test_raw_goes_on_at_the_first_unsent_byte() -> None:
    queue = SendQueue(100)
    queue.append(b"abcdef", 4)
    assert queue.rewind(raw_border_before) == 0
    assert joined(queue.buffers()) == b"ef"


def test_clear_forgets_the_offset() -> None:
    queue = SendQueue(100)
    queue.append(b"abcdef", 4)
    assert queue.clear() == 2
    queue.append(b"new")
    assert joined(queue.buffers()) == b"new"


@given(st.lists(st.one_of(st.binary(min_size=1, max_size=9), st.integers(0, 12)), max_size=60))
def test_what_is_consumed_is_what_was_appended(steps: list[bytes | int]) -> None:
    queue = SendQueue(1)
    put, got = bytearray(), bytearray()
    for step in steps:
        if isinstance(step, bytes):
            queue.append(step)
            put += step
        else:
            front = joined(queue.buffers())
            assert len(front) == queue.size or len(queue.buffers()) >= 64
            count = min(step, len(front))
            got += front[:count]
            queue.consume(count)
        assert got + joined(queue.buffers()) == put[: len(got) + len(joined(queue.buffers()))]
        assert len(got) + queue.size == len(put)
