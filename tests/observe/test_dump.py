"""The dump: what passes, safe to look at, never in the way."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relayd.errors import StartError
from relayd.observe.dump import FORMATS, Dump, DumpFile, DumpStream, Rotation, escaped, hex_rows, text_rows
from relayd.observe.writer import Lost, unheard
from tests.fakes import FakeReactor, Lines, bound_log

EVERY_BYTE = bytes(range(256))


def safe(data: bytes) -> bool:
    return all(byte == 0x0A or 0x20 <= byte < 0x7F for byte in data)


# -- what it looks like -------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["text", "hex"])
@given(data=st.binary())
@example(data=EVERY_BYTE)
def test_nothing_but_printable_ascii_is_ever_shown(style: str, data: bytes) -> None:
    assert safe(FORMATS[style]("head", data))


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (b"", []), (b"one\ntwo\n", ["one", "two"]), (b"one\r\n", ["one"]), (b"cut", ["cut"]), (b"\n", [""]),
        (b"a\rb\n", [r"a\rb"]),
        (b"a\r\r\n", [r"a\r"]), (b"\x1b[2J\t\\\x00\xff\n", [r"\x1b[2J\t\\\x00\xff"]), (b"\n\nx", ["", "", "x"]),
    ],
)  # fmt: skip
def test_text_is_a_row_a_line(data: bytes, rows: list[str]) -> None:
    assert text_rows(data) == rows


@given(st.binary(), st.binary())
def test_escaping_is_one_to_one(one: bytes, other: bytes) -> None:
    assert (escaped(one) == escaped(other)) == (one == other)


HEXDUMP = shutil.which("hexdump")


@pytest.mark.skipif(HEXDUMP is None, reason="hexdump is not installed")
@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=100))
@example(EVERY_BYTE)
@example(b"x" * 16)
@example(b"12345678")
@example(b"123456789")
def test_hex_is_as_hexdump_prints_it(data: bytes) -> None:
    # -v: hexdump folds equal rows into a star, which would hide bytes of a live stream. Its last row is the length.
    assert HEXDUMP
    printed = subprocess.run([HEXDUMP, "-vC"], input=data, capture_output=True, check=True).stdout.decode()
    assert hex_rows(data) == printed.splitlines()[:-1]


def test_raw_is_the_bytes_alone() -> None:
    assert FORMATS["raw"]("head", EVERY_BYTE) == EVERY_BYTE


# -- the dump of a relay --------------------------------------------------------------------------


class Target:
    """Takes what is dumped, or loses it."""

    def __init__(self) -> None:
        self.taken = bytearray()
        self.full = False
        self.known_full = False  # so that nothing need be rendered
        self.thrown_away = unheard

    def has_room(self) -> bool:
        return not self.known_full

    def write(self, data: bytes, lost: Lost) -> bool:
        if not self.full:
            self.taken += data
            self.thrown_away = lost
        return not self.full


def dump(style: str) -> tuple[Dump, Target, Lines]:
    target = Target()
    log, lines = bound_log(FakeReactor())
    return Dump("ais", style, DumpStream(target.write, target.has_room), log, wall_clock=lambda: 0.25), target, lines


def test_every_row_has_time_relay_direction_and_peer() -> None:
    shown, target, _ = dump("text")
    shown.show(b"one\ntwo\n", ">", "192.0.2.1:80")
    head = "1970-01-01T00:00:00.250Z ais > from 192.0.2.1:80"
    assert target.taken.decode() == f"{head} one\n{head} two\n"


def test_hex_has_a_head_and_rows() -> None:
    shown, target, _ = dump("hex")
    shown.show(b"abc", "<", "peer")
    assert target.taken.decode().splitlines() == [
        "1970-01-01T00:00:00.250Z ais < from peer 3 bytes",
        "00000000  61 62 63                                          |abc|",
    ]


@pytest.mark.parametrize("style", ["text", "hex", "raw"])
def test_what_is_missing_is_counted_and_said_where_it_is(style: str) -> None:
    shown, target, lines = dump(style)
    shown.show(b"one\n", ">", "p")
    target.full = True
    shown.show(b"lost\n", ">", "p")
    shown.show(b"lost too\n", ">", "p")
    assert not lines.lines
    target.full = False
    shown.show(b"next\n", ">", "p")
    shown.show(b"last\n", ">", "p")
    assert (b"14 bytes are missing here" in target.taken) == (style != "raw")
    assert len(lines.having("event=dump_lost bytes=14")) == len(lines.lines) == 1
    if style == "raw":
        assert bytes(target.taken) == b"one\nnext\nlast\n"


def test_what_was_taken_for_nothing_is_missing_too_and_so_is_what_was_told_in_it() -> None:
    shown, target, lines = dump("text")
    target.full = True
    shown.show(b"lost\n", ">", "p")
    target.full = False
    shown.show(b"thrown away later\n", ">", "p")
    target.thrown_away()
    shown.show(b"next\n", ">", "p")
    assert b" ... 23 bytes are missing here\n" in target.taken
    assert lines.having("event=dump_lost bytes=23")


def test_what_is_missing_at_the_end_is_logged_once(make: Callable[..., Setting], tmp_path: Path) -> None:
    """What waits for a reader when the relay ends is missing, too."""
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    log, lines = bound_log(FakeReactor())
    shown = Dump("ais", "raw", make("fifo").file, log)
    for _ in range(300):
        shown.show(b"x" * 5000, ">", "p")
    assert not lines.lines
    shown.close()
    shown.close()
    (line,) = lines.lines
    whole = len(os.read(reader, 1 << 20)) // 5000
    assert line.endswith(f"event=dump_lost bytes={5000 * (300 - whole)}")
    os.close(reader)


def test_what_there_is_no_room_for_is_not_rendered_but_counted_and_said() -> None:
    shown, target, lines = dump("text")
    shown.show(b"one\n", ">", "p")
    before = bytes(target.taken)
    target.known_full = True
    shown._render = lambda head, data: pytest.fail("rendered for nobody")  # type: ignore[assignment]
    shown.show(b"lost\n", ">", "p")
    shown._render = FORMATS["text"]
    assert bytes(target.taken) == before
    target.known_full = False
    shown.show(b"next\n", ">", "p")
    assert b"5 bytes are missing here" in target.taken
    assert lines.having("event=dump_lost bytes=5")


def test_a_file_has_room_unless_it_is_suspended(make: Callable[..., Setting]) -> None:
    setting = make(size=1 << 20)
    assert setting.file.has_room()
    with file_size_limit(10):
        assert not setting.file.write(b"x" * 100)
    assert not setting.file.has_room()
    setting.reactor.advance(31)
    assert setting.file.has_room()
    assert setting.file.write(b"y")


@pytest.mark.parametrize("style", ["text", "hex"])
@pytest.mark.parametrize("peer", ["unix:/tmp/\x1b[2J\n", "unix:/tmp/\udcff", "unix:/tmp/é", "unix:/tmp/\x9b31m"])
def test_a_peer_s_name_cannot_drive_the_terminal(style: str, peer: str) -> None:
    """A Unix client's name is the path that it bound its own end to: anything."""
    shown, target, _ = dump(style)
    shown.show(b"one\n", ">", peer)
    assert safe(bytes(target.taken))
    assert target.taken.count(b"\n") == (1 if style == "text" else 2)


# -- files --------------------------------------------------------------------------------------


class Setting:
    """A dump file in a folder."""

    def __init__(self, path: Path, size: int = 4096, files: int = 3) -> None:
        self.path = path
        self.reactor = FakeReactor()
        log, self.lines = bound_log(self.reactor)
        self.file = DumpFile(self.reactor, str(path), Rotation(size, files), log)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Setting]]:
    made: list[Setting] = []

    def make(name: str = "dump", **rotation: int) -> Setting:
        made.append(Setting(tmp_path / name, **rotation))
        made[-1].file.open()
        return made[-1]

    yield make
    for setting in made:
        setting.file.close()
        setting.file.close()


@pytest.mark.parametrize("files", [1, 2, 3])
def test_rotation_keeps_exactly_so_many_files_the_oldest_goes(make: Callable[..., Setting], files: int) -> None:
    setting = make(files=files)
    records = [(b"%03d" % number).ljust(1000, b".") for number in range(40)]
    for record in records:
        assert setting.file.write(record)
    names = ["dump", *(f"dump.{number}" for number in range(1, files))]
    assert sorted(path.name for path in setting.path.parent.iterdir()) == sorted(names)
    kept = b"".join((setting.path.parent / name).read_bytes() for name in reversed(names))
    assert kept == b"".join(records[-files * 4 :])  # 4 whole records fit into 4096 bytes
    assert all((setting.path.parent / name).stat().st_size <= 4096 for name in names)


def test_nothing_is_opened_or_made_before_open(tmp_path: Path) -> None:
    """A configuration that is not gone over to leaves no file behind."""
    before = len(os.listdir("/proc/self/fd"))
    setting = Setting(tmp_path / "dump")
    assert not (tmp_path / "dump").exists()
    assert len(os.listdir("/proc/self/fd")) == before
    setting.file.close()  # what was never opened can be closed


def test_reopen_goes_on_in_a_new_file(make: Callable[..., Setting]) -> None:
    setting = make()
    setting.file.write(b"old\n")
    setting.path.rename(setting.path.with_name("moved"))
    setting.file.write(b"still old\n")
    setting.file.reopen()
    setting.file.write(b"new\n")
    assert setting.path.with_name("moved").read_bytes() == b"old\nstill old\n"
    assert setting.path.read_bytes() == b"new\n"


def test_reopen_of_a_file_that_cannot_be_had_is_a_suspension(make: Callable[..., Setting], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    setting = make("folder/dump")
    shutil.rmtree(tmp_path / "folder")
    setting.file.reopen()
    assert not setting.file.write(b"lost\n")
    assert setting.lines.having("event=dump_suspended")
    (tmp_path / "folder").mkdir()
    setting.reactor.advance(31)
    assert setting.file.write(b"again\n")
    assert setting.path.read_bytes() == b"again\n"


def test_a_dump_passes_open_reopen_and_close_on_to_its_file(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "dump")
    shown = Dump("ais", "raw", setting.file, bound_log(setting.reactor)[0])
    shown.open()
    shown.show(b"one", ">", "p")
    setting.path.rename(tmp_path / "moved")
    shown.reopen()
    shown.show(b"two", ">", "p")
    shown.close()
    assert (tmp_path / "moved").read_bytes() + setting.path.read_bytes() == b"onetwo"


def test_a_stream_is_somebody_else_s_to_open_and_close() -> None:
    target = Target()
    stream = DumpStream(target.write, target.has_room)
    stream.open()
    stream.close()
    stream.reopen()
    assert stream.write(b"one", unheard)
    assert bytes(target.taken) == b"one"


def test_a_record_larger_than_the_file_is_written_whole(make: Callable[..., Setting]) -> None:
    setting = make()
    assert setting.file.write(b"small")
    assert setting.file.write(b"x" * 10_000)
    assert setting.path.read_bytes() == b"x" * 10_000
    assert (setting.path.parent / "dump.1").read_bytes() == b"small"


def test_an_old_dump_is_gone_on_with(make: Callable[..., Setting], tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"o" * 4000)
    setting = make()
    setting.file.write(b"new")
    assert setting.path.read_bytes() == b"o" * 4000 + b"new"
    setting.file.write(b"n" * 100)
    assert setting.path.read_bytes() == b"n" * 100


def test_a_dump_is_for_its_owner(make: Callable[..., Setting]) -> None:
    assert make().path.stat().st_mode & 0o777 == 0o600


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let no file grow beyond `size`: writes are cut short there, then fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_once_and_tried_again_after_30_s(make: Callable[..., Setting]) -> None:
    setting = make(size=1 << 20)
    assert setting.file.write(b"a" * 700)
    with file_size_limit(1000):
        assert not setting.file.write(b"b" * 700)
        assert setting.path.read_bytes() == b"a" * 700  # whole records only
        for _ in range(100):
            setting.reactor.advance(1)
            assert not setting.file.write(b"c" * 700)
        assert len(setting.lines.having("event=dump_suspended", "retry=30")) == len(setting.lines.lines) == 1
        setting.reactor.advance(30)
        assert not setting.file.write(b"d" * 700)
    assert not setting.file.write(b"e" * 700)  # there is room again, but the next try is not due
    setting.reactor.advance(29)
    assert not setting.file.write(b"f" * 700)
    setting.reactor.advance(1)
    assert setting.file.write(b"g" * 700)
    assert setting.path.read_bytes() == b"a" * 700 + b"g" * 700
    assert len(setting.lines.having("event=dump_resumed")) == 1
    with file_size_limit(1500):
        assert not setting.file.write(b"h" * 700)
    assert len(setting.lines.having("event=dump_suspended")) == 2


def test_a_full_disk_leaves_no_descriptor_behind(make: Callable[..., Setting]) -> None:
    setting = make(size=1 << 20)
    before = len(os.listdir("/proc/self/fd"))
    with file_size_limit(10):
        for _ in range(5):
            assert not setting.file.write(b"x" * 100)
            setting.reactor.advance(31)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert setting.path.read_bytes() == b""


def test_a_full_device_is_survived(make: Callable[..., Setting]) -> None:
    setting = make("/dev/full")
    for _ in range(100):
        assert not setting.file.write(b"x\n")
        setting.reactor.advance(1)
    assert len(setting.lines.having("event=dump_suspended", "No space left")) == len(setting.lines.lines) == 1


def test_a_folder_that_went_is_a_suspension(make: Callable[..., Setting], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    setting = make("folder/dump", size=4096)
    setting.file.write(b"x" * 4000)
    shutil.rmtree(tmp_path / "folder")
    assert not setting.file.write(b"y" * 4000)
    (tmp_path / "folder").mkdir()
    setting.reactor.advance(31)
    assert setting.file.write(b"z")


@pytest.mark.parametrize("kind", ["folder", "no folder", "symlink", "fifo"])
def test_what_cannot_be_had_is_said_at_the_start(make: Callable[..., Setting], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "dump"
    if kind == "folder":
        path.mkdir()
    elif kind == "no folder":
        path = tmp_path / "no" / "dump"
    elif kind == "symlink":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)  # with no reader
    with pytest.raises(StartError, match="cannot write dump_file"):
        make(str(path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_slow_reader_of_a_fifo_loses_and_never_blocks(make: Callable[..., Setting], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    setting = make("fifo")
    taken = sum(setting.file.write(b"x" * 10_000) for _ in range(1000))
    assert 0 < taken < 1000
    os.close(reader)
    setting.reactor.advance(10)
    assert setting.file.write(b"x") is False


def test_a_fifo_whose_reader_leaves_is_suspended_and_resumed_when_one_comes(
    make: Callable[..., Setting], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    setting = make("fifo")
    shown = Dump("ais", "raw", setting.file, bound_log(setting.reactor)[0])
    for _ in range(100):
        shown.show(b"x" * 10_000, ">", "p")
    os.close(reader)
    setting.reactor.advance(100)
    assert len(setting.lines.having("event=dump_suspended", "Broken pipe")) == len(setting.lines.lines) == 1
    assert not shown._lost % 10_000 and shown._lost > 900_000
    for _ in range(3):
        shown.show(b"x" * 10_000, ">", "p")  # still nobody reads
        setting.reactor.advance(31)
    assert len(setting.lines.lines) == 1
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    shown.show(b"back\n", ">", "p")
    assert setting.lines.having("event=dump_resumed")
    assert os.read(reader, 100) == b"back\n"
    os.close(reader)


@pytest.mark.parametrize("way", ["close", "reopen"])
def test_what_waits_for_a_fifo_is_not_written_into_a_client(
    make: Callable[..., Setting], tmp_path: Path, way: str
) -> None:
    """Whoever is accepted next gets the descriptor's number."""
    reader, writer = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    fifo = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    setting = make("fifo")
    number = setting.file._fd
    while setting.file.write(b"x" * 10_000):
        pass
    (tmp_path / "fifo").rename(tmp_path / "former")
    (tmp_path / "fifo").mkdir()
    getattr(setting.file, way)()
    assert not os.path.exists(f"/proc/self/fd/{number}")
    os.dup2(writer, number)
    setting.reactor.advance(10)
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    for fd in (reader, writer, number, fifo):
        os.close(fd)
