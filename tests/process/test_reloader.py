"""Going over to another configuration: whole or not at all, and everybody is told which."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.config.load import load_file
from relayd.config.settings import Config
from relayd.controller import Controller
from relayd.observe.targets import LogTarget
from relayd.process.logtarget import LogTargets
from relayd.process.reloader import Reloader
from relayd.process.systemd import Notifier
from relayd.service import Service
from tests.fakes import House, Lines
from tests.net.helpers import descriptors, resolver_threads
from tests.support import PATIENCE, free_port

RELAY = "[relay {0}]\nmode = listen-listen\nsource = unix:{0}.in\ndestination = unix:{0}.out\nlinger_timeout = 100ms\n"


class Living:
    """A service that can be reloaded, a control socket, and what systemd is told."""

    def __init__(self, folder: Path) -> None:
        self.house = House(folder)
        self.house.config(RELAY.format("a"))
        self.loads = 0
        self.ended = False
        self.house.lines.close = lambda: None  # type: ignore[attr-defined]
        self.terminal: Any = Lines()
        self.log_targets = LogTargets(self.terminal)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.manager.setblocking(False)
        self.notifier = Notifier({"NOTIFY_SOCKET": str(folder / "notify")}, self.house.reactor.call_later)
        house = self.house
        self.service = Service(self.load(), house.shared, self._end)
        self.controller = Controller(house.reactor, house.pool, house.shared.log.bind())
        self.controller.serve(None)  # type: ignore[arg-type]
        self.reloader = self.new(self.load)
        self.service.start()
        self.loads = 0

    def new(self, load: Callable[[], Config] | None) -> Reloader:
        return Reloader(
            self.house.reactor, self.house.shared.resolver, load, self.make_target, self.service, self.controller,
            self.house.shared.log, self.notifier,
        )  # fmt: skip

    def make_target(self, config: Config) -> LogTarget:
        return self.house.lines if not config.log else self.log_targets.make(config)

    def _end(self) -> None:
        self.ended = True

    def load(self) -> Config:
        self.loads += 1
        return load_file(str(self.house.folder / "relayd.ini"), {})

    def write(self, text: str) -> None:
        (self.house.folder / "relayd.ini").write_text(text)

    def reload(self, text: str) -> tuple[str, ...]:
        self.write(text)
        return self.reload_again()

    def ask(self) -> list[tuple[str, ...]]:
        """Ask for a reload; return where its outcome comes to stand."""
        outcome: list[tuple[str, ...]] = []
        self.reloader.reload(outcome.append)
        return outcome

    def reload_again(self) -> tuple[str, ...]:
        """Reload, which must be over at once; return the reasons why it was not done."""
        (reasons,) = self.ask()
        return reasons

    def told(self) -> list[str]:
        """Return the first words of what systemd has been told."""
        found = []
        while True:
            try:
                found.append(self.manager.recv(65536).decode().partition("\n")[0])
            except BlockingIOError:
                return found

    def logged(self, *parts: str) -> list[str]:
        return self.house.lines.having(*parts)

    @property
    def names(self) -> list[str]:
        return [relay.name for relay in self.service.relays]

    def files(self) -> set[str]:
        return {path.name for path in self.house.folder.iterdir() if path.is_socket()} - {"notify"}

    def close(self) -> None:
        self.controller.close()
        self.service.stop()
        self.house.until(lambda: self.ended, "the end")
        self.house.close()
        self.manager.close()
        self.log_targets.close()
        assert self.notifier._sender is not None
        self.notifier._sender.close()


@pytest.fixture
def living(tmp_path: Path) -> Iterator[Living]:
    living = Living(tmp_path)
    yield living
    living.close()


# -- done ---------------------------------------------------------------------------------------


def test_a_reload_is_done_logged_and_told(living: Living) -> None:
    before = living.reloader.loaded_at
    assert living.reload(RELAY.format("a") + RELAY.format("b")) == ()
    assert living.names == ["a", "b"]
    assert living.files() == {"a.in", "a.out", "b.in", "b.out"}
    assert living.logged("event=reloaded", 'changes="1 added, 0 removed, 0 changed, 1 unchanged"')
    assert living.told() == ["RELOADING=1", "READY=1"]
    assert living.reloader.failure == ""
    assert living.reloader.loaded_at >= before


def test_p6_a_reload_of_the_same_changes_nothing(living: Living) -> None:
    (relay,) = living.service.relays
    for _ in range(20):
        assert living.reload_again() == ()
    assert living.service.relays == [relay]
    assert len(living.logged("event=reloaded", "1 unchanged")) == 20


def test_p7_a_thousand_requests_in_a_turn_are_one_reload(living: Living) -> None:
    for _ in range(1000):
        living.reloader.request()
    assert living.loads == 0
    living.house.until(lambda: living.loads)
    for _ in range(10):
        living.house.reactor.turn(0)
    assert living.loads == 1
    living.reloader.request()
    living.house.until(lambda: living.loads == 2)
    assert living.told() == ["RELOADING=1", "READY=1"] * 2


def test_a_request_during_a_reload_is_one_more(living: Living) -> None:
    load, wanted = living.load, [1, 1, 1]

    def again() -> Config:
        for _ in range(100):
            if wanted:
                living.reloader.request()
        if wanted:
            wanted.pop()
        return load()

    living.reloader = living.new(again)
    living.reloader.request()
    living.house.until(lambda: living.loads == 4)
    for _ in range(10):
        living.house.reactor.turn(0)
    assert living.loads == 4


def test_keys_of_the_start_wait_for_it_and_say_so(living: Living) -> None:
    assert living.reload("[relayd]\numask = 0077\nuser = nobody\n" + RELAY.format("a")) == ()
    assert [line.rpartition("=")[2] for line in living.logged("event=needs_restart")] == ["user", "umask"]


def test_the_level_of_the_log_applies_at_once(living: Living) -> None:
    assert living.reload("[relayd]\nlog_level = error\n" + RELAY.format("a")) == ()
    living.house.lines.lines.clear()
    assert living.reload(RELAY.format("a")) == ()
    assert living.house.shared.log.level == "info"


def test_the_log_moves_to_a_file_and_back(living: Living) -> None:
    file = living.house.folder / "log"
    assert living.reload(f"[relayd]\nlog = {file}\n" + RELAY.format("a")) == ()
    assert "event=reloaded" in file.read_text()
    assert living.reload(RELAY.format("a")) == ()
    assert living.logged("event=reloaded")


def test_a_log_that_moves_leaves_no_descriptor(living: Living) -> None:
    texts = [f"[relayd]\nlog = {living.house.folder / name}\n" + RELAY.format("a") for name in ("one", "two")]
    for text in texts:
        living.reload(text)
    before = len(descriptors())
    for _ in range(10):
        for text in texts:
            assert living.reload(text) == ()
    assert len(descriptors()) == before


def test_the_control_socket_comes_moves_and_goes(living: Living) -> None:
    for path, mode in (("one", "0600"), ("two", "0660"), ("two", "0600")):
        text = f"[relayd]\ncontrol = {living.house.folder / path}\ncontrol_mode = {mode}\n"
        assert living.reload(text + RELAY.format("a")) == ()
        assert living.files() == {"a.in", "a.out", path}
        assert stat.S_IMODE((living.house.folder / path).stat().st_mode) == int(mode, 8)
    assert living.reload(RELAY.format("a")) == ()
    assert living.files() == {"a.in", "a.out"}


# -- names to listen on ----------------------------------------------------------------------------


class Names:
    """A name service that answers when it is told to: every name is this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.failure: Exception | None = None

    def __call__(self, host: str, port: int, *_: object) -> list[tuple[Any, Any, Any, Any, Any]]:
        self.asked.append(host)
        self.answers.wait(PATIENCE)
        if self.failure is not None:
            raise self.failure
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]


@pytest.fixture
def names(living: Living, monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names = Names()
    monkeypatch.setattr(living.house.shared.resolver, "_lookup", names)
    yield names
    names.answers.set()
    living.house.until(lambda: not resolver_threads(), "the end of the threads")


def named(name: str, host: str) -> str:
    return f"[relay {name}]\nsource = unix:{name}.in\ndestination = {host}:{free_port()}\n"


def carries(living: Living) -> None:
    """Whatever else goes on, relay a relays."""
    with living.house.connect("a.in") as source, living.house.connect("a.out") as client:
        before = len(living.logged("event=connected"))
        living.house.until(lambda: len(living.logged("event=connected")) == before + 2)
        source.send(b"x")
        assert living.house.receive(client, 1) == b"x"


def test_d1_the_streams_flow_while_a_name_is_looked_up(living: Living, names: Names) -> None:
    living.write(RELAY.format("a") + named("b", "feed"))
    outcome = living.ask()
    living.house.until(lambda: names.asked)
    carries(living)
    assert (outcome, living.names, living.told()) == ([], ["a"], ["RELOADING=1"])
    names.answers.set()
    living.house.until(lambda: outcome)
    assert (outcome, living.names, living.told()) == ([()], ["a", "b"], ["READY=1"])
    assert names.asked == ["feed"]
    assert living.reload_again() == ()  # it is listened on, and no question any more
    assert names.asked == ["feed"]


def test_d1_a_name_that_is_not_found_changes_nothing(living: Living, names: Names) -> None:
    (relay,) = living.service.relays
    names.failure = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    names.answers.set()
    living.write(named("b", "feed"))
    outcome = living.ask()
    living.house.until(lambda: outcome)
    ((reason,),) = outcome
    assert reason.startswith("[relay b] cannot listen on feed:")
    assert reason.endswith(": Temporary failure in name resolution")
    assert living.reloader.failure == reason
    unchanged(living, relay)


def test_d1_who_asks_meanwhile_has_the_file_read_again_and_all_are_answered(living: Living, names: Names) -> None:
    living.write(RELAY.format("a") + named("b", "feed"))
    first = living.ask()
    living.house.until(lambda: names.asked)
    living.write(RELAY.format("a") + named("c", "feed") + named("d", "feed"))
    second = living.ask()
    for _ in range(1000):
        living.reloader.request()
    living.house.until(lambda: living.loads == 3)
    assert (first, second) == ([], [])
    names.answers.set()
    living.house.until(lambda: first)
    assert (first, second, living.names) == ([()], [()], ["a", "c", "d"])
    assert len(living.logged("event=reloaded")) == 1
    assert living.told() == ["RELOADING=1"] * 3 + ["READY=1"]
    living.house.reactor.turn(0)
    assert living.loads == 3


def test_d1_a_file_without_names_does_not_wait_for_those_of_the_one_before(living: Living, names: Names) -> None:
    living.write(RELAY.format("a") + named("b", "feed"))
    first = living.ask()
    assert living.reload(RELAY.format("c")) == ()
    assert (first, living.names) == ([()], ["c"])
    names.answers.set()
    living.house.until(lambda: not resolver_threads())
    living.house.reactor.turn(0)
    assert living.names == ["c"]


def test_p11_who_waits_when_the_service_stops_is_told(living: Living, names: Names) -> None:
    living.write(named("b", "feed"))
    outcome = living.ask()
    living.reloader.stop()
    assert outcome == [("the service is stopping",)]
    assert living.told() == ["RELOADING=1", "READY=1"]
    names.answers.set()
    living.house.until(lambda: not resolver_threads())
    living.house.reactor.turn(0)
    assert living.names == ["a"]
    living.reloader.stop()  # and nobody waits any more
    assert living.told() == []


# -- not done -----------------------------------------------------------------------------------


def unchanged(living: Living, relay: object) -> None:
    """Nothing is other than it was, and it is said why; systemd is not left waiting."""
    assert living.service.relays == [relay]
    assert living.files() == {"a.in", "a.out"}
    assert living.told() == ["RELOADING=1", "READY=1"]
    assert living.logged("event=reload_failed")
    assert not living.logged("event=reloaded")
    with living.house.connect("a.in") as source, living.house.connect("a.out") as client:
        living.house.until(lambda: len(living.logged("event=connected")) == 2)
        source.send(b"x")
        assert living.house.receive(client, 1) == b"x"


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("[relay a]\nsource = :0\ndestination = nowhere\n", 2),
        ("[relay a\n", 1), ("\x00", 1), ("", 1), ("[relayd]\nlog_levle = info\n" + RELAY.format("b"), 1),
    ],
)  # fmt: skip
def test_p8_a_broken_file_changes_nothing(living: Living, text: str, reasons: int) -> None:
    (relay,) = living.service.relays
    found = living.reload(text)
    assert len(found) >= reasons
    assert all("relayd.ini" in reason for reason in found)
    assert living.reloader.failure == found[0]
    assert len(living.logged("event=reload_failed")) == len(found)
    unchanged(living, relay)


def test_what_is_missing_in_a_chroot_is_said_to_have_been_looked_for_in_there(living: Living) -> None:
    living.reloader = Reloader(
        living.house.reactor, living.house.shared.resolver, living.load, living.make_target, living.service,
        living.controller, living.house.shared.log, living.notifier, inside="/jail",
    )  # fmt: skip
    (reason,) = living.reload("[relayd]\nlog = /none/such\n" + RELAY.format("a"))
    assert reason == "cannot write log /none/such: No such file or directory (inside chroot /jail)"
    (line,) = living.logged("event=reload_failed")
    assert " error " in line and "(inside chroot /jail)" in line


def test_p8_a_file_that_is_gone_changes_nothing_and_the_next_reload_clears_it(living: Living) -> None:
    (relay,) = living.service.relays
    (living.house.folder / "relayd.ini").unlink()
    (reason,) = living.reload_again()
    assert "No such file" in reason
    unchanged(living, relay)
    assert living.reload(RELAY.format("a")) == ()
    assert living.reloader.failure == ""


def test_p10_a_port_that_is_taken_changes_nothing(living: Living) -> None:
    (relay,) = living.service.relays
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(living.house.folder / "c.out"))
        other.listen()
        text = (
            f"[relayd]\ncontrol = {living.house.folder}/control\n"
            + "".join(map(RELAY.format, "bc"))
            + RELAY.format("a")
            + "buffer = 5K\n"
        )
        (reason,) = living.reload(text)
        assert reason.startswith("[relay c] cannot listen on unix:")
        assert living.service.config.relays[0].buffer != 5 * 1024
    (living.house.folder / "c.out").unlink()
    unchanged(living, relay)


@pytest.mark.parametrize("key", ["control = {}/no/socket", "log = {}/no/log", "control = {0}/c\nlog = {0}/no/log"])
def test_p10_a_control_socket_or_log_that_cannot_be_had_changes_nothing(living: Living, key: str) -> None:
    (relay,) = living.service.relays
    text = "[relayd]\n" + key.format(living.house.folder) + "\nlog_level = error\n" + RELAY.format("b")
    (reason,) = living.reload(text)
    assert "No such file" in reason
    unchanged(living, relay)
    assert living.house.shared.log.level == "debug"


def test_p10_a_refused_reload_leaves_the_control_socket_as_it_was(living: Living) -> None:
    path = living.house.folder / "control"
    head = f"[relayd]\ncontrol = {path}\ncontrol_mode = "
    assert living.reload(head + "0600\n" + RELAY.format("a")) == ()
    inode = path.stat().st_ino
    taken = RELAY.format("b").replace("unix:b.in", f"unix:{living.house.folder}/relayd.ini")
    assert living.reload(head + "0666\n" + RELAY.format("a") + taken)
    assert path.stat().st_ino == inode
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_p10_refused_reloads_leave_no_descriptor(living: Living) -> None:
    log = living.house.folder / "log"
    taken = RELAY.format("b").replace("unix:b.in", f"unix:{living.house.folder}/relayd.ini")
    text = f"[relayd]\nlog = {log}\ncontrol = {living.house.folder}/c\n" + taken
    assert living.reload(text)
    before = len(descriptors())
    for _ in range(10):
        assert living.reload(text)
    assert len(descriptors()) == before


@pytest.mark.parametrize("step", ["load", "reload"])
def test_p8_what_nobody_has_thought_of_changes_nothing_and_is_told(
    living: Living, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (relay,) = living.service.relays

    def fail(*_: object) -> None:
        raise LookupError("unknown encoding: idna")

    if step == "reload":
        monkeypatch.setattr(living.service, "reload", fail)
    else:
        living.reloader = living.new(fail)  # type: ignore[arg-type]
    (reason,) = living.reload(f"[relayd]\ncontrol = {living.house.folder}/control\n" + RELAY.format("b"))
    assert reason == "internal error, its traceback is in the log: LookupError('unknown encoding: idna')"
    assert living.reloader.failure == reason
    (failure,) = living.logged("event=internal_error", "idna")
    living.house.lines.lines.remove(failure)
    unchanged(living, relay)


def test_p11_while_it_stops_nothing_is_read_again(living: Living) -> None:
    with living.house.connect("a.out"):
        living.house.until(lambda: living.logged("event=connected"))
        living.service.stop()
        assert living.reload(RELAY.format("b")) == ("the service is stopping",)
        assert living.loads == 0
        assert living.files() == set()
        living.house.until(lambda: living.ended)


def test_without_a_file_there_is_nothing_to_read_again(living: Living) -> None:
    living.reloader = living.new(None)
    assert living.reload_again() == ("there is no configuration file to read again",)


def test_nothing_is_left_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    living = Living(tmp_path)
    living.reload(RELAY.format("b"))
    living.reload("broken")
    living.close()
    assert len(os.listdir("/proc/self/fd")) == before
