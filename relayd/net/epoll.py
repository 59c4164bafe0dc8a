"""epoll(7) with the face of `selectors`, at half of its cost a turn.

A relay of small messages makes a turn for each, and comes to it from a wait in which the processor's caches were
somebody else's: each frame and each attribute on the way is paid for with memory that is far away.
"""

from __future__ import annotations

import contextlib
import select
import selectors
from collections.abc import Mapping
from selectors import EVENT_READ, EVENT_WRITE, SelectorKey
from typing import Any

# What epoll tells of READ alone and of WRITE alone; all else, as a connection that broke, is for both.
_ONLY_IN = select.EPOLLIN
_ONLY_OUT = select.EPOLLOUT


class EpollSelector(selectors.BaseSelector):
    """Watches descriptors; whoever registers one is its SelectorKey's `data`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._keys: dict[int, SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch the descriptor, a number; raises OSError."""
        self._epoll.register(fileobj, _mask(events))
        key = self._keys[fileobj] = SelectorKey(fileobj, fileobj, events, data)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> SelectorKey:
        """Watch it for other events; raises OSError."""
        self._epoll.modify(fileobj, _mask(events))
        key = self._keys[fileobj] = SelectorKey(fileobj, fileobj, events, data)
        return key

    def unregister(self, fileobj: Any) -> SelectorKey:
        """Watch it no more."""
        key = self._keys.pop(fileobj)
        with contextlib.suppress(OSError):  # the kernel forgets one by itself when it is closed
            self._epoll.unregister(fileobj)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[SelectorKey, int]]:
        """Wait `timeout` seconds at most, rounded up to a millisecond; return who is ready for what."""
        keys = self._keys
        ready = []
        for fd, happened in self._epoll.poll(timeout, len(keys) or 1):
            key = keys.get(fd)
            if key is not None:
                events = (EVENT_WRITE if happened & ~_ONLY_IN else 0) | (EVENT_READ if happened & ~_ONLY_OUT else 0)
                ready.append((key, events & key.events))
        return ready

    def close(self) -> None:
        """Give the descriptor back."""
        self._keys.clear()
        self._epoll.close()

    def fileno(self) -> int:
        """Return epoll's own descriptor."""
        return self._epoll.fileno()

    def get_map(self) -> Mapping[Any, SelectorKey]:
        """Return the keys by descriptor."""
        return self._keys


def _mask(events: int) -> int:
    return (_ONLY_IN if events & EVENT_READ else 0) | (_ONLY_OUT if events & EVENT_WRITE else 0)
