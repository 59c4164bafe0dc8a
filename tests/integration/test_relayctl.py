"""relayctl and the control socket: what an operator asks, and what nobody can do with it (SPEC 7 and 9)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.integration.daemons import Feed, Site, daemon, name_of, relay, relayctl_words, site
from tests.support import (
    CELL,
    PATIENCE,
    ROOT,
    SLOWNESS,
    Collector,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    receive_all,
    spawned,
    stalled_client,
    wait_until,
)

NAME = "a-name-as-long-as-names-may-be-which-is-sixty-four-characters-xx"


class Flow:
    """A daemon with the relay `flow`, a feed through it and a client that notices every byte amiss."""

    def __init__(self, running: Site, source_port: int, port: int, stack: ExitStack) -> None:
        self.running, self.source_port, self.port = running, source_port, port
        self.client = stack.enter_context(connect(port))
        self.source = stack.enter_context(connect(source_port))
        wait_until(lambda: running.relay("flow")["destinations"] and running.relay("flow")["source"]["state"] == "up")
        self.collector = Collector(self.client)
        self.feed = Feed(self.source, "feed")

    def end(self) -> None:
        """Fail where the client has missed something."""
        before = len(self.collector.data)
        wait_until(lambda: len(self.collector.data) > before, "more of the feed")
        total = self.feed.end()
        check_keyed("feed", self.collector.wait_for(total), 0)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as found:
        yield found


@pytest.fixture
def flow(tmp_path: Path, stack: ExitStack) -> Iterator[Flow]:
    source_port, port = free_port(), free_port()
    dump = {"dump": "raw", "dump_file": tmp_path / "dump"}
    with daemon(tmp_path, relay("flow", source_port, port, framing="line", **dump)) as running:
        yield Flow(running, source_port, port, stack)


# -- status ---------------------------------------------------------------------------------------


HEADER = "RELAY SOURCE SINCE LAST DATA RATE LINKS QUEUED LAG DROPPED LAST ERROR"


def test_status_is_a_table_of_a_hundred_columns(tmp_path: Path, stack: ExitStack) -> None:
    source_port, port, dead = free_port(), free_port(), free_port()
    relays = [
        relay("flow", source_port, port),
        relay("lost", f"a-host-with-quite-a-long-name.invalid:{dead}", free_port(), mode="connect-listen"),
        relay("down", dead, [dead + 1, dead + 2], mode="connect-connect", overflow="disconnect"),
    ]
    with daemon(tmp_path, *relays) as running:
        stack.enter_context(connect(source_port)).sendall(bytes(5000))
        for _ in range(3):
            stack.enter_context(connect(port))
        wait_until(lambda: len(running.relay("flow")["destinations"]) == 3)
        wait_until(lambda: all(running.relay(name)["source"]["last_error"] for name in ("lost", "down")), "errors")
        done = running.relayctl("status")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 100, done.stdout
        assert f"pid {running.pid}" in lines[0] and "1 of 3 sources up" in lines[0]
        header, *rows = lines[2:]
        assert header.split() == HEADER.split()
        by_name = {row.split()[0]: row for row in rows}
        assert list(by_name) == ["flow", "lost", "down"]
        assert re.match(r"flow +up +\S+s +\S+s +0 B/s +3 ", by_name["flow"]), by_name
        assert "(+2 down)" in by_name["down"] and f"127.0.0.1:{dead}" in by_name["down"]
        assert "a-host-with" in by_name["lost"]


def test_a_long_name_hides_no_column(tmp_path: Path) -> None:
    """Names may have 64 characters; nobody can read a table whose numbers are cut off."""
    relays = [relay("flow", free_port(), free_port()), relay(NAME, free_port(), free_port())]
    with daemon(tmp_path, *relays) as running:
        lines = running.relayctl("status").stdout.splitlines()
        assert max(map(len, lines)) <= 100
        assert lines[2].split()[:9] == HEADER.split()[:9]


def test_a_failed_reload_does_not_break_the_table(tmp_path: Path) -> None:
    with daemon(tmp_path, relay("flow", free_port(), free_port())) as running:
        running.configure(relay("flow", "nonsense-" * 20, free_port()))
        assert not running.ask("reload")["ok"]
        lines = running.relayctl("status").stdout.splitlines()
        assert any("last reload failed" in line for line in lines)
        assert max(map(len, lines)) <= 100, lines


def test_status_as_json_is_the_whole_snapshot(flow: Flow) -> None:
    running = flow.running
    done = running.relayctl("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    status = json.loads(done.stdout)
    assert status["pid"] == running.pid and status["version"] and status["uptime"] > 0
    assert status["config"]["path"] == str(running.file) and status["config"]["loaded_at"] > 1e9
    assert status["loop_lag"].keys() == {"last", "max"}
    assert status["reload"] == {"failed": False, "error": ""} and status["stopping"] is False
    (found,) = status["relays"]
    assert found["name"] == "flow"
    source = found["source"]
    assert source["state"] == "up" and source["peer"].startswith("127.0.0.1:")
    assert source["bytes"] > 0 and source["reconnects"] == 0 and source["last_data"] < PATIENCE
    (link,) = found["destinations"]
    assert link["peer"] == name_of(flow.client)
    assert link["state"] == "up" and link["sent"] > 0 and link["dropped"] == 0 and link["lag"] == 0
    assert found["totals"]["bytes_in"] >= source["bytes"] > 0
    flow.end()


def test_spec_9_names_these_fields(flow: Flow) -> None:
    """Settings of each relay, records of the source, dropped records and bytes of each link."""
    found = flow.running.relay("flow")
    assert "settings" in found, "each relay: settings"
    assert "records" in found["source"], "source: records"
    assert {"dropped_records", "dropped"} <= found["destinations"][0].keys(), "dropped records and bytes"


def test_totals_never_go_backwards(tmp_path: Path, stack: ExitStack) -> None:
    """Links that have left are in them, whatever a reload has changed meanwhile."""
    source_port, port, extra = free_port(), free_port(), free_port()

    def text(number: int) -> str:
        ports = [port, extra] if number % 2 else [port]
        return relay("flow", source_port, ports, framing="line", buffer=f"{1 + number % 3}M", max_clients=9 + number)

    with daemon(tmp_path, text(0)) as running:
        feed = Feed(stack.enter_context(connect(source_port)), "feed")
        before: dict[str, int] = running.relay("flow")["totals"]
        for number in range(1, 60):
            with connect(port) as passing, connect(port) as other:
                receive(passing, 10 * CELL)
                if number % 3 == 0:
                    running.configure(text(number))
                    running.reload()
                receive(other, 10 * CELL)
                now = running.relay("flow")["totals"]
                assert all(now[name] >= value for name, value in before.items()), (before, now)
                before = now
        feed.end()
        wait_until(lambda: not running.relay("flow")["destinations"], "nobody left")
        totals = running.relay("flow")["totals"]
        assert totals["destination_links"] == 118 and totals["source_links"] == 1
        assert totals["bytes_out"] >= 118 * 10 * CELL


def test_rates_and_lag_of_a_client_that_is_late(tmp_path: Path, stack: ExitStack) -> None:
    source_port, port = free_port(), free_port()
    with daemon(tmp_path, relay("flow", source_port, port, buffer="64M")) as running:
        source = stack.enter_context(connect(source_port))
        stack.enter_context(stalled_client(port))
        wait_until(lambda: running.relay("flow")["destinations"])
        source.sendall(bytes(8 << 20))
        wait_until(lambda: running.relay("flow")["destinations"][0]["queued"] > 1 << 20, "a queue")
        deadline = time.monotonic() + 2 * SLOWNESS
        while not running.relay("flow")["destinations"][0]["lag"] >= 0.5:
            assert time.monotonic() < deadline, running.relay("flow")["destinations"]
            time.sleep(0.05)
        row = running.relayctl("status").stdout.splitlines()[-1].split()
        assert row[:2] == ["flow", "up"] and row[5].endswith("B/s")
        assert row[7].endswith("M") and row[8].endswith("s")


# -- commands -------------------------------------------------------------------------------------


def test_reload_and_stop(flow: Flow) -> None:
    running = flow.running
    done = running.relayctl("reload")
    assert (done.returncode, done.stderr) == (0, "") and "1 of 1 sources up" in done.stdout
    flow.end()
    pid = running.pid
    done = running.relayctl("stop")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopping\n", "")
    flow.client.close()
    flow.source.close()
    running.wait_gone(pid)
    assert running.lines("event=stopped") and not running.control.exists()
    done = running.relayctl("status")
    assert done.returncode == 1
    assert done.stderr == f"relayctl: no relayd is running with the control socket {running.control}\n"


def test_kick(flow: Flow) -> None:
    """The link that is named is reset at once, and no other."""
    running = flow.running
    with connect(flow.port) as victim:
        peer = name_of(victim)
        wait_until(lambda: any(link["peer"] == peer for link in running.relay("flow")["destinations"]))
        done = running.relayctl("kick", "flow", peer)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 link(s) reset\n", "")
        with pytest.raises(ConnectionResetError):
            receive_all(victim)
    running.wait_log(peer, "event=closed", "reason=kicked")
    others = f"{name_of(flow.source)}, {name_of(flow.client)}"
    for words, reason in (
        (("kick", "flow", peer), f"relay flow has no peer {peer}; of that host there are {others}"),
        (("kick", "flaw", peer), "there is no relay 'flaw'; there are flow"),
    ):
        done = running.relayctl(*words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"relayctl: {reason}\n")
    flow.end()


def test_top_shows_rates_and_is_refreshed(flow: Flow) -> None:
    words = [*relayctl_words(flow.running.control), "top"]
    with spawned(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as top:
        assert top.stdout is not None
        os.set_blocking(top.stdout.fileno(), False)
        shown = b""

        def rounds(count: int) -> bool:
            nonlocal shown
            shown += top.stdout.read() or b""
            return shown.count(b"sources up") >= count and shown.endswith(b"\n\n")

        wait_until(lambda: rounds(2), "two rounds")
        assert b"\x1b" not in shown
        first, second = shown.decode().split("sources up")[1:3]
        assert "RELAY" in first and "flow" in second
        top.terminate()
        assert b"Traceback" not in top.communicate(timeout=PATIENCE)[1]
    flow.end()


def test_top_ends_with_ctrl_c_and_with_its_daemon(flow: Flow) -> None:
    words = [*relayctl_words(flow.running.control), "top"]
    with spawned(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as top:
        assert top.stdout is not None and top.stdout.read(10)
        top.send_signal(2)
        _, said = top.communicate(timeout=PATIENCE)
        assert (top.returncode, said) == (0, b"")
    with spawned(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as top:
        assert top.stdout is not None and top.stdout.read(10)
        flow.running.kill()
        _, said = top.communicate(timeout=PATIENCE)
        assert (top.returncode, said) == (
            1,
            b"relayctl: relayd has ended (or has hung up, after a minute without a question)\n",
        )


# -- the live dump --------------------------------------------------------------------------------


@contextlib.contextmanager
def dumping(running: Site, relay_name: str, style: str) -> Iterator[Collector]:
    """Run `relayctl dump`; its output is collected."""
    mine, theirs = socket.socketpair()
    words = [*relayctl_words(running.control), "dump", relay_name, style]
    with mine, theirs, spawned(*words, stdout=theirs, stderr=theirs, cwd=ROOT):
        theirs.close()
        yield Collector(mine)


def test_dump_shows_what_passes(flow: Flow, tmp_path: Path) -> None:
    """On the operator's terminal, without touching the dump to the file."""
    running = flow.running
    with dumping(running, "flow", "text") as text, dumping(running, "flow", "raw") as raw:
        for dump in (text, raw):
            dump.wait_for(200 * CELL)
        first = raw.data[: 100 * CELL].decode()
        assert first in keyed("feed", int(first[5:15]), 100).decode()
        rows = text.data.decode().splitlines()
        peer = name_of(flow.source)
        assert rows[0].split()[1:5] == ["flow", ">", "from", peer] and rows[0].split()[5].startswith("feed:")
        running.reload()  # which touches nothing
        running.configure(relay("flow", flow.source_port, flow.port, framing="line", buffer="1M",
                                dump="raw", dump_file=tmp_path / "dump"))  # fmt: skip
        running.reload()  # which builds the relay anew
        for dump in (text, raw):
            dump.wait_for(len(dump.data) + 200 * CELL)
        check_keyed("feed", bytes(raw.data[: len(raw.data) // CELL * CELL]))
    flow.end()
    # The taps are gone with the operators, and the file has it all.
    total = flow.feed.cells * CELL
    wait_until(lambda: (tmp_path / "dump").stat().st_size == total)
    check_keyed("feed", (tmp_path / "dump").read_bytes(), 0)


@pytest.mark.parametrize("style", ["text", "raw"])
def test_a_dump_ends_with_its_relay(flow: Flow, style: str) -> None:
    running = flow.running
    words = [*relayctl_words(running.control), "dump", "flow", style]
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as dump:  # fmt: skip
        assert dump.stdout is not None
        dump.stdout.read(100 * CELL)
        flow.end()
        running.configure(relay("renamed", flow.source_port, flow.port, framing="line"))
        running.reload()
        _, said = dump.communicate(timeout=PATIENCE)
    assert (dump.returncode, said.count(b"\n")) == (1, 1), said
    assert said.startswith(b"relayctl: the dump has ended: flow is removed, "), said


def test_a_killed_relayctl_ends_its_dump(flow: Flow) -> None:
    running = flow.running
    before = len(running.descriptors())
    for _ in range(5):
        with dumping(running, "flow", "hex") as dump:
            dump.wait_for(100)
    wait_until(lambda: len(running.descriptors()) <= before + 1, "the operators' links gone")
    flow.end()


def test_a_relayctl_that_is_not_read_delays_nothing(flow: Flow) -> None:
    """Its terminal is paused (Ctrl-S): the dump loses, and says so when it goes on."""
    running = flow.running
    mine, theirs = socket.socketpair()
    words = [*relayctl_words(running.control), "dump", "flow", "hex"]
    with mine, theirs, spawned(*words, stdout=theirs, cwd=ROOT):
        theirs.close()
        mine.recv(100)
        began = flow.feed.cells
        wait_until(lambda: flow.feed.cells > began + 60_000, "a megabyte")
        flow.end()
        assert running.status()["loop_lag"]["max"] < 0.5 * SLOWNESS


def test_dump_of_what_is_not_there(flow: Flow) -> None:
    for words, reason in (
        (("dump", "flaw", "text"), "there is no relay 'flaw'; there are flow"),
        (("dump", "flow", "jpeg"), "unknown format 'jpeg'; there are text, hex, raw"),
    ):
        done = flow.running.relayctl(*words)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"relayctl: {reason}\n")


# -- what nobody can do with it -------------------------------------------------------------------


def asking(flow: Flow, stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.settimeout(PATIENCE)
    sock.connect(str(flow.running.control))
    return sock


RUBBISH = [
    b"\n", b"rubbish\n", b"{}\n", b"[]\n", b"42\n", b"null\n", b'"status"\n', b"\xff\xfe\0\n", b'{"command": 1}\n',
    b'{"command": "status", "x": {}}\n', b'{"command": "rm"}\n', b"[" * 60_000 + b"\n", b'{"command": "kick"}\n',
    b'{"command": "dump", "relay": "flow", "format": "pdf"}\n', b"GET / HTTP/1.1\r\n", b'{"command": "stop"\n',
]  # fmt: skip


def test_rubbish_costs_nothing(flow: Flow, stack: ExitStack) -> None:
    """Each line that is no request gets one answer that says so, and the next one is as good as any."""
    for rubbish in RUBBISH:
        sock = asking(flow, stack)
        sock.sendall(rubbish + b'{"command": "status"}\n')
        lines: list[dict[str, Any]] = []
        received = b""
        while len(lines) < 2:
            data = sock.recv(65536)
            assert data, (rubbish[:40], received)
            received += data
            lines = [json.loads(line) for line in received.split(b"\n")[:-1]]
        assert lines[0]["ok"] is False and lines[0]["error"], (rubbish[:40], lines[0])
        assert lines[1]["ok"] is True
        sock.close()
    flow.end()


def test_an_endless_line_is_cut_off(flow: Flow, stack: ExitStack) -> None:
    sock = asking(flow, stack)
    before = flow.running.memory()
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sock.sendall(bytes(64 << 20))
    assert flow.running.memory() < before + (4 << 20)
    flow.end()


def test_half_requests_and_callers_that_say_nothing(flow: Flow, stack: ExitStack) -> None:
    """More of them than there is room for: their places are few, and the streams have theirs."""
    before = len(flow.running.descriptors())
    silent = []
    for number in range(100):
        with contextlib.suppress(OSError):
            sock = asking(flow, stack)
            silent.append(sock)
            if number % 2:
                sock.sendall(b'{"command": "sta')
    with connect(flow.port) as client:
        receive(client, CELL)  # who comes now is served
    assert len(flow.running.descriptors()) < before + 50
    for sock in silent:
        sock.close()
    wait_until(lambda: len(flow.running.descriptors()) <= before + 1, "they are gone")
    assert flow.running.relayctl("status").returncode == 0
    flow.end()


def test_a_caller_that_reads_nothing(flow: Flow, stack: ExitStack) -> None:
    """It asks and asks: the answers wait up to a bound, then it is cut, and the loop does not wait at all."""
    running = flow.running
    before = running.memory()
    sock = asking(flow, stack)
    question = json.dumps({"command": "kick", "relay": "flow", "peer": "x" * 60_000}).encode() + b"\n"
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        sock.sendall(question * 2000)  # the answers are as long
    assert running.memory() < before + (100 << 20)
    flow.end()
    assert running.status()["loop_lag"]["max"] < 0.5 * SLOWNESS


def test_many_operators_at_once(flow: Flow) -> None:
    answers: list[int] = []

    def ask() -> None:
        for _ in range(30):
            answers.append(flow.running.status()["pid"])

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == [flow.running.pid] * 300
    flow.end()


def test_a_caller_who_half_closes_gets_the_answer(flow: Flow, stack: ExitStack) -> None:
    """As `echo '{"command": "status"}' | socat - UNIX:control.sock` does."""
    sock = asking(flow, stack)
    sock.sendall(b'{"command": "status"}\n')
    sock.shutdown(socket.SHUT_WR)
    assert json.loads(receive_all(sock))["ok"] is True
    flow.end()


# -- where there is no daemon ---------------------------------------------------------------------


def test_the_mode_of_the_socket(tmp_path: Path) -> None:
    with daemon(tmp_path, relay("flow", free_port(), free_port())) as running:
        assert stat.S_IMODE(running.control.stat().st_mode) == 0o600
        running.configure(relay("flow", free_port(), free_port()), control_mode="0660")
        running.reload()
        assert stat.S_IMODE(running.control.stat().st_mode) == 0o660


@pytest.mark.parametrize("command", [["status"], ["top"], ["reload"], ["stop"], ["dump", "flow", "text"]])
def test_no_daemon_is_one_line_and_1(tmp_path: Path, command: list[str]) -> None:
    with site(tmp_path, relay("flow", free_port(), free_port())) as there:
        line = f"relayctl: no relayd is running with the control socket {there.control}\n"
        done = there.relayctl(*command)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)
        with socket.socket(socket.AF_UNIX) as dead:  # left over by a kill -9
            dead.bind(str(there.control))
        done = there.relayctl(*command)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_it_closes_what_it_opens(tmp_path: Path) -> None:
    call = "import sys; from relayd.relayctl import main; sys.exit(main())"
    words = [sys.executable, "-X", "dev", "-W", "error", "-c", call, "--socket", str(tmp_path / "none"), "status"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == 1 and "Warning" not in done.stderr, done.stderr


def test_a_daemon_that_hangs_is_not_waited_for_without_end(tmp_path: Path) -> None:
    with site(tmp_path, relay("flow", free_port(), free_port())) as there, socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(there.control))
        deaf.listen()

        def hang_up() -> None:
            deaf.accept()[0].close()

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        done = there.relayctl("status")
        thread.join(PATIENCE)
        assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done


def test_the_module_runs_as_a_script(tmp_path: Path) -> None:
    """`python -m relayd.relayctl` must not succeed in doing nothing."""
    words = [sys.executable, "-m", "relayd.relayctl", "--socket", str(tmp_path / "none"), "status"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE, check=False)
    assert done.returncode == 1 and "no relayd is running" in done.stderr


def test_connecting_ends_are_shown_with_their_names(tmp_path: Path, stack: ExitStack) -> None:
    upstream = stack.enter_context(listener())
    port = upstream.getsockname()[1]
    with daemon(tmp_path, relay("flow", port, free_port(), mode="connect-listen", reconnect="50ms")) as running:
        first = upstream.accept()[0]
        wait_until(lambda: running.relay("flow")["source"]["state"] == "up")
        assert running.relay("flow")["source"]["peer"] == f"127.0.0.1:{port}"
        first.close()
        stack.enter_context(upstream.accept()[0])
        wait_until(lambda: running.relay("flow")["source"]["reconnects"] == 1)
        assert running.relay("flow")["source"]["last_reason"] == "eof"
        assert time.time() - running.status()["config"]["loaded_at"] < 2 * PATIENCE
