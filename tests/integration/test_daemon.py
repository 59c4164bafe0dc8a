"""The daemon as a Unix process: starting, being alone, giving up root, ending (SPEC 9, FAULTS 2.8)."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemons import (
    RELAYD,
    Site,
    daemon,
    proc_status,
    relay,
    site,
    subreaper,
)
from tests.support import (
    PATIENCE,
    ROOT,
    SLOWNESS,
    Namespace,
    Sender,
    blackhole_port,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    low_port,
    needs,
    receive,
    relayd,
    silent_name_server,
    spawned,
    stalled_client,
    wait_until,
)

MARGIN = 1.5 * SLOWNESS  # seconds above drain_timeout; relayd's own share of it is 0.5
SOON = 1.0 * SLOWNESS  # "at once"; FAULTS P4 asks for 0.2 of relayd itself

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def passes(source_port: int, port: int) -> None:
    """Fail unless bytes get through a listen-listen relay."""
    with connect(port) as client, connect(source_port) as source:
        # The client may not be accepted yet when the source speaks: it is told again until it has heard.
        client.settimeout(0.05)
        heard = b""

        def through() -> bool:
            nonlocal heard
            source.sendall(b"ping\n")
            with contextlib.suppress(TimeoutError):
                heard += client.recv(100)
            return heard.startswith(b"ping\n")

        wait_until(through, "bytes through the relay")


# -- starting -------------------------------------------------------------------------------------


def test_when_it_returns_every_listener_is_bound(tmp_path: Path) -> None:
    ports = [free_port() for _ in range(20)]
    pairs = list(zip(ports[::2], ports[1::2], strict=True))
    relays = [relay(f"r{number}", *pair) for number, pair in enumerate(pairs)]
    local = tmp_path / "s"
    with daemon(tmp_path, *relays, relay("local", ports[0] + 1, f"unix:{local}")) as running:
        for port in ports:
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()  # not one is refused
        for path in (local, running.control):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
        passes(*pairs[0])
        assert running.processes() == [running.pid]


def test_it_is_detached(tmp_path: Path) -> None:
    with daemon(tmp_path, relay("one", free_port(), free_port())) as running:
        pid = running.pid
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert os.getsid(pid) not in (os.getsid(0), pid)  # a session of its own, which can get no terminal
        assert {running.descriptors()[fd] for fd in (0, 1, 2)} == {os.devnull}
        assert int(proc_status(pid)["PPid"]) != os.getpid()
        assert stat.S_IMODE(running.pidfile.stat().st_mode) == 0o644
        assert stat.S_IMODE(running.control.stat().st_mode) == 0o600


def test_the_end_is_clean(tmp_path: Path) -> None:
    """Exit status 0; pidfile and sockets are gone."""
    local = tmp_path / "s"
    with subreaper(), daemon(tmp_path, relay("one", free_port(), f"unix:{local}")) as running:
        pid = running.pid
        assert local.exists()
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert sorted(os.listdir(tmp_path)) == ["relayd.ini", "relayd.log"]
        assert len(running.lines("event=stopped")) == 1


def refused(there: Site, *words: str, status: int = 1) -> str:
    """Start what cannot be started; return what it said. Nothing must be left of it."""
    done = there.launch(*words, timeout=5 * SLOWNESS)
    assert done.returncode == status, done
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert there.processes() == []
    return done.stderr


def test_address_in_use(tmp_path: Path) -> None:
    local = tmp_path / "s"
    with listener() as one, listener() as two:
        ports = [sock.getsockname()[1] for sock in (one, two)]
        relays = [
            relay("free", free_port(), f"unix:{local}"),
            *(relay(f"r{port}", free_port(), port) for port in ports),
        ]
        with site(tmp_path, *relays) as there:
            said = refused(there).splitlines()
            for port, line in zip(ports, said, strict=True):  # all of them at once, one line each
                assert f"[relay r{port}] cannot listen on 127.0.0.1:{port}: Address already in use" in line
            assert os.listdir(tmp_path) == ["relayd.ini"]


def test_a_control_socket_that_is_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as taken, site(tmp_path, relay("one", free_port(), free_port())) as there:
        taken.bind(str(there.control))
        taken.listen()
        assert f"cannot listen on unix:{there.control}: Address already in use" in refused(there)
        assert not there.pidfile.exists()


def test_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    with site(tmp_path, relay("one", free_port(), free_port()), log=tmp_path / "none" / "log") as there:
        assert f"cannot write log {tmp_path}/none/log: No such file or directory" in refused(there)
        assert not there.pidfile.exists()


def test_an_include_that_finds_nothing_is_told_at_the_start_and_at_a_reload(tmp_path: Path) -> None:
    with daemon(tmp_path, relay("one", free_port(), free_port()), include="conf.d/*.ini") as running:
        missing = f"[relayd] include: there is no file {tmp_path}/conf.d/*.ini"
        assert [missing in line for line in running.lines("event=configuration")] == [True]
        running.hang_up()
        assert [missing in line for line in running.lines("event=configuration")] == [True, True]
        (tmp_path / "conf.d").mkdir()
        (tmp_path / "conf.d" / "two.ini").write_text(relay("two", free_port(), free_port()))
        running.hang_up()
        assert len(running.lines("event=configuration")) == 2


@pytest.mark.parametrize("key", ["user", "group"])
@pytest.mark.parametrize("words", [[], ["--foreground"]])
def test_an_unknown_user_or_group(tmp_path: Path, key: str, words: list[str]) -> None:
    with site(tmp_path, relay("one", free_port(), free_port()), **{key: "no-such-one"}) as there:
        assert refused(there, *words) == f"relayd: {key}: there is no {key} 'no-such-one'\n"
        assert not there.pidfile.exists(), "a pidfile is left behind"


@pytest.mark.parametrize(
    ("keys", "settings", "key"), [({"log": "stderr"}, {}, "log"), ({}, {"dump": "text"}, "dump_file")]
)
def test_what_needs_a_terminal_is_refused_with_2(
    tmp_path: Path, keys: dict[str, object], settings: dict[str, object], key: str
) -> None:
    with site(tmp_path, relay("one", free_port(), free_port(), **settings), **keys) as there:
        said = refused(there, status=2)
        assert len(said.splitlines()) == 1 and f"{there.file}:" in said and key in said
        assert os.listdir(tmp_path) == ["relayd.ini"]


# -- being alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "rubbish\n", "99999999999999999999\n", "-1\n", "\0\0\0\0"])
def test_a_pidfile_with_rubbish(tmp_path: Path, content: str) -> None:
    with site(tmp_path, relay("one", free_port(), free_port())) as there:
        there.pidfile.write_text(content)
        there.start()
        assert there.processes() == [there.pid]


# -- giving up root -------------------------------------------------------------------------------


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that belongs to nobody, in one that everybody may enter."""
    folder = Path(tempfile.mkdtemp(prefix="relayd-"))
    folder.chmod(0o755)
    shutil.chown(folder, "nobody", "nogroup")
    yield folder
    shutil.rmtree(folder)


@needs_root
def test_root_is_given_up(public: Path, tmp_path: Path) -> None:
    """FAULTS P22: bound with root's right, run without it, reloaded without it."""
    (public / "rooms").mkdir(mode=0o755)  # root's: nobody may not make a socket here
    local, port, source_port = public / "rooms" / "s", low_port(), free_port()
    relays = [relay("low", source_port, port), relay("local", free_port(), f"unix:{local}")]
    with site(public, *relays, user="nobody", group="nogroup") as running:
        running.start(extra_groups=[0, 4, 6])  # root's own, which must go too
        pid = running.pid
        status = proc_status(pid)
        assert status["Uid"].split() == status["Gid"].split() == 4 * ["65534"]
        assert set(status["Groups"].split()) <= {"65534"}
        for caps in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            assert int(status[caps], 16) == 0, caps
        passes(source_port, port)
        assert local.stat().st_uid == 65534
        running.file.chmod(0o644)
        extra = free_port()
        running.configure(*relays, relay("extra", free_port(), extra))
        running.file.chmod(0o644)
        running.hang_up()
        passes(source_port, port)  # the low port has not been closed, it could not have been had again
        connect(extra).close()
        running.stop()
        assert not running.pidfile.exists() and not running.control.exists()


@needs_root
def test_without_a_right_to_the_folder_the_pidfile_is_emptied(public: Path, tmp_path: Path) -> None:
    """What nobody may not remove must at least keep nobody out."""
    folder = public / "run"
    folder.mkdir(mode=0o755)
    with daemon(
        public, relay("one", free_port(), free_port()), user="nobody", pidfile=folder / "relayd.pid"
    ) as running:
        running.pidfile = folder / "relayd.pid"
        running.stop()
        assert not running.pidfile.exists() or running.pidfile.read_text() == ""
        running.start()
        assert running.processes() == [running.pid]


@needs_root
@pytest.mark.parametrize("jailed", [False, True])
def test_a_start_that_fails_when_root_was_given_up_leaves_nothing_behind(public: Path, jailed: bool) -> None:
    rooms = public / "rooms"
    rooms.mkdir(mode=0o755)  # root's: nobody may not remove what is in it
    files: dict[str, object] = {"pidfile": rooms / "relayd.pid", "log": rooms / "none" / "log", "control": None}
    lost: dict[str, object] = {"chroot": public} if jailed else {"user": "nobody"}
    there = Site(public, relay("local", free_port(), f"unix:{rooms}/s"), **files, **lost)
    said = refused(there)
    missing = f"cannot write log {rooms}/none/log: No such file or directory"
    assert said == f"relayd: {missing}{f' (inside chroot {public})' if jailed else ''}\n"
    assert os.listdir(rooms) == []


# -- odd surroundings -----------------------------------------------------------------------------


def serves(there: Site, source_port: int, port: int) -> None:
    """Fail unless the daemon of the site is a healthy one, whatever it was started from."""
    assert {there.descriptors().get(fd) for fd in (0, 1, 2)} == {os.devnull}
    passes(source_port, port)
    there.hang_up()
    passes(source_port, port)
    assert there.stop() < SOON
    assert not there.pidfile.exists()


def test_a_config_named_relative_to_the_working_directory(tmp_path: Path) -> None:
    source_port, port = free_port(), free_port()
    with site(tmp_path, relay("one", source_port, port)) as there:
        words = [*RELAYD, "--config", "relayd.ini", "--pidfile", "relayd.pid"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(words, cwd=tmp_path, env=environ, stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False)
        assert done.returncode == 0
        try:
            serves(there, source_port, port)
        finally:
            with contextlib.suppress(OSError, ValueError):
                os.kill(there.pid, signal.SIGKILL)


def test_umask_0(tmp_path: Path) -> None:
    source_port, local = free_port(), tmp_path / "s"
    with site(tmp_path, relay("one", source_port, f"unix:{local}", unix_mode="0600")) as there:
        there.start(umask=0)
        for path in (there.pidfile, there.log, local, there.control):
            assert not stat.S_IMODE(path.stat().st_mode) & 0o022, path


@pytest.mark.parametrize(
    ("umask", "of_the_shell", "mode"),
    [("0077", 0o022, 0o600), ("0000", 0o077, 0o640), (None, 0o077, 0o600), (None, 0, 0o640)],
)
def test_the_umask_in_the_foreground(tmp_path: Path, umask: str | None, of_the_shell: int, mode: int) -> None:
    """As the shipped unit runs it. Where it is not given, that of the shell counts, or the unit's UMask=."""
    with (
        site(tmp_path, relay("one", free_port(), free_port()), umask=umask) as there,
        foreground(there, umask=of_the_shell) as process,
    ):
        assert stat.S_IMODE(there.log.stat().st_mode) == mode
        process.terminate()
        assert process.wait(PATIENCE) == 0


@contextlib.contextmanager
def foreground(there: Site, **popen: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run `relayd --config FILE --foreground`, from when it has started."""
    with spawned(*RELAYD, "--config", str(there.file), "--foreground", cwd=ROOT, **popen) as process:
        there.wait_log("event=started")
        yield process


def test_few_descriptors(tmp_path: Path) -> None:
    """The soft limit is raised to the hard one."""
    with site(tmp_path, relay("one", free_port(), free_port())) as there:
        there.start(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 4096)))
        limits = Path(f"/proc/{there.pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if line.startswith("Max open files")).split()[3] == "4096"


# -- a chroot with nothing in it ------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("looked_up_before", [False, True])
def test_nothing_is_loaded_inside_a_chroot(tmp_path: Path, looked_up_before: bool) -> None:
    """What Python loads at the first use only (a codec for getaddrinfo) would not be found there."""
    needs("strace")
    jail, trace, port = tmp_path / "jail", tmp_path / "trace", free_port()
    (jail / "proc" / "net").mkdir(parents=True)
    shutil.copy("/proc/net/tcp", jail / "proc" / "net")
    jail.chmod(0o777)
    relays = [
        relay("address", 1, f":{port}", "connect-listen", dump="hex", dump_file="/dump"),
        relay("name", "relay.example:1", f":{free_port()}", "connect-listen"),
        relay("given", f":{free_port()}", free_port() if looked_up_before else f":{free_port()}"),
    ]
    keys = {"chroot": jail, "user": "nobody", "control": "/control.sock", "log": "stderr", "pidfile": None}
    with site(tmp_path, *relays, **keys) as there, taken_port() as taken:
        there.control = jail / "control.sock"
        strace = ["strace", "-D", "-f", "-q", "-o", str(trace), "-e", "trace=%file"]
        with relayd("--config", str(there.file), "--foreground", prefix=strace) as running:
            for name in ("address", "name"):
                running.wait_log(f"relay={name}", "event=connect_failed")
            connect(port).close()
            there.status()
            assert not there.ask("reload")["ok"]
            inside = jail / there.file.relative_to("/")
            inside.parent.mkdir(parents=True, mode=0o755)
            shutil.copy(there.file, inside)
            there.reload()
            inside.write_text(there.file.read_text() + relay("taken", free_port(), taken))
            assert "Address already in use" in there.ask("reload")["error"]
            running.process.send_signal(signal.SIGUSR1)
            running.wait_log("event=reopened")
            assert running.stop() == 0
        wait_until(lambda: "+++ exited with 0" in trace.read_text(), "the whole trace")
        _, entered, after = trace.read_text().partition("chroot(")
    assert entered and "/control.sock" in after
    assert not [line for line in after.splitlines() if "lib/python" in line or "encodings" in line]


@contextlib.contextmanager
def taken_port() -> Iterator[int]:
    with listener() as taken:
        yield taken.getsockname()[1]


# -- ending in every state ------------------------------------------------------------------------

State = Callable[[ExitStack], tuple[str, Callable[[Site], object]]]  # -> the relay, and what brings it into the state


def connecting(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    hole = blackhole_port(stack)
    text = relay("one", hole, free_port(), mode="connect-listen")
    return text, lambda running: wait_until(lambda: running.relay("one")["source"]["state"] == "connecting")


def backing_off(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    text = relay("one", free_port(), free_port(), mode="connect-connect", reconnect="1h")
    return text, lambda running: wait_until(lambda: running.relay("one")["source"]["state"] == "waiting")


def connected(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    source_port, port = free_port(), free_port()

    def bring(running: Site) -> None:
        for end in (source_port, port):
            stack.enter_context(connect(end))
        running.wait_log("event=connected", times=2)

    return relay("one", source_port, port), bring


def zero_window(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    source_port, port = free_port(), free_port()

    def bring(running: Site) -> None:
        source = stack.enter_context(connect(source_port))
        stack.enter_context(stalled_client(port))
        running.wait_log("event=connected", times=2)
        Sender(source, bulk(2_000_000)[: 3 << 20])
        wait_until(lambda: running.relay("one")["destinations"][0]["queued"] > 0, "a queue")

    return relay("one", source_port, port, overflow="block"), bring


def lingering(stack: ExitStack) -> tuple[str, Callable[[Site], object]]:
    """A client that was closed gracefully, and does not close its side."""
    source_port, port = free_port(), free_port()

    def bring(running: Site) -> None:
        source = stack.enter_context(connect(source_port))
        client = stack.enter_context(connect(port))
        running.wait_log("event=connected", times=2)
        source.close()
        assert client.recv(1) == b""  # half-closed: it waits for ours, an hour if need be

    return relay("one", source_port, port, on_source_loss="close", linger_timeout="1h"), bring


# state -> whether it may take until drain_timeout
STATES = {connecting: False, backing_off: False, connected: True, zero_window: True, lingering: True}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_it_ends_in_time_in_every_state(tmp_path: Path, state: State, number: int) -> None:
    """FAULTS P3, P5."""
    with ExitStack() as stack:
        text, bring = state(stack)
        running = stack.enter_context(daemon(tmp_path, text, drain_timeout="1s"))
        bring(running)
        took = running.stop(number)
        assert took < (1.0 + MARGIN if STATES[state] else SOON)
        assert running.lines("event=stopped") and not running.pidfile.exists()


def test_it_ends_while_a_name_is_looked_up(tmp_path: Path) -> None:
    """FAULTS P3, DNSX: the thread that waits for the name server does not hold it."""
    with Namespace() as namespace, ExitStack() as stack:
        stack.enter_context(silent_name_server(namespace, tmp_path))
        text = relay("one", "name.example:5000", free_port(), mode="connect-listen", connect_timeout="1h")
        running = stack.enter_context(daemon(tmp_path, text, prefix=namespace.enter, drain_timeout="1s"))
        wait_until(lambda: int(proc_status(running.pid)["Threads"]) > 1, "a look-up")
        assert running.stop() < SOON
        assert running.lines("event=stopped")


def test_what_waits_is_sent_before_the_end(tmp_path: Path) -> None:
    """SIGTERM drains: all that relayd has read arrives, however late it is read."""
    source_port, port = free_port(), free_port()
    cells = 100_000
    with daemon(tmp_path, relay("one", source_port, port)) as running, stalled_client(port) as client:
        with connect(source_port) as source:
            running.wait_log("event=connected", times=2)
            Sender(source, keyed("dran", 0, cells)).wait_end()
            wait_until(lambda: running.relay("one")["totals"]["bytes_in"] == cells * 16, "all bytes")
            pid = running.pid
            running.send(signal.SIGTERM)
            running.wait_log("event=stopping")
            with pytest.raises(ConnectionRefusedError):  # and nobody comes in any more
                socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
            check_keyed("dran", receive(client, cells * 16), 0)
            assert client.recv(1) == b""
        client.close()
        running.wait_gone(pid)


def test_relayd_in_the_foreground_has_a_pidfile_too(tmp_path: Path) -> None:
    with site(tmp_path, relay("one", free_port(), free_port()), log="stderr") as there:
        with relayd("--config", str(there.file), "--foreground") as running:
            assert there.pid == running.process.pid
            assert running.stop() == 0
        assert not there.pidfile.exists() and not there.control.exists()
