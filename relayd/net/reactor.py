"""The event loop: one thread, one selector, one clock, one heap of timers.

A turn is: wait for readiness, hand it out, run the timers that are due, then free what was closed.
That order carries three promises that the rest of the program stands on:

* Nothing that is closed during a turn is freed before its end (`at_turn_end`), so a list that is
  being walked does not change under the walker and a file descriptor's number is not reused while
  readiness of its former owner may still lie in the batch.
* What raises, raises alone: the handler that failed is told, everything else goes on.
* `now` is read once a turn and is what everything in the turn calls the time.
"""

from __future__ import annotations

import heapq
import itertools
import select
import selectors
import socket
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable
from typing import Protocol

from relayd.net.epoll import EpollSelector

READ = selectors.EVENT_READ
WRITE = selectors.EVENT_WRITE

# A heap of cancelled timers is swept when it holds more than this many and they are the majority:
# re-arming a million times then costs kilobytes instead of a hundred megabytes, at O(1) amortised.
_SWEEP_AT = 512

# How often handles that are registered for nothing are looked at, in seconds (see `set_interest`).
_DORMANT_CHECK = 1.0

_WAKE_UP = b"\0"


class UnwatchedError(OSError):
    """The kernel has no room to watch a descriptor: out of memory, or over fs.epoll.max_user_watches (epoll(7))."""


class Handler(Protocol):
    """What the reactor needs of an object that owns a file descriptor."""

    closed: bool  # readiness found after this is set belongs to the past and is not delivered
    feeds: bool  # what it reads is sent to others

    def fileno(self) -> int:
        """Return the file descriptor; it must not change while the handler is registered."""

    def ready(self, events: int) -> None:
        """The descriptor is ready for `events`, READ and WRITE or'ed."""

    def hung_up(self) -> None:
        """The connection broke while the handler was interested in nothing."""

    def failed(self, error: Exception) -> None:
        """`ready` or `hung_up` raised, or it cannot be watched (UnwatchedError); close what must be closed."""


class TimerHandle:
    """A call that is due at `when`, until it ran or was cancelled."""

    __slots__ = ("_reactor", "callback", "when")

    def __init__(self, reactor: Reactor, when: float, callback: Callable[[], None]) -> None:
        self._reactor = reactor
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make sure that the call never comes; harmless when it came already."""
        if self.callback is not None:
            self.callback = None
            self._reactor.timer_cancelled()


class Lag:
    """How late the loop is: a turn that lasts long lets everybody wait who is not in it."""

    __slots__ = ("_limit", "_told", "last", "max")

    def __init__(self) -> None:
        self.last = 0.0  # seconds: how late the turn's first timer was, or how long the turn took
        self.max = 0.0
        self._limit = float("inf")
        self._told: Callable[[float, str], None] = lambda seconds, ran: None

    def tell(self, limit: float, told: Callable[[float, str], None]) -> None:
        """Call `told(seconds, what ran)` for each turn that is later than `limit` seconds."""
        self._limit = limit
        self._told = told

    def note(self, seconds: float, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """A turn is over (for the reactor)."""
        self.last = seconds
        if seconds > self.max:
            self.max = seconds
        if seconds > self._limit:
            kinds = Counter(type(key.data).__name__ for key, _ in ready)
            self._told(seconds, ", ".join(f"{count} {kind}" for kind, count in kinds.items()) or "timers")


class Reactor:
    """Readiness, timers and wake-ups for everything in the process."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, selector: selectors.BaseSelector | None = None
    ) -> None:
        self._clock = clock
        self.now = clock()
        self._failed: Callable[[Exception], None] = _report
        self._selector = selector or EpollSelector()
        self._timers: list[tuple[float, int, TimerHandle]] = []
        self._sequence = itertools.count()  # keeps timers of one instant in the order they were set
        self._cancelled = 0
        self._freed: list[Callable[[], None]] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._interest: dict[Handler, int] = {}
        self._dormant: set[Handler] = set()
        self._dormant_timer: TimerHandle | None = None
        self._running = False
        self.lag = Lag()
        self._waker = _Waker(self)

    def on_failure(self, failed: Callable[[Exception], None]) -> None:
        """Have `failed` told of every exception that gets out of a callback; it must not raise."""
        self._failed = failed

    # -- readiness ------------------------------------------------------------------------------

    def set_interest(self, handler: Handler, events: int) -> None:
        """Ask for READ, WRITE, both or neither (0).

        Epoll reports a broken connection even to those who asked for nothing, again and again, and
        `selectors` cannot ask for nothing.  So 0 takes the descriptor out of the selector; that it
        broke is then found within a second by asking poll(2), and told by `hung_up`.
        Where the kernel refuses to watch, nothing is raised: the handler is told at the end of the turn.
        """
        try:
            self.watch(handler, events)
        except UnwatchedError as error:
            refusal = error  # the name `error` ends with this block
            self._interest.pop(handler, None)
            self._dormant.discard(handler)
            self.at_turn_end(lambda: None if handler.closed else handler.failed(refusal))

    def watch(self, handler: Handler, events: int) -> None:
        """Like `set_interest`, for those who can deal with an UnwatchedError at once."""
        before = self._interest.get(handler, 0)
        if events == before:
            if not events:
                self._watch_dormant(handler)
            return
        try:
            self._change(handler, before, events)
        except OSError as error:
            raise UnwatchedError(*error.args) from error

    def _change(self, handler: Handler, before: int, events: int) -> None:
        if not before:
            self._selector.register(handler.fileno(), events, handler)
            self._dormant.discard(handler)
        elif events:
            self._selector.modify(handler.fileno(), events, handler)
        else:
            self._selector.unregister(handler.fileno())
            self._watch_dormant(handler)
        if events:
            self._interest[handler] = events
        else:
            del self._interest[handler]

    def forget(self, handler: Handler) -> None:
        """Stop watching a handler, before its descriptor is closed."""
        if self._interest.pop(handler, 0):
            self._selector.unregister(handler.fileno())
        self._dormant.discard(handler)

    @property
    def watched(self) -> int:
        """How many handlers it knows, the waker among them."""
        return len(self._interest) + len(self._dormant)

    def _watch_dormant(self, handler: Handler) -> None:
        self._dormant.add(handler)
        if self._dormant_timer is None:
            self._dormant_timer = self.call_later(_DORMANT_CHECK, self._check_dormant)

    def _check_dormant(self) -> None:
        self._dormant_timer = None
        poll = select.poll()
        by_fd = {handler.fileno(): handler for handler in self._dormant}
        for fd in by_fd:
            poll.register(fd, 0)  # POLLERR and POLLHUP come unasked
        for fd, _ in poll.poll(0):
            handler = by_fd[fd]
            if not handler.closed:
                self.deliver(handler, handler.hung_up)
        if self._dormant:
            self._dormant_timer = self.call_later(_DORMANT_CHECK, self._check_dormant)

    # -- time -----------------------------------------------------------------------------------

    def call_later(self, delay: float, callback: Callable[[], None]) -> TimerHandle:
        """Call `callback` once, `delay` seconds from now (the clock's, not the turn's) or a little later."""
        handle = TimerHandle(self, self._clock() + delay, callback)
        heapq.heappush(self._timers, (handle.when, next(self._sequence), handle))
        return handle

    def timer_cancelled(self) -> None:
        """A timer in the heap will never run (for TimerHandle)."""
        self._cancelled += 1
        if self._cancelled > _SWEEP_AT and self._cancelled > len(self._timers) // 2:
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    @property
    def timers(self) -> int:
        """How many timers are waiting, the reactor's own among them."""
        return sum(entry[2].callback is not None for entry in self._timers)

    # -- other threads, signals, the end of the turn ----------------------------------------------

    @property
    def wakeup_fd(self) -> int:
        """A non-blocking descriptor for signal.set_wakeup_fd."""
        return self._waker.write_fd

    def on_wakeup(self, callback: Callable[[], None]) -> None:
        """Have `callback()` called in the loop after each wake-up."""
        self._waker.woken = callback

    def wake(self) -> None:
        """End the wait, or the next one; may be called from a signal handler and from another thread."""
        self._waker.wake()

    def post(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the loop; the one method that another thread may call."""
        self._posted.append(callback)
        self.wake()

    def run_posted(self) -> None:
        """Call what other threads have posted by now (for the waker)."""
        for _ in range(len(self._posted)):
            self.guard(self._posted.popleft())

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call `callback` when everything of this turn is done: the place to free things."""
        self._freed.append(callback)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Turn until `stop` is called."""
        self._running = True
        while self._running:
            self.turn()

    def stop(self) -> None:
        """Let `run` return at the end of the turn."""
        self._running = False

    def close(self) -> None:
        """Give back the reactor's own descriptors; it cannot be used after."""
        self._waker.close()
        self._selector.close()

    def turn(self, max_wait: float | None = None) -> None:
        """Wait for something to do, `max_wait` seconds at most, and do it."""
        ready = self._selector.select(self._wait_time(max_wait))
        self.now = self._clock()
        late = self.now - self._timers[0][0] if self._timers else 0.0
        if len(ready) > 1:
            # What others have to say comes first: data is not to be sent after an end that came before it.
            ready.sort(key=_feeds)
        for key, events in ready:
            handler: Handler = key.data
            if handler.closed:
                continue
            try:
                handler.ready(events)
            except Exception as error:
                self.handler_failed(handler, error)
        if self._timers and self._timers[0][0] <= self.now:
            self._run_timers()
        while self._freed:
            freed, self._freed = self._freed, []
            for callback in freed:
                self.guard(callback)
        self.lag.note(max(late, self._clock() - self.now), ready)

    def _wait_time(self, max_wait: float | None) -> float | None:
        if self._freed or self._posted:
            return 0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        if not self._timers:
            return max_wait
        due = max(0.0, self._timers[0][0] - self._clock())
        return due if max_wait is None else min(due, max_wait)

    def _run_timers(self) -> None:
        due = []
        while self._timers and self._timers[0][0] <= self.now:
            due.append(heapq.heappop(self._timers)[2])
        # Popped before any is run: a timer that sets another for at once gets it next turn.
        for handle in due:
            callback, handle.callback = handle.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                self.guard(callback)

    def deliver(self, handler: Handler, callback: Callable[[], None]) -> None:
        """Call something of a handler's, which is told if it raises."""
        try:
            callback()
        except Exception as error:
            self.handler_failed(handler, error)

    def handler_failed(self, handler: Handler, error: Exception) -> None:
        """Something of a handler's went wrong that nobody has thought of: report it, and tell the handler."""
        self._failed(error)
        self.guard(lambda: handler.failed(error))

    def guard(self, callback: Callable[[], None]) -> None:
        """Call something of somebody's; what it raises is reported and stops nobody else."""
        try:
            callback()
        except Exception as error:
            self._failed(error)


def _feeds(ready: tuple[selectors.SelectorKey, int]) -> bool:
    feeds: bool = ready[0].data.feeds
    return feeds


def _report(error: Exception) -> None:
    """Say on stderr what nobody else has been appointed to hear."""
    traceback.print_exception(type(error), error, error.__traceback__)


class _Waker:
    """A socketpair whose readable end is in the selector: what ends a wait from outside the loop."""

    def __init__(self, reactor: Reactor) -> None:
        self.closed = self.feeds = False
        self.woken: Callable[[], None] = lambda: None
        self._reactor = reactor
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self.write_fd = self._writer.fileno()
        reactor.watch(self, READ)

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        try:
            self._writer.send(_WAKE_UP)
        except OSError:
            # Full of wake-ups that were not yet read: one more says nothing new. Or the kernel is out of memory: the
            # signal was noted all the same, and to raise here is to raise wherever the signal found the loop.
            return

    def ready(self, events: int) -> None:
        self._reader.recv(4096)
        self._reactor.run_posted()
        self.woken()

    def hung_up(self) -> None:
        raise AssertionError("both ends of the wake-up pair are ours")

    def failed(self, error: Exception) -> None:
        """What was woken raised; the pair itself stays in use."""

    def close(self) -> None:
        self.closed = True
        self._reactor.forget(self)
        self._reader.close()
        self._writer.close()
