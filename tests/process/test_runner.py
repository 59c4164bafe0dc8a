"""A run in the foreground: from a configuration to a clean end."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd.config.load import load_command_line
from relayd.process import runner
from tests.net.helpers import descriptors
from tests.support import (
    PATIENCE,
    ROOT,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    needs,
    receive,
    receive_all,
    relayd,
    wait_until,
)


def options(**values: str) -> list[tuple[str, str, str]]:
    return [(key, value, f"-o {key}") for key, value in values.items()]


def refused(*words: str, prefix: Sequence[str] = ()) -> tuple[int, str]:
    """Run relayd, which must end by itself; return its status and what it said."""
    done = subprocess.run(
        [*prefix, sys.executable, "-X", "dev", "-W", "error", "-m", "relayd", *words],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    return done.returncode, done.stderr


def test_l1_a_port_that_is_taken_ends_it_with_1_and_the_reason() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, said = refused(f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}")
    assert status == 1
    first = said.splitlines()[0]
    assert first.startswith(f"relayd: [relay relay] cannot listen on 127.0.0.1:{port}: Address already in use, by ")


def test_l1_all_ports_that_are_taken_are_told_at_once(tmp_path: Path) -> None:
    config = tmp_path / "relayd.ini"
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        ports = [server.getsockname()[1] for server in (one, two)]
        config.write_text("".join(
            f"[relay r{port}]\nsource = 127.0.0.1:1\ndestination = 127.0.0.1:{port}\n" for port in ports
        ))  # fmt: skip
        status, said = refused("--config", str(config), "--foreground")
    assert status == 1
    for port in ports:
        assert f"relayd: [relay r{port}] cannot listen on 127.0.0.1:{port}: Address already in use" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can try to be somebody else")
def test_a_unix_socket_that_cannot_be_given_away_is_told_with_its_relay(tmp_path: Path) -> None:
    needs("setpriv")
    path, config = tmp_path / "s", tmp_path / "relayd.ini"
    config.write_text(f"[relayd]\nuser = nobody\n[relay a]\nsource = 127.0.0.1:1\ndestination = unix:{path}\n")
    prefix = ["setpriv", "--bounding-set", "-chown"]
    status, said = refused("--config", str(config), "--foreground", prefix=prefix)
    assert status == 1
    assert said.startswith(f"relayd: [relay a] cannot give {path} to the user: Operation not permitted; start as root")
    assert len(said.splitlines()) == 1 and not path.exists()


def test_p28_a_start_that_fails_leaves_no_resource_warning_even_with_x_dev() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        _, said = refused(f"127.0.0.1:{free_port()}", f"127.0.0.1:{taken.getsockname()[1]}")
    assert len(said.splitlines()) == 1, said


def test_a_run_that_ends_gives_everything_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wake-up descriptor, sockets: the process is as it was, but that nothing can disturb its exit."""
    config = load_command_line(options(source=f"127.0.0.1:{free_port()}", destination=f":{free_port()}"), {})
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    before, limit = len(descriptors()), resource.getrlimit(resource.RLIMIT_NOFILE)
    run = runner.Reactor.run

    def run_and_end(reactor: runner.Reactor) -> None:
        reactor.call_later(0, lambda: os.kill(os.getpid(), signal.SIGTERM))
        run(reactor)

    monkeypatch.setattr(runner.Reactor, "run", run_and_end)
    try:
        runner.run_foreground(config, None, {})
        assert len(descriptors()) == before
        # None of the signals may come between the end of the loop and the end of the process.
        assert {number: signal.getsignal(number) for number in numbers} == dict.fromkeys(numbers, signal.SIG_IGN)
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_p1_a_signal_ends_it_with_0(number: int) -> None:
    with relayd(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") as running:
        assert running.stop(number) == 0
        assert running.logged("event=stopping")
        assert running.logged("event=stopped")


def test_p2_what_waits_is_sent_before_the_end() -> None:
    port = free_port()
    words = [f"127.0.0.1:{port}", "-o", "framing=line"]
    with listener() as source, relayd(f"127.0.0.1:{source.getsockname()[1]}", *words) as running:
        feed, _ = source.accept()
        with feed, connect(port) as client:
            running.wait_log("event=connected", "client=")
            data = keyed("stop", 0, 100_000)
            feed.sendall(data)
            first = receive(client, 16)
            running.process.send_signal(signal.SIGTERM)
            running.wait_log("event=stopping")
            check_keyed("stop", first + receive_all(client), 0)  # whole records, then an end, not a reset
        assert running.wait() == 0


def test_p4_a_second_signal_ends_it_at_once() -> None:
    """The drain would wait for a client that takes nothing."""
    port = free_port()
    words = ["-o", "stall_timeout=0", "-o", "linger_timeout=1h"]
    with listener() as source, relayd(f"127.0.0.1:{source.getsockname()[1]}", f"127.0.0.1:{port}", *words) as running:
        feed, _ = source.accept()
        with feed, connect(port):
            running.wait_log("event=connected", "client=")
            running.process.send_signal(signal.SIGTERM)
            running.wait_log("event=stopping")
            assert running.process.poll() is None
            assert running.stop(signal.SIGTERM) == 0


def test_p7_a_storm_of_sigint_and_sigterm_ends_it_with_0() -> None:
    with relayd(f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}") as running:
        for _ in range(200):
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGINT)
                running.process.send_signal(signal.SIGTERM)
        assert running.wait() in (0, -signal.SIGINT, -signal.SIGTERM)


def test_stopping_removes_the_unix_sockets(tmp_path: Path) -> None:
    path = tmp_path / "out.sock"
    with relayd(f"127.0.0.1:{free_port()}", f"unix:{path}") as running:
        wait_until(path.exists)
        assert running.stop() == 0
    assert not path.exists()


def test_p18_the_reader_of_the_log_may_leave() -> None:
    """`relayd ... 2>&1 | head`: every line from then on is an EPIPE, and the stream goes on."""
    port = free_port()
    with listener() as feed:
        source = f"127.0.0.1:{feed.getsockname()[1]}"
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "relayd", source, f"127.0.0.1:{port}", "-o", "framing=line"],
            cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stderr is not None
        try:
            with feed.accept()[0] as link:
                assert b"event=" in process.stderr.readline()
                process.stderr.close()
                with connect(port) as client:  # its line of the log has no reader any more
                    wait_until(lambda: joined(process.pid, port), "the client at relayd's side")
                    link.sendall(b"goes on\n")
                    assert receive(client, 8) == b"goes on\n"
                    assert process.poll() is None
                    process.send_signal(signal.SIGTERM)
                    assert receive_all(client) == b""
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            process.wait(PATIENCE)
            process.stderr.close()


def joined(pid: int, port: int) -> bool:
    """Whether the process has accepted a connection on the port: more sockets of it than the listener."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{line[9]}]" for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"}
    links = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.add(os.readlink(fd))
    return bool(inodes & links)


def test_l10_more_clients_than_descriptors_is_said_and_lowered() -> None:
    words = [f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}", "-o", "max_clients=1000"]
    with relayd(*words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))) as running:
        running.wait_log("event=max_clients_lowered", "wanted=1000", "to=168")
        assert running.stop() == 0
