"""A file that behaves like a source."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from relayd.address import ReplayAddress
from relayd.endpoints.replay import ReplaySettings, ReplayTransport
from relayd.net.sockets import SocketOptions
from relayd.wire.framing import Framer, Framing
from relayd.wire.framings import LINE, RAW, parse_framing
from tests.fakes import FakeReactor
from tests.wire import streams


class Listener:
    """The protocol of a replay: notes what came when, and what of it are records."""

    def __init__(self, reactor: FakeReactor, framer: Framer) -> None:
        self.reactor = reactor
        self.framer = framer
        self.records = b""
        self.got: list[tuple[float, bytes]] = []
        self.lost: list[str] = []
        self.flushed = 0

    def data_received(self, data: bytes) -> None:
        assert data
        self.got.append((self.reactor.now - 1000.0, data))
        self.records += self.framer.feed(data)

    def interrupted(self) -> None:
        self.records += self.framer.finish()

    def eof_received(self) -> None:
        raise AssertionError("a replay does not end")

    def ready_to_send(self) -> None:
        self.flushed += 1

    def connection_lost(self, reason: str) -> None:
        self.lost.append(reason)

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.got)

    @property
    def times(self) -> list[float]:
        return [round(when, 3) for when, _ in self.got]


class Setting:
    def __init__(
        self, path: Path, data: bytes, rate: float | None, loop: bool, max_record: int, framing: Framing
    ) -> None:
        path.write_bytes(data)
        self.reactor = FakeReactor()
        self.listener = Listener(self.reactor, framing.framer(max_record))
        address = ReplayAddress(str(path), rate, loop)
        self.transport = ReplayTransport(self.reactor, address, ReplaySettings(framing, max_record))  # type: ignore[arg-type]
        self.transport.start(self.listener)


Make = Callable[..., Setting]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made: list[Setting] = []

    def make(
        data: bytes, rate: float | None = None, loop: bool = False, max_record: int = 65536, framing: Framing = LINE
    ) -> Setting:
        made.append(Setting(tmp_path / "file", data, rate, loop, max_record, framing))
        return made[-1]

    yield make
    for setting in made:
        setting.transport.close("test ends")
        setting.reactor.end_turn()


def test_a_rate_is_records_per_second(make: Make) -> None:
    setting = make(b"1\n2\n3\n4\n", rate=2)
    setting.reactor.advance(10)
    assert setting.listener.got == [(0.0, b"1\n"), (0.5, b"2\n"), (1.0, b"3\n"), (1.5, b"4\n")]
    assert setting.reactor.timers == 0  # a feed that has nothing more to say
    assert (setting.transport.bytes_read, setting.transport.last_read) == (8, 1001.5)
    assert setting.listener.lost == []


def test_a_loop_goes_on_at_its_rate(make: Make) -> None:
    setting = make(b"1\n2\n", rate=1, loop=True)
    setting.reactor.advance(4.5)
    assert setting.listener.data == b"1\n2\n1\n2\n1\n"
    assert setting.listener.times == [0, 1, 2, 3, 4]


def test_without_a_rate_it_is_as_fast_as_it_is_taken(make: Make) -> None:
    data = b"".join(b"%06d\n" % number for number in range(50_000))
    setting = make(data)
    setting.reactor.advance(0)
    assert setting.listener.data == data
    assert all(len(piece) <= 2 * 65536 for _, piece in setting.listener.got)


@pytest.mark.parametrize("rate", [None, 100.0])
def test_an_unterminated_last_line_is_no_record(make: Make, rate: float | None) -> None:
    setting = make(b"1\n2\ncut", rate=rate)
    setting.reactor.advance(1)
    assert (setting.listener.records, setting.listener.framer.unframed) == (b"1\n2\n", 3)


@pytest.mark.parametrize("rate", [None, 100.0])
def test_raw_sends_all_there_is(make: Make, rate: float | None) -> None:
    setting = make(b"1\n2\ncut", rate=rate, framing=RAW)
    setting.reactor.advance(1)
    assert setting.listener.data == b"1\n2\ncut"


@pytest.mark.parametrize("size", [10, 100, 64 * 1024, 64 * 1024 + 5])
@pytest.mark.parametrize("rate", [None, 1000.0])
def test_a_loop_never_glues_the_last_line_to_the_first(make: Make, rate: float | None, size: int) -> None:
    whole = b"".join(b"%08d\n" % number for number in range(size // 9))
    setting = make(whole + b"cut", rate=rate, loop=True, max_record=64)
    for _ in range(30_000):
        if len(setting.listener.records) > 2 * len(whole):
            break
        setting.reactor.jump(0.001)
    assert setting.listener.records.startswith(whole * 2)


GOOD = streams.rtcm3(b"good")


@pytest.mark.parametrize("rate", [None, 1000.0])
@pytest.mark.parametrize(
    ("framing", "records", "end"),
    [
        ("rtcm3", GOOD, b"\xd3\x03\xff"),  # claims what does not come
        ("length:u16be", b"\0\4abcd", b"\xff\xfftail"),  # is over-long, and believed
        ("line", b"1\n22\n", b"x" * 100),
    ],
)
def test_what_a_file_ends_in_is_noise_in_each_round(
    make: Make, rate: float | None, framing: str, records: bytes, end: bytes
) -> None:
    setting = make(
        records * 5 + end,
        rate=rate,
        loop=True,
        max_record=64 if framing == "line" else 2000,
        framing=parse_framing(framing),
    )
    for _ in range(100):
        setting.reactor.jump(0.001)
    rounds = len(setting.listener.records) // len(records * 5)
    assert rounds >= 5 and setting.listener.records.startswith(records * 5 * rounds)
    assert setting.listener.framer.unframed >= len(end) * (rounds - 1)


@pytest.mark.parametrize("rate", [None, 1000.0])
@pytest.mark.parametrize("loop", [False, True])
def test_whole_records_behind_a_false_header_go_out_at_the_end(make: Make, rate: float | None, loop: bool) -> None:
    setting = make(GOOD * 3 + b"\xd3\x03\xff" + GOOD * 20, rate=rate, loop=loop, framing=parse_framing("rtcm3"))
    for _ in range(30):
        setting.reactor.jump(0.001)
    assert setting.listener.records.startswith(GOOD * 23)
    assert loop or setting.listener.records == GOOD * 23


@pytest.mark.parametrize("data", [b"", b"cut"])
def test_an_empty_loop_does_not_spin(make: Make, data: bytes) -> None:
    setting = make(data, loop=True)
    setting.reactor.advance(0)
    assert setting.reactor.next_delay >= 0.5
    assert setting.listener.data == data


def test_a_pause_stops_it_and_nothing_is_lost(make: Make) -> None:
    setting = make(b"1\n2\n3\n", rate=1)
    setting.reactor.advance(0)
    setting.transport.pause_reading()
    setting.reactor.advance(100)
    assert setting.listener.data == b"1\n"
    setting.transport.resume_reading()
    setting.reactor.advance(0.5)
    assert setting.listener.data == b"1\n2\n"  # what was not sent in time is not hurried after
    setting.reactor.advance(1)
    assert setting.listener.data == b"1\n2\n3\n"


def test_pausing_and_resuming_does_not_quicken_it(make: Make) -> None:
    setting = make(b"1\n2\n3\n4\n5\n", rate=1)
    setting.reactor.advance(0)
    for _ in range(3):
        setting.transport.pause_reading()
        setting.transport.resume_reading()
        setting.reactor.advance(0.1)
    assert setting.listener.data == b"1\n"


def test_a_late_loop_keeps_the_average_rate(make: Make) -> None:
    setting = make(b"1\n2\n3\n4\n5\n6\n", rate=1)
    setting.reactor.advance(0)
    setting.reactor.jump(3)
    setting.reactor.advance(0)
    assert setting.listener.data == b"1\n2\n3\n4\n"


def test_a_close_ends_it_once(make: Make) -> None:
    setting = make(b"1\n2\n", rate=1)
    setting.transport.close("stopped")
    setting.transport.abort("again")
    assert setting.listener.lost == []  # at the end of the turn
    setting.reactor.advance(10)
    assert (setting.listener.lost, setting.listener.got, setting.reactor.timers) == (["stopped"], [], 0)
    setting.transport.resume_reading()
    assert setting.reactor.timers == 0


def test_a_close_from_within_a_delivery_is_the_last_delivery(make: Make) -> None:
    setting = make(b"1\n2\n")
    setting.listener.data_received = lambda data: setting.transport.close("enough")  # type: ignore[method-assign]
    setting.reactor.advance(10)
    assert setting.listener.lost == ["enough"]


def test_the_file_is_closed_with_the_link(make: Make) -> None:
    before = len(os.listdir("/proc/self/fd"))
    setting = make(b"1\n")
    setting.transport.close("x")
    setting.reactor.end_turn()
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_it_is_sent_is_thrown_away(make: Make) -> None:
    setting = make(b"1\n")
    assert setting.transport.push(b"abc") == 3
    assert setting.transport.send_all_of([b"abc", memoryview(b"de")]) == 5


def test_who_asks_for_room_gets_it(make: Make) -> None:
    """A sink with something queued asks once when the link comes up, and waits to be told."""
    setting = make(b"1\n")
    setting.transport.watch_writing(True)
    setting.reactor.advance(0.1)
    assert setting.listener.flushed >= 1


def test_r_a_replay_has_nothing_to_retune(make: Make) -> None:
    setting = make(b"1\n2\n", rate=1)
    setting.transport.retune(SocketOptions(), 1.0)
    setting.reactor.advance(2)
    assert setting.listener.data == b"1\n2\n"


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReplayTransport(FakeReactor(), ReplayAddress(str(tmp_path / "no")), ReplaySettings(LINE, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "socket"])
def test_what_is_no_regular_file_any_more_is_an_os_error_and_nobody_waits_for_it(tmp_path: Path, kind: str) -> None:
    """It was one when the configuration was read. To open a FIFO takes as long as nobody writes to it."""
    path = tmp_path / "feed"
    with socket.socket(socket.AF_UNIX) as sock:
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            sock.bind(str(path))
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(OSError) as caught:
            ReplayTransport(FakeReactor(), ReplayAddress(str(path)), ReplaySettings(LINE, 64))  # type: ignore[arg-type]
        assert caught.value.strerror
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("rate", [None, 1])
@pytest.mark.parametrize("framing", [LINE, RAW])
def test_a_file_that_cannot_be_read_ends_the_link_with_the_reason(framing: Framing, rate: float | None) -> None:
    reactor = FakeReactor()
    listener = Listener(reactor, framing.framer(64))
    address = ReplayAddress("/proc/self/mem", rate)  # a regular file that may be opened; nothing is at its beginning
    transport = ReplayTransport(reactor, address, ReplaySettings(framing, 64))  # type: ignore[arg-type]
    transport.start(listener)
    reactor.advance(10)
    assert (listener.lost, listener.got, reactor.timers) == (["EIO"], [], 0)
