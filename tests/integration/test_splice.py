"""Zero copy: not a byte lost or doubled, whatever comes in between (SPEC 4, DESIGN 5)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.net.transport import Transport
from relayd.pipeline import Pipeline
from relayd.policy.overflow import NEVER_SLOW, Relief, SlowAfter
from relayd.sink import Sink, SinkSettings
from relayd.trial import HalfCloseTrial
from relayd.wire.framings import RAW
from tests.fakes import bound_log
from tests.integration.daemons import Site, daemon, relay
from tests.net.helpers import LINGER, Loop, no_more_descriptors, running_loop, tcp_pair
from tests.support import (
    PATIENCE,
    Collector,
    Sender,
    bulk,
    connect,
    free_port,
    listener,
    receive,
    receive_all,
    reset_connection,
    stalled_client,
    wait_until,
)

KIB, MIB = 1 << 10, 1 << 20

loop = pytest.fixture(running_loop)


# -- sinks and transports over real sockets -----------------------------------------------------------


class From:
    """A source link: what is read goes into the pipeline, what comes in bulk past it."""

    def __init__(self, rig: Rig, transport: Transport) -> None:
        self.rig = rig
        self.transport = transport
        self.ends: list[str] = []
        transport.on_bulk = self._bulk
        transport.start(self)
        rig.pipeline.add_producer(self)

    def _bulk(self) -> bool:
        moved = self.rig.pipeline.splice(self.transport)
        self.rig.spliced += max(0, moved)
        self.rig.came += max(0, moved)
        return moved >= 0

    def data_received(self, data: bytes) -> None:
        self.rig.came += len(data)
        self.rig.read += len(data)
        self.rig.pipeline.put(data, 0, "")

    def eof_received(self) -> None:
        self.ends.append("eof")
        self.rig.pipeline.remove_producer(self)
        self.transport.close("eof")

    def ready_to_send(self) -> None:
        raise AssertionError("nothing goes back")

    def connection_lost(self, reason: str) -> None:
        self.ends.append(reason)
        self.rig.pipeline.remove_producer(self)

    def pause_reading(self) -> None:
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        self.transport.resume_reading()


class To:
    """A destination link, and what its peer has got."""

    def __init__(self, rig: Rig, sink: Sink, transport: Transport, peer: socket.socket) -> None:
        self.rig = rig
        self.sink = sink
        self.transport = transport
        self.peer = peer
        self.got = bytearray()
        self.lost: list[str] = []
        self.trial: HalfCloseTrial | None = None
        peer.setblocking(False)
        transport.start(self)
        sink.attach(transport)

    def data_received(self, data: bytes) -> None:
        raise AssertionError("nothing is sent back")

    def eof_received(self) -> None:
        self.trial = HalfCloseTrial(self.rig.loop, self.sink, self.transport, LINGER, lambda: None)

    def ready_to_send(self) -> None:
        self.sink.flush()

    def connection_lost(self, reason: str) -> None:
        self.lost.append(reason)
        if self.trial is not None:
            self.trial.cancel()
        self.sink.detach()

    def take(self, count: int = MIB) -> int:
        """Let the peer read so much at most; return how much there was."""
        try:
            data = self.peer.recv(count)
        except BlockingIOError:
            return 0
        self.got += data
        return len(data)


REST = 0.0015  # a little more than what passes between two small splices, in seconds
MOMENT = 0.03  # and than a source waits for its destination


class Rig:
    """One source, one sink; `sent_in` of the keyed stream is what the source's peer has sent."""

    def __init__(
        self, loop: Loop, kinds: str = "unix-unix", relief: Relief = Relief.HOLD, kept: bool = True,
        buffer: int = 4 * MIB, slow_after: SlowAfter = NEVER_SLOW, stall_timeout: float = 0.0,
    ) -> None:  # fmt: skip
        self.loop = loop
        self._turn, loop.turn = loop.turn, self.turn  # type: ignore[method-assign]
        self.source_kind, _, self.destination_kind = kinds.partition("-")
        self.data = bulk(2_000_000)
        self.sent_in = self.came = self.read = self.spliced = 0
        self.log, self.lines = bound_log(loop)
        self.pipeline = Pipeline(loop, seen=False)
        self._parameters = (relief, kept, stall_timeout, slow_after)
        self.settings = self._settings(buffer)
        self.sink = Sink(self.settings, self.log)
        self.pipeline.sinks[self.sink] = None
        self.source, self.source_peer = self.new_source()
        loop.stack.callback(self._end)

    def _settings(self, buffer: int) -> SinkSettings:
        relief, kept, stall_timeout, slow_after = self._parameters
        return SinkSettings(self.loop, self.pipeline, RAW, buffer, relief, kept, stall_timeout, slow_after)

    def _end(self) -> None:
        self.source.transport.abort("test over")
        self.loop.turn(0)
        self.sink.detach()
        self.sink.drop_queue()

    def _pair(self, kind: str) -> tuple[Transport, socket.socket]:
        if kind == "tcp":
            # Small buffers in the kernel, or megabytes hide there.
            ours, peer = tcp_pair(self.loop, our_send=64 * KIB, peer_receive=64 * KIB)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * KIB)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * KIB)
        else:
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            self.loop.stack.enter_context(peer)
        transport = Transport(self.loop, ours, ("peer", 1), LINGER)
        self.loop.stack.callback(transport.abort, "test over")
        return transport, peer

    def new_source(self) -> tuple[From, socket.socket]:
        transport, peer = self._pair(self.source_kind)
        peer.setblocking(False)
        return From(self, transport), peer

    def replace_source(self) -> None:
        """Another source comes; what has come of this one comes first."""
        waits = struct.unpack("i", fcntl.ioctl(self.source.transport.fileno(), termios.FIONREAD, bytes(4)))[0]
        expected = self.came + waits
        self.source.transport.drain()
        assert self.came >= expected
        self.pipeline.remove_producer(self.source)
        self.source.transport.close("replaced")
        self.sent_in = self.came  # the rest stands with the peer
        self.source, self.source_peer = self.new_source()

    def link(self, sink: Sink | None = None) -> To:
        """Return a new link of the destination."""
        return To(self, sink or self.sink, *self._pair(self.destination_kind))

    def new_sink(self) -> Sink:
        """Return another sink of the pipeline."""
        sink = Sink(self.settings, self.log)
        self.pipeline.sinks[sink] = None
        self.loop.stack.callback(sink.detach)
        return sink

    def move(self, buffer: int) -> None:
        """Go over to another pipeline, as a reload does."""
        self.pipeline.remove_producer(self.source)
        self.pipeline = Pipeline(self.loop, seen=False)
        self.settings = self._settings(buffer)
        self.pipeline.add_producer(self.source)
        self.sink.move(self.settings, self.log)

    def turn(self, max_wait: float | None = None) -> None:
        """Turn the loop, in which time passes."""
        self.loop.clock.now += REST
        self._turn(max_wait)

    def feed(self, count: int) -> int:
        """Let the source's peer send so much at most; return what its kernel took."""
        try:
            taken = self.source_peer.send(self.data[self.sent_in : self.sent_in + count])
        except BlockingIOError:
            return 0
        self.sent_in += taken
        return taken

    def flow(self, upto: int, link: To | None = None) -> None:
        """Feed until so much of the stream is sent and has come; with a link, its peer reads along."""

        def step() -> bool:
            self.feed(upto - self.sent_in)
            while link is not None and link.take():
                pass
            return self.came >= upto

        self.loop.until(step, f"{upto} bytes that come, {self.came} came")

    def into_bulk(self, link: To) -> None:
        """Let so much flow that it is spliced, until nothing is on its way."""
        while self.spliced < 256 * KIB:
            assert self.sent_in < 4 * MIB, "it is never spliced"
            self.flow(self.sent_in + 128 * KIB, link)
        self.finish(link)

    def fill(self, link: To | None = None) -> None:
        """Feed until nothing is taken any more, with nobody who reads."""
        idle = 0
        while idle < 5:
            fed = self.feed(64 * KIB)
            self.loop.clock.now += 0 if fed else MOMENT
            self.loop.turn(0.001)
            idle = 0 if fed else idle + 1

    def stall(self) -> None:
        """Feed, with nobody who reads, until some of it waits, and nothing that was sent is unread."""

        def step() -> bool:
            if self.came == self.sent_in and self.sink.queue.size:
                return True
            if self.came == self.sent_in:
                self.feed(48 * KIB)  # less would not be bulk
            return False

        self.loop.until(step, "something that waits")
        assert self.sink.queue.pipe is not None and self.sink.queue.pipe.held

    def finish(self, link: To, start: int = 0) -> None:
        """Let the peer read until it has everything up to now; compare it with the stream from `start` on."""

        def all_there() -> bool:
            while link.take():
                pass
            return len(link.got) >= self.sent_in - start

        self.loop.until(all_there, "the rest of the stream")
        assert_same(bytes(link.got), self.data[start : self.sent_in])
        assert self.balanced and self.came == self.sent_in

    @property
    def in_pipe(self) -> int:
        """How much of what waits stands in the pipe."""
        pipe = self.sink.queue.pipe
        return pipe.held if pipe is not None else 0

    @property
    def balanced(self) -> bool:
        sink = self.sink
        return self.came == sink.sent - sink.repeated + sink.dropped + sink.queue.size


def assert_same(got: bytes, expected: bytes) -> None:
    """Fail with the first place that differs, not with megabytes."""
    if got == expected:
        return
    at = next(
        (at for at, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    raise AssertionError(
        f"{len(got)} of {len(expected)} bytes; at {at}: {got[at : at + 32]!r}, {expected[at : at + 32]!r}"
    )


KINDS = ("tcp-tcp", "unix-unix", "tcp-unix", "unix-tcp")


@pytest.mark.parametrize("kinds", KINDS)
def test_bulk_goes_past_the_process_and_arrives_in_order(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.flow(6 * MIB, link)
    rig.finish(link)
    assert rig.spliced > 3 * MIB


@pytest.mark.parametrize("kinds", KINDS)
def test_what_is_not_taken_waits_in_the_pipe_and_counts_as_queued(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    assert rig.sink.queue.pipe is not None and rig.sink.queue.pipe.held
    assert rig.balanced
    rig.finish(link)


def test_what_is_read_goes_behind_what_is_in_the_pipe(loop: Loop) -> None:
    rig = Rig(loop, relief=Relief.CUT)
    link = rig.link()
    rig.into_bulk(link)
    rig.flow(rig.sent_in + 3 * MIB)  # the pipe is full, the rest is read
    assert rig.read and rig.sink.queue.size > rig.in_pipe
    assert rig.sink.queue.pipe is not None and rig.sink.queue.pipe.held
    spliced = rig.spliced
    rig.finish(link)
    rig.flow(rig.sent_in + 2 * MIB, link)
    rig.finish(link)
    assert rig.spliced > spliced + MIB, "it does not go past the process again"


@pytest.mark.parametrize("kinds", KINDS)
def test_pieces_of_one_byte_use_up_the_slots_of_the_pipe_before_its_bytes(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds, relief=Relief.CUT)
    link = rig.link()
    rig.into_bulk(link)
    # The link takes nothing more, then bytes come one at a time, each in a slot of its own.
    rig.flow(rig.sent_in + 700 * KIB)
    for _ in range(600):
        rig.feed(1)
        loop.turn(0.001)
    loop.until(lambda: rig.came == rig.sent_in)
    rig.finish(link)


# -- urgent data --------------------------------------------------------------------------------------


def test_s20_out_of_band_data_in_bulk_does_not_stop_it(loop: Loop) -> None:
    """splice(2) does not go past the mark, and says that nothing has come."""
    rig = Rig(loop, "tcp-tcp")
    link = rig.link()
    rig.into_bulk(link)
    rig.flow(rig.sent_in + 256 * KIB, link)
    rig.source_peer.send(b"!", socket.MSG_OOB)
    rig.feed(100 * KIB)
    rig.finish(link)
    assert loop.turns() == 0, "the loop spins"


def test_s20_what_follows_out_of_band_data_is_not_taken_for_the_end(loop: Loop) -> None:
    """splice(2) answers 0 at the mark when the peer has ended its side."""
    rig = Rig(loop, "tcp-tcp")
    link = rig.link()
    rig.into_bulk(link)
    rig.flow(rig.sent_in + 256 * KIB, link)
    rig.source_peer.send(b"!", socket.MSG_OOB)
    rig.feed(100 * KIB)
    rig.source_peer.shutdown(socket.SHUT_WR)
    rig.finish(link)


# -- refused --------------------------------------------------------------------------------------------


class Kernel:
    """os.splice, that can be told to refuse; `calls` counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.real = os.splice
        self.refuse: dict[str, int] = {}
        self.calls = {"read": 0, "write": 0}
        self.room: int | None = None  # what the write side may still take
        monkeypatch.setattr(os, "splice", self)

    def __call__(self, src: int, dst: int, count: int, **more: Any) -> int:
        side = "read" if stat.S_ISSOCK(os.fstat(src).st_mode) else "write"
        self.calls[side] += 1
        if side in self.refuse:
            raise OSError(self.refuse[side], os.strerror(self.refuse[side]))
        if side == "read" or self.room is None:
            return self.real(src, dst, count, **more)
        if not self.room:
            raise BlockingIOError
        moved = self.real(src, dst, min(count, self.room), **more)
        self.room -= moved
        return moved


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


REFUSALS = [errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP]


@pytest.mark.parametrize("side", ["read", "write"])
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_where_splice_is_refused_at_once_it_is_copied(loop: Loop, kernel: Kernel, code: int, side: str) -> None:
    kernel.refuse[side] = code
    rig = Rig(loop)
    link = rig.link()
    rig.flow(4 * MIB, link)
    rig.finish(link)
    assert kernel.calls[side] == 1, "it is tried again and again"
    assert rig.read >= 4 * MIB - 256 * KIB


@pytest.mark.parametrize("side", ["read", "write"])
@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("waiting", [False, True])
def test_where_splice_is_refused_later_on_it_is_copied(
    loop: Loop, kernel: Kernel, code: int, side: str, waiting: bool
) -> None:
    rig = Rig(loop)
    link = rig.link()
    rig.into_bulk(link)
    if waiting:
        rig.stall()
    kernel.refuse[side] = code
    kernel.calls[side] = 0
    rig.flow(rig.sent_in + 2 * MIB, link)
    rig.finish(link)
    assert kernel.calls[side] == 1


def test_l9_where_no_pipe_is_to_be_had_it_is_copied(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(loop)
    link = rig.link()
    tried = []
    real = os.pipe2
    monkeypatch.setattr(os, "pipe2", lambda flags: (tried.append(flags), real(flags))[1])
    with no_more_descriptors(spare=1):
        rig.flow(4 * MIB, link)
        rig.finish(link)
    assert (rig.spliced, len(tried)) == (0, 1)


def test_another_link_tries_again(loop: Loop, kernel: Kernel) -> None:
    kernel.refuse["write"] = errno.EINVAL
    rig = Rig(loop)
    link = rig.link()
    rig.flow(2 * MIB, link)
    rig.finish(link)
    link.transport.abort("test")
    loop.until(lambda: link.lost)
    kernel.refuse.clear()
    start, before = rig.sent_in, rig.spliced
    link = rig.link()
    rig.flow(start + 2 * MIB, link)
    rig.finish(link, start)
    assert rig.spliced > before + MIB


# -- the loss of either end -----------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", KINDS)
def test_a_kept_destination_gets_on_its_next_link_what_was_in_the_pipe(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds)
    for _ in range(3):
        link = rig.link()
        rig.flow(rig.sent_in + 512 * KIB, link)
        rig.fill()
        held = rig.sink.queue.size
        assert held
        reset_connection(link.peer)
        loop.until(lambda link=link: link.lost, "the loss")
        assert rig.balanced and rig.sink.queue.pipe is None
        assert rig.sink.queue.size >= held - 256 * KIB
    start = rig.sink.sent
    link = rig.link()
    rig.flow(rig.sent_in + MIB, link)
    rig.finish(link, start)
    assert rig.spliced > 256 * KIB and rig.sink.dropped == 0


@pytest.mark.parametrize("kinds", KINDS)
def test_what_was_in_the_pipe_of_a_client_that_left_is_counted_as_dropped(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds, kept=False)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    held = rig.sink.queue.size
    assert held
    reset_connection(link.peer)
    loop.until(lambda: link.lost, "the loss")
    assert rig.balanced and rig.sink.dropped and rig.sink.queue.size == 0
    assert rig.sink.queue.pipe is None


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("kinds", KINDS)
def test_what_was_in_the_pipe_when_the_source_ended_arrives(loop: Loop, kinds: str, end: str) -> None:
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.into_bulk(link)
    rig.stall()
    (reset_connection if end == "RST" else socket.socket.close)(rig.source_peer)
    rig.finish(link)
    loop.until(lambda: rig.source.ends, "the end")
    start = rig.sent_in
    rig.source, rig.source_peer = rig.new_source()
    rig.flow(start + 2 * MIB, link)
    rig.finish(link)


@pytest.mark.parametrize("kinds", KINDS)
def test_what_stands_unread_when_the_source_ends_comes_behind_the_pipe(loop: Loop, kinds: str) -> None:
    """With the destination full, the source has sent more and ends."""
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    assert rig.came < rig.sent_in
    rig.source_peer.shutdown(socket.SHUT_WR)
    loop.turns(5)
    rig.finish(link)
    loop.until(lambda: rig.source.ends)


@pytest.mark.parametrize("kinds", KINDS)
def test_a_source_that_is_given_up_is_read_to_its_end_behind_the_pipe(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    assert rig.came < rig.sent_in
    rig.replace_source()
    assert rig.balanced
    rig.flow(rig.sent_in + MIB, link)
    rig.finish(link)


@pytest.mark.parametrize("kinds", ["tcp-tcp", "unix-unix"])
def test_a_destination_that_half_closes_with_data_in_the_pipe_gets_it_all(loop: Loop, kinds: str) -> None:
    rig = Rig(loop, kinds)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    link.peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: link.trial is not None)
    assert rig.balanced and rig.sink.queue.pipe is None

    def step() -> bool:
        while link.take():
            pass
        loop.clock.now += 0.05
        return len(link.got) >= rig.sent_in

    loop.until(step)
    rig.finish(link)
    before = rig.spliced
    rig.flow(rig.sent_in + 2 * MIB, link)
    rig.finish(link)
    assert rig.spliced > before + MIB, "after the trial it is spliced again"


def test_a_sink_that_is_closed_behind_its_queue_sends_the_pipe_first(loop: Loop) -> None:
    rig = Rig(loop, kept=False)
    link = rig.link()
    rig.into_bulk(link)
    rig.stall()
    rig.pipeline.remove_producer(rig.source)
    rig.sink.finish("stopped")
    rig.finish(link)
    loop.until(lambda: not link.transport.open, "the end")
    assert receive_all(link.peer) == b""


# -- what looks on, who joins -----------------------------------------------------------------------------


def test_a_tap_sees_all_that_comes_from_the_moment_it_is_there(loop: Loop) -> None:
    rig = Rig(loop)
    link = rig.link()
    rig.into_bulk(link)
    for _ in range(3):
        rig.stall()
        seen, begin, before = bytearray(), rig.came, rig.spliced
        rig.pipeline.taps = (lambda data, peer, seen=seen: seen.extend(data),)
        rig.flow(rig.sent_in + MIB, link)
        assert rig.spliced == before
        assert_same(bytes(seen), rig.data[begin : rig.came])
        rig.pipeline.taps = ()
        rig.finish(link)
        rig.flow(rig.sent_in + MIB, link)
        assert rig.spliced > before
    rig.finish(link)


@pytest.mark.parametrize("relief", [Relief.HOLD, Relief.CUT])
def test_a_second_sink_misses_nothing_and_when_it_leaves_splice_goes_on(loop: Loop, relief: Relief) -> None:
    rig = Rig(loop, relief=relief, buffer=8 * MIB)
    link = rig.link()
    rig.into_bulk(link)
    rig.stall()
    begin, before = rig.came, rig.spliced
    second = rig.new_sink()
    other = rig.link(second)
    rig.flow(rig.sent_in + MIB, link)
    assert rig.spliced == before

    def step() -> bool:
        while other.take():
            pass
        return len(other.got) >= rig.came - begin

    loop.until(step)
    assert_same(bytes(other.got), rig.data[begin : rig.came])
    rig.pipeline.release(second)
    del rig.pipeline.sinks[second]
    second.detach()
    rig.flow(rig.sent_in + 2 * MIB, link)
    rig.finish(link)
    assert rig.spliced > before + MIB


@pytest.mark.parametrize("buffer", [4096, 64 * KIB, 8 * MIB])
def test_a_reload_takes_the_pipe_along(loop: Loop, buffer: int) -> None:
    rig = Rig(loop)
    link = rig.link()
    rig.into_bulk(link)
    rig.fill()
    assert rig.sink.queue.size
    before = rig.spliced
    rig.move(buffer)
    rig.finish(link)
    rig.flow(rig.sent_in + 2 * MIB, link)
    rig.finish(link)
    assert rig.spliced > before + MIB


# -- what waits ---------------------------------------------------------------------------------------------


def test_the_lag_is_the_age_of_what_waits_not_of_what_waited_once(loop: Loop, kernel: Kernel) -> None:
    """A pipe that is never empty holds nothing old as long as it moves on."""
    rig = Rig(loop, relief=Relief.CUT)
    link = rig.link()
    rig.into_bulk(link)
    kernel.room = 0
    rig.flow(rig.sent_in + 48 * KIB)
    for _ in range(20):
        loop.clock.now += 1
        before = rig.came
        rig.flow(before + 48 * KIB)
        kernel.room = before - rig.sink.sent  # all that came before this second
        loop.until(lambda before=before: rig.sink.sent == before or link.take() < 0)
    assert rig.sink.queue.pipe is not None and rig.sink.queue.size == rig.sink.queue.pipe.held == 48 * KIB
    assert loop.now - rig.sink.queue.oldest < 5


@pytest.mark.parametrize("link_up", [True, False])
def test_a_source_is_read_until_the_buffer_is_full(loop: Loop, link_up: bool) -> None:
    """`overflow = block` holds the source when the next chunk does not fit, with and without a link."""
    rig = Rig(loop, buffer=3 * MIB)
    link = rig.link()
    rig.into_bulk(link)
    rig.stall()
    if not link_up:
        link.transport.abort("test")
        loop.until(lambda: link.lost)
    rig.fill()
    assert rig.sink.queue.size > 2 * MIB, "there is room, but the source is held"


def test_a_full_buffer_cuts_a_client_that_does_not_read(loop: Loop) -> None:
    rig = Rig(loop, relief=Relief.CUT, kept=False, buffer=2 * MIB)
    link = rig.link()
    rig.into_bulk(link)
    loop.until(lambda: link.lost or rig.feed(64 * KIB) < 0, "the cut")
    assert link.lost == ["slow"] and rig.balanced
    assert rig.sink.dropped > MIB


@pytest.mark.parametrize("buffer", [4096, 10_000, 64 * KIB, MIB, 4 * MIB])
@pytest.mark.parametrize("kinds", ["tcp-tcp", "unix-unix"])
def test_under_block_nothing_is_lost_with_any_buffer(loop: Loop, buffer: int, kinds: str) -> None:
    rig = Rig(loop, kinds, buffer=buffer)
    link = rig.link()
    for _ in range(6):
        rig.fill()
        assert rig.sink.queue.size <= buffer + 512 * KIB
        pipe = rig.sink.queue.pipe
        assert pipe is None or pipe.held <= buffer
        rig.flow(rig.sent_in + 200 * KIB, link)
    rig.finish(link)
    assert rig.spliced


@pytest.mark.parametrize("kinds", KINDS)
def test_a_buffer_that_is_small_does_not_slow_the_stream(loop: Loop, kinds: str) -> None:
    """A splice that has filled it says nothing of the source, which has more: no wait, and no new pipe."""
    rig = Rig(loop, kinds, buffer=4 * KIB)
    link = rig.link()
    rig.into_bulk(link)
    rig.turn(0)
    assert rig.feed(64 * KIB) == 64 * KIB
    pipes = []
    for _ in range(40):  # in which no time passes
        rig._turn(0)
        link.take()
        pipes.append(rig.sink.queue.pipe)
    assert rig.came == rig.sent_in
    assert len(set(filter(None, pipes))) == 1
    rig.finish(link)


def test_while_nobody_reads_the_loop_sleeps(loop: Loop) -> None:
    for kinds in KINDS:
        rig = Rig(loop, kinds)
        link = rig.link()
        rig.into_bulk(link)
        rig.fill()
        loop.until(lambda: loop.turns() == 0, "the end of what was on its way")
        rig.source_peer.shutdown(socket.SHUT_WR)
        loop.turns(3)
        assert loop.turns() == 0


def test_a_slow_one_is_noticed_by_what_waits_in_the_pipe(loop: Loop) -> None:
    rig = Rig(loop, relief=Relief.CUT, kept=False, slow_after=SlowAfter(100 * KIB, 10.0))
    link = rig.link()
    rig.into_bulk(link)
    rig.flow(rig.sent_in + 600 * KIB)
    assert rig.sink.queue.size == rig.in_pipe > 100 * KIB
    for _ in range(8):
        loop.advance(2)
        loop.turn(0)
    assert link.lost == ["slow"] and rig.balanced


def test_a_stalled_one_is_noticed_by_what_waits_in_the_pipe(loop: Loop) -> None:
    rig = Rig(loop, "tcp-tcp", relief=Relief.CUT, kept=False, stall_timeout=10.0)
    link = rig.link()
    rig.into_bulk(link)
    rig.flow(rig.sent_in + MIB)
    loop.until(lambda: loop.turns() == 0, "the end of what was on its way")
    assert rig.sink.queue.size == rig.in_pipe > 0
    for _ in range(8):
        loop.advance(2.5)
        loop.turn(0)
    assert link.lost == ["stalled"] and rig.balanced


def test_after_a_tap_splice_goes_on_though_the_destination_is_slower(loop: Loop) -> None:
    """The queue of a destination that is behind need not ever be empty by itself again."""
    rig = Rig(loop, "tcp-tcp", buffer=MIB)
    link = rig.link()
    rig.into_bulk(link)
    rig.pipeline.taps = (lambda data, peer: None,)
    rig.fill()
    rig.pipeline.taps = ()
    before, begin = rig.spliced, rig.sent_in

    def step() -> bool:
        rig.feed(MIB)  # the source has always more
        link.take(64 * KIB)
        return rig.sent_in >= begin + 8 * MIB

    loop.until(step)
    assert rig.spliced > before + 4 * MIB
    rig.finish(link)


STEPS = st.one_of(
    st.tuples(st.just("feed"), st.integers(1, 300 * KIB)),
    st.tuples(st.just("feed"), st.just(300 * KIB)),
    st.tuples(st.just("take"), st.integers(1, 300 * KIB)),
    st.tuples(st.just("take"), st.just(300 * KIB)),
    st.tuples(st.sampled_from(["turn", "tap", "join", "lose", "link", "refuse", "source", "half"]), st.just(0)),
    st.tuples(st.just("move"), st.sampled_from([4096, 64 * KIB, MIB])),
)


@settings(max_examples=40, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.sampled_from(KINDS), st.lists(STEPS, min_size=10, max_size=60))
def test_any_schedule_loses_and_doubles_nothing(kinds: str, steps: list[tuple[str, int]]) -> None:
    """Put, short writes, loss and return of the link, taps, another sink, a reload, in any order."""
    for loop in running_loop():
        with pytest.MonkeyPatch.context() as monkeypatch:
            Schedule(loop, kinds, Kernel(monkeypatch)).run(steps)


class Schedule:
    """One run of the property test."""

    def __init__(self, loop: Loop, kinds: str, kernel: Kernel) -> None:
        self.rig = Rig(loop, kinds, buffer=MIB)
        self.loop = loop
        self.kernel = kernel
        self.link: To | None = self.rig.link()
        self.start = 0  # of the stream, where the link's begins
        self.second: Sink | None = None
        self.rig.into_bulk(self.link)

    def run(self, steps: list[tuple[str, int]]) -> None:
        rig = self.rig
        for name, count in steps:
            getattr(self, name + "_" if name == "link" else name)(count)
            self.loop.turn(0)
            assert rig.balanced
            if self.link is not None:
                got = bytes(self.link.got)
                assert got == rig.data[self.start : self.start + len(got)], (name, count)
        if self.second is not None:
            self.join(0)
        if self.link is None:
            self.link_(0)
        assert self.link is not None
        rig.pipeline.taps = ()

        def step() -> bool:
            assert self.link is not None
            while self.link.take():
                pass
            self.loop.clock.now += 0.05
            return rig.came == rig.sent_in and self.start + len(self.link.got) >= rig.sent_in

        self.loop.until(step)
        rig.finish(self.link, self.start)
        assert rig.sink.dropped == 0

    def feed(self, count: int) -> None:
        self.rig.feed(count)

    def take(self, count: int) -> None:
        if self.link is not None:
            self.link.take(count)

    def turn(self, count: int) -> None:
        self.loop.turns(3)

    def tap(self, count: int) -> None:
        self.rig.pipeline.taps = () if self.rig.pipeline.taps else (lambda data, peer: None,)

    def join(self, count: int) -> None:
        """Another sink with no link comes, or goes."""
        rig = self.rig
        if self.second is None:
            self.second = rig.new_sink()
            return
        second, self.second = self.second, None
        del rig.pipeline.sinks[second]
        second.drop_queue()
        rig.pipeline.release(second)

    def lose(self, count: int) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.transport.abort("test")
            self.loop.turn(0)

    def link_(self, count: int) -> None:
        if self.link is None:
            self.start = self.rig.sink.sent
            self.link = self.rig.link()

    def refuse(self, count: int) -> None:
        for side in ("read", "write"):
            self.kernel.refuse[side] = errno.EINVAL
        self.loop.turns(2)
        self.kernel.refuse.clear()

    def source(self, count: int) -> None:
        """Another source comes; what this one has sent comes first."""
        self.rig.replace_source()

    def half(self, count: int) -> None:
        if self.link is not None and self.link.trial is None:
            self.link.peer.shutdown(socket.SHUT_WR)

    def move(self, count: int) -> None:
        second = self.second
        if second is not None:
            self.join(0)
        taps = self.rig.pipeline.taps
        self.rig.move(count)
        self.rig.pipeline.taps = taps


# -- whole relays ---------------------------------------------------------------------------------------------


DATA_SIZE = 12 * MIB


def stream(size: int = DATA_SIZE) -> bytes:
    return bulk(2_000_000)[:size]


class Ends:
    """One relay of a daemon, and the two ends that this test plays, over TCP or Unix sockets."""

    def __init__(self, folder: Path, stack: ExitStack, mode: str, kinds: str = "tcp-tcp", **keys: object) -> None:
        self.folder, self.stack, self.mode = folder, stack, mode
        roles, families = mode.split("-"), kinds.split("-")
        self.addresses: list[object] = []
        self.listeners: list[socket.socket | None] = []
        for name, role, family in zip(("source", "destination"), roles, families, strict=True):
            found = stack.enter_context(self._listener(name, family)) if role == "connect" else None
            self.listeners.append(found)
            if family == "unix":
                self.addresses.append(f"unix:{folder / name}")
            else:
                self.addresses.append(found.getsockname()[1] if found else free_port())
        self.keys: dict[str, object] = {
            "reconnect": "0.05s",
            "linger_timeout": "0.5s",
            "send_buffer": "256K",
            **keys,
        }
        self.site: Site = stack.enter_context(daemon(folder, self.text()))

    def _listener(self, name: str, family: str) -> socket.socket:
        if family == "tcp":
            return listener()
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.folder / name))
        sock.listen()
        sock.settimeout(PATIENCE)
        return sock

    def text(self, **keys: object) -> str:
        source, destination = self.addresses
        return relay("one", source, destination, self.mode, **{**self.keys, **keys})

    def reload(self, **keys: object) -> None:
        self.site.configure(self.text(**keys))
        self.site.reload()

    def _end(self, index: int) -> socket.socket:
        waiting, address = self.listeners[index], self.addresses[index]
        if waiting is not None:
            sock = waiting.accept()[0]
        elif isinstance(address, int):
            sock = connect(address)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(str(address).removeprefix("unix:"))
        return self.stack.enter_context(sock)

    def destination(self) -> socket.socket:
        """Return a new destination link that is up."""
        before = self.totals()["destination_links"] if self.listeners[1] is None else 0
        sock = self._end(1)
        wait_until(lambda: self.totals()["destination_links"] > before, "a destination")
        return sock

    def up(self) -> int:
        return sum(link["state"] == "up" for link in self.status()["destinations"])

    def newcomer(self) -> socket.socket:
        """Return a source link that relayd may let wait."""
        return self._end(0)

    def source(self) -> socket.socket:
        """Return a new source link that is up."""
        before = self.totals()["source_links"]
        if self.listeners[0] is not None:
            before = 0
        sock = self.newcomer()
        wait_until(lambda: self.totals()["source_links"] > before, "a source")
        return sock

    def status(self) -> dict[str, Any]:
        return self.site.relay("one")

    def totals(self) -> dict[str, int]:
        """Return the totals; what has gone through one destination must add up, at every moment."""
        found = self.status()
        totals: dict[str, int] = found["totals"]
        if totals["destination_links"] and len(found["destinations"]) == 1:
            queued = sum(link["queued"] for link in found["destinations"])
            out = totals["bytes_out"] - totals["repeated"] + totals["dropped"] + queued
            self.books = (totals["bytes_in"], out)
        return totals

    def balanced(self) -> None:
        """Fail unless all that has come in is accounted for."""
        self.totals()
        assert self.books[0] == self.books[1], self.status()

    def cpu(self) -> float:
        """Return the CPU seconds that the daemon has used."""
        fields = Path(f"/proc/{self.site.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def idle(self) -> None:
        """Fail if the daemon uses much of a core while nothing can move."""
        before = self.cpu()
        time.sleep(0.5)
        assert self.cpu() - before < 0.1

    def bulk_is_on(self, received: Collector) -> None:
        """Return when something has been spliced."""
        wait_until(lambda: self.totals()["spliced"] > 0, "splice")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


MODES = ("connect-listen", "listen-connect", "connect-connect", "listen-listen")


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_both_directions_at_once_in_every_mode(tmp_path: Path, stack: ExitStack, mode: str, kinds: str) -> None:
    there, back = stream(6 * MIB), stream(11 * MIB)[5 * MIB :]
    ends = Ends(tmp_path, stack, mode, kinds, return_="all", overflow="block")
    destination, source = ends.destination(), ends.source()
    got, returned = Collector(destination), Collector(source)
    senders = Sender(source, there), Sender(destination, back)
    for sender in senders:
        sender.wait_end()
    assert_same(got.wait_for(len(there)), there)
    assert_same(returned.wait_for(len(back)), back)
    totals = ends.totals()
    assert totals["spliced"] > MIB
    assert (totals["bytes_in"], totals["bytes_out"], totals["returned"]) == (len(there), len(there), len(back))
    ends.balanced()


def throttled(sock: socket.socket, size: int) -> Iterator[bytes]:
    """Read 256 KiB at a time of so many bytes: the caller does something in between."""
    got = 0
    while got < size:
        data = receive(sock, min(256 * KIB, size - got))
        got += len(data)
        yield data


@pytest.mark.parametrize("mode", MODES)
def test_a_live_dump_is_turned_on_and_off_while_bulk_flows(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    ends = Ends(tmp_path, stack, mode, overflow="block")
    got, source = Collector(ends.destination()), ends.source()
    data = stream(24 * MIB)
    sent = 0

    def flow(size: int) -> None:
        nonlocal sent
        Sender(source, data[sent : sent + size]).wait_end()
        sent += size
        got.wait_for(sent)

    flow(3 * MIB)
    idle = sockets(ends.site)
    for _ in range(3):
        before = ends.totals()["spliced"]
        assert before
        watching = watch(ends.site)
        shown = Collector(watching)
        flow(MIB)
        ends.balanced()
        assert ends.totals()["spliced"] == before, "spliced past a dump"
        shown.wait_for(100 * KIB)
        assert ends.site.ask("dump", relay="one", format="off")["ok"]
        shown.join(PATIENCE)
        watching.close()
        wait_until(lambda: sockets(ends.site) == idle, "the end of the dump")
        flow(4 * MIB)
        assert ends.totals()["spliced"] > before
        ends.balanced()
    # And in the middle of it all, whenever that is.
    sender = Sender(source, data[sent:])
    while sender.is_alive():
        watch(ends.site).close()
    sender.wait_end()
    assert_same(got.wait_for(len(data)), data)
    ends.balanced()


def sockets(site: Site) -> int:
    """Return how many there are; pipes come and go with the bulk."""
    return sum(name.startswith("socket:") for name in site.descriptors().values())


def watch(site: Site) -> socket.socket:
    """Return a live dump, that has begun."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(str(site.control))
    sock.sendall(b'{"command": "dump", "relay": "one", "format": "hex"}\n')
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1)
    assert b'"ok": true' in line, line
    return sock


def test_a_dump_file_by_reload_misses_nothing_of_what_passes_meanwhile(tmp_path: Path, stack: ExitStack) -> None:
    dump = tmp_path / "dump"
    ends = Ends(tmp_path, stack, "listen-listen", overflow="block")
    destination, source = ends.destination(), ends.source()
    data = stream(8 * MIB)
    got = Collector(destination)
    Sender(source, data).wait_end()
    got.wait_for(len(data))
    before = ends.totals()["spliced"]
    assert before
    ends.reload(dump="raw", dump_file=dump)
    for first in range(0, MIB, 64 * KIB):
        source.sendall(data[first : first + 64 * KIB])
        got.wait_for(len(data) + first + 64 * KIB)
    assert ends.totals()["spliced"] == before
    ends.reload()
    Sender(source, data).wait_end()
    assert_same(got.wait_for(17 * MIB), data + data[:MIB] + data)
    wait_until(lambda: dump.stat().st_size == MIB, "the dump")
    assert_same(dump.read_bytes(), data[:MIB])
    assert ends.totals()["spliced"] > before
    ends.balanced()


CHANGES: list[dict[str, object]] = [
    {"buffer": "64K"}, {"buffer": "4096"}, {"overflow": "disconnect", "buffer": "64M"}, {"return_": "all"},
    {"coalesce": "5ms"}, {"linger_timeout": "1s"}, {"buffer": "8M"},
]  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
def test_reloads_in_the_middle_of_bulk_keep_link_and_bytes(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    ends = Ends(tmp_path, stack, mode, overflow="block")
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender = Sender(source, data)
    got, changes = bytearray(), iter(CHANGES * 3)
    for number, part in enumerate(throttled(destination, len(data))):
        got += part
        if number % 6 == 5:
            ends.reload(**next(changes))
            ends.balanced()
    sender.wait_end()
    assert_same(bytes(got), data)
    totals = ends.totals()
    assert totals["spliced"] and totals["destination_links"] == totals["source_links"] == 1
    ends.balanced()


def test_a_history_that_has_seen_nothing_yet_is_reloaded(tmp_path: Path, stack: ExitStack) -> None:
    """What waits stands on the tape, which goes along twice: with the client and with the history."""
    ends = Ends(tmp_path, stack, "listen-listen", overflow="disconnect", buffer="64M")
    client = stack.enter_context(stalled_client(int(str(ends.addresses[1]))))
    wait_until(lambda: ends.up() == 1)
    source = ends.source()
    data = stream()
    Sender(source, data).wait_end()
    wait_until(lambda: ends.totals()["bytes_in"] == len(data), "all that was sent")
    for buffer in ("63M", "62M", "61M"):
        ends.reload(history="64K", buffer=buffer)
    assert_same(receive(client, len(data)), data)
    source.sendall(b"goes on")
    assert receive(client, 7) == b"goes on"
    ends.balanced()


def test_a_second_destination_is_added_and_taken_away_while_bulk_flows(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-connect", overflow="block")
    second = stack.enter_context(listener())
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender = Sender(source, data)
    first = Collector(destination)
    ends.bulk_is_on(first)
    one = ends.addresses[1]
    for _ in range(3):
        ends.addresses[1] = [one, second.getsockname()[1]]
        ends.reload()
        other = Collector(stack.enter_context(second.accept()[0]))
        if sender.is_alive():
            other.wait_for(1)
        ends.addresses[1] = one
        ends.reload()
        end = other.wait_end()
        at = data.find(end[:64]) if len(end) >= 64 else 0
        assert_same(end, data[at : at + len(end)])
    sender.wait_end()
    assert_same(first.wait_for(len(data)), data)


def test_a_second_client_that_joins_and_leaves_makes_it_copy_for_so_long(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", overflow="block")
    destination, source = ends.destination(), ends.source()
    got = Collector(destination)
    data = stream(4 * MIB)
    for number in range(3):
        Sender(source, data).wait_end()
        got.wait_for((number * 2 + 1) * len(data))
        before = ends.totals()["spliced"]
        second = ends.destination()
        other = Collector(second)
        Sender(source, data).wait_end()
        got.wait_for((number * 2 + 2) * len(data))
        assert_same(other.wait_for(len(data)), data)
        assert ends.totals()["spliced"] == before > number * MIB
        cut(second)
        wait_until(lambda: ends.up() == 1)
    assert_same(bytes(got.data), data * 6)
    totals = ends.totals()
    assert totals["bytes_out"] - totals["repeated"] == 9 * len(data)


# -- loss, kick, stop -----------------------------------------------------------------------------------------


LITTLE = "512K"  # receive_buffer of those that are to be held up: the kernel's own may take 32 MB


def pressed(ends: Ends, destination: socket.socket, source: socket.socket, data: bytes) -> tuple[Sender, bytes]:
    """Return a sender that is held up, with something spliced that waits for the destination, and what that has read.

    It reads all until the stream is spliced: the kernel may hold less than relayd reads before it begins to.
    """
    small_window(destination)
    read = bytearray()
    while not ends.totals()["spliced"]:
        Sender(source, data[len(read) : len(read) + MIB])
        read += receive(destination, MIB)
    sender = Sender(source, data[len(read) :])
    sender.wait_stuck()
    found = ends.status()
    assert found["totals"]["spliced"] and found["destinations"][0]["queued"], found
    ends.balanced()
    return sender, bytes(read)


def cut(sock: socket.socket) -> None:
    """Reset a connection that another thread is reading or writing: it must let go of it first."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()


def small_window(sock: socket.socket) -> None:
    """Let the kernel hide little."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KIB)


@pytest.mark.parametrize("way", ["RST", "kick"])
@pytest.mark.parametrize("mode", ["listen-connect", "connect-connect"])
def test_a_lost_destination_gets_the_rest_from_the_first_unsent_byte(
    tmp_path: Path, stack: ExitStack, mode: str, way: str
) -> None:
    ends = Ends(tmp_path, stack, mode, receive_buffer=LITTLE)
    assert ends.listeners[1] is not None
    small_window(ends.listeners[1])
    destination, source = ends.destination(), ends.source()
    data = stream(64 * MIB)[: 62 * MIB]
    sender, _ = pressed(ends, destination, source, data)
    start = 0
    for number in range(3):
        ends.keys["buffer"] = "4M"
        if way == "RST":
            reset_connection(destination)
        else:
            peer = ends.status()["destinations"][0]["peer"]
            assert ends.site.ask("kick", relay="one", peer=peer)["ok"]
        destination = ends._end(1)
        wait_until(lambda number=number: ends.totals()["destination_links"] == number + 2)
        first = receive(destination, 16)
        start = data.index(first)
        assert start < ends.totals()["bytes_out"]
        begin = receive(destination, MIB - 16)
        assert_same(first + begin, data[start : start + MIB])
        closed = ends.site.lines(" destination=", "event=closed")
        sent = sum(int(line.partition(" sent=")[2].split()[0]) for line in closed)
        assert start == sent, "it does not go on at the first unsent byte"
        ends.balanced()
        start += MIB
    got = Collector(destination)
    sender.wait_end()
    assert_same(got.wait_for(len(data) - start), data[start:])
    assert ends.totals()["dropped"] == 0
    ends.balanced()


@pytest.mark.parametrize("end", ["FIN", "RST"])
@pytest.mark.parametrize("mode", MODES)
def test_the_source_ends_with_data_in_the_pipe(tmp_path: Path, stack: ExitStack, mode: str, end: str) -> None:
    """And the next one's bytes come behind it."""
    ends = Ends(tmp_path, stack, mode, overflow="block", receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender, read = pressed(ends, destination, source, data)
    got = read + receive(destination, 4 * MIB)
    if end == "RST":
        cut(source)  # what had come by then is provable by the daemon's own count
    else:
        source.shutdown(socket.SHUT_WR)
    sender.join(PATIENCE)
    collector = Collector(destination)
    wait_until(lambda: ends.site.lines(" source=", "event=closed"), "the end of the source")
    second = ends.source()
    wait_until(lambda: ends.status()["destinations"][0]["queued"] == 0)
    came = ends.totals()["bytes_in"]
    assert_same(got + collector.wait_for(came - len(got)), data[:came])
    if end == "FIN":
        assert came == len(read) + sender.sent
    second.sendall(data[:MIB])
    assert_same(collector.wait_for(came - len(got) + MIB)[-MIB:], data[:MIB])
    ends.balanced()


@pytest.mark.parametrize("kinds", ["tcp-tcp", "unix-unix"])
def test_a_source_is_replaced_with_data_in_the_pipe_and_in_the_socket(
    tmp_path: Path, stack: ExitStack, kinds: str
) -> None:
    ends = Ends(tmp_path, stack, "listen-connect", kinds, second_source="replace", receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender, read = pressed(ends, destination, source, data)
    second = ends.newcomer()
    second.sendall(b"second")
    got = Collector(destination)
    wait_until(lambda: got.data.endswith(b"second"), "the second source's bytes")
    came = len(read) + len(got.data) - 6
    assert_same(read + got.data[:-6], data[:came])
    assert 0 < came <= len(read) + sender.sent
    ends.balanced()
    Sender(second, data).wait_end()
    assert_same(read + got.wait_for(came - len(read) + 6 + len(data)), data[:came] + b"second" + data)


def test_a_destination_that_half_closes_while_it_does_not_read_gets_it_all(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-connect", linger_timeout="2s", receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender, read = pressed(ends, destination, source, data)
    destination.shutdown(socket.SHUT_WR)
    ends.idle()
    ends.balanced()
    got = Collector(destination)
    sender.wait_end()
    assert_same(read + got.wait_for(len(data) - len(read)), data)
    ends.balanced()
    assert ends.totals()["destination_links"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_sigterm_with_data_in_the_pipe_delivers_it(tmp_path: Path, stack: ExitStack, mode: str) -> None:
    ends = Ends(tmp_path, stack, mode, overflow="block", linger_timeout="2s", receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    _, read = pressed(ends, destination, source, data)
    came = ends.totals()["bytes_in"]
    pid = ends.site.pid
    ends.site.send(signal.SIGTERM)
    ends.site.wait_log("event=stopping")
    got = read + receive_all(destination)
    assert_same(got, data[: len(got)])
    assert len(got) >= came
    destination.close()
    reset_connection(source)
    ends.site.wait_gone(pid)


# -- back-pressure ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", ["4M", "64K", "4096"])
@pytest.mark.parametrize("kinds", ["tcp-tcp", "unix-unix"])
def test_a_destination_that_pauses_under_block_misses_nothing(
    tmp_path: Path, stack: ExitStack, kinds: str, buffer: str
) -> None:
    ends = Ends(tmp_path, stack, "listen-connect", kinds, buffer=buffer, receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    sender, read = pressed(ends, destination, source, data)
    ends.idle()
    got = read + receive(destination, 5 * MIB)
    ends.balanced()
    assert_same(got + receive(destination, len(data) - len(got)), data)
    sender.wait_end()
    ends.balanced()


@pytest.mark.parametrize("buffer", ["4M", "64K", "4096"])
def test_a_client_that_stops_reading_is_cut_and_the_books_are_right(
    tmp_path: Path, stack: ExitStack, buffer: str
) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", buffer=buffer, overflow="disconnect", notsent="16K")
    destination, source = ends.destination(), ends.source()
    data = stream(62 * MIB)
    Sender(source, data).wait_end()
    wait_until(lambda: ends.up() == 0, "the cut")
    assert ends.site.lines("event=closed", "reason=slow")
    with contextlib.suppress(ConnectionResetError):
        got = receive_all(destination)
        assert_same(got, data[: len(got)])
    wait_until(lambda: ends.totals()["bytes_in"] == len(data))
    again = ends.destination()
    source.sendall(b"goes on")
    assert receive(again, 7) == b"goes on"


@pytest.mark.parametrize(
    ("key", "value", "reason"), [("slow_after", "16K 0.5s", "slow"), ("stall_timeout", "1s", "stalled")]
)
def test_a_client_that_does_not_read_is_noticed_with_all_in_the_pipe(
    tmp_path: Path, stack: ExitStack, key: str, value: str, reason: str
) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", buffer="64M", overflow="disconnect", **{key: value})
    client = stack.enter_context(stalled_client(int(str(ends.addresses[1]))))
    wait_until(lambda: ends.up() == 1)
    source = ends.source()
    Sender(source, stream(6 * MIB)).wait_end()
    wait_until(lambda: ends.up() == 0, "the cut")
    assert ends.site.lines("event=closed", f"reason={reason}")
    assert client.fileno() > 0


def test_a_reader_with_a_tiny_window_gets_every_byte(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", overflow="block", notsent="4096")
    client = stack.enter_context(stalled_client(int(str(ends.addresses[1]))))
    wait_until(lambda: ends.up() == 1)
    data = stream(8 * MIB)
    sender = Sender(ends.source(), data)
    got = bytearray()
    while len(got) < 20 * KIB:
        got += client.recv(1)
    got += receive(client, len(data) - len(got))
    sender.wait_end()
    assert_same(bytes(got), data)
    ends.balanced()


def test_a_peer_that_is_stopped_for_a_while_gets_every_byte(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", overflow="block", receive_buffer=LITTLE)
    destination, source = ends.destination(), ends.source()
    small_window(destination)
    data = stream(62 * MIB)
    sender = Sender(source, data)
    got = receive(destination, MIB)
    ends.site.send(signal.SIGSTOP)
    ends.site.send(signal.SIGCONT)
    sender.wait_stuck()
    ends.site.send(signal.SIGSTOP)
    ends.site.send(signal.SIGCONT)
    got += receive(destination, len(data) - len(got))
    assert_same(got, data)
    sender.wait_end()
    ends.balanced()


def test_bulk_links_that_come_and_go_leave_no_descriptor(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-listen", overflow="block", return_="all", linger_timeout="0.1s")
    data = stream(MIB)

    def count() -> int:
        return len(ends.site.descriptors())

    before = count()
    for number in range(100):
        with ExitStack() as links:
            ends.stack = links
            destination, source = ends.destination(), ends.source()
            got, returned = Collector(destination), Collector(source)
            Sender(source, data), Sender(destination, data)
            got.wait_for(len(data) if number % 2 else 1)
            returned.wait_for(len(data) if number % 2 else 1)
            if number % 3 == 0:
                cut(source)
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)
            cut(destination)
    ends.stack = stack
    last = ends.source()  # with which what waited to go back is done
    assert ends.totals()["spliced"] > 20 * MIB
    Collector(last)
    wait_until(lambda: ends.up() == 0, "the end of all clients")
    cut(last)
    wait_until(lambda: count() <= before + 1, f"{before} descriptors again: {ends.site.descriptors()}")


def test_s20_out_of_band_data_in_bulk_costs_nothing_and_stops_nothing(tmp_path: Path, stack: ExitStack) -> None:
    ends = Ends(tmp_path, stack, "listen-connect")
    destination, source = ends.destination(), ends.source()
    got = Collector(destination)
    data = stream(8 * MIB)
    Sender(source, data[: 4 * MIB]).wait_end()
    got.wait_for(4 * MIB)
    assert ends.totals()["spliced"]
    source.send(b"!", socket.MSG_OOB)
    Sender(source, data[4 * MIB :]).wait_end()
    assert_same(got.wait_for(8 * MIB), data)
    ends.idle()
