"""Bytes through a pipe, from socket to socket."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from relayd.net.pipe import Pipe, SpliceRefused

Pair = Callable[[], tuple[socket.socket, socket.socket]]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:

        def connected() -> tuple[socket.socket, socket.socket]:
            one, other = socket.socketpair()
            for end in (one, other):
                stack.enter_context(end).setblocking(False)
            return one, other

        yield connected


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_what_goes_in_comes_out(pair: Pair) -> None:
    (feeder, source), (destination, reader) = pair(), pair()
    pipe = Pipe()
    feeder.send(b"hello")
    assert (pipe.fill_from(source.fileno(), 3, 0.0), pipe.held) == (3, 3)
    assert (pipe.fill_from(source.fileno(), 100, 0.0), pipe.held) == (2, 5)
    assert (pipe.empty_into(destination.fileno()), pipe.held) == (5, 0)
    assert reader.recv(100) == b"hello"
    with pytest.raises(BlockingIOError):
        pipe.fill_from(source.fileno(), 100, 0.0)
    feeder.close()
    assert pipe.fill_from(source.fileno(), 100, 0.0) == 0
    pipe.close()


def test_what_it_holds_can_be_read_instead(pair: Pair) -> None:
    feeder, source = pair()
    pipe = Pipe()
    sent = b"".join(b"%07d\n" % number for number in range(10_000))
    feeder.send(sent)
    while pipe.held < len(sent):
        pipe.fill_from(source.fileno(), 1 << 20, 0.0)
    assert (pipe.pour(), pipe.held, pipe.pour()) == (sent, 0, b"")
    pipe.close()


def test_a_closed_one_leaves_no_descriptor() -> None:
    before = descriptors()
    pipe = Pipe()
    assert descriptors() == before + 2
    pipe.close()
    assert descriptors() == before


def test_l9_without_descriptors_there_is_none_to_be_had() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(SpliceRefused):
            Pipe()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_one_that_is_too_small_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relayd.net.pipe._WANTED", 4096)  # what a user gets who has too many pipes: it shrinks
    before = descriptors()
    with pytest.raises(SpliceRefused):
        Pipe()
    assert descriptors() == before
