"""What is said to the service manager, and what it passes, against a socket of the test's own."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relayd.process.systemd import Notifier, listen_descriptors

later: list[Callable[[], None]] = []  # what is to be called again


@contextmanager
def told(environ: dict[str, str]) -> Iterator[Notifier]:
    """A notifier, whose socket does not outlive the test."""
    notifier = Notifier(environ, lambda _seconds, call: later.append(call))
    yield notifier
    notifier.close()
    later.clear()


class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.setblocking(False)
        self.address = address.replace("\0", "@")

    def heard(self) -> list[list[str]]:
        """Return the states of each datagram that has come."""
        found = []
        while True:
            try:
                found.append(self.sock.recv(65536).decode().split("\n"))
            except BlockingIOError:
                return found


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    with told({"NOTIFY_SOCKET": manager.address}) as notifier:
        yield notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    manager = Manager(path if request.param == "path" else f"\0relayd-test-{os.getpid()}")
    yield manager
    manager.sock.close()


# -- what is said -------------------------------------------------------------------------------


def test_ready_has_a_status_and_the_pid(manager: Manager, notifier: Notifier) -> None:
    notifier.ready("3 of 4 sources up")
    assert manager.heard() == [["READY=1", "STATUS=3 of 4 sources up", f"MAINPID={os.getpid()}"]]


def test_reloading_carries_the_time_of_the_monotonic_clock(manager: Manager, notifier: Notifier) -> None:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notifier.reloading()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    ((state, stamp),) = manager.heard()
    assert state == "RELOADING=1"
    name, _, value = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(value) <= after


def test_stopping_and_anything_else(manager: Manager, notifier: Notifier) -> None:
    notifier.stopping()
    assert notifier.send("WATCHDOG=1")
    assert notifier.send("STATUS=é", "X=y")
    assert manager.heard() == [["STOPPING=1"], ["WATCHDOG=1"], ["STATUS=é", "X=y"]]


def test_a_manager_that_reads_nothing_is_never_awaited(manager: Manager, notifier: Notifier) -> None:
    taken = 0
    while notifier.send("WATCHDOG=1" + "x" * 1000):
        taken += 1
        assert taken < 100_000
    notifier.ready("")
    notifier.stopping()
    assert taken == len(manager.heard())


def test_what_a_start_or_a_reload_waits_for_is_said_until_there_is_room(manager: Manager, notifier: Notifier) -> None:
    def fill() -> None:
        while notifier.send("WATCHDOG=1"):
            pass

    fill()
    notifier.ready("first")
    notifier.reloading()
    notifier.ready("second")
    (again,) = later
    later.clear()
    again()
    assert later == [again]  # there is no room yet
    assert {states[0] for states in manager.heard()} == {"WATCHDOG=1"}
    again()
    assert [states[0] for states in manager.heard()] == ["READY=1", "RELOADING=1", "READY=1"]
    assert later == [again]
    notifier.stopping()
    assert manager.heard() == [["STOPPING=1"]]


def test_who_never_takes_anything_is_told_the_newest(manager: Manager, notifier: Notifier) -> None:
    while notifier.send("WATCHDOG=1"):
        pass
    for number in range(100):
        notifier.reloading()
        notifier.ready(str(number))
    (again,) = later
    manager.heard()
    again()
    heard = manager.heard()
    assert [states[0] for states in heard] == ["RELOADING=1", "READY=1"] * 2
    assert heard[-1][1] == "STATUS=99"


def test_a_manager_that_is_restarted_is_found_again(tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    with told({"NOTIFY_SOCKET": path}) as notifier:
        for _ in range(2):
            assert not notifier.send("WATCHDOG=1")
            manager = Manager(path)
            assert notifier.send("WATCHDOG=1")
            assert manager.heard() == [["WATCHDOG=1"]]
            manager.sock.close()
            assert not notifier.send("WATCHDOG=1")
            os.unlink(path)


@pytest.mark.parametrize(
    "address", [None, "", "/nonexistent/notify", "@no such name", "vsock:2:1234", "x", "/" + "x" * 300]
)
def test_nobody_there_is_harmless(address: str | None) -> None:
    with told({} if address is None else {"NOTIFY_SOCKET": address}) as notifier:
        assert not notifier.send("WATCHDOG=1")
        notifier.ready("up")
        notifier.reloading()
        notifier.stopping()
        assert notifier.watchdog_interval == 0
        assert not later  # there is nobody to wait for


def test_the_variables_are_taken_and_nothing_else() -> None:
    environ = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "HOME": "/"}
    with told(environ):
        assert environ == {"HOME": "/"}


# -- the watchdog -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, 0), ({"WATCHDOG_USEC": "10000000"}, 5.0), ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": ""}, 0.25),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid())}, 5.0),
        ({"WATCHDOG_USEC": "10000000", "WATCHDOG_PID": "1"}, 0), ({"WATCHDOG_USEC": "0"}, 0),
        ({"WATCHDOG_USEC": "-5"}, 0), ({"WATCHDOG_USEC": "soon"}, 0), ({"WATCHDOG_PID": str(os.getpid())}, 0),
    ],
)  # fmt: skip
def test_p24_the_watchdog_is_fed_twice_in_its_time_if_it_is_ours(environ: dict[str, str], seconds: float) -> None:
    with told(environ) as notifier:
        assert notifier.watchdog_interval == seconds


# -- what is passed -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "descriptors"), [("0", []), ("1", [3]), ("3", [3, 4, 5]), ("", []), ("-1", []), ("two", [])]
)
def test_descriptors_are_counted_from_three(count: str, descriptors: list[int]) -> None:
    assert listen_descriptors({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": count}) == descriptors


@pytest.mark.parametrize("pid", ["1", "", pytest.param(str(os.getpid() + 1), id="next"), "x"])
def test_anothers_descriptors_are_not_ours(pid: str) -> None:
    assert listen_descriptors({"LISTEN_PID": pid, "LISTEN_FDS": "2"}) == []


def test_p21_the_variables_are_gone_whoever_they_were_for() -> None:
    for pid in (str(os.getpid()), "1"):
        environ = {"LISTEN_PID": pid, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b", "PATH": "/bin"}
        listen_descriptors(environ)
        assert environ == {"PATH": "/bin"}
    assert listen_descriptors({}) == []
