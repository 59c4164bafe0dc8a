"""What people run at the other end: socat, ncat, RTKLIB, gpsd, and relayd itself across a NAT."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support import (
    CELL,
    ROOT,
    Collector,
    Namespace,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    needs,
    receive,
    relayd,
    spawned,
    wait_until,
)

MODES = ("connect-listen", "listen-connect", "connect-connect", "listen-listen")
FEED = bulk(2_000_000)[: 1 << 20]

# (program, role of the program) -> its words; it reads FILE as a source, writes FILE as a destination.
Words = Callable[[int, Path], str]
SOURCES: dict[tuple[str, str], Words] = {
    ("socat", "listens"): lambda port, file: f"exec socat -u OPEN:{file} TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr",
    ("socat", "dials"): lambda port, file: f"exec socat -u OPEN:{file} TCP:127.0.0.1:{port}",
    ("ncat", "listens"): lambda port, file: f"exec ncat -l 127.0.0.1 {port} --send-only < {file}",
    ("ncat", "dials"): lambda port, file: f"exec ncat 127.0.0.1 {port} --send-only < {file}",
}
DESTINATIONS: dict[tuple[str, str], Words] = {
    ("socat", "listens"): lambda port, file: f"exec socat -u TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr CREATE:{file}",
    ("socat", "dials"): lambda port, file: f"exec socat -u TCP:127.0.0.1:{port} CREATE:{file}",
    ("ncat", "listens"): lambda port, file: f"exec ncat -l 127.0.0.1 {port} --recv-only > {file}",
    ("ncat", "dials"): lambda port, file: f"exec ncat 127.0.0.1 {port} --recv-only > {file}",
}


def size_of(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


@pytest.mark.parametrize("program", ["socat", "ncat"])
@pytest.mark.parametrize("mode", MODES)
def test_at_both_ends(mode: str, program: str, tmp_path: Path) -> None:
    """FAULTS S2: `ncat -l --recv-only`, which half-closes at once, gets everything all the same."""
    needs(program)
    source_port, destination_port = free_port(), free_port()
    source_role, _, destination_role = ("listens" if role == "connect" else "dials" for role in mode.partition("-"))
    feed, out = tmp_path / "feed", tmp_path / "out"
    feed.write_bytes(FEED)
    words = f"127.0.0.1:{source_port}", f"127.0.0.1:{destination_port}", "--mode", mode, "--retry", "0.05"
    with relayd(*words) as running, ExitStack() as stack:
        stack.enter_context(
            spawned("sh", "-c", DESTINATIONS[program, destination_role](destination_port, out), cwd=tmp_path)
        )
        running.wait_log(" client=" if destination_role == "dials" else " destination=", "event=connected")
        stack.enter_context(spawned("sh", "-c", SOURCES[program, source_role](source_port, feed), cwd=tmp_path))
        wait_until(lambda: size_of(out) >= len(FEED), "the whole file")
    assert out.read_bytes() == FEED


def test_socat_answers_on_the_return_path() -> None:
    needs("socat")
    port = free_port()
    with listener() as source_listener, spawned("socat", f"TCP-LISTEN:{port},bind=127.0.0.1", "EXEC:cat"):
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{port}"
        with relayd(*words, "--mode", "connect-connect", "--retry", "0.05") as running:
            running.wait_log(" destination=", "event=connected")
            source = source_listener.accept()[0]
            with source:
                source.sendall(keyed("echo", 0, 1000))
                assert check_keyed("echo", receive(source, 1000 * CELL), 0) == range(1000)


# -- RTKLIB -----------------------------------------------------------------------------------------


def test_str2str_as_source(tmp_path: Path) -> None:
    needs("str2str")
    port, out_port = free_port(), free_port()
    with listener() as receiver, ExitStack() as stack:
        into = f"tcpcli://127.0.0.1:{receiver.getsockname()[1]}"
        stack.enter_context(spawned("str2str", "-in", into, "-out", f"tcpsvr://:{port}", cwd=tmp_path))
        feed = stack.enter_context(receiver.accept()[0])
        words = f"127.0.0.1:{port}", f"127.0.0.1:{out_port}", "--retry", "0.05"
        running = stack.enter_context(relayd(*words))
        client = stack.enter_context(connect(out_port))
        running.wait_log(" client=", "event=connected")
        running.wait_log(" source=", "event=connected")
        got, sent = Collector(client), 0
        while len(got.data) < 100 * CELL:  # str2str takes its time to notice whom it serves
            feed.sendall(keyed("rtcm", sent, 10))
            sent += 10
            wait_until(lambda sent=sent: len(got.data) >= (sent - 10) * CELL // 2, "half of what was sent")  # type: ignore[misc]
        data = bytes(got.data)
        check_keyed("rtcm", data[: len(data) // CELL * CELL])
        client.shutdown(2)
        got.join()


def test_str2str_as_client(tmp_path: Path) -> None:
    needs("str2str")
    port, out = free_port(), tmp_path / "out"
    with listener() as source_listener, ExitStack() as stack:
        words = f"127.0.0.1:{source_listener.getsockname()[1]}", f"127.0.0.1:{port}"
        running = stack.enter_context(relayd(*words))
        source = stack.enter_context(source_listener.accept()[0])
        stack.enter_context(
            spawned("str2str", "-in", f"tcpcli://127.0.0.1:{port}", "-out", f"file://{out}", cwd=tmp_path)
        )
        running.wait_log(" client=", "event=connected")
        data = keyed("rtcm", 0, 2000)
        source.sendall(data)
        wait_until(lambda: size_of(out) >= len(data), "the whole feed in str2str's file")
        assert check_keyed("rtcm", out.read_bytes(), 0) == range(2000)


# -- gpsd -------------------------------------------------------------------------------------------


def test_gpsd_gets_a_fix_from_the_demo_feed() -> None:
    needs("gpsd", "gpspipe")
    port, gpsd_port = free_port(), free_port()
    feed = f"replay:{ROOT / 'etc' / 'demo.nmea'}?rate=40&loop=yes"
    with relayd(feed, f"127.0.0.1:{port}", "-o", "framing=line"), ExitStack() as stack:
        stack.enter_context(spawned("gpsd", "-N", "-n", "-S", str(gpsd_port), f"tcp://127.0.0.1:{port}"))
        connect(gpsd_port).close()
        pipe = stack.enter_context(spawned("gpspipe", "-w", f"127.0.0.1:{gpsd_port}", stdout=subprocess.PIPE))
        assert pipe.stdout is not None
        for line in pipe.stdout:
            report = json.loads(line)
            if report["class"] == "TPV" and report.get("mode") == 3 and "lat" in report:
                assert report["lat"] == pytest.approx(54.3, abs=0.2)
                return
        pytest.fail("gpspipe ended without a fix")


# -- two relayd in a chain ----------------------------------------------------------------------------


class Side:
    """One side of the chain: where its programs run, and its address as seen from the other."""

    def __init__(self, address: str, namespace: Namespace | None) -> None:
        self.address = address
        self.enter = namespace.enter if namespace else []
        self.listener = namespace.listener if namespace else listener
        self.connect = namespace.connect if namespace else connect


@contextmanager
def sides(kind: str) -> Iterator[tuple[Side, Side]]:
    """Yield (outside, inside)."""
    if kind == "loopback":
        yield Side("127.0.0.1", None), Side("127.0.0.1", None)
        return
    needs("nft")
    with Namespace() as outside, Namespace(outside) as inside:
        outside.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "lan", "netns", str(inside.pid))
        for namespace, device, address in ((outside, "wan", "10.9.0.1/24"), (inside, "lan", "10.9.0.2/24")):
            namespace.run("ip", "address", "add", address, "dev", device)
            namespace.run("ip", "link", "set", device, "up")
        inside.run("nft", "add table inet nat")
        inside.run("nft", "add chain inet nat input { type filter hook input priority 0; }")
        inside.run("nft", 'add rule inet nat input iifname "lan" ct state new drop')
        with inside.listener(9, "10.9.0.2"), outside.socket() as probe:
            probe.settimeout(0.3)
            with pytest.raises(TimeoutError):  # nobody comes in from outside
                probe.connect(("10.9.0.2", 9))
        yield Side("10.9.0.1", outside), Side("10.9.0.2", inside)


@pytest.mark.parametrize("kind", ["nat", "loopback"])
def test_chain_across_a_nat_survives_the_death_of_either_relayd(kind: str) -> None:
    """FAULTS P12: kill -9 and restart; `listen-listen` outside, `connect-connect` inside."""
    feed_port, meet_port, client_port = free_port(), free_port(), free_port()
    with sides(kind) as (outside, inside), ExitStack() as stack:
        feed = stack.enter_context(inside.listener(feed_port))
        options = ("-o", "framing=line", "--retry", "0.05")
        outer_words = f"{outside.address}:{meet_port}", f"127.0.0.1:{client_port}", "--mode", "listen-listen"
        inner_words = f"127.0.0.1:{feed_port}", f"{outside.address}:{meet_port}", "--mode", "connect-connect"
        outer = stack.enter_context(relayd(*outer_words, *options, prefix=outside.enter))
        inner = stack.enter_context(relayd(*inner_words, *options, prefix=inside.enter))
        source = stack.enter_context(feed.accept()[0])
        client = stack.enter_context(outside.connect(client_port))
        outer.wait_log(" client=", "event=connected")
        source.sendall(keyed("feed", 0, 1000))
        assert check_keyed("feed", receive(client, 1000 * CELL), 0) == range(1000)

        inner.stop(signal.SIGKILL)
        inner = stack.enter_context(relayd(*inner_words, *options, prefix=inside.enter))
        source = stack.enter_context(feed.accept()[0])
        source.sendall(keyed("feed", 1000, 1000))
        assert check_keyed("feed", receive(client, 1000 * CELL), 1000) == range(1000, 2000)

        outer.stop(signal.SIGKILL)
        assert client.recv(1) == b""
        inner.wait_log(" destination=", "event=closed")
        outer = stack.enter_context(relayd(*outer_words, *options, prefix=outside.enter))
        client = stack.enter_context(outside.connect(client_port))
        outer.wait_log(" client=", "event=connected")
        outer.wait_log(" source=", "event=connected")
        source.sendall(keyed("feed", 2000, 1000))
        assert check_keyed("feed", receive(client, 1000 * CELL), 2000) == range(2000, 3000)
