"""Signals only wake the loop; what they mean happens there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from relayd.net.reactor import Reactor


class Signals:
    """Routes signals into a reactor, from `install` to `restore`."""

    def __init__(self, reactor: Reactor, actions: Mapping[signal.Signals, Callable[[], None]]) -> None:
        self._reactor = reactor
        self._actions = dict(actions)
        self._before: dict[signal.Signals, object] = {}
        self._fd_before = -1

    def install(self) -> None:
        """Take the signals over."""
        self._reactor.on_signal(self._signalled)
        # A full pipe of wake-ups means that the loop will wake up: nothing to warn of.
        self._fd_before = signal.set_wakeup_fd(self._reactor.wakeup_fd, warn_on_full_buffer=False)
        for number in self._actions:
            self._before[number] = signal.signal(number, _ignore)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._fd_before)

    def _signalled(self, number: int) -> None:
        action = self._actions.get(signal.Signals(number))
        if action is not None:
            action()


def _ignore(number: int, frame: object) -> None:
    """Python writes the number to the wake-up descriptor; that is all that is wanted of a handler."""
