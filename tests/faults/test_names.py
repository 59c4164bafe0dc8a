"""Names: servers that are silent, refuse, lie, change their mind, have a thousand answers; spellings of an address."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.faults.oracle import logged_at
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Namespace,
    Stopwatch,
    check_keyed,
    free_port,
    keyed,
    receive,
    reset_connection,
    silent_name_server,
    wait_until,
)

_SERVER = "127.0.0.53"  # where the name server of a test listens, on port 53
_A, _CNAME, _AAAA = 1, 5, 28  # record types, RFC 1035 and 3596
_UDP_MAX = 512  # bytes of an answer, past which it is asked for again by TCP (RFC 1035, 4.2.1)
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5  # response codes, RFC 1035 4.1.1
TORN, CUT_OFF = -1, -2  # an answer that ends in its middle; one that says "by TCP", where nothing comes

# Opens a UDP socket where its namespace is, and hands it over.
_OPEN_UDP = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.bind(("{_SERVER}", 53))
    socket.send_fds(socket.socket(fileno=0), [b"."], [udp.fileno()])
"""


class NameServer:
    """Answers in a namespace as `answers` says at the moment: addresses, another name, or what goes wrong."""

    def __init__(self, namespace: Namespace) -> None:
        self.answers: dict[str, list[str] | str | int] = {}
        self.queries: list[str] = []
        self._tcp = namespace.listener(53, _SERVER)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run([*namespace.enter, sys.executable, "-c", _OPEN_UDP], stdin=theirs, check=True)
            self._udp = socket.socket(fileno=socket.recv_fds(ours, 1, 1)[1][0])
        self._ending = threading.Event()
        for sock in (self._tcp, self._udp):
            sock.settimeout(0.05)
        self._threads = [threading.Thread(target=turn, daemon=True) for turn in (self._serve_tcp, self._serve_udp)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Answer no more."""
        self._ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._tcp.close()
        self._udp.close()

    def _serve_udp(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                query, client = self._udp.recvfrom(_UDP_MAX)
                self._udp.sendto(self._answer(query, _UDP_MAX), client)

    def _serve_tcp(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError, OSError), self._tcp.accept()[0] as link:
                link.settimeout(1.0)
                while size := link.recv(2):
                    query = receive(link, struct.unpack(">H", size)[0])
                    if self.answers.get(_asked(query)[0]) == CUT_OFF:
                        break
                    answer = self._answer(query, 0xFFFF)
                    link.sendall(struct.pack(">H", len(answer)) + answer)

    def _answer(self, query: bytes, limit: int) -> bytes:
        name, kind, end = _asked(query)
        self.queries.append(name)
        known = self.answers.get(name, NXDOMAIN)
        code, records = (known, []) if isinstance(known, int) else (0, _records(known, kind))
        answer = b"".join(records)
        if code == CUT_OFF or len(answer) + end > limit:
            return _head(query, 0x8380, 0) + query[12:end]
        if code == TORN:
            return _head(query, 0x8180, 1) + query[12:end] + b"\xc0\x0c\0"
        return _head(query, 0x8180 | code, len(records)) + query[12:end] + answer


def _asked(query: bytes) -> tuple[str, int, int]:
    """Return the name and the type that are asked for, and where the question ends."""
    labels, at = [], 12
    while query[at]:
        labels.append(query[at + 1 : at + 1 + query[at]].decode())
        at += 1 + query[at]
    return ".".join(labels), struct.unpack_from(">H", query, at + 1)[0], at + 5


def _head(query: bytes, flags: int, records: int) -> bytes:
    return query[:2] + struct.pack(">5H", flags, 1, records, 0, 0)


def _records(known: list[str] | str, kind: int) -> list[bytes]:
    if isinstance(known, str):
        found = [(_CNAME, b"".join(bytes([len(label)]) + label.encode() for label in known.split(".")) + b"\0")]
    else:
        addresses = map(ipaddress.ip_address, known)
        found = [(_A if each.version == 4 else _AAAA, each.packed) for each in addresses]
        found = [each for each in found if each[0] == kind]
    return [b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(data)) + data for kind, data in found]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Namespace]:
    """A machine whose only ways to a name are its /etc/hosts and /etc/resolv.conf, `hosts` and `resolv.conf` here."""
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    (tmp_path / "resolv.conf").write_text(f"nameserver {_SERVER}\noptions timeout:1 attempts:1\n")
    with Namespace() as made:
        made.run("mount", "--bind", tmp_path / "hosts", "/etc/hosts")
        made.run("mount", "--bind", tmp_path / "resolv.conf", "/etc/resolv.conf")
        yield made


@pytest.fixture
def names(machine: Namespace) -> Iterator[NameServer]:
    """Its name server."""
    server = NameServer(machine)
    yield server
    server.end()


@row(
    "D1",
    provoked="name servers that never answer, for 40 names; `getaddrinfo` blocks for 20 s then",
    required="the loop never waits; at most 32 threads do; a literal address is connected to at once; "
    "an attempt ends at `connect_timeout`",
)
def test_d1_name_servers_that_are_silent(rig: Rig) -> None:
    port, out = free_port(), free_port()
    relays = [
        relay(f"dead{n}", f"dead{n}.example:7001", f"unix:{n}.sock", "connect-listen", connect_timeout="1s")
        for n in range(40)
    ]
    with Namespace() as namespace, silent_name_server(namespace, rig.folder), namespace.listener(port) as server:
        literal = relay("literal", port, out, "connect-listen")
        # Each thread has a stack of its own, and is still there when the oracle comes.
        with rig.daemon(*relays, literal, namespace=namespace) as site:
            source = server.accept()[0]
            started = logged_at(site.wait_log("event=started"))
            took = logged_at(site.wait_log("relay=literal", " source=", "event=connected")) - started
            assert took < 0.5 * SLOWNESS
            for n in range(40):
                failed = site.wait_log(
                    f"relay=dead{n} ", "event=connect_failed", f"look-up of dead{n}.example timed out"
                )
                assert 0.95 < logged_at(failed) - started < 1 + 1 * SLOWNESS, failed
            threads = len(list(Path(f"/proc/{site.pid}/task").iterdir()))
            assert threads <= 1 + 32
            with namespace.connect(out) as client:
                site.wait_log("relay=literal", " client=", "event=connected")
                source.sendall(keyed("feed", 0, 1000))
                check_keyed("feed", receive(client, 1000 * CELL), 0)
                reset_connection(client)
            reset_connection(source)
            rig.saw(f"the literal one after {1000 * took:.0f} ms; {threads - 1} threads")


@row("D1", provoked="", required="")
def test_d1_a_reload_with_a_name_to_listen_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RES_OPTIONS", "timeout:1 attempts:1")
    one = relay("one", "unix:one.in", "unix:one.out")
    with Namespace() as namespace, silent_name_server(namespace, rig.folder):
        with (
            rig.daemon(one, namespace=namespace) as site,
            ThreadPoolExecutor() as pool,
            contextlib.ExitStack() as stack,
        ):
            source, client = (stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2))
            source.connect(str(rig.folder / "one.in"))
            client.connect(str(rig.folder / "one.out"))
            wait_until(lambda: len(site.lines("relay=one", "event=connected")) == 2)
            site.configure(one, relay("dead", "unix:dead.in", f"dead.example:{free_port()}"), rig.control_relay)
            answer = pool.submit(site.ask, "reload")
            cells, longest = 0, 0.0
            while not answer.done():
                watch = Stopwatch()
                source.sendall(keyed("feed", cells, 1))
                assert receive(client, CELL) == keyed("feed", cells, 1)
                cells, longest = cells + 1, max(longest, watch.seconds())
            assert re.search(r"cannot listen on dead.example:\d+: ", answer.result()["error"]), answer.result()
            assert longest < 0.5 * SLOWNESS
            for sock in (source, client):
                reset_connection(sock)
            site.configure(one, rig.control_relay)
        rig.saw(f"a reload waits for them, and a stream {1000 * longest:.0f} ms at most")


@row(
    "D2",
    provoked="NXDOMAIN, SERVFAIL, REFUSED, no address, a circle of aliases, a torn answer, one that TCP cuts off",
    required="a failure that names the name and the cause, said once; connects when the answer is right",
)
def test_d2_answers_that_are_none(rig: Rig, machine: Namespace, names: NameServer) -> None:
    wrong: dict[str, list[str] | str | int] = {
        "nxdomain": NXDOMAIN, "servfail": SERVFAIL, "refused": REFUSED, "empty": [], "alias": "other.example",
        "torn": TORN, "cutoff": CUT_OFF,
    }  # fmt: skip
    names.answers = {"other.example": "alias.example"} | {f"{name}.example": how for name, how in wrong.items()}
    port = free_port()
    keys = {"reconnect": "0.2s..0.5s"}
    relays = [relay(name, f"{name}.example:{port}", f"unix:{name}", "connect-listen", **keys) for name in wrong]
    with rig.daemon(*relays, namespace=machine) as site:
        for name in wrong:
            site.wait_log(f"relay={name} ", "event=connect_failed", f"look-up of {name}.example: ")
        asked = len(names.queries)
        wait_until(lambda: len(names.queries) > asked + 4 * len(wrong), "further attempts")
        failures = site.lines("event=connect_failed")
        assert len(failures) == len(wrong), site.tail()
        with machine.listener(port) as server:
            names.answers = {f"{name}.example": ["127.0.0.1"] for name in wrong}
            links = [server.accept()[0] for _ in wrong]
            for name in wrong:
                site.wait_log(f"relay={name} ", " source=", "event=connected")
        for link in links:
            reset_connection(link)
        causes = {line.partition(": ")[2].rstrip('"') for line in failures}
        rig.saw(f"{len(wrong)} of {len(wrong)}: {', '.join(sorted(causes))}")


@row("D3", provoked="the answer changes", required="the next connection uses it: each attempt asks anew")
def test_d3_an_answer_that_changes(rig: Rig, machine: Namespace, names: NameServer) -> None:
    port = free_port()
    names.answers["feed.example"] = ["127.0.0.2"]
    one = relay("one", f"feed.example:{port}", free_port(), "connect-listen", reconnect="0.1s")
    with machine.listener(port, "127.0.0.2") as old, machine.listener(port, "127.0.0.3") as new:
        with rig.daemon(one, namespace=machine):
            link = old.accept()[0]
            for life in range(rig.times(4, 40)):
                names.answers["feed.example"] = [f"127.0.0.{2 + (life + 1) % 2}"]
                reset_connection(link)
                link = (new, old)[life % 2].accept()[0]
                (old, new)[life % 2].settimeout(0)
                with pytest.raises(BlockingIOError):
                    (old, new)[life % 2].accept()
                (old, new)[life % 2].settimeout(PATIENCE)
            reset_connection(link)
        rig.saw(f"{life + 1} changes, {life + 1} followed")


# Answers that are this machine, each in its own way; 0.0.0.0 is what name servers that block a name like to say.
_OURSELVES = ["127.0.0.1", "127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0"]


@row(
    "D4",
    provoked="the answer becomes this machine: 127.0.0.1, 0.0.0.0, ::1, ::, IPv4-mapped; the port is the relay's own",
    required="a link that leads back to its own relay never comes up",
)
def test_d4_an_answer_that_is_ourselves(rig: Rig, machine: Namespace, names: NameServer) -> None:
    ports = [free_port() for _ in _OURSELVES]
    names.answers = {f"feed{n}.example": [answer] for n, answer in enumerate(_OURSELVES)}
    relays = [
        relay(f"r{n}", f"feed{n}.example:{port}", f":{port}", "connect-listen", reconnect="0.2s..0.5s")
        for n, port in enumerate(ports)
    ]
    with rig.daemon(*relays, namespace=machine) as site:
        for n in range(len(relays)):
            ends = "event=refused", "event=connect_failed", " client="
            wait_until(lambda n=n, ends=ends: any(site.lines(f"relay=r{n} ", end) for end in ends), "an attempt")
        looping = [
            answer for n, answer in enumerate(_OURSELVES) if site.lines(f"relay=r{n} client=", "event=connected")
        ]
        assert not looping, f"goes round: {looping}\n{site.tail()}"
        rig.saw(f"{len(relays)} of {len(relays)} refused")


@row(
    "D5",
    provoked="a name with 1,000 addresses (an answer of 16 KB, by TCP)",
    required="tried in their order, at most 8 an attempt; the line of the log names those",
)
def test_d5_a_thousand_addresses(rig: Rig, machine: Namespace, names: NameServer) -> None:
    port = free_port()
    names.answers["feed.example"] = [f"127.1.{n >> 8}.{n & 255}" for n in range(1, 1001)]
    one = relay("one", f"feed.example:{port}", free_port(), "connect-listen", reconnect="0.2s..0.5s")
    with rig.daemon(one, namespace=machine) as site:
        failed = site.wait_log("relay=one", "event=connect_failed")
        tried = re.findall(r"(127\.1\.\S+):\d+: Connection refused", failed)
        assert tried == names.answers["feed.example"][:8], failed
        with machine.listener(port, "127.1.0.8") as server:
            reset_connection(server.accept()[0])
        rig.saw(f"{len(tried)} tried")


@row("N15", provoked="", required="")
def test_n15_addresses_in_another_order_each_time(rig: Rig, machine: Namespace, names: NameServer) -> None:
    """Name servers like to turn their answers round; that is no change of state."""
    port = free_port()
    addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    names.answers["feed.example"] = addresses
    one = relay("one", f"feed.example:{port}", free_port(), "connect-listen", reconnect="0.1s..0.2s")
    with rig.daemon(one, namespace=machine) as site:
        for turn in range(6):
            names.answers["feed.example"] = addresses[turn % 3 :] + addresses[: turn % 3]
            asked = len(names.queries)
            wait_until(lambda asked=asked: len(names.queries) >= asked + 2, "a look-up")  # A and AAAA
        assert len(site.lines("event=connect_failed")) == 1, site.tail()


@row(
    "D6",
    provoked="`a..b`, names of 300 characters, labels of 64: `getaddrinfo` raises UnicodeError, not OSError",
    required="refused by `--check`: the line, the key, and why",
)
def test_d6_what_is_no_name(rig: Rig) -> None:
    bad = ["a..b", ".a", "a" * 64 + ".example", ".".join(["abcdefghi"] * 30), "-a.example", "a b", "ä.example", "a\\x"]
    assert len(bad[3]) == 299
    _refused_wherever(rig, [f"{name}:5000" for name in bad])
    rig.saw(f"{len(bad)} of {len(bad)}")


@row(
    "D7",
    provoked="`127.1`, `0x7f000001`, `2130706433`, `0`, `1.2.3`, `0177.0.0.1`, full-width digits, as what is "
    "connected to, listened on, allowed, or bound to",
    required="refused by `--check`: all but the canonical form reach another host than they seem to name",
)
def test_d7_spellings_of_an_address(rig: Rig) -> None:
    wide = "127.0.0.1".translate({ord("0") + digit: 0xFF10 + digit for digit in range(10)})
    bad = ["127.1", "0x7f000001", "2130706433", "0", "1.2.3", "0177.0.0.1", "127.0.0.01", wide, "1.2.3.4.5"]
    _refused_wherever(rig, [f"{host}:5000" for host in bad])
    listening = [relay(f"r{n}", "127.0.0.1:4000", f"{host}:5000", "connect-listen") for n, host in enumerate(bad)]
    for key in ("allow", "deny", "bind_source"):
        found = [{key: host} for host in bad]
        listening += [
            relay(f"r{n}", "127.0.0.1:4000", f"unix:{n}", "connect-listen", **keys)
            for n, keys in enumerate(found, len(listening))
        ]
    _refused(rig, listening)
    rig.saw(f"{len(bad)} of {len(bad)}, in each place")


def _refused_wherever(rig: Rig, addresses: list[str]) -> None:
    """Fail unless each is refused as a source and as a destination to connect to."""
    _refused(rig, [relay(f"r{n}", address, f"unix:{n}", "connect-listen") for n, address in enumerate(addresses)])
    _refused(rig, [relay(f"r{n}", f"unix:{n}", address, "listen-connect") for n, address in enumerate(addresses)])


def _refused(rig: Rig, relays: list[str]) -> None:
    with rig.site(*relays) as site:
        done = site.launch("--check")
    named = set(re.findall(r"^relayd: \S+:\d+: \[relay (r\d+)\] \w+: .+", done.stderr, re.MULTILINE))
    missing = [section for n, section in enumerate(relays) if f"r{n}" not in named]
    assert done.returncode == 2 and not missing, (missing, done.stderr)


@row(
    "D8",
    provoked="peers come, go, are refused, looked at, dumped and logged, while a name server counts its queries",
    required="none, ever: a peer is its address",
)
def test_d8_nobody_is_looked_up_in_reverse(rig: Rig, machine: Namespace, names: NameServer) -> None:
    source_port, port, closed = free_port(), free_port(), free_port()
    relays = [
        relay("one", source_port, port, dump="text", dump_file="dump.txt", max_clients_per_ip=5),
        relay("shut", free_port(), closed, deny="127.0.0.0/8"),
    ]
    with rig.daemon(*relays, namespace=machine) as site:
        peers = [machine.connect(source_port), *(machine.connect(port) for _ in range(5))]
        site.wait_log("relay=one", "event=connected", times=6)
        peers[0].sendall(keyed("feed", 0, 10))
        for client in peers[1:]:
            check_keyed("feed", receive(client, 10 * CELL), 0)
        for refusing, reason in ((port, "full_for_ip"), (closed, "denied")):
            with machine.socket() as client, contextlib.suppress(ConnectionResetError):
                client.connect(("127.0.0.1", refusing))
            site.wait_log("event=refused", f"reason={reason}")
        assert site.relayctl("status").returncode == 0
        for peer in peers:
            reset_connection(peer)
        site.wait_log("relay=one", "event=closed", times=6)
        assert not names.queries
        rig.saw("no query")


@row(
    "D9",
    provoked="/etc/hosts or /etc/resolv.conf changes while relayd runs",
    required="the next attempt goes by it; no restart, no reload",
)
def test_d9_the_files_change(rig: Rig, machine: Namespace, names: NameServer) -> None:
    names.answers["two.example"] = ["127.0.0.3"]
    good = (rig.folder / "resolv.conf").read_text()
    (rig.folder / "resolv.conf").write_text("nameserver 127.0.0.54\n")  # where nobody listens
    port = free_port()
    relays = [
        relay(name, f"{name}.example:{port}", free_port(), "connect-listen", reconnect="0.2s..0.5s")
        for name in ("one", "two")
    ]
    with rig.daemon(*relays, namespace=machine) as site:
        for name in ("one", "two"):
            site.wait_log(f"relay={name}", "event=connect_failed", f"look-up of {name}.example")
        began = time.monotonic()
        with (rig.folder / "hosts").open("a") as file:
            file.write("127.0.0.2 one.example\n")
        with machine.listener(port, "127.0.0.2") as server:
            reset_connection(server.accept()[0])
        (rig.folder / "resolv.conf").write_text(good)
        with machine.listener(port, "127.0.0.3") as server:
            reset_connection(server.accept()[0])
        rig.saw(f"both within {time.monotonic() - began:.1f} s")
