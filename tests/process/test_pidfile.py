"""The pidfile: whoever holds the flock runs, whatever the file says."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lockfile import AlreadyLocked, LockFailed

from relayd.process.pidfile import PidFile
from tests.observe.test_targets import on_small_disk
from tests.support import PATIENCE, ROOT


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "relayd.pid"


def held(path: Path) -> PidFile:
    pidfile = PidFile(str(path))
    pidfile.hold()
    return pidfile


@contextmanager
def running(path: Path) -> Iterator[PidFile]:
    """A pidfile as a daemon has it."""
    pidfile = held(path)
    pidfile.acquire()
    try:
        yield pidfile
    finally:
        pidfile.release()


def run(code: str, *words: object, status: int = 0) -> str:
    """Run Python code in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import os, sys\nfrom relayd.process.pidfile import *\n{code}",
         *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (status, ""), done.stderr
    return done.stdout


# -- one owner ----------------------------------------------------------------------------------


def test_the_file_holds_the_pid_and_goes_with_the_owner(path: Path) -> None:
    with running(path) as pidfile:
        assert path.read_bytes() == b"%d\n" % os.getpid()
        assert stat.S_IMODE(path.stat().st_mode) & ~0o644 == 0
        assert pidfile.is_locked()
        assert pidfile.i_am_locking()
        assert not os.get_inheritable(pidfile.fd)
    assert not path.exists()
    assert not pidfile.is_locked()
    assert not pidfile.i_am_locking()


def test_acquire_alone_takes_the_lock_too(path: Path) -> None:
    pidfile = PidFile(str(path))
    pidfile.acquire()
    assert pidfile.is_locked()
    assert path.read_bytes() == b"%d\n" % os.getpid()
    pidfile.release()


def test_p14_a_second_one_is_refused_with_the_owners_pid(path: Path) -> None:
    with running(path):
        before = sorted(os.listdir("/proc/self/fd"))
        with pytest.raises(AlreadyLocked, match=f"already running, with pid {os.getpid()}$"):
            held(path)
        assert sorted(os.listdir("/proc/self/fd")) == before
        second = run("try: PidFile(sys.argv[1]).hold()\nexcept AlreadyLocked as error: print(error)", path)
        assert second == f"already running, with pid {os.getpid()}\n"
        assert path.read_bytes() == b"%d\n" % os.getpid()


def test_p14_an_owner_that_has_not_written_its_pid_is_starting(path: Path) -> None:
    pidfile = held(path)
    with pytest.raises(AlreadyLocked, match="starting"):
        held(path)
    pidfile.release()
    assert not path.exists()


_RACE = """
rounds, starters = 20, 20
counts = []
for _ in range(rounds):
    with open(sys.argv[1], "w") as stale:
        stale.write("1\\n")
    gate, results, end = os.pipe(), os.pipe(), os.pipe()
    for _ in range(starters):
        if os.fork() == 0:
            os.close(gate[1]), os.close(end[1])
            os.read(gate[0], 1)
            pidfile = PidFile(sys.argv[1])
            try:
                pidfile.hold()
                pidfile.acquire()
                os.write(results[1], b"O")
                os.read(end[0], 1)
                pidfile.release()
            except AlreadyLocked:
                os.write(results[1], b"x")
            except BaseException as error:
                os.write(results[1], b"E")
            os._exit(0)
    os.close(gate[1])
    got = b""
    while len(got) < starters:
        got += os.read(results[0], starters)
    os.close(end[1])
    for _ in range(starters):
        os.wait()
    counts.append((got.count(b"O"), got.count(b"x"), os.path.exists(sys.argv[1])))
    for fd in (gate[0], results[0], results[1], end[0]):
        os.close(fd)
print(set(counts))
"""


def test_p14_of_twenty_starters_over_a_stale_file_exactly_one_lives(path: Path) -> None:
    assert run(_RACE, path) == "{(1, 19, False)}\n"


_CHURN = """
import time
until = time.monotonic() + 1.5
for _ in range(8):
    if os.fork() == 0:
        status, owned = 0, 0
        while time.monotonic() < until:
            pidfile = PidFile(sys.argv[1])
            try:
                pidfile.hold()
            except AlreadyLocked:
                continue
            try:
                os.close(os.open(sys.argv[2], os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                status = 9
                break
            pidfile.acquire()
            owned += 1
            os.unlink(sys.argv[2])
            pidfile.release()
        os._exit(status or (0 if owned else 8))
print(sorted({os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)} - {8}))
"""


def test_p14_owners_that_come_and_go_are_never_two(path: Path, tmp_path: Path) -> None:
    assert run(_CHURN, path, tmp_path / "witness") == "[0]\n"


# -- what a former owner left -----------------------------------------------------------------


def test_p12_after_kill_9_the_next_start_works(path: Path) -> None:
    killed = run(
        "print(os.getpid(), flush=True)\nPidFile(sys.argv[1]).acquire()\nos.kill(os.getpid(), 9)", path, status=-9
    )
    assert path.read_text() == killed
    with running(path) as pidfile:
        assert pidfile.stale == int(killed)
        assert path.read_bytes() == b"%d\n" % os.getpid()


def test_p13_a_pid_that_is_another_programs_now_locks_nobody_out(path: Path) -> None:
    path.write_text("1\n")
    assert not PidFile(str(path)).is_locked()
    with running(path) as pidfile:
        assert pidfile.stale == 1
        assert path.read_bytes() == b"%d\n" % os.getpid()


def test_a_longer_former_content_is_gone(path: Path) -> None:
    path.write_text("9" * 5000 + "\nmore\n")
    with running(path):
        assert path.read_bytes() == b"%d\n" % os.getpid()


@pytest.mark.parametrize("content", [b"", b"\n", b"relayd\n", b"\xff\xfe\x00\x80", b"-\n", b"\0" * 100])
def test_p15_a_file_with_no_pid_in_it_is_stale_without_one(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with running(path) as pidfile:
        assert pidfile.stale == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x80"])
def test_p15_an_owner_whose_file_says_nothing_is_still_the_owner(path: Path, content: bytes) -> None:
    with running(path):
        path.write_bytes(content)
        with pytest.raises(AlreadyLocked, match="starting"):
            held(path)


# -- what must not be a pidfile -----------------------------------------------------------------


def test_p15_a_symbolic_link_is_refused_and_what_it_names_untouched(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(LockFailed, match="symbolic link"):
        held(path)
    assert victim.read_text() == "precious"
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(LockFailed):
        held(path)
    assert not (tmp_path / "nowhere").exists()


def test_p15_a_directory_is_refused(path: Path) -> None:
    path.mkdir()
    with pytest.raises(LockFailed, match="directory"):
        held(path)
    assert path.is_dir()


def test_p15_a_missing_directory_is_told(path: Path) -> None:
    with pytest.raises(LockFailed, match="No such file or directory"):
        held(path / "relayd.pid")


@pytest.mark.timeout(5)
def test_p15_a_fifo_is_refused_and_never_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(LockFailed):
        held(path)
    assert path.is_fifo()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a device")
def test_p15_a_device_is_refused_and_stays(path: Path) -> None:
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
    with pytest.raises(LockFailed):
        held(path)
    assert path.is_char_device()


# -- the end ------------------------------------------------------------------------------------


def test_a_file_that_somebody_removed_is_no_trouble_at_the_end(path: Path) -> None:
    with running(path):
        path.unlink()
    assert not path.exists()


def test_the_file_of_somebody_who_came_after_is_left(path: Path) -> None:
    with running(path) as first:
        path.unlink()
        with running(path) as second:
            first.release()
            assert path.exists()
            assert second.is_locked()


def test_release_twice_is_once(path: Path) -> None:
    with running(path) as pidfile:
        pidfile.release()
        path.write_text("another's\n")
    assert path.read_text() == "another's\n"


def test_a_forked_childs_release_does_nothing(path: Path) -> None:
    said = run(
        "p = PidFile(sys.argv[1]); p.hold(); p.acquire()\n"
        "if os.fork() == 0: p.release(); os._exit(0)\n"
        "os.wait()\n"
        "print(p.is_locked(), p.read_pid() == os.getpid())\n"
        "p.release()\n"
        "print(os.path.exists(sys.argv[1]))",
        path,
    )
    assert said == "True True\nFalse\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives up root")
def test_release_without_the_right_to_remove_leaves_an_empty_file(path: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    run("p = PidFile(sys.argv[1]); p.acquire(); os.setuid(65534); p.release(); print(p.fd)", path)
    assert path.read_bytes() == b""
    with running(path):
        pass


# -- a full disk --------------------------------------------------------------------------------


_FULL = """
filler = os.open("filler", os.O_WRONLY | os.O_CREAT)
try:
    while os.write(filler, b"x" * 4096): pass
except OSError: pass
p = PidFile("relayd.pid")
p.hold()
try: p.acquire()
except LockFailed as error: print(error)
p.release()
print(os.listdir())
"""


def test_p15_a_full_disk_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    assert on_small_disk(tmp_path, "import os\nfrom relayd.process.pidfile import *\n" + _FULL) == (
        "No space left on device\n['filler']\n"
    )
