"""Into the background: the caller learns how the start went, and the daemon is detached from all it had."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.process.pidfile import PidFile
from tests.support import PATIENCE, ROOT, wait_until

# argv: the folder; `BODY` is what the daemon does. A daemon that a failed test forgets ends by itself.
_STARTER = """
import json, os, signal, sys
from relayd.errors import StartError
from relayd.process import daemonize as tested
from relayd.process.pidfile import PidFile

folder = sys.argv[1]
tested._READY_TIMEOUT = float(os.environ.get("READY", "30"))
tested._END_TIMEOUT = float(os.environ.get("END", "5"))
starter = os.getpid()

def interrupt_starter():
    os.kill(starter, signal.SIGINT)
    ignored = 0
    while not ignored >> signal.SIGINT - 1 & 1:  # it has been interrupted, and takes care that it is not again
        with open(f"/proc/{starter}/status") as status:
            ignored = int(next(line for line in status if line.startswith("SigIgn")).split()[1], 16)

exec(os.environ.get("SETUP", ""))

def facts():
    return {
        "pid": os.getpid(), "sid": os.getsid(0), "cwd": os.getcwd(), "umask": os.umask(0),
        "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.lexists(f"/proc/self/fd/{fd}")},
        "inheritable": [os.get_inheritable(fd) for fd in (0, 1, 2)],
    }

def put(name, value):
    with open(f"{folder}/{name}.part", "w") as file:
        json.dump(value, file)
    os.rename(f"{folder}/{name}.part", f"{folder}/{name}")

def body(caller):
    signal.alarm(60)
    put("pid", os.getpid())
    exec(os.environ["BODY"])

pidfile = None
if os.environ.get("PIDFILE"):
    pidfile = PidFile(f"{folder}/relayd.pid")
    pidfile.hold()
umask = int(os.environ["UMASK"], 8) if "UMASK" in os.environ else None
try:
    tested.daemonize(pidfile, umask, body)
except StartError as error:
    put("reasons", error.reasons)
    sys.exit(1)
put("caller", {"pid": os.getpid(), "sid": os.getsid(0)})
"""

STAY = "caller.say_ready(); put('facts', facts()); signal.pause()"


class Start:
    """Starts daemons in a folder, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, body: str, shell: str = "", stdin: Any = subprocess.DEVNULL, **environ: str) -> int:
        """Start a daemon; return the caller's exit status. It must not leave anything on the terminal."""
        words = [sys.executable, "-W", "error", "-c", _STARTER, str(self.folder)]
        if shell:
            words = ["sh", "-c", f'exec "$@" {shell}', "sh", *words]
        done = subprocess.run(
            words, cwd=ROOT, env={**os.environ, "BODY": body, **environ, "PYTHONPATH": str(ROOT)},
            stdin=stdin, capture_output=True, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("", "")
        return done.returncode

    def read(self, name: str) -> Any:
        """Return what the processes have put down under a name."""
        wait_until((self.folder / name).exists, name)
        return json.loads((self.folder / name).read_text())

    def alive(self) -> bool:
        """Whether the daemon is there."""
        try:
            stat = Path(f"/proc/{self.read('pid')}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        return stat.rpartition(")")[2].split()[0] != "Z"  # of which nobody has asked the end yet

    def end(self) -> None:
        """End the daemon, if it is there."""
        if (self.folder / "pid").exists() and self.alive():
            os.kill(self.read("pid"), signal.SIGKILL)
            wait_until(lambda: not self.alive(), "the daemon's end")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path)
    yield start
    start.end()


# -- ready --------------------------------------------------------------------------------------


def test_the_caller_returns_when_the_daemon_is_ready_and_the_daemon_is_detached(start: Start) -> None:
    assert start.run(STAY) == 0
    assert start.alive()
    caller, facts = start.read("caller"), start.read("facts")
    assert facts["pid"] == start.read("pid") != caller["pid"]
    assert facts["sid"] not in (facts["pid"], caller["sid"], os.getsid(0))  # no terminal, and none to be had
    assert facts["cwd"] == "/"
    assert facts["umask"] == 0o027
    files = {fd: name for fd, name in facts["fds"].items() if not name.startswith("/proc/")}
    assert files == {"0": "/dev/null", "1": "/dev/null", "2": "/dev/null"}
    assert facts["inheritable"] == [True, True, True]


def test_the_caller_does_not_return_before(start: Start) -> None:
    order = "import time; put('early', not os.path.exists(folder + '/caller')); time.sleep(0.2)\n"
    assert start.run(order + "put('late', not os.path.exists(folder + '/caller')); " + STAY) == 0
    assert start.read("early")
    assert start.read("late")


def test_the_umask_that_was_asked_for(start: Start) -> None:
    assert start.run(STAY, UMASK="077") == 0
    assert start.read("facts")["umask"] == 0o077


def test_the_pidfile_is_the_daemons_while_it_lives(start: Start) -> None:
    assert start.run(STAY, PIDFILE="1") == 0
    facts = start.read("facts")
    pidfile = PidFile(str(start.folder / "relayd.pid"))
    assert pidfile.read_pid() == facts["pid"]
    assert pidfile.is_locked()
    assert f"{start.folder}/relayd.pid" in facts["fds"].values()
    start.end()
    assert not pidfile.is_locked()


@pytest.mark.parametrize("end", ["", "raise StartError(['late'])", "raise KeyError('late')", "sys.exit(7)"])
def test_a_body_that_ends_after_ready_takes_the_pidfile_with_it(start: Start, end: str) -> None:
    assert start.run(f"caller.say_ready(); {end}", PIDFILE="1") == 0
    wait_until(lambda: not start.alive(), "the daemon's end")
    assert not (start.folder / "relayd.pid").exists()


# -- not ready ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ("raise StartError(['port taken', 'file \\n full'])", ["port taken", "file \n full"]),
        ("raise StartError(['x' * 200_000])", ["x" * 200_000]),
        ("raise KeyError('engine')", ["KeyError: 'engine'"]),
        ("raise OSError(13, 'Permission denied')", ["PermissionError: [Errno 13] Permission denied"]),
        ("os._exit(0)", ["ended before it was ready"]),
        ("os.kill(os.getpid(), signal.SIGKILL)", ["ended before it was ready"]),
        ("sys.exit('no')", ["ended before it was ready"]),
        ("return_without_a_word = 1", ["ended before it was ready"]),
    ],
)
def test_a_start_that_fails_is_told_to_the_caller(start: Start, body: str, reasons: list[str]) -> None:
    assert start.run(body, PIDFILE="1") == 1
    assert start.read("reasons") == reasons
    assert not start.alive(), "the caller has returned before the daemon was gone"
    assert not PidFile(str(start.folder / "relayd.pid")).is_locked()
    assert not (start.folder / "relayd.pid").exists()


def test_a_start_that_hangs_is_ended(start: Start) -> None:
    assert start.run("signal.pause()", READY="0.3", PIDFILE="1") == 1
    (reason,) = start.read("reasons")
    assert reason.startswith("not ready after")
    assert not start.alive(), "the caller has returned before the daemon was gone"
    assert not PidFile(str(start.folder / "relayd.pid")).is_locked()


INTERRUPTED = ["interrupted; the daemon has been ended"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "signal.pause()"),
        ("", "os.kill(starter, signal.SIGINT); signal.pause()"),  # a second one
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit())", "signal.pause()"),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "signal.pause()"),
        ("", "caller.say_ready(); signal.pause()"),
        ("", "raise StartError(['port taken'])"),
    ],
)
def test_ctrl_c_while_the_caller_waits_ends_the_daemon(start: Start, before: str, after: str) -> None:
    end = "0.3" if "SIG_IGN" in before else "5"
    assert start.run(f"{before}\ninterrupt_starter(); {after}", PIDFILE="1", END=end) == 1
    assert start.read("reasons") == INTERRUPTED
    assert not start.alive(), "the caller has returned before the daemon was gone"
    assert not PidFile(str(start.folder / "relayd.pid")).is_locked()
    assert not (start.folder / "relayd.pid").exists()


def test_ctrl_c_before_the_daemon_has_told_its_pid_ends_it_too(start: Start) -> None:
    setup = "say = tested.Caller.say_pid\ntested.Caller.say_pid = lambda caller: (interrupt_starter(), say(caller))"
    assert start.run(STAY, SETUP=setup) == 1
    assert start.read("reasons") == INTERRUPTED
    wait_until(lambda: not (start.folder / "pid").exists() or not start.alive(), "the daemon's end")


def test_ctrl_c_just_after_the_fork_ends_it_too(start: Start) -> None:
    setup = "made = tested._Start\ntested._Start = lambda fd: (os.kill(starter, signal.SIGINT), made(fd))[1]"
    assert start.run(STAY, SETUP=setup) == 1
    assert start.read("reasons") == INTERRUPTED
    wait_until(lambda: not (start.folder / "pid").exists() or not start.alive(), "the daemon's end")


@pytest.mark.parametrize("fails", ["pipe", "fork"])
def test_a_process_that_cannot_be_had_is_told_and_leaves_no_pidfile(start: Start, fails: str) -> None:
    setup = f"def fails(): raise OSError(11, 'Resource temporarily unavailable')\nos.{fails} = fails"
    assert start.run(STAY, PIDFILE="1", SETUP=setup) == 1
    assert start.read("reasons") == ["cannot start another process: Resource temporarily unavailable"]
    assert not (start.folder / "relayd.pid").exists()


def test_a_pidfile_that_cannot_be_written_is_told_with_its_name(start: Start) -> None:
    full = (
        "import errno\nfrom lockfile import LockFailed\n"
        "def fails(self, *a, **k): raise LockFailed('No space left on device')\n"
        "PidFile.acquire = fails\n"
    )
    starter = _STARTER.replace("pidfile = None\n", full + "pidfile = None\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", starter, str(start.folder)], cwd=ROOT,
        env={**os.environ, "BODY": STAY, "PIDFILE": "1"}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    path = start.folder / "relayd.pid"
    assert start.read("reasons") == [f"cannot write pidfile {path}: No space left on device"]
    assert not path.exists()
    assert not (start.folder / "pid").exists()


def test_a_caller_that_was_killed_meanwhile_does_not_stop_the_daemon(start: Start) -> None:
    body = "os.kill(int(open(f'{folder}/starter').read()), signal.SIGKILL)\nimport time\n"
    body += "while os.path.exists(f'/proc/{int(open(folder + \"/starter\").read())}/fd/0'): time.sleep(0.01)\n"
    starter = _STARTER.replace("folder = sys.argv[1]\n", "folder = sys.argv[1]\nput0 = open(f'{folder}/starter', 'w')\n"
                               "put0.write(str(os.getpid()))\nput0.close()\n", 1)  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", starter, str(start.folder)], cwd=ROOT, env={**os.environ, "BODY": body + STAY},
        stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert start.read("facts")["pid"] == start.read("pid")
    assert start.alive()


# -- odd surroundings ---------------------------------------------------------------------------


def test_a_socket_on_stdin_is_no_reason_to_stay_in_the_foreground(start: Start) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert start.run(STAY, stdin=theirs) == 0
    facts = start.read("facts")
    assert facts["sid"] not in (facts["pid"], os.getsid(0))
    assert facts["fds"]["0"] == "/dev/null"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_p18_closed_standard_descriptors_are_dev_null_in_the_daemon(start: Start, closed: str) -> None:
    # As relayd.cli.main does first of all.
    filled = _STARTER.replace(
        "folder =", "from relayd.process.limits import *\nfill_standard_descriptors()\nfolder =", 1
    )
    words = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-W", "error", "-c", filled, str(start.folder)]
    done = subprocess.run(
        words, cwd=ROOT, env={**os.environ, "BODY": STAY}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    facts = start.read("facts")
    assert [facts["fds"][fd] for fd in "012"] == ["/dev/null"] * 3
    assert facts["inheritable"] == [True, True, True]


def test_p19_a_working_directory_that_is_gone_is_no_trouble(start: Start) -> None:
    gone = start.folder / "gone"
    gone.mkdir()
    # After the imports: with -c, Python itself looks for modules in the directory that is gone.
    inside = _STARTER.replace("folder =", f"os.chdir({str(gone)!r})\nos.rmdir({str(gone)!r})\nfolder =", 1)
    done = subprocess.run(
        [sys.executable, "-c", inside, str(start.folder)], cwd=ROOT,
        env={**os.environ, "BODY": STAY, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert start.read("facts")["cwd"] == "/"
