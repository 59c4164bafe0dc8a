"""Logs and dumps: full disks, rotation, readers that do not read, bytes that would forge a line, floods."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Site, descriptors, name_of, relay, turned_away
from tests.integration.logdaemon import Datagrams
from tests.support import CELL, Namespace, check_keyed, connect, free_port, keyed, receive, reset_connection, wait_until


class Stream:
    """A source and a client of relay `one`, and how far they are."""

    def __init__(self, site: Site, ports: tuple[int, int], stack: ExitStack) -> None:
        self._client, self._source = (connect(port) for port in reversed(ports))
        stack.callback(reset_connection, self._client)
        stack.callback(reset_connection, self._source)
        wait_until(lambda: site.relay("one")["source"]["state"] == "up" and site.relay("one")["destinations"], "links")
        self.cells = 0

    def flows(self, cells: int = 1) -> None:
        """Fail unless so much comes through, at once and whole."""
        self._source.sendall(keyed("logs", self.cells, cells))
        assert receive(self._client, cells * CELL) == keyed("logs", self.cells, cells)
        self.cells += cells


@contextmanager
def small_disk(folder: Path) -> Iterator[tuple[Path, Path, list[str]]]:
    """A file system of 256 KiB; yields its place for the daemon, for us, and the words that start what sees it."""
    disk = folder / "disk"
    disk.mkdir()
    with Namespace() as namespace:
        namespace.run("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk)
        yield disk, Path(f"/proc/{namespace.pid}/root{disk}"), mounts_of(namespace)


def mounts_of(namespace: Namespace) -> list[str]:
    """Return the words that start a command with the namespace's files and our network."""
    return [word for word in namespace.enter if word != "-n"]


def fill(disk: Path) -> Path:
    """Take all the room there is; return the file that has it."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return ballast


def come_and_go(site: Site, port: int, times: int) -> list[str]:
    """Let so many clients connect and be gone; return their names."""
    before, names = site.relay("one")["totals"]["destination_links"], []
    for number in range(times):
        client = connect(port)
        names.append(name_of(client))
        reset_connection(client)
        if number % 50 == 49:  # no more than the backlog holds
            wait_until(lambda: site.relay("one")["totals"]["destination_links"] > before + len(names) - 50)
    wait_until(lambda: site.relay("one")["totals"]["destination_links"] == before + times, "all clients")
    return names


def lost_lines(site: Site) -> int:
    """Return how many lines the log says it has lost."""
    return sum(int(line.rpartition("lines=")[2]) for line in site.lines("event=log_lost"))


# -- the log --------------------------------------------------------------------------------------


@row(
    "F1",
    provoked="the log's disk is full while clients come and go, and then it is not",
    required="no stream waits; what is lost is counted, and told as `log_lost lines=…` as soon as there is room; no "
    "line is torn",
)
def test_f1_a_full_disk(rig: Rig) -> None:
    ports = free_port(), free_port()
    with small_disk(rig.folder) as (disk, ours, prefix):
        with rig.daemon(relay("one", *ports), prefix=prefix, log=disk / "log") as site:
            site.log = ours / "log"
            with ExitStack() as links:
                stream = Stream(site, ports, links)
                ballast = fill(ours)
                clients = rig.times(100, 10_000)
                for _ in range(10):
                    come_and_go(site, ports[1], clients // 10)
                    stream.flows(100)
                ballast.unlink()
                come_and_go(site, ports[1], 1)
                # Each client has two lines; the last block of the file may have had room for a hundred, and for a
                # short one that tells of a longer one.
                wait_until(lambda: 2 * clients - 100 < lost_lines(site) <= 2 * clients, "what was lost")
                lost = lost_lines(site)
                stream.flows()
            wait_until(lambda: not site.relay("one")["destinations"], "the end of the links")
        rig.saw(f"{lost} lines of {2 * clients} lost and told")


@row(
    "F2",
    provoked="the log renamed and SIGUSR1, 20 times, while clients come and go; truncated in place; deleted; its "
    "folder moved away, a directory or a link in its place",
    required="with rename and SIGUSR1 no line is lost or doubled; what cannot be opened leaves the old file in use, "
    "and is said",
)
def test_f2_rotation(rig: Rig) -> None:
    ports = free_port(), free_port()
    with rig.daemon(relay("one", *ports)) as site:
        peers: list[str] = []
        for number in range(rig.times(20, 500)):
            peers += come_and_go(site, ports[1], 10)
            site.log.rename(rig.folder / f"old.{number}")
            site.send(signal.SIGUSR1)
            wait_until(site.log.exists, "a new log")
        wait_until(lambda: not site.relay("one")["destinations"], "the end of the links")
        lines = [line for file in [*rig.folder.glob("old.*"), site.log] for line in file.read_text().splitlines()]
        events = Counter(re.findall(r"relay=one client=(\S+) event=(\w+)", "\n".join(lines)))
        wrong = {key: count for key, count in events.items() if count != peers.count(key[0])}
        assert len(events) == 2 * len(set(peers)) and not wrong, wrong
        rig.saw(f"{len(lines)} lines over {number + 1} files, none lost")


@row("F2", provoked="", required="")
@pytest.mark.parametrize("obstacle", ["moved", "directory", "link"])
def test_f2_a_log_that_cannot_be_reopened(rig: Rig, obstacle: str) -> None:
    ports, folder = (free_port(), free_port()), rig.folder / "logs"
    folder.mkdir()
    with rig.daemon(relay("one", *ports), log=folder / "log") as site:
        os.rename(folder / "log", rig.folder / "old")
        if obstacle == "moved":
            folder.rmdir()
        elif obstacle == "directory":
            (folder / "log").mkdir()
        else:
            (folder / "log").symlink_to(rig.folder / "elsewhere")
        site.log = rig.folder / "old"
        held = len(descriptors(site.pid))
        site.send(signal.SIGUSR1)
        site.wait_log("event=reopen_failed", f"file={folder}/log")
        come_and_go(site, ports[1], 1)
        site.wait_log("event=closed")
        wait_until(lambda: len(descriptors(site.pid)) <= held, "no descriptor more")
        assert not (rig.folder / "elsewhere").exists()
        assert not site.lines("event=reopened")
        rig.saw(f"{obstacle}: the old file is kept, and the log says why")


@row("F2", provoked="", required="")
def test_f2_truncated_and_deleted(rig: Rig) -> None:
    ports = free_port(), free_port()
    with rig.daemon(relay("one", *ports)) as site:
        come_and_go(site, ports[1], 10)
        site.wait_log("event=closed", times=10)
        os.truncate(site.log, 0)
        come_and_go(site, ports[1], 1)
        site.wait_log("event=closed")
        assert len(site.lines()) == 2, "a hole where the old lines were"
        site.log.unlink()
        site.send(signal.SIGUSR1)
        site.wait_log("event=reopened")
        assert stat.S_IMODE(site.log.stat().st_mode) == 0o640
        rig.saw("truncated, deleted: gone on with")


@row(
    "F3",
    provoked="the syslog socket is full, gone, made anew; standard error is a pipe that nobody reads",
    required="no stream waits; what is lost is counted and told when somebody reads again",
)
def test_f3_syslog_that_nobody_reads(rig: Rig) -> None:
    ports = free_port(), free_port()
    with Namespace() as namespace, ExitStack() as stack:
        syslog = Datagrams(rig.folder / "dev", namespace, "/dev/log", stack)
        with rig.daemon(relay("one", *ports), prefix=mounts_of(namespace), log="syslog") as site:
            with ExitStack() as links:
                stream = Stream(site, ports, links)
                for _ in range(6):  # more lines than the socket holds
                    come_and_go(site, ports[1], 100)
                    stream.flows(100)
                syslog.wait("event=connected")
                come_and_go(site, ports[1], 20)
                told = syslog.wait("event=log_lost")
                path = rig.folder / "dev" / "log"
                path.unlink()
                come_and_go(site, ports[1], 20)
                stream.flows()
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
                    again.bind(str(path))
                    again.settimeout(5)
                    come_and_go(site, ports[1], 1)
                    assert b"event=log_lost lines=" in again.recv(65536)
            wait_until(lambda: not site.relay("one")["destinations"], "the end of the links")
        rig.saw(f"syslog: {told.rpartition('event=')[2]}")


@row("F3", provoked="", required="")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can go into a chroot")
def test_f3_syslog_from_inside_a_chroot(rig: Rig) -> None:
    """Whose own /dev/log is preferred, once it has one."""
    ports, jail = (free_port(), free_port()), rig.folder / "jail"
    (jail / "dev").mkdir(parents=True)
    keys = {"log": "syslog", "chroot": jail, "control": "/control.sock"}  # as seen from inside
    with Namespace() as namespace, ExitStack() as stack:
        syslog = Datagrams(rig.folder / "dev", namespace, "/dev/log", stack)
        with rig.site(relay("one", *ports), **keys) as site:
            site.control = jail / "control.sock"
            site.start(prefix=mounts_of(namespace))
            syslog.wait("event=started")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inside:
                inside.bind(str(jail / "dev" / "log"))
                inside.settimeout(5)
                site.send(signal.SIGUSR1)
                assert b"event=reopened" in inside.recv(65536)
        rig.saw("syslog: heard from inside a chroot")


@row(
    "F6",
    provoked="a client whose name, its Unix socket's path, has a line break, ANSI escapes, a forged event, quotes; "
    "a request to the control socket with the same",
    required="a line stays one line of printable ASCII, the name in it quoted and escaped, and nobody forges a field",
)
def test_f6_injection(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rig.folder)  # a socket's path has 107 bytes at most, too few for the folder and this name
    evil = 'x\n2026-01-01T00:00:00.000Z error event=forged \x1b[31m" relay=other\u202e\x7f'
    port, door = free_port(), rig.folder / "door"
    with rig.daemon(relay("one", port, f"unix:{door}")) as site:
        with socket.socket(socket.AF_UNIX) as client, connect(port) as source:
            client.bind(evil)
            client.connect(str(door))
            line = site.wait_log("relay=one", "client=", "event=connected")
            assert not site.ask("kick", relay="one", peer=evil)["ok"]
            assert not site.ask(evil)["ok"]
            reset_connection(client)
            source.sendall(b"x")  # or relayd does not learn that the client has gone
            site.wait_log("relay=one", "event=closed", "client=")
            reset_connection(source)
        assert line.isascii() and line.isprintable() and r"\n2026" in line and r"\u001b[31m\"" in line
        assert not [found for found in site.lines("event=forged") if "relay=one client=" not in found]
        rig.saw("one line, escaped")


@row(
    "F7",
    provoked="clients that are denied, one after another",
    required="one line at once, and one that counts the others, for each cause and ten seconds",
)
def test_f7_flood(rig: Rig) -> None:
    ports = free_port(), free_port()
    count = rig.times(1000, 100_000)
    with rig.daemon(relay("one", *ports, deny="127.0.0.0/8", source_allow="192.0.2.1")) as site:
        for number in range(count):
            assert turned_away(ports[number % 2])
        assert site.relay("one")["totals"]["refused"] == count
        if rig.long:  # it takes ten seconds
            for end in ("source", "destination"):
                site.wait_log("event=refused", f"end={end}", "repeated")
        lines = site.lines("event=refused")
        assert len(lines) <= 4 + count // 10_000  # two ends, a first and a last line for each ten seconds
        rig.saw(f"{count} refused, {len(lines)} lines")


# -- the dump -------------------------------------------------------------------------------------


@row(
    "F4",
    provoked="the dump's disk is full, its folder removed, a directory or a link in its place; rotation by size",
    required="said once with the reason, the stream goes on; with room again it is resumed by SIGUSR1, or within 30 s; "
    "mode 0600, no link is followed, no more files than `dump_max` says",
)
def test_f4_a_full_disk(rig: Rig) -> None:
    ports = free_port(), free_port()
    with small_disk(rig.folder) as (disk, ours, prefix):
        one = relay("one", *ports, dump="raw", dump_file=disk / "dump")
        with rig.daemon(one, prefix=prefix) as site:
            with ExitStack() as links:
                stream = Stream(site, ports, links)
                assert stat.S_IMODE((ours / "dump").stat().st_mode) == 0o600
                for _ in range(40):
                    stream.flows(1000)
                site.wait_log("event=dump_suspended", "No space left")
                kept = (ours / "dump").read_bytes()
                check_keyed("logs", kept[: len(kept) // CELL * CELL], 0)
                (ours / "dump").unlink()
                site.send(signal.SIGUSR1)
                site.wait_log("event=reopened")
                stream.flows()
                site.wait_log("event=dump_resumed")
                stream.flows(10)
                assert (ours / "dump").read_bytes().endswith(keyed("logs", stream.cells - 10, 10))
            wait_until(lambda: not site.relay("one")["destinations"], "the end of the links")
        assert len(site.lines("event=dump_suspended")) == 1
        rig.saw(f"{stream.cells * CELL} bytes passed beside a disk of 256 KiB, suspended once")


@row("F4", provoked="", required="")
@pytest.mark.parametrize("obstacle", ["removed", "directory", "link"])
def test_f4_a_dump_that_cannot_be_reopened(rig: Rig, obstacle: str) -> None:
    ports, folder = (free_port(), free_port()), rig.folder / "dumps"
    folder.mkdir()
    with rig.daemon(relay("one", *ports, dump="raw", dump_file=folder / "dump")) as site, ExitStack() as stack:
        stream = Stream(site, ports, stack)
        (folder / "dump").unlink()
        if obstacle == "removed":
            folder.rmdir()
        elif obstacle == "directory":
            (folder / "dump").mkdir()
        else:
            (folder / "dump").symlink_to(rig.folder / "elsewhere")
        site.send(signal.SIGUSR1)
        line = site.wait_log("event=dump_suspended")
        for _ in range(10):
            stream.flows(100)
        assert not (rig.folder / "elsewhere").exists()
        if obstacle == "removed":
            folder.mkdir()
        elif obstacle == "directory":
            (folder / "dump").rmdir()
        else:
            (folder / "dump").unlink()
        site.send(signal.SIGUSR1)
        wait_until((folder / "dump").exists, "a dump")
        stream.flows()
        site.wait_log("event=dump_resumed")
        assert len(site.lines("event=dump_suspended")) == 1
        rig.saw(f"{obstacle}: {line.partition('error=')[2].partition(' retry')[0]}")


@row("F4", provoked="", required="")
def test_f4_rotation(rig: Rig) -> None:
    ports = free_port(), free_port()
    one = relay("one", *ports, dump="raw", dump_file="dump", dump_max="64K x 3")
    with rig.daemon(one) as site, ExitStack() as stack:
        stream = Stream(site, ports, stack)
        for _ in range(rig.times(100, 10_000)):
            stream.flows(1000)
        files = sorted(rig.folder.glob("dump*"))
        assert [file.name for file in files] == ["dump", "dump.1", "dump.2"]
        assert all(file.stat().st_size <= 65536 for file in files)
        newest = b"".join(file.read_bytes() for file in reversed(files))
        assert check_keyed("logs", newest).stop == stream.cells
        rig.saw(f"{stream.cells * CELL} bytes: 3 files of 64 KiB at most")


@row(
    "F5",
    provoked="the dump goes to a FIFO whose reader does not read, and reads again",
    required="no stream waits; what did not fit is counted and said in the dump and in the log",
)
def test_f5_a_slow_reader(rig: Rig) -> None:
    ports, fifo = (free_port(), free_port()), rig.folder / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    came = bytearray()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(reader, 1 << 20):
                came.extend(data)

    try:
        with rig.daemon(relay("one", *ports, dump="text", dump_file=fifo)) as site, ExitStack() as stack:
            stream = Stream(site, ports, stack)
            for _ in range(100):
                stream.flows(1000)
            wait_until(lambda: (read(), stream.flows(), site.lines("event=dump_lost"))[-1], "the loss")
            wait_until(lambda: (read(), b"bytes are missing here" in came)[-1], "the gap in the dump")
            lost = int(site.lines("event=dump_lost")[0].rpartition("bytes=")[2])
            assert b"%d bytes are missing here" % lost in came
            rig.saw(f"{lost} of {stream.cells * CELL} bytes lost to the dump, none to the stream")
    finally:
        os.close(reader)
