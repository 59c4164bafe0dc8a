"""Writing to a descriptor that must never be waited for."""

from __future__ import annotations

import errno
import os
import pty
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.observe.writer import LossyWriter, unshared
from tests.fakes import FakeReactor
from tests.observe.test_dump import file_size_limit

MIB = 1024 * 1024


class Pipe:
    """A blocking pipe, as a shell would make; a write that waited would hang the test."""

    def __init__(self) -> None:
        self.reader, self.fd = os.pipe()
        self.reactor = FakeReactor()
        self.writer = LossyWriter(self.reactor, self.fd)

    def read_all(self) -> bytes:
        """Read until nothing comes any more, letting the writer try again in between."""
        got = bytearray()
        os.set_blocking(self.reader, False)
        while True:
            try:
                got += os.read(self.reader, MIB)
            except BlockingIOError:
                if not self.reactor.timers:
                    return bytes(got)
                self.reactor.advance(self.reactor.next_delay)

    def fill(self, record: bytes) -> int:
        """Write the record until one is lost; return how many were taken."""
        taken = 0
        while self.writer.write(record):
            taken += 1
            assert taken < 100_000
        return taken

    def close(self) -> None:
        for fd in {self.reader, self.fd}:
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_what_fits_is_written_at_once(pipe: Pipe) -> None:
    assert pipe.writer.write(b"line\n")
    assert os.read(pipe.reader, 100) == b"line\n"
    assert pipe.reactor.timers == 0


def test_the_descriptor_s_flags_are_left_alone(pipe: Pipe) -> None:
    assert os.get_blocking(pipe.fd)
    pipe.fill(b"x" * 5000)
    assert os.get_blocking(pipe.fd)


def test_a_full_pipe_never_blocks_loses_whole_writes_and_counts(pipe: Pipe) -> None:
    records = [b"%07d\n" % number + b"x" * 4999 + b"\n" for number in range(1000)]
    kept = [record for record in records if pipe.writer.write(record)]
    assert 0 < len(kept) < len(records)
    assert pipe.writer.lost == len(records) - len(kept)
    assert pipe.read_all() == b"".join(kept)
    assert pipe.writer.lost == len(records) - len(kept)


def test_the_queue_is_bounded(pipe: Pipe) -> None:
    assert pipe.fill(b"x" * 1000) * 1000 <= 2 * MIB


def test_it_recovers(pipe: Pipe) -> None:
    pipe.fill(b"x" * 5000)
    pipe.read_all()
    assert pipe.writer.write(b"after\n")
    assert pipe.read_all() == b"after\n"
    assert pipe.reactor.timers == 0


def test_whether_there_is_room_is_known_before_writing(pipe: Pipe) -> None:
    assert pipe.writer.has_room()
    while pipe.writer.has_room():
        assert pipe.writer.write(b"x" * 1024)
    assert pipe.writer.write(b"x" * 1024) is False
    pipe.read_all()
    assert pipe.writer.has_room()


def test_one_retry_is_pending_not_one_for_each_write(pipe: Pipe) -> None:
    pipe.fill(b"x" * 1000)
    assert pipe.reactor.timers == 1


def test_s21_a_reader_that_is_gone_is_survived(pipe: Pipe) -> None:
    os.close(pipe.reader)
    pipe.reader = pipe.fd
    pipe.writer.write(b"one\n")
    assert pipe.writer.write(b"two\n") is False
    pipe.reactor.advance(10)
    pipe.writer.flush()
    assert pipe.reactor.timers == 0
    assert pipe.writer.lost >= 1


def test_s21_a_reader_that_goes_while_something_waits(pipe: Pipe) -> None:
    taken = pipe.fill(b"x" * 5000)
    lost = pipe.writer.lost
    os.close(pipe.reader)
    pipe.reader = pipe.fd
    pipe.reactor.advance(1)
    assert pipe.reactor.timers == 0
    assert lost < pipe.writer.lost <= lost + taken


def test_what_waits_is_never_written_to_whoever_gets_the_number_next(pipe: Pipe) -> None:
    taken = pipe.fill(b"x" * 5000)
    lost = pipe.writer.lost
    pipe.writer.close()
    assert pipe.reactor.timers == 0
    assert 0 < pipe.writer.lost - lost < taken
    reader, writer = os.pipe()
    os.dup2(writer, pipe.fd)
    os.close(writer)
    assert not pipe.writer.has_room()
    assert pipe.writer.write(b"more") is False
    pipe.writer.flush()
    pipe.reactor.advance(10)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    os.close(reader)


def test_closing_writes_what_is_taken_at_once(pipe: Pipe) -> None:
    taken = pipe.fill(b"x" * 5000)
    lost = pipe.writer.lost
    got = len(os.read(pipe.reader, MIB))
    assert pipe.writer.close() == taken - (2 * got) // 5000 == pipe.writer.lost - lost
    assert len(pipe.read_all()) == got
    pipe.writer.close()


@pytest.mark.parametrize("end", ["the reader leaves", "close"])
def test_whoever_wrote_what_waits_hears_that_it_came_to_nothing(pipe: Pipe, end: str) -> None:
    heard: list[int] = []
    taken = [number for number in range(300) if pipe.writer.write(b"x" * 5000, partial(heard.append, number))]
    assert not heard  # what is not taken at all is told by the return value alone
    if end == "close":
        pipe.writer.close()
    else:
        os.close(pipe.reader)
        pipe.reader = pipe.fd
        assert not pipe.writer.write(b"x" * 5000, lambda: heard.append(-1))
        pipe.reactor.advance(1)
    assert 0 < len(heard) < len(taken)
    assert heard == taken[-len(heard) :]
    assert pipe.writer.lost == 300 - len(taken) + len(heard) + (end != "close")


def test_what_fails_is_said_once_rests_and_is_tried_again(tmp_path: Path) -> None:
    reactor, said = FakeReactor(), []
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    fd = os.open(tmp_path / "fifo", os.O_WRONLY)
    writer = LossyWriter(reactor, fd, 30.0, lambda error: said.append(error.errno))
    os.close(reader)
    for _ in range(100):
        assert not writer.write(b"lost\n")
        assert not writer.has_room()
        reactor.advance(1)
    assert (said, writer.lost) == ([errno.EPIPE], 100)
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert not writer.write(b"lost\n")  # the next try is not due
    reactor.advance(30)
    assert writer.write(b"back\n")
    assert writer.write(b"on\n")
    assert os.read(reader, 100) == b"back\non\n"
    os.close(reader)
    assert not writer.write(b"lost\n")
    assert len(said) == 2
    os.close(fd)


def test_a_terminal_that_takes_nothing_is_not_awaited() -> None:
    """Of a stopped terminal (Ctrl-S, a connection that hangs) poll(2) says that it can be written to."""
    terminal, fd = pty.openpty()
    own = unshared(fd)
    reactor = FakeReactor()
    writer = LossyWriter(reactor, own)
    taken = 0
    while writer.write(b"%06d" % taken + b"x" * 993 + b"\n"):
        taken += 1
    got = bytearray()
    while got.count(b"\n") < taken:
        got += os.read(terminal, 300)
        reactor.advance(0.1)
    assert [int(row[:6]) for row in got.split(b"\r\n")[:-1]] == list(range(taken))
    assert os.get_blocking(fd)  # it is the shell's
    for each in (terminal, fd, own):
        os.close(each)


@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_what_others_share_is_left_as_it_is(tmp_path: Path, kind: str) -> None:
    pair = socket.socketpair()
    reader, pipe = os.pipe()
    file = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    fd = {"file": file, "pipe": pipe, "socket": pair[0].fileno()}[kind]
    own = unshared(fd)
    assert (own == fd) == (kind != "pipe")  # a file's offset is shared, too
    assert os.get_blocking(own) == (kind != "pipe")
    assert os.get_blocking(fd)
    assert not os.get_inheritable(own)
    for each in {reader, pipe, file, own} - {pair[0].fileno()}:
        os.close(each)
    for sock in pair:
        sock.close()


@pytest.mark.parametrize("rest", [0.0, 30.0])
def test_a_row_that_a_full_disk_has_cut_is_finished_when_there_is_room(tmp_path: Path, rest: float) -> None:
    reactor = FakeReactor()
    fd = os.open(tmp_path / "dump", os.O_WRONLY | os.O_CREAT)
    writer = LossyWriter(reactor, fd, rest)
    with file_size_limit(1000):
        assert writer.write(b"a" * 699 + b"\n")
        assert writer.write(b"b" * 699 + b"\n")
        assert not writer.write(b"c" * 699 + b"\n")
        reactor.advance(60)
        assert not writer.write(b"d" * 699 + b"\n")
    reactor.advance(30)
    assert writer.write(b"e" * 699 + b"\n")
    rows = (tmp_path / "dump").read_bytes().splitlines()
    assert rows == [letter * 699 for letter in (b"a", b"b", b"e")]
    assert writer.lost == 2
    assert reactor.timers == 0
    os.close(fd)


def test_a_full_disk_loses_and_goes_on() -> None:
    reactor = FakeReactor()
    fd = os.open("/dev/full", os.O_WRONLY)
    writer = LossyWriter(reactor, fd)
    for _ in range(3):
        writer.write(b"line\n")
    assert writer.lost == 3
    assert reactor.timers == 0
    os.close(fd)


def test_a_file_takes_everything(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    writer = LossyWriter(FakeReactor(), fd)
    assert writer.write(b"x" * 3 * MIB)
    assert writer.write(b"end\n")
    os.close(fd)
    assert (tmp_path / "log").stat().st_size == 3 * MIB + 4


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(st.integers(1, 300_000), st.just(-1)), max_size=40))
def test_what_comes_out_is_the_writes_that_were_taken(steps: list[int]) -> None:
    pipe = Pipe()
    try:
        expected, got, lost = bytearray(), bytearray(), 0
        for number, size in enumerate(steps):
            if size < 0:
                got += pipe.read_all()
            elif pipe.writer.write(record := bytes([number]) * size):
                expected += record
            else:
                lost += 1
        got += pipe.read_all()
        assert got == expected
        assert pipe.writer.lost == lost
    finally:
        pipe.close()
