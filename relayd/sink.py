"""Where a pipeline ends: the send queue and the link, if there is one, of one destination.

The fast path is one call, and the pipeline makes it: link up, queue empty (`idle`), push the chunk, and
the kernel took it all.  Only the rest of a short write is queued, and only then is anything asked of
the selector or a timer.

A sink without a link queues.  A listening destination's sink lives as long as its client; a
connected one's outlives its links, and what one link cut is sent again whole on the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from relayd.brake import Brake
from relayd.net.pipe import Pipe, SpliceRefused
from relayd.net.reactor import Reactor
from relayd.net.transport import Buffer
from relayd.observe.log import BoundLog
from relayd.pipeline import Incoming, Pipeline, Pushed
from relayd.policy.overflow import NEVER_SLOW, Relief, SlowAfter
from relayd.sendqueue import BATCH, SendQueue
from relayd.slowness import SlownessWatch
from relayd.wire.chunk import Chunk
from relayd.wire.framing import Framing

# A splice of less than this says that the source has no more just now.
_SLACK = 64 * 1024


class Outgoing(Pushed, Protocol):
    """The part of a transport that a sink uses."""

    def send_all_of(self, buffers: Sequence[Buffer]) -> int:
        """See Transport.send_all_of."""

    def send_from(self, pipe: Pipe) -> int:
        """See Transport.send_from."""

    def watch_writing(self, wanted: bool) -> None:
        """See Transport.watch_writing."""

    def unacknowledged(self) -> int:
        """See Transport.unacknowledged."""

    def close(self, reason: str) -> None:
        """See Transport.close."""

    def abort(self, reason: str) -> None:
        """See Transport.abort."""


@dataclass(frozen=True)
class SinkSettings:
    """What all sinks of one direction of a relay share."""

    reactor: Reactor
    pipeline: Pipeline
    framing: Framing
    buffer: int  # bytes
    relief: Relief
    kept: bool  # the sink outlives its links
    stall_timeout: float = 0.0  # seconds, 0: never
    slow_after: SlowAfter = NEVER_SLOW
    max_age: float = 0.0  # seconds; what has waited longer is dropped when it would be sent; 0: nothing is


@dataclass
class _Gap:
    """What was dropped when the destination began to miss something, and when that was."""

    dropped: int
    records: int
    since: float


class Sink:
    """One destination's way out. At every moment: put == sent - repeated + dropped + queue.size."""

    __slots__ = (
        "_brake", "_closing", "_ended", "_gap", "_log", "_settings", "_transport", "_unspliceable", "_watch",
        "dropped", "dropped_records", "emptied", "idle", "queue", "repeated", "sent", "stale_records",
    )  # fmt: skip

    def __init__(self, settings: SinkSettings, log: BoundLog) -> None:
        """`log` names the destination."""
        self._log = log
        self._settings = settings
        self._transport: Outgoing | None = None
        self._closing = ""  # the reason, once the link is to be closed when the queue is empty
        self._ended = False  # the one link of a sink that is not kept was closed
        self._gap: _Gap | None = None
        self._watch: SlownessWatch | None = None
        self._unspliceable = False
        self._brake: Brake | None = None  # once something was left in the pipe, and the source may be held for it
        self.idle: Outgoing | None = None  # the link, if it is up and nothing waits
        self.queue = SendQueue(settings.pipeline.tape, settings.buffer)
        self.sent = 0  # bytes that the kernel took
        self.repeated = 0  # of these, sent again
        self.dropped = 0  # bytes that left the queue unsent
        self.dropped_records = 0
        self.stale_records = 0  # of these, because they had waited too long
        self.emptied = 0  # how often the queue was, for being full while there was no link to cut

    # -- the stream -----------------------------------------------------------------------------

    def put(self, chunk: Chunk) -> None:
        """Send the chunk, or queue what is not taken at once."""
        if self.idle is None:
            self._enqueue(chunk)
        else:
            self.queue.begin(chunk, 0)
            self.flush()

    def put_rest(self, chunk: Chunk, sent: int) -> None:
        """The idle link took `sent` bytes of the chunk: queue the others."""
        assert self.idle is not None
        self.queue.begin(chunk, sent)
        self._wait_for_room(self.idle)

    def flush(self, batch: int = BATCH) -> None:
        """Send from the queue as far as the kernel takes it, `batch` chunks at most."""
        queue = self.queue
        transport = self._transport
        if transport is None:
            return
        if queue.pipe is not None and queue.pipe.held:
            self._flush_pipe(transport, queue.pipe)
        elif queue.size:
            self.drop_stale()
            self.record_sent(transport.send_all_of(queue.buffers(batch)))
        if queue.size:
            self._wait_for_room(transport)
            return
        transport.watch_writing(False)
        self.idle = transport
        if self._closing:
            transport.close(self._closing)
            self._let_go()

    def splice(self, source: Incoming) -> int:
        """Move what has come straight from a source to the link; return the bytes, -1 where they must be read."""
        transport, queue = self._transport, self.queue
        if transport is None or self._closing or self._unspliceable:
            return -1
        pipe = queue.pipe
        if queue.size and (pipe is None or queue.size != pipe.held):
            return -1  # chunks wait, which come first
        try:
            if pipe is None:
                pipe = queue.pipe = Pipe()
            room = min(pipe.size, queue.limit) - pipe.held
            moved = source.read_into(pipe, room) if room > 0 else -1
        except SpliceRefused:
            self._unspliceable = True
            queue.pour()  # and give the descriptors back
            return -1
        if moved > 0:
            queue.size += moved
            self._spliced(moved < min(room, _SLACK), transport, pipe)
        return moved

    def _spliced(self, dry: bool, transport: Outgoing, pipe: Pipe) -> None:
        """Send on what has come into the pipe; `dry`: there was no more."""
        self._flush_pipe(transport, pipe)
        if self.queue.size:
            self._wait_for_room(transport)
            if self._settings.relief is Relief.HOLD and self._brake_for_splice().pipe_left():
                self._settings.pipeline.hold(self)
        elif dry:
            if self._brake is not None:
                self._brake.ran_dry()
            self.queue.pour()  # and give its descriptors back

    def _brake_for_splice(self) -> Brake:
        if self._brake is None:
            self._brake = Brake(self._settings.reactor, self._has_shrunk)
        return self._brake

    def record_sent(self, count: int) -> None:
        """Take bytes off the queue that a link has carried away."""
        self.queue.consume(count)
        self.sent += count
        self._has_shrunk()

    def drop_queue(self) -> None:
        """Drop and count what waits; what was held for it flows again."""
        self._lose(self.queue.clear(self._settings.framing))
        self._gap = None
        self._has_shrunk()

    def _flush_pipe(self, transport: Outgoing, pipe: Pipe) -> None:
        try:
            sent = transport.send_from(pipe)
        except SpliceRefused:
            self._unspliceable = True
            self.queue.pour()
            self.record_sent(transport.send_all_of(self.queue.buffers()))
            return
        self.queue.size -= sent
        self.sent += sent
        self._has_shrunk()

    def _enqueue(self, chunk: Chunk) -> None:
        queue = self.queue
        if not self._ended and self._transport is not None and not queue.fits(chunk):
            # There may be room in the kernel that nobody has been told of yet. The first buffer will tell:
            # for a link that is dropped from, this is done for every chunk.
            sent = self.sent
            self.flush(batch=1)
            if queue.size and self.sent != sent:
                self.flush()
            if self.idle is not None:
                self.put(chunk)
                return
        if not self._ended and (queue.fits(chunk) or self._make_room(chunk)):
            queue.append(chunk)
            self._has_grown()
        else:
            self._lose((len(chunk.data), chunk.records), "" if self._ended else "slow")

    def _has_grown(self) -> None:
        """More waits than before, or for somebody else: see that it does not wait for ever."""
        settings = self._settings
        if self._watch is not None:
            self._watch.size_changed(self.queue.size)
        elif self.queue.size and (settings.slow_after.seconds or (settings.stall_timeout and self._transport)):
            self._watch = SlownessWatch(
                settings.reactor, self, settings.stall_timeout, settings.slow_after, self._stop_watching
            )

    def _has_shrunk(self) -> None:
        queue = self.queue
        if self._watch is not None:
            self._watch.size_changed(queue.size)
        brake = self._brake
        if brake is not None and not queue.size:
            brake.emptied()
        if queue.size * 2 <= queue.limit:
            if brake is None or not brake.on or not self._settings.pipeline.direct:
                self._settings.pipeline.release(self)
            if self._gap is not None:
                self._close_gap(self._gap)

    # -- what gives way ---------------------------------------------------------------------------

    def drop_stale(self) -> None:
        """Drop what has waited too long; something is about to be sent."""
        if age := self._settings.max_age:
            lost = self.queue.drop_older(self._settings.framing, self._settings.reactor.now - age)
            self.stale_records += lost[1]
            if self._lose(lost, "stale"):
                self._has_shrunk()

    def _make_room(self, chunk: Chunk) -> bool:
        """Relieve the full queue; return whether the chunk is to be queued."""
        relief = self._settings.relief
        if relief is Relief.CUT:
            self._cut()
            return not self._ended
        if relief is Relief.HOLD:
            if not self._settings.pipeline.seen:
                self._brake_for_splice().buffer_full()
            self._settings.pipeline.hold(self)
            return True
        if relief is Relief.DROP_NEWEST:
            return False
        while not self.queue.fits(chunk) and self._lose(self.queue.drop_oldest(self._settings.framing), "slow"):
            pass  # what cannot be dropped is the record that is being sent
        return True

    def _cut(self) -> None:
        before = self.dropped
        self.drop_queue()
        if self._transport is not None:
            self._transport.abort("slow")
            self._let_go()
        else:
            self.emptied += 1
            self._log.burst("overflow", reason="down", dropped=self.dropped - before)

    def _lose(self, lost: tuple[int, int], reason: str = "") -> int:
        """Count bytes and records that are dropped; with a reason they are a gap in what the link gets."""
        if reason and lost[0] and self._gap is None:
            self._gap = _Gap(self.dropped, self.dropped_records, self._settings.reactor.now)
            self._log.burst("dropping", reason=reason)
        self.dropped += lost[0]
        self.dropped_records += lost[1]
        return lost[0]

    def _close_gap(self, gap: _Gap) -> None:
        self._gap = None
        self._log.burst(
            "caught_up",
            dropped=self.dropped - gap.dropped,
            dropped_records=self.dropped_records - gap.records,
            after=round(self._settings.reactor.now - gap.since, 1),
        )

    # -- the link -------------------------------------------------------------------------------

    def attach(self, transport: Outgoing) -> None:
        """A link has come up: what waits goes first, or the next chunk would find the queue full for no reason."""
        self._transport = transport
        if self._watch is not None:
            self._watch.restart()
        taken = -1
        while self.queue.size and self.sent != taken:
            taken = self.sent
            self.flush()
        if not self.queue.size:
            self.idle = transport

    def detach(self) -> None:
        """The link is gone. What it cut is made whole again for the next; with no next, it is dropped."""
        self._let_go()
        if self._settings.kept:
            self.repeated += self.queue.rewind(self._settings.framing)
            self._has_shrunk()  # what is held for the pipe alone is not held without a link
            self._has_grown()
        else:
            self.drop_queue()

    def hold_back(self) -> str:
        """Send nothing until `attach`, or `detach`: the link is still there, and in the middle of a record perhaps.

        Returns why it was to be closed when the queue is empty, "" where it was not.
        """
        closing = self._closing
        self.queue.pour()
        self._let_go()
        self._has_shrunk()  # what is held for the pipe alone is not held without a link
        self._has_grown()
        return closing

    def move(self, settings: SinkSettings, log: BoundLog) -> None:
        """Leave the pipeline for that of `settings`, with the queue and the link."""
        former = self._settings.pipeline
        former.settle()
        former.release(self)
        self._settings, self._log = settings, log
        settings.pipeline.tape.follow(self.queue.tape)
        self.queue.tape, self.queue.limit = settings.pipeline.tape, settings.buffer
        if former.sinks.pop(self, self) is None:  # else it is fed no more, and nobody waits for it
            settings.pipeline.sinks[self] = None
            if settings.relief is Relief.HOLD and self.queue.size > settings.buffer:
                settings.pipeline.hold(self)
        self._stop_watching()
        self._has_grown()

    def finish(self, reason: str) -> None:
        """Close the link, if there is one, once the queue is empty."""
        self._settings.pipeline.settle()
        self._closing = reason if self._transport is not None else ""
        self.flush()

    def _let_go(self) -> None:
        self._transport = self.idle = None
        self._closing = ""
        self._ended = not self._settings.kept
        self._unspliceable = False
        if self._brake is not None:
            self._brake.link_lost()
        if not (self._settings.kept and self._settings.slow_after.seconds):  # which is also meant for no link at all
            self._stop_watching()

    def _wait_for_room(self, transport: Outgoing) -> None:
        self.idle = None
        transport.watch_writing(True)
        self._has_grown()

    # -- for the watch ----------------------------------------------------------------------------

    def waiting(self) -> int:
        return self.queue.size

    def acknowledged(self) -> int | None:
        return self.sent - self._transport.unacknowledged() if self._transport is not None else None

    def has_stalled(self) -> None:
        if self._transport is not None:
            self._transport.abort("stalled")

    def is_slow(self) -> None:
        queue, settings = self.queue, self._settings
        if settings.relief is Relief.CUT:
            self._cut()
            return
        while queue.size > settings.slow_after.size:
            oldest = settings.relief is Relief.DROP_OLDEST
            if not self._lose(queue.drop_oldest(settings.framing) if oldest else queue.drop_newest(), "slow"):
                break  # what cannot be dropped is the record that is being sent
        self._has_grown()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
