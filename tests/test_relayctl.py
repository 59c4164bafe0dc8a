"""relayctl: what it takes, what it says and how it ends, against a real control socket."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from relayd import __version__, relayctl
from relayd.controller import Controller
from relayd.net.listener import ListenerPool
from relayd.net.reactor import Reactor
from relayd.observe.dump import DumpTarget
from relayd.relayctl import DEFAULT_SOCKET, main
from tests.fakes import bound_log
from tests.support import PATIENCE, ROOT, listener, wait_until
from tests.test_controller import FakeControlled
from tests.test_statustable import link, relay, snapshot

Capture = pytest.CaptureFixture[str]


class Daemon(FakeControlled):
    """A fake daemon behind a real controller, in a thread."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = str(path)
        self.snapshot = snapshot(relay("ais", link(lag=0.5)), relay("late", link(lag=7.0)))
        self.pieces = [b"one\n", b"\xff\x00two\n"]  # of a dump, after which the daemon ends
        self.reactor = Reactor()
        self.pool = ListenerPool()
        self.controller = Controller(self.reactor, self.pool, bound_log(self.reactor)[0])
        self.controller.serve(self)
        self.controller.listen(self.controller.take(self.path, 0o600), 0o600)
        self._thread = threading.Thread(target=self.reactor.run)
        self._thread.start()

    def watch(self, relay: str, style: str, target: DumpTarget) -> Callable[[], None]:
        unwatch = super().watch(relay, style, target)
        self.reactor.call_later(0, self._show)
        return unwatch

    def _show(self) -> None:
        for piece in self.pieces:
            self.watchers[0].write(piece)
        if self.pieces:
            self.controller.close()

    def in_loop(self, callback: Callable[[], None]) -> None:
        self.reactor.post(callback)

    def close(self) -> None:
        self.in_loop(self.reactor.stop)
        self._thread.join(PATIENCE)
        self.controller.close()
        while self.controller.callers:
            self.reactor.turn(0.1)
        self.pool.close()
        self.reactor.close()


@pytest.fixture(autouse=True)
def no_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relayctl, "_MOMENT", 0)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path / "control.sock")
    monkeypatch.setenv("RELAYD_CONTROL", daemon.path)
    yield daemon
    daemon.close()


def complaint(capsys: Capture, *words: str, status: int) -> str:
    """Return the one line that is said of a command that fails."""
    assert main(words) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("relayctl: ")
    assert line.isprintable()
    return line[len("relayctl: ") :]


def words_of(*words: str) -> list[str]:
    """The words that run relayctl as a process, in a hurry; any warning of Python's is an error."""
    code = "import sys\nfrom relayd import relayctl\nrelayctl._MOMENT = 0.05\nsys.exit(relayctl.main())"
    return [sys.executable, "-W", "error", "-c", code, *words]


def environment(**more: str) -> dict[str, str]:
    """Ours, and Python's own choice for what is written: it stays in a buffer until the end."""
    return {**os.environ, "PYTHONUNBUFFERED": "", **more}


def run(*words: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        words_of(*words), cwd=ROOT, env=environment(**environ), stdin=subprocess.DEVNULL, capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip


# -- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a command is missing"),
        (("statsu",), "statsu: unknown command; did you mean 'status'?"),
        (("STATUS",), "STATUS: unknown command; did you mean 'status'?"),
        (("relaod",), "did you mean 'reload'?"),
        (("zzzz",), "zzzz: unknown command; there are status, top, reload, stop, kick, dump"),
        (("",), "unknown command"),
        (("--jsno", "status"), "--jsno: unknown option; did you mean '--json'?"),
        (("--sokcet=/x", "status"), "did you mean '--socket'?"),
        (("-v",), "-v: unknown option"),
        (("--socket",), "--socket: needs a path"),
        (("--socket=", "status"), "--socket: needs a path"),
        (("status", "--socket"), "--socket: needs a path"),
        (("status", "ais", "late"), "status: takes one RELAY at most"),
        (("stop", "now"), "stop: takes no more words"),
        (("kick",), "kick: takes RELAY and PEER, as in `relayctl kick ais 10.0.0.7:51344`"),
        (("kick", "ais"), "kick: takes RELAY and PEER"),
        (("kick", "ais", "a", "b"), "kick: takes RELAY and PEER"),
        (("dump", "ais"), "dump: takes RELAY and FORMAT, as in `relayctl dump ais text`"),
        (("--json",), "a command is missing"),
        (("top", "--json"), "--json: belongs to status"),
        (("reload", "--json"), "--json: belongs to status"),
        (("sta\ntus\x1b[2J",), "unknown command"),
    ],
)
def test_wrong_words_are_one_line_and_exit_status_2(capsys: Capture, words: tuple[str, ...], said: str) -> None:
    assert said in complaint(capsys, *words, status=2)


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("status", "--help"), ("nonsense", "--help")])
def test_help_names_every_command(capsys: Capture, words: tuple[str, ...]) -> None:
    assert main(words) == 0
    text = capsys.readouterr().out
    for command in ("status", "top", "reload", "stop", "kick RELAY PEER", "dump RELAY FORMAT", "--socket"):
        assert f"  {command} " in text
    assert "status [--json] " in text
    assert "status RELAY [--json] " in text
    assert DEFAULT_SOCKET in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"relayctl {__version__}\n"


# -- nobody there -------------------------------------------------------------------------------


def test_no_daemon_is_one_line_and_exit_status_1(capsys: Capture, tmp_path: Path) -> None:
    path = str(tmp_path / "no.sock")
    assert complaint(capsys, "--socket", path, "status", status=1) == (
        f"no relayd is running with the control socket {path}"
    )


def test_a_socket_that_nobody_listens_on_any_more_is_no_daemon(capsys: Capture, tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert "no relayd is running" in complaint(capsys, f"--socket={path}", "stop", status=1)


def test_a_path_that_can_be_no_socket_is_told(capsys: Capture, tmp_path: Path) -> None:
    assert "cannot reach" in complaint(capsys, "--socket", str(tmp_path / ("x" * 200)), "status", status=1)
    (tmp_path / "file").touch()
    complaint(capsys, "--socket", str(tmp_path / "file"), "status", status=1)
    complaint(capsys, "--socket", str(tmp_path / "file" / "below"), "status", status=1)


def test_no_daemon_leaves_no_warning_of_pythons_either(tmp_path: Path) -> None:
    done = run("status", RELAYD_CONTROL=str(tmp_path / "no.sock"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert len(done.stderr.splitlines()) == 1, done.stderr.decode()


def test_the_default_socket_is_the_packages(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAYD_CONTROL", raising=False)
    if os.path.exists(DEFAULT_SOCKET):
        pytest.skip("a relayd runs here")
    assert DEFAULT_SOCKET in complaint(capsys, "status", status=1)


# -- somebody else there ------------------------------------------------------------------------


class Impostor(threading.Thread):
    """Listens on a Unix socket, and answers the first caller as it is told, without reading when `deaf`."""

    def __init__(self, path: Path, answer: bytes | None, deaf: bool = False) -> None:
        super().__init__(daemon=True)
        self.path = str(path)
        self._answer, self._deaf = answer, deaf
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(self.path)
        self._sock.listen()
        self._sock.settimeout(PATIENCE)
        self.start()

    def run(self) -> None:
        sock, _ = self._sock.accept()
        with self._sock, sock:
            sock.settimeout(PATIENCE)
            sock.recv(65536, socket.MSG_PEEK if self._deaf else 0)
            if self._answer is None:
                sock.recv(65536)
            else:
                sock.sendall(self._answer)


@pytest.mark.parametrize(
    "answer", [b"", b'{"ok": true, "sta', b"220 mail.example ESMTP\n", b"\xff\n", b"[]\n", b"{}\n"]
)
@pytest.mark.parametrize("words", [("status",), ("top",)])
def test_an_answer_that_is_none_is_one_line(
    capsys: Capture, tmp_path: Path, answer: bytes, words: tuple[str, ...]
) -> None:
    impostor = Impostor(tmp_path / "s", answer)
    complaint(capsys, "--socket", impostor.path, *words, status=1)
    impostor.join(PATIENCE)


@pytest.mark.parametrize(
    ("words", "answer", "said"),
    [
        (("status",), '{"ok": true}', "has no 'status'"),
        (("status", "--json"), '{"ok": true}', "has no 'status'"),
        (("top",), '{"ok": true}', "has no 'status'"),
        (("reload",), '{"ok": true}', "has no 'summary'"),
        (("kick", "a", "b"), '{"ok": true}', "has no 'links'"),
        (("dump", "a", "off"), '{"ok": true}', "has no 'ended'"),
        (("status",), '{"ok": true, "status": {}}', "has no 'relays'"),
        (("top",), '{"ok": true, "status": {"relays": [{"destinations": []}], "uptime": 1}}', "has no '"),
        (("status",), '{"ok": true, "status": []}', "has other fields"),
        (("top",), '{"ok": true, "status": {"relays": [1]}}', "has other fields"),
        (("status",), '{"ok": true, "status": {"relays": {"a": 1}}}', "has other fields"),
    ],
)
def test_an_answer_of_another_version_is_one_line(
    capsys: Capture, tmp_path: Path, words: tuple[str, ...], answer: str, said: str
) -> None:
    impostor = Impostor(tmp_path / "s", answer.encode() + b"\n")
    line = complaint(capsys, "--socket", impostor.path, *words, status=1)
    assert line.startswith(f"the answer {said}")
    assert line.endswith(f": it is of another version than relayctl {__version__}, or none of relayd's")
    impostor.join(PATIENCE)


def test_a_daemon_that_does_not_answer_is_not_awaited_for_ever(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayctl, "_TIMEOUT", 0.1)
    impostor = Impostor(tmp_path / "s", None)
    assert "no answer: timed out" in complaint(capsys, "--socket", impostor.path, "status", status=1)
    impostor.join(PATIENCE)


def crowded(path: Path, stack: ExitStack) -> socket.socket:
    """Return a Unix socket that listens, and at which so many wait that the next has to wait for them."""
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    sock.listen(0)
    sock.settimeout(PATIENCE)
    caller = stack.enter_context(socket.socket(socket.AF_UNIX))
    caller.connect(str(path))
    caller.close()
    return sock


def test_a_crowd_before_the_daemon_is_waited_for(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        door = crowded(tmp_path / "s", stack)
        connecting = threading.Event()

        class Caller(socket.socket):
            def connect(self, path: object) -> None:
                connecting.set()
                super().connect(path)

        def serve() -> None:
            connecting.wait(PATIENCE)
            door.accept()[0].close()
            with door.accept()[0] as sock:
                sock.recv(65536)
                sock.sendall(b'{"ok": true}\n')

        monkeypatch.setattr(relayctl.socket, "socket", Caller)
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        assert main(["--socket", str(tmp_path / "s"), "stop"]) == 0
        server.join(PATIENCE)
    assert capsys.readouterr().out == "stopping\n"


def test_a_crowd_that_nobody_lets_in_is_not_waited_for_for_ever(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayctl, "_TIMEOUT", 0.1)
    with ExitStack() as stack:
        crowded(tmp_path / "s", stack)
        said = complaint(capsys, "--socket", str(tmp_path / "s"), "status", status=1)
    assert said == f"no answer: others wait to be let in at {tmp_path / 's'}, and nobody is"


@pytest.mark.parametrize("words", [("status",), ("dump", "ais", "text")])
def test_a_daemon_that_dies_is_one_line(capsys: Capture, tmp_path: Path, words: tuple[str, ...]) -> None:
    answer = b'{"ok": true}\n' if words[0] == "dump" else b""
    impostor = Impostor(tmp_path / "s", answer, deaf=True)  # what it has not read makes its end a reset
    complaint(capsys, "--socket", impostor.path, *words, status=1)
    impostor.join(PATIENCE)


# -- each command -------------------------------------------------------------------------------


def test_status_is_a_table(capsys: Capture, daemon: Daemon) -> None:
    assert main(["status"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("relayd 1.2.3, pid 42")
    assert [line.split()[0] for line in lines[2:]] == ["RELAY", "ais", "late"]


def test_the_rates_of_status_are_those_of_a_moment(
    capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        daemon.snapshot = snapshot(relay("ais", bytes_in=20_480), uptime=102.0)

    monkeypatch.setattr(relayctl, "time", SimpleNamespace(sleep=sleep))
    assert main(["status"]) == 0
    assert "10 KB/s" in capsys.readouterr().out
    assert daemon.calls == [("status",)] * 2


def test_status_waits_for_no_rate_where_no_source_is_up(
    capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relayctl, "time", None)
    daemon.snapshot = snapshot(relay("ais", state="waiting", bytes_in=20_480))
    assert main(["status"]) == 0
    assert "B/s" not in capsys.readouterr().out
    assert daemon.calls == [("status",)]


@pytest.mark.parametrize("words", [("status", "--json"), ("--json", "status")])
def test_status_json_is_the_whole_snapshot(capsys: Capture, daemon: Daemon, words: tuple[str, ...]) -> None:
    daemon.snapshot = {**daemon.snapshot, "text": "é\n\x1b", "much": "x" * 3_000_000}
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == daemon.snapshot


def test_status_of_one_relay_is_its_source_and_its_links(capsys: Capture, daemon: Daemon) -> None:
    daemon.snapshot = snapshot(relay("ais", link(peer="10.0.0.7:1"), link(peer="10.0.0.7:2", lag=7.0)))
    assert main(["status", "ais"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "relay ais" in " ".join(lines[2].split())
    assert [line.split()[0] for line in lines[-2:]] == ["10.0.0.7:2", "10.0.0.7:1"]
    assert daemon.calls == [("status", "ais")] * 2


@pytest.mark.parametrize("words", [("status", "ais", "--json"), ("--json", "status", "ais")])
def test_status_json_of_one_relay_is_its_object(capsys: Capture, daemon: Daemon, words: tuple[str, ...]) -> None:
    daemon.snapshot = snapshot(relay("ais", link()))
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == relay("ais", link())
    assert daemon.calls == [("status", "ais")]


@pytest.mark.parametrize("words", [("status", "ais"), ("status", "ais", "--json")])
def test_a_daemon_that_knows_no_status_of_one_relay_is_of_another_version(
    capsys: Capture, daemon: Daemon, words: tuple[str, ...]
) -> None:
    daemon.snapshot = snapshot(relay("ais"), relay("late"))
    assert "it is of another version than relayctl" in complaint(capsys, *words, status=1)


def test_the_socket_can_be_named_in_three_ways(
    capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["stop"]) == 0
    monkeypatch.setenv("RELAYD_CONTROL", "/nonexistent")
    assert main(["--socket", daemon.path, "stop"]) == 0
    assert main(["stop", f"--socket={daemon.path}"]) == 0
    assert daemon.calls == [("stop",)] * 3
    assert capsys.readouterr().out == "stopping\n" * 3


def test_kick(capsys: Capture, daemon: Daemon) -> None:
    assert main(["kick", "ais", "unix:a b"]) == 0
    assert daemon.calls == [("kick", "ais", "unix:a b")]
    assert capsys.readouterr().out == "2 link(s) reset\n"


def test_reload(capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "reload", lambda ended: ended({"summary": "3 of 4 sources up"}))
    assert main(["reload"]) == 0
    assert capsys.readouterr().out == "reloaded: 3 of 4 sources up\n"


def test_reload_says_what_has_changed_and_what_waits_for_the_next_start(
    capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {
        "summary": "3 of 4 sources up", "added": ["a", "b"], "removed": [], "changed": [f"c{n}" for n in range(30)],
        "needs_restart": ["user", "umask"],
    }  # fmt: skip
    monkeypatch.setattr(daemon, "reload", lambda ended: ended(done))
    assert main(["reload"]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "reloaded: 3 of 4 sources up"
    assert lines[0] == "added: a, b"
    assert lines[1].startswith("changed: c0, c1, ") and lines[1].endswith(", c19 and 10 more")
    assert lines[2:] == ["from the next start of relayd on: user, umask"]


def test_reload_says_that_nothing_has_changed(capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict.fromkeys(("added", "removed", "changed", "needs_restart"), ())
    monkeypatch.setattr(daemon, "reload", lambda ended: ended({"summary": "3 of 4 sources up", **names}))
    assert main(["reload"]) == 0
    assert capsys.readouterr().out == "reloaded: 3 of 4 sources up\nno relay has changed\n"


def test_a_refused_reload_says_every_reason(capsys: Capture, daemon: Daemon) -> None:
    assert main(["reload"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("relayctl: ")
    assert "f:3: broken" in printed.err
    assert "f:4: too" in printed.err


def test_dump_shows_the_bytes_as_they_are_and_says_that_it_has_ended(
    capsysbinary: pytest.CaptureFixture[bytes], daemon: Daemon
) -> None:
    assert main(["dump", "ais", "raw"]) == 1
    assert daemon.calls == [("watch", "ais", "raw")]
    printed = capsysbinary.readouterr()
    assert printed.out == b"one\n\xff\x00two\n"
    (line,) = printed.err.decode().splitlines()
    assert line.startswith("relayctl: the dump has ended: ais is removed, ")


def test_dump_of_an_unknown_relay_is_refused(capsys: Capture, daemon: Daemon) -> None:
    assert complaint(capsys, "dump", "sia", "text", status=1) == "there is no such relay"


def test_top_shows_the_table_again_and_again_by_lag(
    capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        daemon.snapshot = snapshot(relay("ais", bytes_in=10_240), uptime=101.0)
        if len(slept) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(relayctl, "time", SimpleNamespace(sleep=sleep))
    assert main(["top"]) == 0
    assert slept == [relayctl._MOMENT] * 2
    out = capsys.readouterr().out
    assert "\x1b" not in out  # this is no terminal
    _, first, second = out.split("relayd 1.2.3")
    assert first.index("late") < first.index("ais")
    assert "late" not in second
    assert "10 KB/s" in second
    assert second.endswith("\n\n")
    assert daemon.calls == [("status",)] * 2  # on one connection


def test_top_ends_when_the_daemon_does(capsys: Capture, daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        daemon.in_loop(daemon.controller.close)
        wait_until(lambda: not os.path.exists(daemon.path))

    monkeypatch.setattr(relayctl, "time", SimpleNamespace(sleep=sleep))
    assert main(["top"]) == 1
    assert capsys.readouterr().err == "relayctl: relayd has ended (or has hung up, after a minute without a question)\n"


# -- the terminal -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "size"),
    [(("status",), 0), (("status", "--json"), 0), (("status", "--json"), 1_000_000), (("--help",), 0)],
)
def test_a_reader_that_has_seen_enough_is_no_error(daemon: Daemon, words: tuple[str, ...], size: int) -> None:
    daemon.snapshot = {**daemon.snapshot, "much": "x" * size}
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        done = subprocess.run(
            words_of(*words), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
            stdout=stdout, stderr=subprocess.PIPE,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_dump_whose_reader_goes_is_no_error(daemon: Daemon) -> None:
    daemon.pieces = []

    def show(piece: bytes) -> None:
        daemon.in_loop(lambda: daemon.watchers[0].write(piece) and None)

    process = subprocess.Popen(
        words_of("dump", "ais", "text"), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    wait_until(lambda: daemon.watchers)
    show(b"first\n")
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    show(b"second\n")
    assert process.wait(PATIENCE) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("words", [("top",), ("dump", "ais", "text")])
def test_ctrl_c_ends_it_without_a_word(daemon: Daemon, words: tuple[str, ...]) -> None:
    daemon.pieces = []
    with subprocess.Popen(
        words_of(*words),
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        wait_until(lambda: daemon.calls)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_p20_a_terminal_that_knows_ascii_alone_gets_the_table_too(daemon: Daemon) -> None:
    daemon.snapshot = snapshot(relay("a", last_error="é" + "x" * 200))
    done = run("status", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" up " in done.stdout


def test_a_full_disk_is_one_line(daemon: Daemon) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            words_of("status"), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
            stdout=full, stderr=subprocess.PIPE,
            timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr.decode()


def test_what_is_no_terminal_is_a_hundred_columns_wide(capsys: Capture, daemon: Daemon) -> None:
    daemon.snapshot = snapshot(relay("a", last_error="x" * 200))
    assert main(["status"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) == 100


class Terminal:
    """A terminal that a process writes to; what is written is read when it is asked for."""

    def __init__(self, stack: ExitStack, columns: int, lines: int) -> None:
        self._ours, self.theirs = pty.openpty()
        stack.callback(os.close, self._ours)
        stack.callback(os.close, self.theirs)
        self._got = b""
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait_for(self, text: str) -> str:
        """Return what was written up to the text; what comes after it is for the next call."""
        while text.encode() not in self._got:
            assert select.select([self._ours], [], [], PATIENCE)[0], f"no {text!r} after {self._got!r}"
            self._got += os.read(self._ours, 65536)
        found, _, self._got = self._got.partition(text.encode())
        return found.decode().replace("\r\n", "\n")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@contextmanager
def on_terminal(terminal: Terminal, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run relayctl on the terminal, to its end; `top` has none of its own."""
    with subprocess.Popen(
        words_of(*words), cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, stdout=terminal.theirs,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        yield process
        if "top" in words:
            process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_top_fits_the_terminal_and_follows_its_size(daemon: Daemon, stack: ExitStack) -> None:
    daemon.snapshot = snapshot(*(relay(f"r{number}", link(lag=float(number))) for number in range(40)))
    terminal = Terminal(stack, 80, 24)
    rows: list[str] = []

    def frame() -> int:
        terminal.wait_for("\x1b[H")
        rows[:] = terminal.wait_for("\x1b[J").replace("\x1b[K", "").splitlines()
        return len(rows)

    with on_terminal(terminal, "top"):
        assert frame() == 23
        for columns, lines, shown in ((80, 24, 19), (60, 10, 5), (80, 60, 40)):
            terminal.resize(columns, lines)
            wait_until(lambda lines=lines: frame() == min(lines - 1, 43))  # type: ignore[misc]
            assert max(map(len, rows)) <= columns
            assert [row.split()[0] for row in rows[3 : 3 + shown]] == [f"r{39 - place}" for place in range(shown)]
            assert rows[3 + shown :] == [f"… {40 - shown} of 40 relays are not shown"] * (shown < 40)


def test_status_of_one_relay_fits_the_terminal(daemon: Daemon, stack: ExitStack) -> None:
    daemon.snapshot = snapshot(relay("ais", *(link(peer=f"10.0.0.7:{number}") for number in range(40))))
    terminal = Terminal(stack, 60, 24)
    with on_terminal(terminal, "status", "ais"):
        rows = terminal.wait_for("are not shown").splitlines()
    assert len(rows) == 23
    assert max(map(len, rows)) <= 60
    shown = sum(row.startswith("10.0.0.7:") for row in rows)
    assert rows[-1] == f"… {40 - shown} of 40 links "


@pytest.mark.parametrize("words", [("status",), ("top",)])
def test_a_terminal_without_a_size_is_a_hundred_columns_wide_and_without_end(
    daemon: Daemon, stack: ExitStack, words: tuple[str, ...]
) -> None:
    daemon.snapshot = snapshot(*(relay(f"r{number}", last_error="x" * 200) for number in range(40)))
    terminal = Terminal(stack, 0, 0)
    with on_terminal(terminal, *words):
        rows = terminal.wait_for("r39").replace("\x1b[K", "").splitlines()
    assert max(map(len, rows)) == 100


def test_a_closed_output_is_no_error(daemon: Daemon) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *words_of("status")], cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_tcp_port_is_no_control_socket(capsys: Capture) -> None:
    with listener() as sock:
        complaint(capsys, "--socket", f"127.0.0.1:{sock.getsockname()[1]}", "status", status=1)
