"""Logs and dumps of a real process: every target, rotation, full disks, readers that do not read (FAULTS 2.11)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemons import RELAYD, Feed, Site, daemon, name_of, relay, site, turned_away
from tests.integration.logdaemon import Datagrams
from tests.support import (
    CELL,
    PATIENCE,
    ROOT,
    SLOWNESS,
    Collector,
    Namespace,
    check_keyed,
    connect,
    free_port,
    keyed,
    receive,
    reset_connection,
    spawned,
    wait_until,
)

LINE = re.compile(
    r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (info|warning|error) ([a-z_]+=("[^"]*"|[^ "]+) ?)+( repeated .*)?'
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


def flow_through(source: socket.socket, client: socket.socket, cells: int = 1000, first: int = 0) -> None:
    """Fail unless the stream comes through these two, at once and whole."""
    source.sendall(keyed("flow", first, cells))
    assert receive(client, cells * CELL) == keyed("flow", first, cells)


def linked(running: Site, source_port: int, port: int, stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return a source and a client that are up."""
    client = stack.enter_context(connect(port))
    source = stack.enter_context(connect(source_port))
    wait_until(
        lambda: (lambda found: found["destinations"] and found["source"]["state"] == "up")(running.relay("flow"))
    )
    return source, client


def fields(line: str) -> dict[str, str]:
    """Return the key=value pairs of a line, whatever their order."""
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


# -- targets --------------------------------------------------------------------------------------


def live(running: Site, source_port: int, port: int) -> str:
    """Let a client come and go; return what it is called."""
    with connect(port) as client:
        name = name_of(client)
        wait_until(lambda: running.relay("flow")["destinations"])
    wait_until(lambda: running.relay("flow")["totals"]["destination_links"] == 1)
    with connect(source_port) as source:
        wait_until(lambda: (source.send(b"x"), not running.relay("flow")["destinations"])[1], "the client gone")
    return name


def test_a_file_has_one_line_for_each_change_of_state(tmp_path: Path) -> None:
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port)) as running:
        peer = live(running, source_port, port)
        running.stop()
        lines = running.lines()
        assert all(LINE.fullmatch(line) for line in lines), [line for line in lines if not LINE.fullmatch(line)]
        came, went = (fields(line) for line in lines if f"client={peer}" in line)
        assert came == {"relay": "flow", "client": peer, "event": "connected"}
        assert went.pop("reason") and int(went.pop("sent")) + int(went.pop("dropped")) and float(went.pop("up")) >= 0
        assert went == {"relay": "flow", "client": peer, "event": "closed"}
        assert oct(running.log.stat().st_mode & 0o777) == "0o640"


def test_json_is_an_object_a_line(tmp_path: Path) -> None:
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port), log_format="json") as running:
        peer = live(running, source_port, port)
        running.stop()
        events = [json.loads(line) for line in running.lines()]
        closed = next(event for event in events if event["event"] == "closed" and event.get("client") == peer)
        assert closed["relay"] == "flow" and closed["level"] == "info"
        assert isinstance(closed["sent"], int) and isinstance(closed["up"], float)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", closed["time"])


def test_syslog(tmp_path: Path, stack: ExitStack) -> None:
    namespace = stack.enter_context(Namespace())
    syslog = Datagrams(tmp_path / "dev", namespace, "/dev/log", stack)
    source_port, port = free_port(), free_port()
    dead = relay("dead", free_port(), free_port(), mode="connect-listen")
    flow = relay("flow", source_port, port)
    with daemon(tmp_path, flow, dead, prefix=namespace.enter, log=None) as running:  # it is the daemon's default
        client = stack.enter_context(namespace.connect(port))
        peer = name_of(client)
        head, _, line = syslog.wait("event=connected").partition(" ")
        assert head == f"<30>relayd[{running.pid}]:"  # facility daemon, severity info
        assert fields(line) == {"relay": "flow", "client": peer, "event": "connected"}
        assert syslog.wait("event=connect_failed").startswith(f"<28>relayd[{running.pid}]: relay=dead ")  # a warning


def test_the_journal_gets_fields_of_its_own(tmp_path: Path, stack: ExitStack) -> None:
    namespace = stack.enter_context(Namespace())
    journal = Datagrams(tmp_path / "journal", namespace, "/run/systemd/journal/socket", stack)
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port), prefix=namespace.enter, log="journal"):
        client = stack.enter_context(namespace.connect(port))
        peer = name_of(client)
        entry = journal.wait("RELAYD_EVENT=connected")
        found = dict(line.split("=", 1) for line in entry.splitlines())
        assert fields(found.pop("MESSAGE")) == {"relay": "flow", "client": peer, "event": "connected"}
        assert found == {
            "PRIORITY": "6", "SYSLOG_IDENTIFIER": "relayd",
            "RELAYD_RELAY": "flow", "RELAYD_CLIENT": peer, "RELAYD_EVENT": "connected",
        }  # fmt: skip


@pytest.mark.parametrize("target", ["syslog", "journal"])
def test_a_log_daemon_that_is_not_there_stops_nothing(tmp_path: Path, target: str, stack: ExitStack) -> None:
    """FAULTS F-3."""
    if any(os.path.exists(path) for path in ("/dev/log", "/run/systemd/journal/socket")):
        pytest.skip("a log daemon is there")
    source_port, port = free_port(), free_port()
    with site(tmp_path, relay("flow", source_port, port), log=target) as running:
        done = running.launch()
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith(f"relayd: log: no {target} at /") and len(done.stderr.splitlines()) == 1
        flow_through(*linked(running, source_port, port, stack))
        assert running.stop() < 12


def test_a_log_daemon_that_does_not_read_delays_nothing(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-3: its socket is full; what is lost is told once there is room."""
    namespace = stack.enter_context(Namespace())
    syslog = Datagrams(tmp_path / "dev", namespace, "/dev/log", stack)
    source_port, port = free_port(), free_port()
    flow = relay("flow", source_port, port)
    with daemon(tmp_path, flow, prefix=namespace.enter, log="syslog") as running:
        source = stack.enter_context(namespace.connect(source_port))
        client = stack.enter_context(namespace.connect(port))
        wait_until(lambda: running.relay("flow")["destinations"])
        for number in range(600):  # more lines than the socket holds
            reset_connection(namespace.connect(port))
            if number % 100 == 0:
                flow_through(source, client, first=number)
        flow_through(source, client)
        assert running.status()["loop_lag"]["max"] < 0.5 * SLOWNESS
        syslog.wait("event=connected")
        for _ in range(20):
            reset_connection(namespace.connect(port))
        assert re.search(r"event=log_lost lines=\d+", syslog.wait("event=log_lost"))


# -- reopening ------------------------------------------------------------------------------------


def test_no_line_is_lost_when_the_log_is_renamed(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-2: rename, SIGUSR1, while clients come and go."""
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port)) as running:
        peers = []
        for number in range(20):
            for _ in range(10):
                with connect(port) as client:
                    peers.append(name_of(client))
            os.rename(running.log, tmp_path / f"log.{number}")
            if number % 2:
                live_one = stack.enter_context(connect(port))
                peers.append(name_of(live_one))
            running.send(signal.SIGUSR1)
            wait_until(running.log.exists, "a new log")
        wait_until(lambda: running.relay("flow")["totals"]["destination_links"] == len(peers))
        running.stop()
        lines = [line for file in tmp_path.glob("*log*") for line in file.read_text().splitlines()]
        events = Counter((found.get("client"), found["event"]) for found in map(fields, lines))
        for peer in peers:
            assert events[peer, "connected"] == events[peer, "closed"] == 1, peer
        assert events[None, "reopened"] == 20
        assert running.lines("event=stopped"), "the new file is not written to"


def test_no_byte_is_lost_when_a_dump_is_renamed(tmp_path: Path, stack: ExitStack) -> None:
    source_port, port = free_port(), free_port()
    dump = tmp_path / "dump"
    with daemon(tmp_path, relay("flow", source_port, port, dump="raw", dump_file=dump)) as running:
        source, client = linked(running, source_port, port, stack)
        collector, feed = Collector(client), Feed(source, "feed")
        for number in range(30):
            os.rename(dump, tmp_path / f"dump.{number:03}")
            running.send(signal.SIGUSR1)
            wait_until(dump.exists, "a new dump")
            count = dump.stat().st_size
            wait_until(lambda count=count: dump.stat().st_size > count, "bytes in it")
        total = feed.end()
        collector.wait_for(total)
        files = [*sorted(tmp_path.glob("dump.*")), dump]
        assert len(files) == 31
        check_keyed("feed", b"".join(file.read_bytes() for file in files), 0)
        assert sum(file.stat().st_size for file in files) == total


def test_a_log_that_cannot_be_reopened_is_kept(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-2: better the old file than none."""
    source_port, port = free_port(), free_port()
    folder = tmp_path / "logs"
    folder.mkdir()
    with daemon(tmp_path, relay("flow", source_port, port), log=folder / "log") as running:
        os.rename(folder, tmp_path / "moved")
        running.send(signal.SIGUSR1)
        moved = tmp_path / "moved" / "log"
        wait_until(lambda: "event=reopen_failed" in moved.read_text(), "the old file")
        assert "No such file or directory" in moved.read_text() and "event=reopened" not in moved.read_text()
        flow_through(*linked(running, source_port, port, stack))
        assert "event=connected" in moved.read_text()


def test_1000_hang_ups_of_the_log_leave_no_descriptor(tmp_path: Path) -> None:
    dump = {"dump": "raw", "dump_file": tmp_path / "dump"}
    with daemon(tmp_path, relay("flow", free_port(), free_port(), **dump)) as running:
        before = len(running.descriptors())
        for _ in range(1000):
            running.send(signal.SIGUSR1)
        wait_until(lambda: running.lines("event=reopened"))
        running.status()
        assert len(running.descriptors()) <= before + 1


# -- full disks and readers that do not read ------------------------------------------------------


def test_a_full_disk_delays_nothing_and_what_was_lost_is_told(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-1, F-4: log and dump on a disk that is full, and then is not."""
    namespace = stack.enter_context(Namespace())
    disk = tmp_path / "disk"
    disk.mkdir()
    namespace.run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk)
    inside = Path(f"/proc/{namespace.pid}/root{disk}")
    source_port, port = free_port(), free_port()
    flow = relay("flow", source_port, port, dump="raw", dump_file=disk / "dump")
    with daemon(tmp_path, flow, prefix=namespace.enter, log=disk / "log") as running:
        running.log = inside / "log"
        source = stack.enter_context(namespace.connect(source_port))
        client = stack.enter_context(namespace.connect(port))
        running.wait_log("event=connected", times=2)
        with contextlib.suppress(OSError), (inside / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        for number in range(0, 40_000, 1000):
            flow_through(source, client, first=number)
        for _ in range(100):
            reset_connection(namespace.connect(port))
        wait_until(lambda: running.relay("flow")["totals"]["destination_links"] == 101)
        assert running.status()["loop_lag"]["max"] < 0.5 * SLOWNESS
        (inside / "ballast").unlink()

        def told() -> int:
            reset_connection(namespace.connect(port))
            return sum(int(fields(line)["lines"]) for line in running.lines("event=log_lost"))

        wait_until(lambda: told() > 100, "the loss is told")  # of 200 lines, some of which found a last gap
        assert all(LINE.fullmatch(line) for line in running.lines()), "a torn line"
        flow_through(source, client)


def test_a_pipe_that_nobody_reads_delays_nothing(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-3: `relayd --foreground 2>&1 | less`, and the pager is not touched."""
    source_port, port = free_port(), free_port()
    reader, writer = os.pipe()
    with site(tmp_path, relay("flow", source_port, port), log="stderr", log_level="debug") as there:
        words = [*RELAYD, "--config", str(there.file), "--foreground"]
        with os.fdopen(reader, "rb"), spawned(*words, stderr=writer, stdout=writer, cwd=ROOT) as process:
            os.close(writer)
            wait_until(there.control.exists, "the start")
            source, client = linked(there, source_port, port, stack)
            for _ in range(1500):  # some 200 KB of lines, a pipe holds 64
                reset_connection(connect(port))
            wait_until(lambda: there.relay("flow")["totals"]["destination_links"] == 1501, "all of them")
            flow_through(source, client)
            assert there.status()["loop_lag"]["max"] < 0.5 * SLOWNESS
            for link in (source, client):
                link.close()
            began = time.monotonic()
            process.terminate()
            assert process.wait(PATIENCE) == 0
            assert time.monotonic() - began < 10 + 2 * SLOWNESS


def test_a_pipe_whose_reader_has_gone_stops_nothing(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS P18: `relayd ... | head`."""
    source_port, port = free_port(), free_port()
    dump = relay("flow", source_port, port, dump="text")
    with site(tmp_path, dump, log="stderr") as there:
        words = [*RELAYD, "--config", str(there.file), "--foreground"]
        with spawned(*words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
            wait_until(there.control.exists, "the start")
            assert process.stderr is not None and process.stdout is not None
            process.stderr.close()
            process.stdout.close()
            source, client = linked(there, source_port, port, stack)
            for number in range(0, 5000, 1000):
                flow_through(source, client, first=number)
            source.close()
            client.close()
            process.terminate()
            assert process.wait(PATIENCE) == 0


# -- floods and forgeries -------------------------------------------------------------------------


def test_a_thousand_refused_clients_are_a_handful_of_lines(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-7: one line for all, and one that counts them."""
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port, max_clients=1)) as running:
        linked(running, source_port, port, stack)
        for _ in range(1000):
            assert turned_away(port)
        wait_until(lambda: running.relay("flow")["totals"]["refused"] == 1000)
        # The count comes when the burst is over, after 10 s at the latest.
        counted = running.wait_log("event=refused", "reason=full", "repeated ")
        lines = running.lines("event=refused")
        counts = [int(line.rpartition("repeated ")[2].split()[0]) for line in lines if "repeated " in line]
        singles = [line for line in lines if "repeated " not in line]
        assert counted and len(lines) <= 6, lines
        assert sum(counts) + len(singles) <= 1000


def test_a_flapping_peer_is_one_line_and_not_a_thousand(tmp_path: Path) -> None:
    """FAULTS N1: one line for each change of state, not for each attempt."""
    text = relay("flow", free_port(), free_port(), mode="connect-listen", reconnect="10ms")
    with daemon(tmp_path, text) as running:
        running.wait_log("event=connect_failed")
        time.sleep(0.5)
        assert len(running.lines("event=connect_failed")) == 1


def test_no_bytes_of_a_stream_stand_in_the_log(tmp_path: Path, stack: ExitStack) -> None:
    """FAULTS F-6: nor can a peer forge a line by the name it gives its socket."""
    source_port, local = free_port(), tmp_path / "s"
    with daemon(tmp_path, relay("flow", source_port, f"unix:{local}", framing="line")) as running:
        with connect(source_port) as source:
            source.sendall(b"\x1b[31mSECRET event=forged\nSECRET\x00half")
            with socket.socket(socket.AF_UNIX) as client:
                client.bind(str(tmp_path / "x\nlevel=error event=forged\x1b[2J"))
                client.connect(str(local))
                running.wait_log("event=connected", times=2)
        running.stop()
        raw = running.log.read_bytes()
        assert b"SECRET" not in raw and b"\x1b" not in raw
        assert all(LINE.match(line) for line in running.lines()), running.tail()
        assert not any(line.startswith("level=error") for line in running.lines())


def test_levels(tmp_path: Path, stack: ExitStack) -> None:
    """The level applies live."""
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port), log_level="error") as running:
        linked(running, source_port, port, stack)
        assert running.lines() == []
        running.configure(relay("flow", source_port, port), log_level="info")
        running.reload()
        stack.enter_context(connect(port))
        running.wait_log("event=connected")


def test_a_relay_of_the_command_line_logs_to_stderr_alone(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "relayd", f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"]
    with spawned(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stderr is not None
        assert b"event=started" in process.stderr.readline()
        process.terminate()
        said = process.communicate(timeout=PATIENCE)
        assert said[0] == b"" and b"event=stopped" in said[1]
