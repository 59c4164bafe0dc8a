"""relayd under systemd: the protocol on sockets of the test's own, and the real unit in a throw-away systemd."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.integration.daemons import Site, relay, site
from tests.support import (
    PATIENCE,
    ROOT,
    SLOWNESS,
    Relayd,
    connect,
    free_port,
    keyed,
    needs,
    receive,
    relayd,
    wait_until,
)

SERVICE = ROOT / "systemd" / "relayd.service"
SOCKET = ROOT / "systemd" / "relayd.socket"


# -- the unit as a text ---------------------------------------------------------------------------


def test_the_sandbox_is_tight() -> None:
    needs("systemd-analyze")
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=10", "--no-pager", SERVICE]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "--offline" in done.stderr:
        pytest.skip(f"this systemd-analyze does not know --offline: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    level = re.search(r"exposure level for relayd\.service: ([0-9.]+)", done.stdout)
    assert level is not None and float(level.group(1)) <= 1.0, done.stdout


def test_the_units_are_well_formed(tmp_path: Path) -> None:
    """`systemd-analyze verify` complains of unknown keys and of programs that are not there."""
    needs("systemd-analyze", "systemd-run")
    for unit in (SERVICE, SOCKET):
        text = unit.read_text().replace("/usr/bin/relayd", sys.executable).replace("/usr/bin/relayctl", sys.executable)
        (tmp_path / unit.name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / unit.name) for unit in (SERVICE, SOCKET))]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    if "Failed to" in done.stderr and "relayd" not in done.stderr:
        pytest.skip(f"it does not work here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "relayd" in line] == []


# -- what is said on NOTIFY_SOCKET ----------------------------------------------------------------


class Manager:
    """Listens as a service manager does; each message is a dictionary."""

    def __init__(self, name: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + name[1:] if name.startswith("@") else name)
        self.sock.setblocking(False)
        self.environ = {**os.environ, "NOTIFY_SOCKET": name}
        self.messages: list[dict[str, str]] = []

    def heard(self, *states: str) -> list[dict[str, str]]:
        """Return the messages that hold all the states."""
        with contextlib.suppress(BlockingIOError):
            while True:
                pairs = [line.partition("=") for line in self.sock.recv(65536).decode().split("\n")]
                self.messages.append({key: value for key, _, value in pairs})
        wanted = dict(state.split("=", 1) for state in states)
        return [message for message in self.messages if wanted.items() <= message.items()]

    def wait(self, *states: str, times: int = 1) -> dict[str, str]:
        """Return the message that holds all the states, when there are so many."""
        with contextlib.suppress(AssertionError):
            wait_until(lambda: len(self.heard(*states)) >= times)
        assert len(self.heard(*states)) >= times, f"{times} x {states} in {self.messages}"
        return self.heard(*states)[times - 1]


@pytest.fixture(params=["path", "abstract"])
def manager(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Manager]:
    found = Manager(str(tmp_path / "notify") if request.param == "path" else f"@relayd-test-{os.getpid()}")
    yield found
    found.sock.close()


@contextlib.contextmanager
def in_foreground(there: Site, prefix: Sequence[str] = (), **popen: object) -> Iterator[Relayd]:
    with relayd("--config", str(there.file), "--foreground", prefix=prefix, **popen) as running:
        yield running


def test_the_manager_is_told_how_things_are(tmp_path: Path, manager: Manager) -> None:
    source_port, port = free_port(), free_port()
    text = relay("one", source_port, port)
    with site(tmp_path, text, log="stderr", pidfile=None, drain_timeout="1s") as there:
        with in_foreground(there, env=manager.environ) as running:
            ready = manager.wait("READY=1")
            assert ready["MAINPID"] == str(running.process.pid)
            assert ready["STATUS"] == "0 of 1 sources up"
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()  # ready is bound
            with connect(source_port):
                manager.wait("STATUS=1 of 1 sources up")
                began = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                running.process.send_signal(signal.SIGHUP)
                manager.wait("READY=1", times=2)
                ended = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                reloading = manager.wait("RELOADING=1")
                assert began <= int(reloading["MONOTONIC_USEC"]) <= ended
                there.file.write_text("broken")
                running.process.send_signal(signal.SIGHUP)
                manager.wait("READY=1", times=3)  # it goes on, so it is as ready as before
                assert len(manager.heard("RELOADING=1")) == 2
                assert not manager.heard("STOPPING=1")
                running.process.send_signal(signal.SIGTERM)
                manager.wait("STOPPING=1")
            assert running.wait() == 0
        kinds = [key for message in manager.messages for key in message if key in ("READY", "RELOADING", "STOPPING")]
        assert kinds == ["READY", "RELOADING", "READY", "RELOADING", "READY", "STOPPING"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can go into a chroot")
def test_the_manager_is_told_from_inside_a_chroot(tmp_path: Path, manager: Manager) -> None:
    (tmp_path / "jail").mkdir(mode=0o755)
    keys = {"log": "stderr", "pidfile": None, "control": None, "chroot": tmp_path / "jail", "user": "nobody"}
    with (
        site(tmp_path, relay("one", free_port(), free_port()), **keys) as there,
        in_foreground(there, env=manager.environ) as running,
    ):
        manager.wait("READY=1")
        running.process.send_signal(signal.SIGHUP)
        manager.wait("READY=1", times=2)
        assert running.stop() == 0
        manager.wait("STOPPING=1")


def test_a_start_that_fails_is_never_ready(tmp_path: Path, manager: Manager) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        site(tmp_path, relay("one", free_port(), taken.getsockname()[1])) as there,
    ):
        assert there.launch("--foreground", env=manager.environ).returncode == 1
    assert not manager.heard("READY=1")


def test_another_process_s_watchdog_is_not_ours(tmp_path: Path, manager: Manager) -> None:
    environ = {**manager.environ, "WATCHDOG_USEC": "100000", "WATCHDOG_PID": "1"}
    with (
        site(tmp_path, relay("one", free_port(), free_port()), log="stderr") as there,
        in_foreground(there, env=environ) as running,
    ):
        manager.wait("READY=1")
        time.sleep(0.3)
        assert running.stop() == 0
    assert not manager.heard("WATCHDOG=1")


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-there", "vsock:2:1234", "rubbish"])
def test_a_manager_that_is_not_there_changes_nothing(tmp_path: Path, address: str) -> None:
    with (
        site(tmp_path, relay("one", free_port(), free_port()), log="stderr") as there,
        in_foreground(there, env={**os.environ, "NOTIFY_SOCKET": address}) as running,
    ):
        there.reload()
        assert running.stop() == 0


def test_a_manager_that_does_not_read_delays_nothing(tmp_path: Path, manager: Manager) -> None:
    source_port, port = free_port(), free_port()
    with (
        site(tmp_path, relay("one", source_port, port), log="stderr") as there,
        in_foreground(there, env={**manager.environ, "WATCHDOG_USEC": "2000"}) as running,
    ):
        with connect(port) as client, connect(source_port) as source:
            running.wait_log("event=connected", times=2)
            for _ in range(20):
                there.reload()
            source.sendall(keyed("flow", 0, 1000))
            assert receive(client, 16000) == keyed("flow", 0, 1000)
        assert running.stop() == 0


# -- sockets that are passed ----------------------------------------------------------------------

_EXEC = """
import os, sys
fds = [int(word) for word in sys.argv[1].split(",")]
for number, fd in enumerate(fds):
    os.dup2(fd, 3 + number)
    os.close(fd)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=":".join("abcdef"[: len(fds)]))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextlib.contextmanager
def passing(*socks: socket.socket) -> Iterator[tuple[list[str], list[int]]]:
    """Return the words that start a command with the sockets as descriptors 3, 4..., and what Popen is to pass."""
    fds = [fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, 100) for sock in socks]
    try:
        yield [sys.executable, "-c", _EXEC, ",".join(map(str, fds))], fds
    finally:
        for fd in fds:
            os.close(fd)


def test_passed_sockets_are_served_and_not_bound_again(tmp_path: Path) -> None:
    local, source_port = tmp_path / "s", free_port()
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(local))
        unix.listen()
        port = tcp.getsockname()[1]
        relays = relay("one", source_port, [port, f"unix:{local}"])
        with site(tmp_path, relays, log="stderr") as there, passing(unix, tcp) as (prefix, fds):  # in any order
            with in_foreground(there, prefix, pass_fds=fds) as running:
                with connect(port) as client, socket.socket(socket.AF_UNIX) as other, connect(source_port) as source:
                    other.connect(str(local))
                    running.wait_log("event=connected", times=3)
                    source.sendall(b"served\n")
                    assert receive(client, 7) == receive(other, 7) == b"served\n"
                    there.reload()
                    source.sendall(b"served\n")
                    assert receive(client, 7) == receive(other, 7) == b"served\n"
                assert running.stop() == 0
            assert not running.logged("unclaimed")
            assert local.exists()  # it is not relayd's
            with socket.socket(socket.AF_UNIX) as other:
                other.connect(str(local))  # and neither has been shut down


def test_a_passed_unix_socket_whose_file_cannot_be_seen_is_served(tmp_path: Path) -> None:
    """The manager's directory may be out of a sandbox's sight, or the file have been removed."""
    local, aside, source_port = tmp_path / "s", tmp_path / "aside", free_port()
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(local))
        unix.listen()
        local.rename(aside)
        with (
            site(tmp_path, relay("one", source_port, f"unix:{local}"), log="stderr") as there,
            passing(unix) as (prefix, fds),
            in_foreground(there, prefix, pass_fds=fds) as running,
            connect(source_port) as source,
            socket.socket(socket.AF_UNIX) as client,
        ):
            client.connect(str(aside))
            running.wait_log("event=connected", times=2)
            source.sendall(b"served\n")
            assert receive(client, 7) == b"served\n"
            assert running.stop() == 0


def test_a_port_without_a_host_takes_a_socket_of_both_families(tmp_path: Path) -> None:
    """ListenStream=2101 makes one socket on [::] that takes IPv4 too."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        port, source_port = both.getsockname()[1], free_port()
        with (
            site(tmp_path, relay("one", source_port, f":{port}"), log="stderr") as there,
            passing(both) as (prefix, fds),
            in_foreground(there, prefix, pass_fds=fds) as running,
        ):
            with connect(port) as client, connect(source_port) as source:
                running.wait_log("event=connected", times=2)
                source.sendall(b"served\n")
                assert receive(client, 7) == b"served\n"
            assert running.stop() == 0


def test_a_passed_socket_that_no_relay_wants_is_told_of(tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as unwanted,
        site(tmp_path, relay("one", free_port(), free_port()), log="stderr") as there,
        passing(unwanted) as (prefix, fds),
        in_foreground(there, prefix, pass_fds=fds) as running,
    ):
        said = running.wait_log("event=socket_unclaimed")
        assert str(unwanted.getsockname()[1]) in said and "take it out of the socket unit" in said


def test_a_passed_socket_that_a_reload_wants_is_taken(tmp_path: Path) -> None:
    """And one that a reload does not want any more is not closed: the next one may want it again."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        port = passed.getsockname()[1]
        first, second = relay("one", free_port(), free_port()), relay("two", free_port(), port)
        with (
            site(tmp_path, first, log="stderr") as there,
            passing(passed) as (prefix, fds),
            in_foreground(there, prefix, pass_fds=fds) as running,
        ):
            for _ in range(2):
                there.configure(first, second)
                there.reload()
                connect(port).close()
                wait_until(lambda: there.relay("two")["totals"]["destination_links"] > 0)
                there.configure(first)
                there.reload()
            assert running.stop() == 0


def test_a_passed_socket_refuses_nobody_over_a_restart(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as passed:
        port = passed.getsockname()[1]
        refusals: list[str] = []
        ending = threading.Event()

        def knock() -> None:
            while not ending.wait(0.002):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
                except OSError as error:
                    refusals.append(repr(error))

        knocker = threading.Thread(target=knock, daemon=True)
        with site(tmp_path, relay("one", free_port(), port), log="stderr") as there:
            knocker.start()
            for _ in range(3):
                with passing(passed) as (prefix, fds), in_foreground(there, prefix, pass_fds=fds) as running:
                    running.wait_log("client=", "event=connected")
                    assert running.stop() == 0
            ending.set()
            knocker.join(PATIENCE)
        assert refusals == []


def test_descriptors_meant_for_another_are_left_alone(tmp_path: Path) -> None:
    port = free_port()
    environ = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "3"}
    with (
        site(tmp_path, relay("one", free_port(), port), log="stderr") as there,
        in_foreground(there, env=environ) as running,
    ):
        connect(port).close()
        assert running.stop() == 0


# -- the real unit, in a throw-away systemd --------------------------------------------------------

_SCRIPT = """#!/usr/bin/python3
import sys
sys.path.insert(0, "/opt/relayd")
from relayd.{module} import main
sys.exit(main())
"""

_FEED_PORT = 2101  # relayd.socket's


class Machine:
    """A systemd of its own, on an overlay of this machine's files (FACTS 2)."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._leader = 0

    def boot(self) -> None:
        """Boot; skips the tests where that is not possible."""
        folder = Path(tempfile.mkdtemp(prefix="relayd-machine-"))
        self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
        self._mount("tmpfs", folder, "-t", "tmpfs")
        for name in ("upper", "work", "root"):
            (folder / name).mkdir()
        self.root = folder / "root"
        options = f"lowerdir=/,upperdir={folder}/upper,workdir={folder}/work"
        self._mount("overlay", self.root, "-t", "overlay", "-o", options)
        self._furnish()
        words = [
            "systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine=relayd-{os.getpid()}", "--register=no",
            "--keep-unit", "--private-network", "--link-journal=no", "--console=pipe", "--boot",
            "--", "--unit=basic.target",
        ]  # fmt: skip
        with (folder / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=console, stderr=console)
        self._stack.callback(self._end)
        try:
            wait_until(self._is_up, "a booted systemd")
        except AssertionError:
            pytest.skip(f"systemd does not boot here: {(folder / 'console').read_text(errors='replace')[-500:]}")

    def _mount(self, what: str, where: Path, *options: str) -> None:
        done = subprocess.run(["mount", *options, what, where], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"cannot mount {what}: {done.stderr.strip()}")
        self._stack.callback(subprocess.run, ["umount", "-l", where], check=False)

    def _furnish(self) -> None:
        """Install the package and its units as a distribution would."""
        for entry in (self.root / "dev").iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.root / "etc/machine-id").unlink(missing_ok=True)
        (self.root / "etc/machine-id").touch()
        for name in ("relayd", "daemon", "lockfile"):
            found = importlib.util.find_spec(name)
            assert found is not None and found.origin is not None
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(Path(found.origin).parent, self.root / "opt/relayd" / name, ignore=ignored)
        for name, module in (("relayd", "cli"), ("relayctl", "relayctl")):
            script = self.root / "usr/bin" / name
            script.write_text(_SCRIPT.format(module=module))
            script.chmod(0o755)
        for unit in (SERVICE, SOCKET):
            shutil.copy(unit, self.root / "etc/systemd/system" / unit.name)
        (self.root / "etc/feed.txt").write_bytes(keyed("feed", 0, 100_000))

    def _is_up(self) -> bool:
        assert self._nspawn.poll() is None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children").read_text().split()
        if not children:
            return False
        self._leader = int(children[0])
        return self.run("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _end(self) -> None:
        self._nspawn.terminate()
        try:
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.kill(self._leader, signal.SIGKILL)
            self._nspawn.wait(PATIENCE)

    def close(self) -> None:
        """Shut down; nothing is left."""
        self._stack.close()

    # -- its operator -----------------------------------------------------------------------------

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        return subprocess.run(
            [*enter, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=3 * PATIENCE, check=False,
        )  # fmt: skip

    def systemctl(self, *words: str) -> None:
        """Run systemctl, which must succeed."""
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"systemctl {words}: {done.stderr}\n{self.journal()}"

    def show(self, name: str, unit: str = "relayd.service") -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", unit, "-P", name).stdout.strip()

    def journal(self, *words: str) -> str:
        """Return what the service has logged."""
        return self.run("journalctl", "--no-pager", "-o", "cat", *(words or ("-u", "relayd"))).stdout

    def write(self, path: str, text: str) -> None:
        """Write a file inside."""
        file = Path(f"/proc/{self._leader}/root{path}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o644)

    def configure(self, *relays: str, user: str = "") -> None:
        """Write the configuration."""
        head = f"[relayd]\nlog = journal\ndrain_timeout = 1s\nuser = {user}\n\n"
        self.write("/etc/relayd.ini", head + "\n".join(relays))

    def fresh(self, *relays: str, user: str = "") -> None:
        """Bring the service to a stop, whatever it was, and start it."""
        self.run("systemctl", "stop", "relayd.socket", "relayd.service")
        self.run("systemctl", "reset-failed", "relayd.socket", "relayd.service")
        self.configure(*relays, user=user)
        self.systemctl("start", "relayd")

    @property
    def pid(self) -> int:
        """The service's, as it is called inside."""
        return int(self.show("MainPID"))

    def socket(self) -> socket.socket:
        """Return a TCP socket that lives inside."""
        made: list[socket.socket] = []
        failures: list[int] = []

        def make() -> None:
            # setns(2) is for the thread alone, and this one ends.
            libc = ctypes.CDLL(None, use_errno=True)
            with open(f"/proc/{self._leader}/ns/net") as namespace:
                if libc.setns(namespace.fileno(), 0):
                    failures.append(ctypes.get_errno())
            made.append(socket.socket())

        thread = threading.Thread(target=make)
        thread.start()
        thread.join(PATIENCE)
        assert not failures, os.strerror(failures[0])
        made[0].settimeout(PATIENCE)
        return made[0]

    def connect(self, port: int) -> socket.socket:
        """Return a connection to a port inside, as soon as somebody listens there."""
        deadline = time.monotonic() + PATIENCE
        while True:
            sock = self.socket()
            try:
                sock.connect(("127.0.0.1", port))
            except ConnectionRefusedError:
                sock.close()
                assert time.monotonic() < deadline, f"nobody listens on {port}\n{self.journal()}"
                time.sleep(0.02)
            else:
                return sock

    def connect_unix(self, path: str) -> socket.socket:
        """Return a connection to a Unix socket inside."""
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE)
        sock.connect(f"/proc/{self._leader}/root{path}")
        return sock


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.skip("only root can boot a machine")
    needs("systemd-nspawn", "nsenter", "mount", "/usr/bin/python3")
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 10))"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if version.stdout.strip() != "True":
        pytest.skip("/usr/bin/python3 is too old")
    found = Machine()
    try:
        found.boot()
        yield found
    finally:
        found.close()


def replay(port: object = f":{_FEED_PORT}", name: str = "feed") -> str:
    return relay(name, "replay:/etc/feed.txt?rate=200&loop=yes", port, mode="connect-listen", framing="line")


def flows(sock: socket.socket, cells: int = 10) -> None:
    """Fail unless the feed comes through, whole and in order."""
    data = receive(sock, cells * 16)
    assert data in keyed("feed", int(data[5:15]), cells), data


def test_the_unit_starts_and_the_feed_flows(machine: Machine) -> None:
    machine.fresh(replay())
    assert machine.show("ActiveState") == "active" and machine.show("Type") == "notify"
    with machine.connect(_FEED_PORT) as client:
        flows(client)
    wait_until(lambda: machine.show("StatusText") == "1 of 1 sources up", "the status line")
    pid = machine.pid
    status = machine.run("cat", f"/proc/{pid}/status").stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in fields["Uid"].split()  # DynamicUser
    assert int(fields["CapEff"], 16) == int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"] == "1" and fields["Seccomp"] == "2"
    done = machine.run("relayctl", "status")
    assert done.returncode == 0 and "1 of 1 sources up" in done.stdout, done
    assert machine.run("stat", "-c", "%a", "/run/relayd/control.sock").stdout.strip() == "600"


@pytest.mark.parametrize("user", ["", "relayd"], ids=["nobody to become", "who it is already"])
def test_a_unix_socket_is_served_from_inside_the_sandbox(machine: Machine, user: str) -> None:
    """The sandbox denies every chown."""
    local = "/run/relayd/feed.sock"
    machine.fresh(replay(f"unix:{local}"), user=user)
    with machine.connect_unix(local) as client:
        flows(client)
    machine.systemctl("stop", "relayd")
    assert machine.show("Result") == "success"


def test_it_logs_to_the_journal_with_fields_of_its_own(machine: Machine) -> None:
    machine.fresh(replay())
    with machine.connect(_FEED_PORT) as client:
        flows(client)
    wait_until(lambda: "event=connected" in machine.journal("RELAYD_RELAY=feed", "RELAYD_EVENT=connected"))
    assert "event=listening" in machine.journal("RELAYD_EVENT=listening", "PRIORITY=6", "SYSLOG_IDENTIFIER=relayd")
    assert "event=listening" in machine.journal("-u", "relayd.service")


def test_it_reloads(machine: Machine) -> None:
    machine.fresh(replay())
    with machine.connect(_FEED_PORT) as client:
        flows(client)
        pid = machine.pid
        machine.configure(replay(), replay(2102, "another"))
        machine.systemctl("reload", "relayd")
        with machine.socket() as other:
            other.connect(("127.0.0.1", 2102))  # at once: the reload is done when systemctl returns
            flows(other)
        flows(client, 50)
        assert machine.pid == pid and machine.show("NRestarts") == "0"


def test_a_reload_of_a_broken_file_fails_and_changes_nothing(machine: Machine) -> None:
    machine.fresh(replay())
    with machine.connect(_FEED_PORT) as client:
        flows(client)
        pid = machine.pid
        machine.configure(replay() + "bufer = 1M\n")
        assert machine.run("systemctl", "reload", "relayd").returncode != 0
        wait_until(lambda: re.search(r"/etc/relayd\.ini:\d+: \[relay feed\] bufer: ", machine.journal()), "the reason")
        assert machine.show("ActiveState") == "active" and machine.pid == pid
        flows(client, 50)
        machine.configure(replay())
        machine.systemctl("reload", "relayd")
        flows(client)


def test_kill_9_is_followed_by_a_restart(machine: Machine) -> None:
    machine.fresh(replay())
    pid = machine.pid
    machine.run("kill", "-9", str(pid))
    wait_until(lambda: machine.show("ActiveState") == "active" and machine.pid not in (0, pid), "a restart")
    assert machine.show("NRestarts") == "1"
    with machine.connect(_FEED_PORT) as client:
        flows(client)


def test_a_loop_that_stands_still_is_restarted_by_the_watchdog(machine: Machine) -> None:
    """FAULTS P24."""
    machine.write("/run/systemd/system/relayd.service.d/watchdog.conf", "[Service]\nWatchdogSec=1s\n")
    machine.systemctl("daemon-reload")
    try:
        machine.fresh(replay())
        pid = machine.pid
        time.sleep(1.5)  # longer than the watchdog waits: it is fed
        assert machine.pid == pid
        machine.run("kill", "-STOP", str(pid))
        wait_until(lambda: machine.show("ActiveState") == "active" and machine.pid not in (0, pid), "a restart")
        with machine.connect(_FEED_PORT) as client:
            flows(client)
    finally:
        machine.run("rm", "-r", "/run/systemd/system/relayd.service.d")
        machine.systemctl("daemon-reload")


def test_a_wrong_configuration_is_not_tried_again(machine: Machine) -> None:
    """FAULTS P25."""
    machine.run("systemctl", "stop", "relayd")
    machine.configure("[relay bad]\n")
    assert machine.run("systemctl", "start", "relayd").returncode != 0
    assert (machine.show("ActiveState"), machine.show("ExecMainStatus")) == ("failed", "2")
    time.sleep(0.8)  # RestartSec is half a second
    assert (machine.show("ActiveState"), machine.show("NRestarts")) == ("failed", "0")
    wait_until(lambda: "/etc/relayd.ini:" in machine.journal(), "the reason")


def test_socket_activation_refuses_nobody_over_restarts(machine: Machine) -> None:
    machine.fresh(replay())
    machine.systemctl("stop", "relayd")
    machine.systemctl("start", "relayd.socket")
    assert machine.show("ActiveState") == "inactive"
    with machine.connect(_FEED_PORT) as client:  # this starts it
        flows(client)
        assert machine.show("ActiveState") == "active"
        assert "socket_unclaimed" not in machine.journal(f"_PID={machine.pid}")
    outcomes: list[str] = []
    ending = threading.Event()

    def knock() -> None:
        while not ending.wait(0.005):
            with machine.socket() as sock:
                try:
                    sock.connect(("127.0.0.1", _FEED_PORT))
                    outcomes.append("connected")
                except OSError as error:
                    outcomes.append(repr(error))

    knocker = threading.Thread(target=knock, daemon=True)
    knocker.start()
    for _ in range(2):
        pid = machine.pid
        machine.systemctl("restart", "relayd")
        assert machine.pid != pid
    ending.set()
    knocker.join(PATIENCE)
    assert len(outcomes) > 20 and set(outcomes) == {"connected"}, set(outcomes)
    with machine.connect(_FEED_PORT) as client:
        flows(client)
    machine.systemctl("stop", "relayd.socket", "relayd.service")


def test_it_stops_in_time_and_leaves_nothing(machine: Machine) -> None:
    machine.fresh(replay())
    with machine.connect(_FEED_PORT) as client:
        flows(client)
        began = time.monotonic()
        machine.systemctl("stop", "relayd")
        assert time.monotonic() - began < 1.0 + 2 * SLOWNESS  # drain_timeout is 1 s
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert machine.run("ls", "/run/relayd").returncode != 0
    assert "event=stopped" in machine.journal("RELAYD_EVENT=stopped")
