"""Signals only wake the loop; what they mean happens there."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from relayd.net.reactor import Reactor


class Signals:
    """Routes signals into a reactor, from `install` to `restore` or `ignore`.

    Which signals came is noted in a set, not read from the wake-up pipe: the pipe holds some hundred
    bytes, and a storm of one signal must not push another out.
    """

    def __init__(self, reactor: Reactor, actions: Mapping[signal.Signals, Callable[[], None]]) -> None:
        self._reactor = reactor
        self._actions = dict(actions)
        self._came: set[int] = set()
        self._before: dict[signal.Signals, Any] = {}
        self._fd_before = -1

    def install(self) -> None:
        """Take the signals over."""
        self._reactor.on_wakeup(self._deliver)
        # The byte that Python writes ends a wait that began just after the handler could have run. A
        # full pipe means that the loop will wake up anyway: nothing to warn of.
        self._fd_before = signal.set_wakeup_fd(self._reactor.wakeup_fd, warn_on_full_buffer=False)
        for number in self._actions:
            self._before[number] = signal.signal(number, self._note)
        # Whoever started us may have blocked them, and a mask is inherited: we would be deaf for ever.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._actions)

    def restore(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)

    def ignore(self) -> None:
        """Let no signal come between the end of the loop and the end of the process."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(self._fd_before)

    def _note(self, number: int, frame: object) -> None:
        self._came.add(number)
        self._reactor.wake()

    def _deliver(self) -> None:
        came, self._came = self._came, set()
        for number, action in self._actions.items():
            if number in came:
                self._reactor.guard(action)
