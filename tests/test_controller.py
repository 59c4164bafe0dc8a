"""The control socket: what is asked is done, and no caller costs more than its own connection."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd import controller as tested
from relayd.controller import Controller, RefusedError
from relayd.errors import StartError
from relayd.net.listener import ListenerPool
from relayd.observe.dump import DumpTarget
from tests.fakes import bound_log
from tests.net.helpers import Loop, running_loop

loop = pytest.fixture(running_loop)

ASK = b'{"command": "status"}\n'
DUMP = b'{"command": "dump", "relay": "ais", "format": "hex"}\n'


class FakeControlled:
    """A daemon that does nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []
        self.snapshot: dict[str, Any] = {"pid": 1}
        self.watchers: list[DumpTarget] = []
        self.reloads: list[Callable[[dict[str, Any] | RefusedError], None]] | None = None  # those that take their time

    def status(self, relay: str | None = None) -> dict[str, Any]:
        self.calls.append(("status",) if relay is None else ("status", relay))
        return self.snapshot

    def reload(self, ended: Callable[[dict[str, Any] | RefusedError], None]) -> None:
        self.calls.append(("reload",))
        if self.reloads is None:
            ended(RefusedError("f:3: broken\nf:4: too"))
        else:
            self.reloads.append(ended)

    def stop(self) -> dict[str, Any]:
        self.calls.append(("stop",))
        return {}

    def kick(self, relay: str, peer: str) -> dict[str, Any]:
        self.calls.append(("kick", relay, peer))
        return {"links": 2}

    def watch(self, relay: str, style: str, target: DumpTarget) -> Callable[[], None]:
        self.calls.append(("watch", relay, style))
        if relay != "ais":
            raise RefusedError("there is no such relay")
        self.watchers.append(target)
        return lambda: self.watchers.remove(target)


class Control:
    """A controller over a real socket, and its callers."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self.loop, self.path = loop, path
        self.pool = ListenerPool()
        log, self.lines = bound_log(loop)
        self.controller = Controller(loop, self.pool, log)
        self.daemon = FakeControlled()
        self.controller.serve(self.daemon)
        self.listen(path)

    def listen(self, path: Path) -> None:
        """Listen on the path, as after a reload."""
        self.controller.listen(self.controller.take(str(path), 0o600), 0o600)

    def call(self) -> socket.socket:
        """Return a connection of a new caller; closed at the end."""
        sock = self.loop.stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.connect(str(self.path))
        sock.setblocking(False)
        return sock

    def caller(self) -> socket.socket:
        """Return a connection that has been accepted."""
        count = len(self.callers)
        sock = self.call()
        self.loop.until(lambda: len(self.callers) == count + 1, "the caller")
        return sock

    @property
    def callers(self) -> set[Any]:
        return self.controller.callers

    def bytes_until(self, sock: socket.socket, end: bytes, most: int = 1 << 30) -> bytes:
        """Return what comes, up to and with `end`; b"" as an end is the end of the stream."""
        got = bytearray()

        def enough() -> bool:
            try:
                data = sock.recv(min(1 << 20, most - len(got)))
            except BlockingIOError:
                return False
            got.extend(data)
            return not data or (bool(end) and got.endswith(end)) or len(got) >= most

        self.loop.until(enough, f"{end!r} after {bytes(got[-200:])!r}")
        return bytes(got)

    def answers(self, sock: socket.socket, count: int = 1) -> list[Any]:
        """Return so many answers; there must be no more."""
        got = b""
        while got.count(b"\n") < count:
            more = self.bytes_until(sock, b"\n")
            assert more, f"the daemon hung up after {got!r}"
            got += more
        lines = got.splitlines()
        assert len(lines) == count
        return [json.loads(line) for line in lines]

    def ask(self, request: bytes) -> Any:
        """Return the answer to a request of a new caller."""
        sock = self.caller()
        sock.send(request)
        (answer,) = self.answers(sock)
        sock.close()
        self.wait_end()
        return answer

    def wait_end(self) -> None:
        """Turn until there is no caller; what broke while nobody read it is looked for each second."""
        for _ in range(3):
            self.loop.advance(1)
        self.loop.until(lambda: not self.callers, "the callers' end")


@pytest.fixture
def control(loop: Loop, tmp_path: Path) -> Iterator[Control]:
    control = Control(loop, tmp_path / "control.sock")
    yield control
    control.controller.close()
    loop.stack.close()
    control.wait_end()
    control.pool.close()
    assert not control.daemon.watchers


# -- each command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "call", "answer"),
    [
        ({"command": "status"}, ("status",), {"ok": True, "status": {"pid": 1}}),
        ({"command": "status", "relay": "ais"}, ("status", "ais"), {"ok": True, "status": {"pid": 1}}),
        ({"command": "status", "relay": ""}, ("status", ""), {"ok": True, "status": {"pid": 1}}),
        ({"command": "stop"}, ("stop",), {"ok": True}),
        ({"command": "reload"}, ("reload",), {"ok": False, "error": "f:3: broken\nf:4: too"}),
        (
            {"command": "kick", "relay": "ais", "peer": "[::1]:80"},
            ("kick", "ais", "[::1]:80"),
            {"ok": True, "links": 2},
        ),
        ({"command": "kick"}, ("kick", "", ""), {"ok": True, "links": 2}),
        ({"command": "kick", "relay": "\ud800", "peer": "é\n"}, ("kick", "\ud800", "é\n"), {"ok": True, "links": 2}),
        ({"command": "dump", "relay": "ais"}, ("watch", "ais", "text"), {"ok": True}),
        (
            {"command": "dump", "relay": "x", "format": "raw"},
            ("watch", "x", "raw"),
            {"ok": False, "error": "there is no such relay"},
        ),
        ({"command": "status", "more": "words"}, ("status",), {"ok": True, "status": {"pid": 1}}),
    ],
)
def test_each_command_is_done_and_answered(
    control: Control, request_: dict[str, str], call: tuple[str, ...], answer: dict[str, Any]
) -> None:
    assert control.ask(json.dumps(request_).encode() + b"\n") == answer
    assert control.daemon.calls == [call]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b'{"command": "halt"}', "unknown command 'halt'"), (b"{}", "unknown command"),
        (b'{"Command": "stop"}', "unknown command"),
        (b"stop", "no JSON"), (b"", "no JSON"), (b"\xff\xfe\x00", "no JSON"), (b'{"command": "stop"', "no JSON"),
        (b"GET / HTTP/1.1", "no JSON"), (b"[" * 60_000, "no JSON"), (b'{"a":' * 10_000, "no JSON"),
        (b"9" * 5000, "an object"), (b"[]", "an object"), (b'"stop"', "an object"), (b"null", "an object"),
        (b"NaN", "an object"),
        (b'{"command": 1}', "an object"), (b'{"command": ["stop"]}', "an object"), (b'{"command": null}', "an object"),
        (b'{"command": "kick", "relay": {}}', "an object"), (b'{"command": "stop", "x": true}', "an object"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_told_and_nothing_is_done(control: Control, line: bytes, error: str) -> None:
    answer = control.ask(line + b"\n")
    assert answer["ok"] is False
    if line[:1] != b"9":  # so many digits are too many for some Pythons, and a number for others
        assert error in answer["error"]
    assert control.daemon.calls == []


def test_the_connection_goes_on_after_a_wrong_request(control: Control) -> None:
    sock = control.caller()
    sock.send(b"rubbish\n" + ASK)
    first, second = control.answers(sock, 2)
    assert (first["ok"], second["ok"]) == (False, True)


# -- how requests come --------------------------------------------------------------------------


def test_requests_in_one_packet_are_answered_in_order(control: Control) -> None:
    sock = control.caller()
    sock.send(ASK + b'{"command": "stop"}\n' + ASK + b'{"command": "kick"')
    answers = control.answers(sock, 3)
    assert answers == [{"ok": True, "status": {"pid": 1}}, {"ok": True}, {"ok": True, "status": {"pid": 1}}]
    assert control.daemon.calls == [("status",), ("stop",), ("status",)]
    sock.send(b"}\n")
    assert control.answers(sock) == [{"ok": True, "links": 2}]


def test_a_request_may_come_byte_by_byte(control: Control) -> None:
    sock = control.caller()
    for byte in ASK:
        assert control.daemon.calls == []
        sock.send(bytes([byte]))
        control.loop.turn(0.1)
    assert control.answers(sock) == [{"ok": True, "status": {"pid": 1}}]


def test_half_a_request_and_the_end_is_nothing(control: Control) -> None:
    sock = control.caller()
    sock.send(ASK[:-1])
    sock.shutdown(socket.SHUT_WR)
    assert control.bytes_until(sock, b"") == b""
    control.loop.until(lambda: not control.callers)
    assert control.daemon.calls == []


def test_half_a_request_and_a_hang_up_is_nothing(control: Control) -> None:
    sock = control.caller()
    sock.send(ASK[:-1])
    sock.close()
    control.loop.until(lambda: not control.callers)
    assert control.daemon.calls == []


def test_a_caller_that_ends_its_side_still_gets_its_answer(control: Control) -> None:
    control.daemon.snapshot = {"text": "x" * 2_000_000}  # more than the kernel takes at once
    sock = control.caller()
    sock.send(ASK)
    sock.shutdown(socket.SHUT_WR)
    got = control.bytes_until(sock, b"")
    assert json.loads(got)["status"] == control.daemon.snapshot
    control.loop.until(lambda: not control.callers)


def test_a_request_that_is_too_long_is_cut_off(control: Control) -> None:
    sock = control.caller()
    sent = 0
    while control.callers:
        try:
            sent += sock.send(b"x" * 4096)
        except BlockingIOError:
            pass
        except OSError:
            break
        control.loop.turn(0)
    control.loop.until(lambda: not control.callers)
    assert sent <= 1 << 20


def test_a_long_line_that_comes_at_once_is_cut_off_too(control: Control) -> None:
    sock = control.caller()
    for _ in range(4):  # the read size has grown by then
        sock.send(b" " * 4096 + b"\n")
        control.answers(sock)
    sock.send(b'"' + b"x" * 100_000 + b'"\n')
    control.loop.until(lambda: not control.callers)


# -- who costs nothing --------------------------------------------------------------------------


def test_a_caller_that_reads_nothing_is_cut_and_holds_no_more_than_the_limit(
    control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tested, "_ANSWER_MAX", 4_000_000)
    control.daemon.snapshot = {"text": "x" * 1_000_000}
    sock = control.caller()
    (caller,) = control.callers
    for _ in range(10):
        if caller not in control.callers:
            break
        sock.send(ASK)
        control.loop.turn(0.1)
        assert caller._sink.queue.size <= 4_000_000
    control.loop.until(lambda: not control.callers)
    assert 4 <= len(control.daemon.calls) <= 6
    assert len(control.bytes_until(sock, b"")) < 1_100_000


def test_a_caller_that_reads_nothing_does_not_hold_up_another(control: Control) -> None:
    control.daemon.snapshot = {"text": "x" * 3_000_000}
    control.caller().send(ASK * 3)
    other = control.caller()
    other.send(b'{"command": "stop"}\n')
    assert control.answers(other) == [{"ok": True}]
    assert len(control.callers) == 2


def test_a_flood_of_requests_shares_the_loop(control: Control) -> None:
    sock = control.caller()
    flood, most, before = ASK * 20_000, 0, 0
    while len(control.daemon.calls) < 20_000:
        try:
            flood = flood[sock.send(flood) :] if flood else flood
            while sock.recv(1 << 20):
                pass
        except BlockingIOError:
            control.loop.turn(0.1)
        most, before = max(most, len(control.daemon.calls) - before), len(control.daemon.calls)
    assert most <= 1000  # in one turn; the status of a busy daemon takes milliseconds


def test_a_caller_that_stops_reading_an_answer_is_let_go_in_time(control: Control) -> None:
    control.daemon.snapshot = {"text": "x" * 3_000_000}
    control.caller().send(ASK)
    control.loop.until(lambda: control.daemon.calls)
    for _ in range(30):
        control.loop.advance(5)
    control.loop.until(lambda: not control.callers)


def test_callers_up_to_the_limit_are_served_and_the_next_is_refused(control: Control) -> None:
    socks = [control.caller() for _ in range(32)]
    refused = control.call()
    assert control.bytes_until(refused, b"") == b""
    assert len(control.callers) == 32
    socks[31].send(ASK)
    assert control.answers(socks[31])[0]["ok"]
    socks[0].close()
    control.loop.until(lambda: len(control.callers) == 31)
    control.caller().send(ASK)
    control.loop.until(lambda: len(control.daemon.calls) == 2)


def test_an_idle_caller_is_let_go_after_a_minute(control: Control) -> None:
    idle = control.caller()
    control.loop.advance(59)
    assert len(control.callers) == 1
    control.loop.advance(2)
    assert control.bytes_until(idle, b"") == b""
    control.loop.advance(3)  # it does not end its side
    control.loop.until(lambda: not control.callers)


def test_a_caller_that_has_had_its_answer_is_let_go_after_a_minute_too(control: Control) -> None:
    sock = control.caller()
    sock.send(ASK)
    control.answers(sock)
    control.loop.advance(61)
    assert control.bytes_until(sock, b"") == b""


def test_each_request_gives_another_minute_and_half_a_one_does_not(control: Control) -> None:
    busy, dawdler = control.caller(), control.caller()
    for _ in range(3):
        control.loop.advance(25)
        busy.send(ASK)
        control.answers(busy)
        if control.loop.now < 1060:
            dawdler.send(b"{")
            control.loop.turn(0.1)
    assert control.bytes_until(dawdler, b"") == b""
    busy.send(ASK)
    assert control.answers(busy)


def test_a_storm_of_callers_leaves_nothing_behind(control: Control) -> None:
    for _ in range(200):
        sock = control.call()
        sock.send(ASK)
        sock.close()
        control.loop.turn(0.1)
    control.loop.until(lambda: not control.callers)
    assert control.ask(ASK)["ok"]


def test_what_fails_in_the_daemon_ends_that_caller_alone(control: Control) -> None:
    other, sock = control.caller(), control.caller()
    control.daemon.snapshot = {"unfit": {1, 2}}  # a set is no JSON
    sock.send(ASK)
    control.loop.until(lambda: len(control.callers) == 1)
    (failure,) = control.loop.failures
    control.loop.failures.clear()
    assert isinstance(failure, TypeError)
    other.send(b'{"command": "stop"}\n')
    assert control.answers(other) == [{"ok": True}]


# -- a dump -------------------------------------------------------------------------------------


def dumping(control: Control, request: bytes = DUMP) -> socket.socket:
    sock = control.caller()
    sock.send(request)
    assert control.answers(sock) == [{"ok": True}]
    return sock


def test_a_dump_streams_until_the_caller_hangs_up(control: Control) -> None:
    sock = dumping(control)
    assert control.daemon.calls == [("watch", "ais", "hex")]
    (target,) = control.daemon.watchers
    assert target.write(b"one\n")
    assert target.write(b"two\n")
    assert control.bytes_until(sock, b"two\n") == b"one\ntwo\n"
    sock.close()
    control.wait_end()
    assert not control.daemon.watchers


def test_a_dump_with_nothing_to_show_ends_with_its_caller_too(control: Control) -> None:
    dumping(control).close()
    control.wait_end()
    assert not control.daemon.watchers


def test_a_dump_is_not_idle_and_goes_on_after_a_half_close(control: Control) -> None:
    sock = dumping(control)
    sock.shutdown(socket.SHUT_WR)
    for _ in range(5):
        control.loop.advance(100)
    (target,) = control.daemon.watchers
    assert target.write(b"late\n")
    assert control.bytes_until(sock, b"late\n") == b"late\n"


def test_a_second_dump_takes_the_place_of_the_first(control: Control) -> None:
    sock = dumping(control)
    sock.send(DUMP.replace(b"hex", b"raw"))
    assert control.answers(sock) == [{"ok": True}]
    assert len(control.daemon.watchers) == 1


def test_a_dump_that_is_not_read_is_bounded_and_goes_on_when_it_is(control: Control) -> None:
    sock = dumping(control)
    (target,) = control.daemon.watchers
    (caller,) = control.callers
    piece = b"x" * 9999 + b"\n"
    taken = 0
    while target.write(piece):
        taken += 1
        assert taken < 1000
    assert 60_000 < caller._sink.queue.size < 600_000
    assert not target.write(piece)
    assert not target.has_room()
    assert control.bytes_until(sock, b"", taken * len(piece)) == piece * taken
    assert target.has_room()
    assert target.write(b"again\n")
    assert control.bytes_until(sock, b"again\n") == b"again\n"


def test_a_dump_that_is_never_read_is_let_go(control: Control) -> None:
    dumping(control)
    (target,) = control.daemon.watchers
    while target.write(b"x" * 10_000):
        pass
    for _ in range(30):
        control.loop.advance(5)
    control.loop.until(lambda: not control.callers)
    assert not control.daemon.watchers


# -- the socket itself --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_the_sockets_mode_is_what_was_asked_for_whatever_the_umask(loop: Loop, tmp_path: Path, mode: int) -> None:
    pool = ListenerPool()
    controller = Controller(loop, pool, bound_log(loop)[0])
    before = os.umask(0)
    try:
        controller.listen(controller.take(str(tmp_path / "c"), mode), mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == mode
    controller.close()
    assert not (tmp_path / "c").exists()


def test_no_path_is_no_socket(control: Control) -> None:
    listener = control.controller.take("", 0o600)
    assert listener is None
    control.controller.give_back(listener)
    control.controller.listen(listener, 0o600)
    assert not control.path.exists()


def test_a_path_that_cannot_be_had_is_told(control: Control, tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"cannot listen on unix:.*No such file"):
        control.controller.take(str(tmp_path / "no" / "c"), 0o600)


def test_another_path_moves_the_socket_and_keeps_the_callers(control: Control, tmp_path: Path) -> None:
    sock = control.caller()
    control.listen(tmp_path / "other")
    assert not control.path.exists()
    control.path = tmp_path / "other"
    sock.send(ASK)
    assert control.answers(sock)[0]["ok"]
    control.caller()
    assert len(control.callers) == 2


def test_the_same_path_again_is_the_same_socket(control: Control) -> None:
    before = control.path.stat().st_ino
    waiting = control.call()
    control.listen(control.path)
    assert control.path.stat().st_ino == before
    waiting.send(ASK)
    assert control.answers(waiting)[0]["ok"]


def test_close_while_callers_wait_gives_them_their_answers_and_the_end(control: Control) -> None:
    control.daemon.snapshot = {"text": "x" * 1_000_000}
    asked, idle, watching = control.caller(), control.caller(), dumping(control)
    asked.send(ASK)
    control.loop.until(lambda: ("status",) in control.daemon.calls)
    control.controller.close()
    assert not control.path.exists()
    answer = control.bytes_until(asked, b"")
    assert json.loads(answer)["status"] == control.daemon.snapshot
    assert control.bytes_until(idle, b"") == b""
    assert control.bytes_until(watching, b"") == b""
    for sock in (asked, idle, watching):
        sock.close()
    control.loop.until(lambda: not control.callers)
    control.controller.close()  # harmless


def test_dump_off_ends_every_dump_of_that_relay_and_no_other(control: Control) -> None:
    one, two, asking = (control.caller() for _ in range(3))
    for caller in (one, two):
        caller.send(b'{"command": "dump", "relay": "ais", "format": "text"}\n')
        assert control.answers(caller) == [{"ok": True}]
    asking.send(b'{"command": "dump", "relay": "gnss", "format": "off"}\n')
    assert control.answers(asking) == [{"ok": True, "ended": 0}]
    asking.send(b'{"command": "dump", "relay": "ais", "format": "off"}\n')
    assert control.answers(asking) == [{"ok": True, "ended": 2}]
    for caller in (one, two):
        caller.settimeout(20)
        assert caller.recv(1) == b"", "it is let go"


def test_a_reload_that_takes_its_time_is_answered_when_it_is_over_and_the_rest_in_its_order(control: Control) -> None:
    reloads = control.daemon.reloads = []
    slow = control.caller()
    slow.send(b'{"command": "reload"}\n' + ASK * 6)
    slow.shutdown(socket.SHUT_WR)  # it has no more to ask, and still gets all answers
    control.loop.until(lambda: reloads)
    other = control.caller()
    other.send(ASK)
    assert control.answers(other)[0]["ok"]  # others do not wait
    assert control.daemon.calls == [("reload",), ("status",)]
    reloads[0]({"summary": "1 of 1 sources up"})
    answers = control.answers(slow, 7)
    assert answers[0] == {"ok": True, "summary": "1 of 1 sources up"}
    assert [answer["status"] for answer in answers[1:]] == [control.daemon.snapshot] * 6
    assert control.bytes_until(slow, b"") == b""


def test_who_hangs_up_during_a_reload_is_let_go_after_it(control: Control) -> None:
    reloads = control.daemon.reloads = []
    caller = control.caller()
    caller.send(b'{"command": "reload"}\n' + ASK)
    control.loop.until(lambda: reloads)
    caller.close()
    control.loop.turn(0)
    reloads[0](RefusedError("too late"))
    control.wait_end()
