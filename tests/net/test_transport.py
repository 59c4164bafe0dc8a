"""One link: every byte, one end, whatever the kernel and the peer do."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Callable

import pytest

from relayd.net.sockets import Keepalive, SocketOptions
from relayd.net.transport import Transport
from tests.net.helpers import LINGER, Loop, Recorder, link, link_over, running_loop, tcp_pair
from tests.support import PATIENCE, check_keyed, keyed, receive, receive_all, reset_connection

loop = pytest.fixture(running_loop)


def unix_link(loop: Loop, send_buffer: int = 0) -> tuple[Recorder, socket.socket]:
    """Return a transport's protocol and the peer, over a socketpair."""
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    if send_buffer:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    peer.settimeout(PATIENCE)
    loop.stack.enter_context(peer)
    return link_over(loop, ours, ""), peer


# -- reading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", ["at once", "halves", "one by one"])
def test_s17_the_same_bytes_arrive_however_they_are_cut(loop: Loop, pieces: str) -> None:
    protocol, peer = link(loop)
    data = keyed("read", 0, 40)
    size = {"at once": len(data), "halves": len(data) // 2, "one by one": 1}[pieces]
    for begin in range(0, len(data), size):
        peer.send(data[begin : begin + size])
        loop.until(lambda end=begin + size: len(protocol.data) >= min(end, len(data)))
    assert protocol.data == data
    assert protocol.transport.bytes_read == len(data)
    assert protocol.events == []


@pytest.mark.parametrize("pieces", ["at once", "halves", "one by one"])
def test_the_same_bytes_are_sent_however_they_are_cut(loop: Loop, pieces: str) -> None:
    protocol, peer = link(loop)
    data = keyed("sent", 0, 40)
    size = {"at once": len(data), "halves": len(data) // 2, "one by one": 1}[pieces]
    for begin in range(0, len(data), size):
        assert protocol.transport.send(data[begin : begin + size]) == len(data[begin : begin + size])
    protocol.transport.close("done")
    assert receive_all(peer) == data


def test_send_all_of_sends_the_buffers_in_order(loop: Loop) -> None:
    protocol, peer = link(loop)
    assert protocol.transport.send_all_of([b"one", memoryview(b"two"), b"three"]) == 11
    assert receive(peer, 11) == b"onetwothree"


def test_the_read_size_grows_with_the_stream_and_shrinks_after(loop: Loop) -> None:
    protocol, peer = unix_link(loop)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUFFORCE if hasattr(socket, "SO_SNDBUFFORCE") else 32, 1 << 20)
    peer.sendall(b"x" * 300_000)
    loop.until(lambda: len(protocol.data) == 300_000)
    sizes = [len(chunk) for chunk in protocol.chunks]
    assert sizes[:3] == [4096, 16384, 65536]
    assert max(sizes) > 100_000
    for _ in range(20):
        peer.send(b"tiny")
        loop.turn(0)
    protocol.chunks.clear()
    peer.sendall(b"x" * 100_000)
    loop.until(lambda: len(protocol.data) == 100_000)
    assert len(protocol.chunks[0]) == 4096


def test_where_little_was_asked_for_the_next_read_is_small(loop: Loop) -> None:
    protocol, peer = unix_link(loop)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUFFORCE if hasattr(socket, "SO_SNDBUFFORCE") else 32, 1 << 20)
    peer.sendall(b"x" * 300_000)
    loop.until(lambda: len(protocol.chunks) == 3)
    protocol.transport.read_little()
    loop.until(lambda: len(protocol.data) == 300_000)
    assert [len(chunk) for chunk in protocol.chunks[2:5]] == [65536, 4096, 16384]


def test_one_read_a_turn_so_that_a_flood_shares_the_loop(loop: Loop) -> None:
    flooded, flooder = unix_link(loop)
    quiet, peer = unix_link(loop)
    flooder.sendall(b"x" * 100_000)
    peer.send(b"me too")
    loop.turn(0)
    assert len(flooded.chunks) == 1
    assert quiet.data == b"me too"


def test_a_paused_transport_reads_nothing_and_resumes_where_it_was(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    peer.send(b"waits")
    assert loop.turns() == 0
    protocol.transport.resume_reading()
    loop.until(lambda: protocol.data)
    assert protocol.data == b"waits"


def test_pausing_inside_data_received_takes_effect_at_once(loop: Loop) -> None:
    protocol, peer = unix_link(loop)
    protocol.on_data = lambda data: protocol.transport.pause_reading()
    peer.sendall(b"x" * 50_000)
    loop.turns()
    assert len(protocol.data) == 4096


def test_s12_pausing_and_resuming_ten_thousand_times_loses_nothing(loop: Loop) -> None:
    protocol, peer = link(loop)
    sent = 0
    for number in range(10_000):
        protocol.transport.pause_reading()
        if number % 100 == 0:
            peer.send(keyed("paus", sent, 1))
            sent += 1
        protocol.transport.resume_reading()
        if number % 70 == 0:
            loop.turn(0)
    loop.until(lambda: len(protocol.data) == sent * 16)
    check_keyed("paus", protocol.data, 0)


def test_last_read_is_the_time_of_the_last_bytes(loop: Loop) -> None:
    protocol, peer = link(loop)
    loop.advance(5.0)
    assert protocol.transport.last_read == protocol.transport.since
    peer.send(b"x")
    loop.until(lambda: protocol.data)
    assert protocol.transport.last_read == loop.now == protocol.transport.since + 5.0


# -- sending ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", [link, unix_link])
def test_s22_short_writes_neither_lose_nor_repeat_a_byte(
    loop: Loop, over: Callable[[Loop], tuple[Recorder, socket.socket]]
) -> None:
    if over is link:
        protocol, peer = link(loop, our_send=4096, peer_receive=4096)
    else:
        protocol, peer = unix_link(loop, send_buffer=4096)
    data = keyed("shrt", 0, 20_000)
    peer.setblocking(False)
    received = bytearray()
    protocol.send(data)
    assert protocol.outgoing, "the kernel took it all: nothing is tested"

    def take() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(peer.recv(3001))
        return len(received) == len(data)

    loop.until(take)
    assert bytes(received) == data
    assert not protocol.outgoing
    assert protocol.events.count("room") > 5
    assert loop.turns() == 0  # and room is no longer asked for


def test_s11_a_peer_that_reads_nothing_costs_no_wake_ups(loop: Loop) -> None:
    protocol, _ = link(loop, our_send=4096, peer_receive=4096)
    protocol.send(b"x" * 1_000_000)
    loop.until(lambda: not loop.turns(), "the kernel's having enough")
    assert protocol.outgoing
    assert loop.turns(100) <= 5  # the kernel's window probes may find a little room


def test_s11_reading_goes_on_while_a_write_waits(loop: Loop) -> None:
    protocol, peer = link(loop, our_send=4096, peer_receive=4096)
    protocol.send(b"x" * 1_000_000)
    peer.send(b"still here")
    loop.until(lambda: protocol.data == b"still here")


def test_unacknowledged_tells_what_the_peer_has_not_taken(loop: Loop) -> None:
    protocol, peer = link(loop, our_send=4096, peer_receive=4096)
    assert protocol.transport.unacknowledged() == 0
    protocol.send(b"x" * 1_000_000)
    assert protocol.transport.unacknowledged() > 0
    protocol.transport.watch_writing(False)
    receive(peer, 1_000_000 - len(protocol.outgoing))
    loop.until(lambda: protocol.transport.unacknowledged() == 0)


def test_sending_on_a_closed_or_closing_transport_takes_nothing(loop: Loop) -> None:
    protocol, _ = link(loop)
    protocol.transport.close("enough")
    assert protocol.transport.send(b"late") == 0
    assert protocol.transport.send_all_of([b"late"]) == 0
    protocol.transport.abort("enough")
    assert protocol.transport.send(b"late") == 0
    assert protocol.transport.send_all_of([b"late"]) == 0
    assert not protocol.transport.open


# -- the end: exactly once -------------------------------------------------------------------------------


def eof_and_close(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    peer.close()
    loop.until(lambda: "eof" in protocol.events)
    protocol.transport.close("eof")


def rst(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    reset_connection(peer)


def rst_with_input(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    peer.send(b"last words")
    reset_connection(peer)


def abort(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.abort("cut")


def abort_twice(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.abort("cut")
    protocol.transport.abort("cut again")


def error_in_send(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    reset_connection(peer)
    for _ in range(3):
        assert protocol.transport.send(b"x") == 0


def error_in_send_all_of(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    reset_connection(peer)
    assert protocol.transport.send_all_of([b"x", b"y"]) == 0
    protocol.transport.close("too late")


def close_then_abort(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.close("closed")
    protocol.transport.abort("cut")


def close_turn_abort(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.close("closed")
    loop.turns(3)
    protocol.transport.abort("cut")


def abort_then_close(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.abort("cut")
    protocol.transport.close("closed")


def close_twice(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.close("closed")
    protocol.transport.close("closed again")
    peer.close()


def close_then_rst(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.close("closed")
    reset_connection(peer)


def close_after_rst(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    reset_connection(peer)
    protocol.transport.close("closed")


def failed(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.transport.failed(RuntimeError("on purpose"))


def abort_in_data_received(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.on_data = lambda data: protocol.transport.abort("cut")
    protocol.send(b"x" * 10_000_000)  # so that READ and WRITE come together
    peer.send(b"x")
    receive(peer, 100_000)


def close_in_data_received(protocol: Recorder, peer: socket.socket, loop: Loop) -> None:
    protocol.on_data = lambda data: protocol.transport.close("closed")
    peer.send(b"x")
    peer.close()


ENDS = {
    eof_and_close: "eof", rst: "reset", rst_with_input: "reset", abort: "cut", abort_twice: "cut",
    error_in_send: "reset", error_in_send_all_of: "reset", close_then_abort: "cut", close_turn_abort: "cut",
    abort_then_close: "cut", close_twice: "closed", close_then_rst: "closed", close_after_rst: "closed",
    failed: "internal", abort_in_data_received: "cut", close_in_data_received: "closed",
}  # fmt: skip


@pytest.mark.parametrize(("end", "reason"), ENDS.items(), ids=[end.__name__ for end in ENDS])
def test_connection_lost_comes_exactly_once(
    loop: Loop, end: Callable[[Recorder, socket.socket, Loop], None], reason: str
) -> None:
    protocol, peer = link(loop)
    timers = loop.timers
    end(protocol, peer, loop)
    loop.until(lambda: protocol.lost)
    loop.advance(LINGER * 2)
    loop.turns(5)
    assert protocol.lost == [reason]
    assert protocol.transport.closed
    assert not protocol.transport.open
    assert loop.handlers == 0
    assert loop.timers <= timers + 1  # the check of dormant handlers may still be set, once


@pytest.mark.parametrize("end", ["abort", "reset"])
def test_s27_a_links_number_is_not_reused_within_the_turn(loop: Loop, end: str) -> None:
    links = [link(loop) for _ in range(2)]
    numbers = [protocol.transport.fileno() for protocol, _ in links]
    opened: list[int] = []

    def end_the_other(other: Recorder, peer: socket.socket) -> None:
        if end == "abort":
            other.transport.abort("cut")
        else:
            reset_connection(peer)
            other.transport.send(b"x")
        opened.extend(loop.stack.enter_context(socket.socket()).fileno() for _ in range(4))

    for (protocol, peer), other in zip(links, reversed(links), strict=True):
        protocol.on_data = lambda data, other=other: end_the_other(*other)
        peer.send(b"x")
    loop.turn(0)
    assert len(opened) == 4  # the other's readiness of the same batch was not delivered
    assert not set(numbers) & set(opened)
    assert sum(len(protocol.chunks) for protocol, _ in links) == 1


def test_connection_lost_never_comes_from_inside_a_call(loop: Loop) -> None:
    protocol, _ = link(loop)
    protocol.transport.abort("cut")
    assert protocol.lost == []
    loop.turn(0)
    assert protocol.lost == ["cut"]


def test_s28_a_protocol_that_raises_loses_its_link_and_no_other(loop: Loop) -> None:
    bad, bad_peer = link(loop)
    good, good_peer = link(loop)
    bad.on_data = lambda data: 1 // 0
    bad_peer.send(b"x")
    good_peer.send(b"x")
    loop.until(lambda: bad.lost and good.data)
    assert bad.lost == ["internal"]
    assert good.lost == []
    assert len(loop.failures) == 1
    loop.failures.clear()


def test_s1_abort_is_a_reset_for_the_peer(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.abort("cut")
    loop.turn(0)
    with pytest.raises(ConnectionResetError):
        peer.recv(1)


def test_s1_a_reset_while_paused_is_seen_on_resumption_with_all_that_came_before(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    peer.send(b"before")
    loop.turns(2)
    reset_connection(peer)
    assert loop.turns(50) == 0
    loop.advance(1.0)
    assert protocol.lost == []
    protocol.transport.resume_reading()
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["reset"]


def test_a_transport_that_breaks_before_it_is_started_is_told_after(loop: Loop) -> None:
    ours, peer = tcp_pair(loop)
    transport = Transport(loop, ours, None, LINGER)
    reset_connection(peer)
    assert transport.send(b"x") == 0
    protocol = Recorder()
    transport.start(protocol)
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["reset"]


def test_l6_a_connection_that_was_reset_before_it_was_accepted_is_an_ordinary_loss(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        reset_connection(peer)
        ours, name = server.accept()
    ours.setblocking(False)
    protocol = link_over(loop, ours, name)
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["reset"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ECONNRESET, "reset"), (errno.EPIPE, "reset"), (errno.ETIMEDOUT, "timeout"),
        (errno.EHOSTUNREACH, "EHOSTUNREACH"), (errno.ENETDOWN, "ENETDOWN"), (errno.ECONNABORTED, "ECONNABORTED"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", ["recv", "send", "sendmsg"])
def test_s8_an_error_of_the_kernel_ends_the_link_with_its_name(loop: Loop, call: str, code: int, reason: str) -> None:
    protocol, peer = failing_link(loop, call, code)
    use(protocol, peer, call)
    loop.until(lambda: protocol.lost)
    assert protocol.lost == [reason]


@pytest.mark.parametrize("code", [errno.EFAULT, errno.EINVAL])
@pytest.mark.parametrize("call", ["recv", "send"])
def test_p26_an_unexpected_error_of_the_kernel_costs_one_link(loop: Loop, call: str, code: int) -> None:
    protocol, peer = failing_link(loop, call, code)
    other, other_peer = link(loop)
    if call == "send":
        protocol.transport.watch_writing(True)
        protocol.outgoing = memoryview(b"x")
    else:
        use(protocol, peer, call)
    other_peer.send(b"x")
    loop.until(lambda: protocol.lost and other.data)
    assert protocol.lost == ["internal"]
    assert other.lost == []
    assert len(loop.failures) == 1
    loop.failures.clear()


class FailingSocket(socket.socket):
    """Fails one call with one error."""

    call = ""
    code = 0

    def _or_fail(self, call: str, function: Callable[..., object], *words: object) -> object:
        if call == self.call:
            raise OSError(self.code, os.strerror(self.code))
        return function(*words)

    def recv(self, *words: object) -> object:
        return self._or_fail("recv", super().recv, *words)

    def send(self, *words: object) -> object:
        return self._or_fail("send", super().send, *words)

    def sendmsg(self, *words: object) -> object:
        return self._or_fail("sendmsg", super().sendmsg, *words)


def failing_link(loop: Loop, call: str, code: int) -> tuple[Recorder, socket.socket]:
    plain, peer = tcp_pair(loop)
    ours = FailingSocket(fileno=plain.detach())
    ours.call, ours.code = call, code
    return link_over(loop, ours), peer


def use(protocol: Recorder, peer: socket.socket, call: str) -> None:
    if call == "recv":
        peer.send(b"x")
    elif call == "send":
        assert protocol.transport.send(b"x") == 0
    else:
        assert protocol.transport.send_all_of([b"x"]) == 0


def test_s21_a_peer_that_is_gone_is_epipe_and_no_signal(loop: Loop) -> None:
    protocol, peer = unix_link(loop)
    peer.close()
    assert protocol.transport.send(b"x") == 0
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["reset"]


# -- half-close -----------------------------------------------------------------------------------------


def test_s3_no_spin_after_fin(loop: Loop) -> None:
    protocol, peer = link(loop)
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: protocol.events)
    assert loop.turns(50) == 0
    assert protocol.events == ["eof"]
    assert protocol.lost == []
    assert protocol.transport.eof


def test_s3_no_spin_after_fin_while_a_write_waits(loop: Loop) -> None:
    protocol, peer = link(loop, our_send=4096, peer_receive=4096)
    protocol.send(b"x" * 1_000_000)
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: "eof" in protocol.events)
    loop.until(lambda: not loop.turns(), "the kernel's having enough")
    assert loop.turns(100) <= 5  # the kernel's window probes may find a little room


def test_s2_a_half_closed_peer_receives_everything(loop: Loop) -> None:
    protocol, peer = link(loop)
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: protocol.events)
    data = keyed("half", 0, 50_000)
    protocol.send(data)
    peer.setblocking(False)
    received = bytearray()

    def take() -> bool:
        with contextlib.suppress(BlockingIOError):
            received.extend(peer.recv(1 << 20))
        return len(received) == len(data) and not protocol.outgoing

    loop.until(take)
    protocol.transport.close("done")
    peer.settimeout(PATIENCE)
    assert peer.recv(1) == b""
    check_keyed("half", bytes(received), 0)


def test_s4_rst_after_fin_without_interest_does_not_spin_and_is_found(loop: Loop) -> None:
    protocol, peer = link(loop)
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: protocol.events)
    reset_connection(peer)
    assert loop.turns(50) == 0
    assert protocol.lost == []
    loop.advance(1.0)
    assert protocol.lost == ["reset"]


def test_s4_rst_while_reads_are_paused_does_not_spin(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    reset_connection(peer)
    assert loop.turns(50) == 0
    for _ in range(3):
        loop.advance(1.0)
        assert loop.turns(5) == 0
    protocol.transport.abort("test over")


def orders() -> list[str]:
    """Return every order of: peer sends, peer ends, we send, we close; nobody sends after his end."""
    steps = ("peer sends", "peer ends", "we send", "we close")
    legal = [
        order
        for order in itertools.permutations(steps)
        if order.index("peer sends") < order.index("peer ends") and order.index("we send") < order.index("we close")
    ]
    return [", ".join(order) for order in legal]


@pytest.mark.parametrize("turns", [0, 3], ids=["in one turn", "turn by turn"])
@pytest.mark.parametrize("order", orders())
def test_s6_half_closes_in_every_order_lose_nothing(loop: Loop, order: str, turns: int) -> None:
    protocol, peer = link(loop)
    steps = {
        "peer sends": lambda: peer.send(b"from the peer"),
        "peer ends": lambda: peer.shutdown(socket.SHUT_WR),
        "we send": lambda: protocol.transport.send(b"from us"),
        "we close": lambda: protocol.transport.close("closed"),
    }
    for step in order.split(", "):
        steps[step]()
        for _ in range(turns):
            loop.turn(0.002)
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["closed"]
    assert receive_all(peer) == b"from us"
    if turns and order.index("peer sends") < order.index("we close"):
        assert protocol.data == b"from the peer"
    assert loop.turns() == 0


def test_s6_fin_and_data_in_one_segment(loop: Loop) -> None:
    protocol, peer = link(loop)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    peer.send(b"last words")
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: protocol.events)
    assert protocol.data == b"last words"
    assert protocol.events == ["eof"]


# -- lingering close -------------------------------------------------------------------------------------


def test_s5_a_peer_whose_input_we_never_read_still_gets_every_byte(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    peer.send(b"never read" * 1000)
    data = keyed("ling", 0, 12_500)  # 200,000 bytes
    protocol.send(data)
    loop.until(lambda: not protocol.outgoing)
    protocol.transport.close("stopped")
    loop.turns()
    assert receive_all(peer) == data
    peer.send(b"and more that nobody wants")
    loop.turns(3)
    peer.close()
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["stopped"]
    assert protocol.data == b""


def test_s5_what_comes_while_lingering_is_thrown_away(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.close("stopped")
    peer.send(b"x" * 100_000)
    peer.close()
    loop.until(lambda: protocol.lost)
    assert protocol.data == b""
    assert protocol.events == []


def test_s7_a_peer_that_never_closes_is_closed_after_the_linger_timeout(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.close("stopped")
    loop.turns()
    loop.advance(LINGER - 0.01)
    assert protocol.lost == []
    loop.advance(0.01)
    assert protocol.lost == ["stopped"]
    assert receive_all(peer) == b""


def test_s7_a_peer_that_floods_for_ever_is_closed_after_the_linger_timeout(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.close("stopped")
    peer.setblocking(False)
    for _ in range(50):
        with contextlib.suppress(BlockingIOError):
            peer.send(b"x" * 100_000)
        loop.turn(0)
    loop.advance(LINGER)
    assert protocol.lost == ["stopped"]


def test_s5_a_paused_transport_reads_again_to_linger(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    peer.send(b"x" * 1000)
    protocol.transport.close("stopped")
    peer.close()
    loop.until(lambda: protocol.lost)
    assert protocol.lost == ["stopped"]


def test_s7_no_wake_ups_while_lingering_for_a_silent_peer(loop: Loop) -> None:
    protocol, _ = link(loop, our_send=4096, peer_receive=4096)
    protocol.send(b"x" * 100_000)
    protocol.transport.close("stopped")
    loop.until(lambda: not loop.turns(5), "silence")
    assert loop.turns(30) == 0


# -- urgent data -----------------------------------------------------------------------------------------


def test_s20_urgent_data_neither_crashes_nor_spins(loop: Loop) -> None:
    protocol, peer = link(loop)
    peer.send(b"before")
    peer.send(b"!", socket.MSG_OOB)
    loop.until(lambda: protocol.data)
    loop.turns(3)
    assert loop.turns() == 0
    peer.send(b"after")
    loop.until(lambda: protocol.data.endswith(b"after"))
    assert protocol.data.replace(b"!", b"") == b"beforeafter"
    protocol.transport.pause_reading()
    peer.send(b"!", socket.MSG_OOB)
    assert loop.turns() == 0


def test_a_transport_shows_its_peer(loop: Loop) -> None:
    protocol, peer = link(loop)
    assert repr(protocol.transport) == f"<Transport 127.0.0.1:{peer.getsockname()[1]}>"


# -- other settings -----------------------------------------------------------------------------------------


def test_r_retune_applies_to_a_link_that_is_up(loop: Loop) -> None:
    protocol, peer = link(loop)
    sock = protocol.transport._sock
    protocol.transport.retune(SocketOptions(False, Keepalive(31, 11, 4), 60.0, receive_buffer=16384), 0.5)
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 31
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 60_000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32768
    peer.send(b"goes on")
    loop.until(lambda: protocol.data == b"goes on")
    protocol.transport.close("stopped")  # its linger timeout is the new one
    loop.advance(0.6)
    assert protocol.lost == ["stopped"]


def test_r_retune_lets_a_dead_link_be(loop: Loop) -> None:
    protocol, peer = link(loop)
    reset_connection(peer)
    protocol.transport.retune(SocketOptions(True, Keepalive(31, 11, 4), 60.0), 0.5)
    loop.until(lambda: protocol.lost)
    protocol.transport.retune(SocketOptions(), 0.5)
    assert protocol.lost == ["reset"]


# -- looking before one is asked to -------------------------------------------------------------------------


def test_drain_reads_all_that_has_come_even_while_paused(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    data = keyed("dran", 0, 10_000)
    peer.sendall(data)
    loop.until(lambda: protocol.transport.drain() or len(protocol.data) == len(data))
    assert protocol.data == data
    assert loop.turns() == 0  # it is as paused as before
    assert protocol.events == []


def test_drain_comes_to_the_end_of_the_input(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    peer.sendall(b"last words")
    peer.shutdown(socket.SHUT_WR)
    loop.until(lambda: protocol.transport.drain() or protocol.events)
    assert (protocol.data, protocol.events) == (b"last words", ["eof"])
    protocol.transport.drain()
    assert protocol.events == ["eof"]


def test_drain_ends_though_the_peer_never_does(loop: Loop) -> None:
    ours, peer = tcp_pair(loop)
    protocol = link_over(loop, ours)
    peer.setblocking(False)

    def more(data: bytes) -> None:
        with contextlib.suppress(BlockingIOError):
            peer.send(b"x" * 100_000)

    protocol.on_data = more
    peer.send(b"x")
    loop.until(lambda: protocol.data)
    protocol.transport.drain()
    assert len(protocol.data) < 10_000_000
    protocol.on_data = lambda data: None


def test_drain_of_a_broken_link_loses_it_once(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.pause_reading()
    reset_connection(peer)
    loop.until(lambda: protocol.transport.drain() or protocol.transport.closed)
    protocol.transport.drain()
    loop.turns(2)
    assert protocol.lost == ["reset"]


def test_check_finds_a_reset_that_nobody_was_told_of(loop: Loop) -> None:
    protocol, peer = link(loop)
    protocol.transport.check()
    assert not protocol.transport.closed
    protocol.transport.pause_reading()
    reset_connection(peer)
    loop.until(lambda: protocol.transport.check() or protocol.transport.closed)
    protocol.transport.check()
    loop.turns(2)
    assert protocol.lost == ["reset"]
