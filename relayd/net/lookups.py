"""Look-ups of many names, made before anything that would block for want of an answer."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Collection

from relayd.address import TcpAddress
from relayd.net.reactor import Reactor
from relayd.net.resolver import Answer, Resolver

Answers = dict[TcpAddress, Answer]


class Lookups:
    """Looks the names of addresses up, all at the same time; ends in one call of `answered`, or is cancelled."""

    def __init__(
        self,
        reactor: Reactor,
        resolver: Resolver,
        addresses: Collection[TcpAddress],
        timeout: float,
        answered: Callable[[Answers], None],
    ) -> None:
        """`answered(what each name stands for, or the error)` is called in a later turn, within `timeout` seconds."""
        self._timeout = timeout
        self._all_answered = answered
        self._answers: Answers = {}
        self._timer = reactor.call_later(timeout, self._timed_out)
        self._resolutions = {
            address: resolver.resolve(address.host, address.port, functools.partial(self._answered, address))
            for address in addresses
        }

    def cancel(self) -> None:
        """No answer is wanted any more."""
        self._timer.cancel()
        for resolution in self._resolutions.values():
            resolution.cancel()

    def _answered(self, address: TcpAddress, answer: Answer) -> None:
        self._answers[address] = answer
        if len(self._answers) == len(self._resolutions):
            self._end()

    def _timed_out(self) -> None:
        for address in self._resolutions:
            reason = f"look-up of {address.host} timed out after {self._timeout:g} s"
            self._answers.setdefault(address, TimeoutError(errno.ETIMEDOUT, reason))
        self._end()

    def _end(self) -> None:
        self.cancel()
        self._all_answered(self._answers)
