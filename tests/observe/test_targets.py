"""Where log lines go: each form says the same, nobody outside can forge a line, and nothing is waited for."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.observe.log import EventLog
from relayd.observe.targets import (
    RENDERS,
    Fields,
    FileTarget,
    JournalTarget,
    StreamTarget,
    SyslogTarget,
    render_json,
    render_text,
    timestamp,
)
from relayd.observe.writer import LossyWriter
from tests.fakes import FakeReactor
from tests.support import PATIENCE, ROOT, needs

AT = 1795367058.1234
STAMP = "2026-11-22T17:04:18.123Z"
CLOSED = {"relay": "ais", "client": "10.0.0.7:51344", "event": "closed", "reason": "slow", "sent": 12, "up": 1.5}
EVIL = {"event": "denied", "peer": 'a\nlevel=error "x"=\x1b[2J\x00é\udcff\u2028', "n": "=", "empty": ""}

texts = st.text(st.characters(codec=None), max_size=40)
fields_ = st.dictionaries(
    st.sampled_from(["event", "peer", "reason", "error", "file"]), st.one_of(texts, st.integers(), st.booleans()),
    min_size=1,
)  # fmt: skip


class Sent:
    """A datagram socket's stand-in."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.deaf = False

    def __call__(self, data: bytes) -> bool:
        if not self.deaf:
            self.datagrams.append(data)
        return not self.deaf


@pytest.fixture
def sent() -> Sent:
    return Sent()


# -- forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "1970-01-01T00:00:00.000Z"), (AT, STAMP), (1.9996, "1970-01-01T00:00:01.999Z"),
        (253402300799, "9999-12-31T23:59:59.000Z"),
    ],
)  # fmt: skip
def test_times_are_utc_with_milliseconds(seconds: float, shown: str) -> None:
    assert timestamp(seconds) == shown


def test_text_is_time_level_and_fields() -> None:
    assert render_text("info", AT, CLOSED) == (
        f"{STAMP} info relay=ais client=10.0.0.7:51344 event=closed reason=slow sent=12 up=1.5"
    )


def test_json_is_an_object_whose_numbers_are_numbers() -> None:
    assert json.loads(render_json("warning", AT, CLOSED)) == {"time": STAMP, "level": "warning", **CLOSED}


def test_repeats_are_told_in_words_or_as_a_number() -> None:
    repeated = {"event": "refused", "repeated": 41}
    assert render_text("info", AT, repeated).endswith(" event=refused repeated 41 times")
    assert json.loads(render_json("info", AT, repeated))["repeated"] == 41


@pytest.mark.parametrize("form", RENDERS)
@settings(deadline=None)
@given(fields=fields_)
def test_f6_whatever_the_fields_a_line_is_one_printable_line(form: str, fields: Fields) -> None:
    line = RENDERS[form]("info", AT, fields)
    assert line.isascii()
    assert line.isprintable()


@settings(deadline=None)
@given(fields=fields_)
def test_f6_json_gives_back_what_it_was_given(fields: Fields) -> None:
    assert {key: json.loads(render_json("info", AT, fields))[key] for key in fields} == fields


def test_f6_no_value_forges_a_field_or_a_line() -> None:
    line = render_text("info", AT, EVIL)
    assert line.removeprefix(f"{STAMP} info ") == (
        'event=denied peer="a\\nlevel=error \\"x\\"=\\u001b[2J\\u0000\\u00e9\\udcff\\u2028" n="=" empty=""'
    )


# -- syslog -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "priority"), [("debug", 31), ("info", 30), ("warning", 28), ("error", 27)])
def test_syslog_has_priority_tag_pid_and_the_fields_without_their_time(sent: Sent, level: str, priority: int) -> None:
    assert SyslogTarget(sent, render_text).emit(level, AT, CLOSED)
    assert sent.datagrams == [
        b"<%d>relayd[%d]: relay=ais client=10.0.0.7:51344 event=closed reason=slow sent=12 up=1.5"
        % (priority, os.getpid())
    ]


def test_syslog_in_json_has_the_whole_object(sent: Sent) -> None:
    SyslogTarget(sent, render_json).emit("error", AT, CLOSED)
    head, _, text = sent.datagrams[0].partition(b": ")
    assert head == b"<27>relayd[%d]" % os.getpid()
    assert json.loads(text) == {"time": STAMP, "level": "error", **CLOSED}


@pytest.mark.parametrize("form", RENDERS)
def test_f6_syslog_gets_one_line(sent: Sent, form: str) -> None:
    SyslogTarget(sent, RENDERS[form]).emit("info", AT, EVIL)
    (datagram,) = sent.datagrams
    assert datagram.decode("ascii").isprintable()


# -- the journal --------------------------------------------------------------------------------


def test_the_journal_gets_native_fields(sent: Sent) -> None:
    assert JournalTarget(sent).emit("warning", AT, CLOSED)
    assert sent.datagrams[0].decode().splitlines() == [
        "MESSAGE=relay=ais client=10.0.0.7:51344 event=closed reason=slow sent=12 up=1.5",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=relayd",
        "RELAYD_RELAY=ais",
        "RELAYD_CLIENT=10.0.0.7:51344",
        "RELAYD_EVENT=closed",
        "RELAYD_REASON=slow",
        "RELAYD_SENT=12",
        "RELAYD_UP=1.5",
    ]
    assert sent.datagrams[0].endswith(b"\n")


@settings(deadline=None)
@given(fields=fields_)
def test_f6_no_value_forges_a_field_of_the_journal(fields: Fields) -> None:
    sent = Sent()
    JournalTarget(sent).emit("info", AT, fields)
    names = [line.partition("=")[0] for line in sent.datagrams[0].decode("ascii").split("\n")[:-1]]
    assert names == ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", *(f"RELAYD_{key.upper()}" for key in fields)]


@pytest.mark.parametrize("make", [lambda send: SyslogTarget(send, render_text), JournalTarget])
def test_f3_a_datagram_that_is_not_taken_is_counted_and_told_later(sent: Sent, make: type[JournalTarget]) -> None:
    log = EventLog(FakeReactor(), make(sent), wall_clock=lambda: AT)
    sent.deaf = True
    for _ in range(3):
        log.bind().info("lost")
    sent.deaf = False
    log.bind().info("back")
    log.bind().info("on")
    lost, back, on = sent.datagrams
    assert b"event=log_lost lines=3" in lost
    assert b"event=back" in back
    assert b"event=on" in on


def test_f2_targets_without_a_name_of_ours_reopen_nothing(sent: Sent) -> None:
    for target in (SyslogTarget(sent, render_text), JournalTarget(sent)):
        target.reopen()
        assert target.emit("info", AT, CLOSED)
    assert len(sent.datagrams) == 2


def read_back(path: Path) -> tuple[list[int], int]:
    """Return the numbers of the lines, each of which must be whole, and how many are said to be lost."""
    numbers, lost = [], 0
    for line in path.read_text().splitlines(keepends=True):
        assert line.startswith(STAMP)
        assert line.endswith("\n")
        name, _, value = line.rpartition(" ")[2].partition("=")
        if "event=log_lost" in line:
            lost += int(value)
        else:
            assert name == "n"
            numbers.append(int(value))
    return numbers, lost


# -- standard error -----------------------------------------------------------------------------


def test_f3_a_pipe_that_nobody_reads_is_not_awaited_and_what_it_missed_is_told(tmp_path: Path) -> None:
    reactor = FakeReactor()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    try:
        log = EventLog(reactor, StreamTarget(LossyWriter(reactor, writer), render_text), wall_clock=lambda: AT)
        for number in range(200):
            log.bind().info("x", text="y" * 10_000, n=number)
        assert log._lost
        got = tmp_path / "got"
        with open(got, "wb") as file, suppress(BlockingIOError):
            while file.write(os.read(reader, 1 << 20)):
                reactor.advance(0.1)
        log.bind().info("back", n=200)
        with open(got, "ab") as file:
            file.write(os.read(reader, 1 << 16))
        kept, lost = read_back(got)
        assert 100 < len(kept) < 150  # a mebibyte, and what the pipe holds
        assert kept[-1] == 200
        assert len(kept) + lost == 201
    finally:
        os.close(reader)
        os.close(writer)


def test_lines_that_wait_when_the_reader_leaves_are_told_to_the_next(tmp_path: Path) -> None:
    reactor = FakeReactor()
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tmp_path / "fifo", os.O_WRONLY)
    log = EventLog(reactor, StreamTarget(LossyWriter(reactor, writer), render_text), wall_clock=lambda: AT)
    for number in range(50):
        log.bind().info("x", text="y" * 10_000, n=number)
    (tmp_path / "got").write_bytes(os.read(reader, 1 << 20))
    os.close(reader)
    reactor.advance(1)
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    log.bind().info("back", n=50)
    got = os.read(reader, 1 << 20)
    whole = (tmp_path / "got").read_bytes().count(b"\n")
    assert b"event=log_lost lines=%d\n" % (50 - whole) in got
    assert got.endswith(b"event=back n=50\n")
    for fd in (reader, writer):
        os.close(fd)


# -- a file -------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relayd.log"


@pytest.fixture
def target(path: Path) -> Iterator[FileTarget]:
    target = FileTarget(str(path), render_text)
    yield target
    os.close(target._fd)


def numbers(path: Path) -> list[int]:
    return [int(line.rpartition("n=")[2]) for line in path.read_text().splitlines()]


def test_a_file_is_appended_to_and_others_may_not_read_it(path: Path) -> None:
    path.write_text("before\n")
    target = FileTarget(str(path), render_text)
    assert target.emit("info", 0.0, {"event": "x"})
    assert path.read_text() == "before\n1970-01-01T00:00:00.000Z info event=x\n"
    path.unlink()
    before = os.umask(0)
    try:
        target.reopen()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert not os.get_inheritable(target._fd)
    os.close(target._fd)


def test_f2_no_line_is_lost_or_doubled_over_renames(target: FileTarget, path: Path) -> None:
    files = [path]
    for number in range(300):
        if number % 10 == 5:
            files.insert(1, path.with_name(f"old.{number}"))
            path.rename(files[1])
        if number % 10 == 8:
            target.reopen()
        assert target.emit("info", AT, {"n": number})
    assert [number for file in reversed(files) for number in numbers(file)] == list(range(300))
    assert not [file for file in files if not numbers(file)]


def test_f2_reopening_leaves_one_descriptor(target: FileTarget) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        target.reopen()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("obstacle", ["directory", "missing", "link"])
def test_f2_a_new_file_that_cannot_be_had_leaves_the_old_one(target: FileTarget, path: Path, obstacle: str) -> None:
    folder = path.parent
    if obstacle == "missing":
        folder = folder.rename(folder.with_name(folder.name + "-moved"))
        old = folder / path.name
    else:
        old = path.rename(path.with_name("old"))
        path.mkdir() if obstacle == "directory" else path.symlink_to("elsewhere")
    with pytest.raises(OSError, match=re.escape(str(path))):
        target.reopen()
    assert target.emit("info", AT, {"n": 1})
    assert numbers(old) == [1]
    if obstacle == "missing":
        folder.rename(path.parent)


def test_f2_a_file_that_was_cut_is_gone_on_with_from_its_start(target: FileTarget, path: Path) -> None:
    for number in (1, 2):
        target.emit("info", AT, {"n": number})
    os.truncate(path, 0)  # logrotate's copytruncate
    target.emit("info", AT, {"n": 3})
    assert numbers(path) == [3]


@pytest.mark.parametrize("obstacle", ["directory", "missing", "link", "fifo"])
def test_a_file_that_cannot_be_had_at_the_start_is_an_error(path: Path, obstacle: str) -> None:
    if obstacle == "directory":
        path.mkdir()
    elif obstacle == "link":
        path.symlink_to(path.with_name("elsewhere"))
    elif obstacle == "fifo":
        os.mkfifo(path)  # with nobody at its other end
    with pytest.raises(OSError, match=r"\[Errno"):
        FileTarget(str(path / "below" if obstacle == "missing" else path), render_text)
    assert not path.with_name("elsewhere").exists()


def on_small_disk(folder: Path, code: str) -> str:
    """Return what Python code prints that runs in a directory of 64 KiB, which nobody else sees."""
    needs("unshare", "mount")
    script = 'mount -t tmpfs -o size=64k tmpfs "$1" && cd "$1" && exec "$2" -W error -c "$3"'
    done = subprocess.run(
        ["unshare", *(["-Ur"] if os.geteuid() else []), "-m", "sh", "-c", script, "sh", folder, sys.executable, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    if done.returncode and ("unshare:" in done.stderr or "mount:" in done.stderr):
        pytest.skip(f"no mount namespaces here: {done.stderr}")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


_FULL = """
import os
from pathlib import Path
from relayd.observe.log import EventLog
from relayd.observe.targets import FileTarget, render_text
from tests.fakes import FakeReactor

target = FileTarget("log", render_text)
log = EventLog(FakeReactor(), target, wall_clock=lambda: 1795367058.1234)
for number in range(100):
    log.bind().info("x", text="y" * 990, n=number)
waiting = log._lost
os.rename("log", "old")
before = Path("old").read_text()
os.truncate("old", 0)
target.reopen()
log.bind().info("x", n=100)
log.bind().info("x", n=101)
print(waiting, before + "---", Path("log").read_text(), sep="\\n", end="")
"""


def test_f1_a_full_disk_loses_whole_lines_which_are_counted_and_told(tmp_path: Path) -> None:
    first, _, rest = on_small_disk(tmp_path, _FULL).partition("\n")
    before, after = (tmp_path / name for name in ("before", "after"))
    texts = rest.split("---\n")
    before.write_text(texts[0])
    after.write_text(texts[1])
    waiting = int(first)
    kept, counted = read_back(before)
    assert kept == list(range(len(kept)))
    assert 40 < len(kept) < 70
    assert waiting
    assert len(kept) + counted + waiting == 100
    assert read_back(after) == ([100, 101], waiting)
