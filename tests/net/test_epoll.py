"""The selector: it says what the standard library's says."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from relayd.net.epoll import EpollSelector
from relayd.net.reactor import READ, WRITE

BOTH = READ | WRITE


class Pair:
    """The same descriptor in both selectors."""

    def __init__(self, stack: ExitStack) -> None:
        self.ours = stack.enter_context(EpollSelector())
        self.theirs = stack.enter_context(selectors.EpollSelector())
        self.near, self.far = (stack.enter_context(end) for end in socket.socketpair())
        self.near.setblocking(False)

    def ready(self) -> int:
        """Return for what it is ready, in which they must agree."""
        found = [
            {(key.fd, key.data, events) for key, events in selector.select(0)} for selector in (self.ours, self.theirs)
        ]
        assert found[0] == found[1]
        assert len(found[0]) <= 1
        return next((events for _, _, events in found[0]), 0)

    def register(self, events: int) -> None:
        for selector in (self.ours, self.theirs):
            selector.register(self.near.fileno(), events, "data")


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        yield Pair(stack)


@pytest.mark.parametrize("events", [READ, WRITE, BOTH])
def test_what_it_is_ready_for(pair: Pair, events: int) -> None:
    pair.register(events)
    assert pair.ready() == events & WRITE
    pair.far.send(b"x")
    assert pair.ready() == events
    while True:
        try:
            pair.near.send(bytes(65536))
        except BlockingIOError:
            break
    assert pair.ready() == events & READ


@pytest.mark.parametrize("events", [READ, WRITE, BOTH])
def test_an_end_and_a_break_are_told_to_whoever_asked_for_anything(pair: Pair, events: int) -> None:
    pair.register(events)
    pair.far.shutdown(socket.SHUT_WR)
    assert pair.ready() == events
    pair.far.close()
    assert pair.ready() == events


def test_other_events_and_no_events(pair: Pair) -> None:
    pair.register(READ)
    for selector in (pair.ours, pair.theirs):
        selector.modify(pair.near.fileno(), WRITE, "other")
    assert pair.ready() == WRITE
    assert pair.ours.get_map() == {pair.near.fileno(): pair.theirs.get_key(pair.near.fileno())}
    for selector in (pair.ours, pair.theirs):
        assert selector.unregister(pair.near.fileno()).data == "other"
    assert pair.ready() == 0 and not pair.ours.get_map()


def test_what_cannot_be_watched_is_not_kept() -> None:
    with EpollSelector() as selector, open(os.devnull) as file:
        with pytest.raises(PermissionError):
            selector.register(file.fileno(), READ)
        assert not selector.get_map()


def test_a_descriptor_that_was_closed_can_still_be_forgotten(pair: Pair) -> None:
    pair.register(READ)
    fd = pair.near.detach()
    os.close(fd)
    assert pair.ours.unregister(fd).fd == fd
    assert pair.ours.select(0) == []


def test_it_waits_no_longer_than_it_is_told(pair: Pair) -> None:
    pair.register(READ)
    assert pair.ours.select(0.0001) == []
    pair.far.send(b"x")
    assert len(pair.ours.select(None)) == 1


def test_its_own_descriptor_is_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    selector = EpollSelector()
    assert os.readlink(f"/proc/self/fd/{selector.fileno()}") == "anon_inode:[eventpoll]"
    selector.close()
    assert len(os.listdir("/proc/self/fd")) == before
