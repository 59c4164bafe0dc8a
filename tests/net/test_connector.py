"""One attempt to connect: it ends once, one way or the other, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relayd.address import TcpAddress, UnixAddress
from relayd.net.connector import Connector, DialSettings
from relayd.net.resolver import Resolver
from relayd.net.sockets import SocketOptions, link_name
from relayd.policy.loops import End, LoopGuard
from tests.net.helpers import (
    Loop,
    descriptors,
    in_namespace,
    namespaces_missing,
    needs_namespace,
    no_more_descriptors,
    resolver_threads,
    running_loop,
)  # fmt: skip
from tests.support import PATIENCE, free_port, receive

assert namespaces_missing  # needs_namespace names it

loop = pytest.fixture(running_loop)

END = End("test", is_source=True)
TIMEOUT = 10.0


class SpyGuard(LoopGuard):
    """Tells which local names it has been told of, and not been told to forget."""

    @property
    def names(self) -> set[object]:
        return set(self._dialled)


class Attempt:
    """A connector and what it said."""

    def __init__(self, loop: Loop, lookup: Callable[..., Any] = socket.getaddrinfo, bind_source: str = "") -> None:
        self.loop = loop
        self.guard = SpyGuard()
        settings = DialSettings(SocketOptions(), TIMEOUT, bind_source)
        self.connector = Connector(loop, Resolver(loop, lookup), settings, self.guard, END)
        self.sockets: list[socket.socket] = []
        self.peers: list[Any] = []
        self.errors: list[str] = []
        self.timers = loop.timers
        self.descriptors = len(descriptors())

    def connect(self, address: TcpAddress | UnixAddress) -> Attempt:
        self.connector.connect(address, self._connected, self.errors.append)
        return self

    def _connected(self, sock: socket.socket, peer: Any) -> None:
        self.loop.stack.enter_context(sock)
        self.sockets.append(sock)
        self.peers.append(peer)

    @property
    def ended(self) -> bool:
        return bool(self.sockets or self.errors)

    def error(self) -> str:
        """Turn until the attempt has failed; return why."""
        self.loop.until(lambda: self.ended, "the end of the attempt")
        assert not self.sockets
        self.assert_nothing_left()
        assert len(self.errors) == 1
        return self.errors[0]

    def socket(self) -> socket.socket:
        """Turn until the attempt has succeeded; return the socket."""
        self.loop.until(lambda: self.ended, "the end of the attempt")
        assert not self.errors
        assert self.loop.handlers == 0
        assert self.loop.timers == self.timers
        assert len(self.sockets) == 1
        return self.sockets[0]

    def assert_nothing_left(self) -> None:
        assert self.loop.handlers == 0
        assert self.loop.timers == self.timers
        assert self.guard.names == set()
        assert len(descriptors()) == self.descriptors


@contextlib.contextmanager
def listening(host: str = "127.0.0.1") -> Iterator[tuple[socket.socket, int]]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        server.settimeout(PATIENCE)
        yield server, server.getsockname()[1]


@contextlib.contextmanager
def syn_hole() -> Iterator[int]:
    """A port where every connect hangs: its backlog's one slot is taken (HOLE-SYN)."""
    with socket.socket() as server, contextlib.ExitStack() as stack:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(3):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            assert filler.connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
        yield server.getsockname()[1]


def answering(*names: tuple[str, int]) -> Callable[..., Any]:
    """Return a look-up that answers every name with these addresses."""

    def lookup(*_: object) -> list[Any]:
        return [(socket.AF_INET6 if ":" in host else socket.AF_INET, 1, 6, "", (host, port)) for host, port in names]

    return lookup


def raising(error: Exception) -> Callable[..., Any]:
    """Return a look-up that fails."""

    def lookup(*_: object) -> list[Any]:
        raise error

    return lookup


NAME = TcpAddress("feed.example", 80)


# -- success ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connects_to_a_literal_without_any_look_up(loop: Loop, host: str) -> None:
    with listening(host) as (server, port):
        attempt = Attempt(loop, raising(AssertionError("looked up"))).connect(TcpAddress(host, port))
        sock = attempt.socket()
        peer, name = server.accept()
        with peer:
            assert attempt.peers[0][:2] == (host, port)
            assert not sock.getblocking()
            assert attempt.guard.names == {
                link_name(name, (host, port))
            }  # the owner of the link will have it forgotten
            peer.send(b"hello")
            assert receive(sock, 5) == b"hello"


def test_connects_to_a_unix_socket(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "feed.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        attempt = Attempt(loop).connect(UnixAddress(path))
        assert not attempt.socket().getblocking()
        assert attempt.peers == [path]
        assert attempt.guard.names == set()


def test_n14_the_addresses_of_a_name_are_tried_in_turn(loop: Loop) -> None:
    with listening() as (server, port):
        dead = free_port()
        attempt = Attempt(loop, answering(("127.0.0.1", dead), ("::1", dead), ("127.0.0.1", port)))
        attempt.connect(NAME).socket()
        assert attempt.peers == [("127.0.0.1", port)]
        server.accept()[0].close()
        assert len(attempt.guard.names) == 1


def test_n14_an_address_that_hangs_gives_way_to_the_next_after_the_timeout(loop: Loop) -> None:
    with syn_hole() as hole, listening() as (_, port):
        attempt = Attempt(loop, answering(("127.0.0.1", hole), ("127.0.0.1", port))).connect(NAME)
        loop.until(lambda: attempt.guard.names)
        loop.advance(TIMEOUT - 0.01)
        assert not attempt.ended
        loop.advance(0.01)
        attempt.socket()
        assert attempt.peers == [("127.0.0.1", port)]


def test_n6_bind_source_is_where_the_connection_comes_from(loop: Loop) -> None:
    with listening() as (server, port):
        sock = Attempt(loop, bind_source="127.0.0.77").connect(TcpAddress("127.0.0.1", port)).socket()
        peer, name = server.accept()
        with peer:
            assert name == sock.getsockname()
            assert name[0] == "127.0.0.77"


def test_options_are_set_before_the_connection_is_handed_on(loop: Loop) -> None:
    with listening() as (_, port):
        attempt = Attempt(loop)
        attempt.connector._settings = DialSettings(SocketOptions(nodelay=True, receive_buffer=8192), TIMEOUT)
        sock = attempt.connect(TcpAddress("127.0.0.1", port)).socket()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 16384  # the kernel doubles it, socket(7)


# -- failure ------------------------------------------------------------------------------------------


def test_n1_refused(loop: Loop) -> None:
    port = free_port()
    assert Attempt(loop).connect(TcpAddress("127.0.0.1", port)).error() == f"127.0.0.1:{port}: Connection refused"


def test_n15_all_addresses_fail_each_is_named_in_order(loop: Loop) -> None:
    port = free_port()
    attempt = Attempt(loop, answering(("127.0.0.1", port), ("::1", port), ("255.255.255.255", port))).connect(NAME)
    assert attempt.error().startswith(
        f"127.0.0.1:{port}: Connection refused; [::1]:{port}: Connection refused; 255.255.255.255:{port}: "
    )


def test_n2_a_hole_fails_at_the_timeout(loop: Loop) -> None:
    with syn_hole() as port:
        attempt = Attempt(loop).connect(TcpAddress("127.0.0.1", port))
        assert loop.turns(10) == 0
        loop.advance(TIMEOUT - 0.01)
        assert not attempt.ended
        loop.advance(0.01)
        assert attempt.error() == f"127.0.0.1:{port}: timed out after 10 s"


def test_n2_each_address_has_the_whole_timeout(loop: Loop) -> None:
    with syn_hole() as one, syn_hole() as two:
        attempt = Attempt(loop, answering(("127.0.0.1", one), ("127.0.0.1", two))).connect(NAME)
        loop.until(lambda: attempt.guard.names)
        for _ in range(2):
            loop.advance(TIMEOUT - 0.01)
            assert not attempt.ended
            loop.advance(0.01)
        assert attempt.error().count("timed out") == 2


def test_n6_a_foreign_bind_source_is_a_named_error(loop: Loop) -> None:
    attempt = Attempt(loop, bind_source="192.0.2.1").connect(TcpAddress("127.0.0.1", free_port()))
    assert "Cannot assign requested address" in attempt.error()


def test_n6_a_bind_source_of_the_other_family_is_a_named_error(loop: Loop) -> None:
    attempt = Attempt(loop, bind_source="::1").connect(TcpAddress("127.0.0.1", free_port()))
    assert "Address family not supported" in attempt.error()


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_n5_no_socket_to_be_had_is_a_named_error(loop: Loop, error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, "not to be had")

    attempt = Attempt(loop)
    with monkeypatch.context() as patch:
        patch.setattr("relayd.net.connector.socket.socket", refuse)
        attempt.connect(TcpAddress("127.0.0.1", 80))
    assert attempt.error().startswith("127.0.0.1:80: ")


def test_n5_a_real_lack_of_descriptors_is_a_named_error(loop: Loop) -> None:
    attempt = Attempt(loop)
    with no_more_descriptors():
        attempt.connect(TcpAddress("127.0.0.1", 80))
    assert attempt.error() == "127.0.0.1:80: Too many open files"


def test_n16_an_unknown_interface_is_a_named_error(loop: Loop) -> None:
    attempt = Attempt(loop).connect(TcpAddress("fe80::1%nosuch", 80))
    assert attempt.error() == "[fe80::1%nosuch]:80: Name or service not known"


def test_a_codec_that_cannot_be_loaded_is_a_named_error(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a chroot, where Python finds nothing any more."""
    monkeypatch.setattr(socket, "getaddrinfo", raising(LookupError("unknown encoding: idna")))
    attempt = Attempt(loop).connect(TcpAddress("127.0.0.1", 80))
    assert attempt.error() == "127.0.0.1:80: unknown encoding: idna"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), "Temporary failure"),
        (UnicodeError("label empty or too long"), "label empty or too long"),
    ],
)
def test_d2_d6_a_look_up_that_fails_is_a_named_error(loop: Loop, error: Exception, text: str) -> None:
    attempt = Attempt(loop, raising(error)).connect(NAME)
    message = attempt.error()
    assert message.startswith("look-up of feed.example: ")
    assert text in message


def test_d2_an_empty_answer_is_a_named_error(loop: Loop) -> None:
    assert Attempt(loop, answering()).connect(NAME).error() == "look-up of feed.example: no address"


def test_d5_of_a_thousand_addresses_eight_are_tried(loop: Loop) -> None:
    ports = [free_port()] * 1000
    attempt = Attempt(loop, answering(*(("127.0.0.1", port) for port in ports))).connect(NAME)
    assert attempt.error().count("Connection refused") == 8


def test_d1_a_look_up_that_hangs_fails_at_the_timeout(loop: Loop) -> None:
    release = threading.Event()

    def lookup(*_: object) -> list[Any]:
        release.wait(PATIENCE)
        return answering(("127.0.0.1", 1))()  # type: ignore[no-any-return]

    attempt = Attempt(loop, lookup).connect(NAME)
    loop.advance(TIMEOUT)
    assert attempt.error() == "look-up of feed.example timed out"
    release.set()
    loop.until(lambda: not resolver_threads())
    loop.turns(3)
    assert len(attempt.errors) == 1  # the late answer starts nothing
    attempt.assert_nothing_left()


def test_a_unix_socket_that_is_not_there_is_a_named_error(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "nobody.sock")
    assert Attempt(loop).connect(UnixAddress(path)).error() == f"unix:{path}: No such file or directory"


def test_a_unix_socket_with_a_full_backlog_is_a_named_error(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "busy.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        assert "temporarily unavailable" in Attempt(loop).connect(UnixAddress(path)).error()


def test_n1_two_thousand_refusals_leave_nothing(loop: Loop) -> None:
    attempt = Attempt(loop)
    address = TcpAddress("127.0.0.1", free_port())
    for _ in range(2000):
        attempt.connect(address)
        attempt.error()
        attempt.errors.clear()
    assert len(loop._timers) < 2000


def test_the_errors_of_one_attempt_are_not_told_in_the_next(loop: Loop) -> None:
    attempt = Attempt(loop)
    for port in (free_port(), free_port()):
        attempt.errors.clear()
        attempt.connect(TcpAddress("127.0.0.1", port))
        assert attempt.error() == f"127.0.0.1:{port}: Connection refused"


def test_s28_an_owner_who_raises_gets_no_second_connection(loop: Loop) -> None:
    with listening() as (_, one), listening() as (_, two):
        attempt = Attempt(loop, answering(("127.0.0.1", one), ("127.0.0.1", two)))

        def connected(sock: socket.socket, peer: Any) -> None:
            attempt._connected(sock, peer)
            raise RuntimeError("on purpose")

        attempt.connector.connect(NAME, connected, attempt.errors.append)
        loop.until(lambda: attempt.sockets)
        loop.turns(5)
        loop.failures.clear()
        assert len(attempt.sockets) == 1
        assert loop.handlers == 0


# -- cancel -------------------------------------------------------------------------------------------


def test_n12_cancel_drops_a_connection_that_hangs(loop: Loop) -> None:
    with syn_hole() as port:
        attempt = Attempt(loop).connect(TcpAddress("127.0.0.1", port))
        assert loop.handlers == 1
        attempt.connector.cancel()
        attempt.connector.cancel()
        attempt.assert_nothing_left()
        loop.advance(TIMEOUT * 2)
        assert not attempt.ended


def test_n12_cancel_drops_a_look_up_that_hangs(loop: Loop) -> None:
    release = threading.Event()

    def lookup(*_: object) -> list[Any]:
        release.wait(PATIENCE)
        return answering(("127.0.0.1", 1))()  # type: ignore[no-any-return]

    attempt = Attempt(loop, lookup).connect(NAME)
    attempt.connector.cancel()
    release.set()
    loop.until(lambda: not resolver_threads())
    loop.advance(TIMEOUT * 2)
    assert not attempt.ended
    attempt.assert_nothing_left()


def test_n13_cancel_in_the_turn_in_which_the_connection_came_up(loop: Loop) -> None:
    with listening() as (server, port):
        attempt = Attempt(loop).connect(TcpAddress("127.0.0.1", port))
        peer, _ = server.accept()
        with peer:
            attempt.connector.cancel()
            loop.turns(3)
            peer.settimeout(PATIENCE)
            with contextlib.suppress(ConnectionResetError):
                assert peer.recv(1) == b""
        assert not attempt.ended
        attempt.assert_nothing_left()


def test_n12_after_a_cancel_the_connector_can_be_used_again(loop: Loop) -> None:
    with syn_hole() as hole, listening() as (_, port):
        attempt = Attempt(loop).connect(TcpAddress("127.0.0.1", hole))
        attempt.connector.cancel()
        attempt.connect(TcpAddress("127.0.0.1", port)).socket()
        assert attempt.peers == [("127.0.0.1", port)]


# -- what only a network of one's own can do ----------------------------------------------------------

_DIAL = """
import atexit, json
from relayd.address import TcpAddress
from tests.net.helpers import Loop
from tests.net.test_connector import Attempt

def dial(host, port):
    attempt = Attempt(loop).connect(TcpAddress(host, port))
    loop.until(lambda: attempt.ended)
    return attempt

loop = Loop()
atexit.register(loop.close)
atexit.register(loop.stack.close)
"""


@needs_namespace
def test_n3_every_kind_of_missing_route_is_a_named_error() -> None:
    code = _DIAL + (
        "print(json.dumps({host: dial(host, 80).error() for host in"
        " ('192.0.2.9', '10.1.0.1', '10.2.0.1', '10.3.0.1', '127.0.0.7', '127.0.0.8')}))"
    )
    answers = json.loads(
        in_namespace(
            code,
            "ip route add blackhole 10.1.0.0/16",
            "ip route add unreachable 10.2.0.0/16",
            "ip route add prohibit 10.3.0.0/16",
            "nft add table inet t",
            "nft 'add chain inet t in { type filter hook input priority 0; }'",
            "nft add rule inet t in ip daddr 127.0.0.7 tcp dport 80 reject with icmp admin-prohibited",
            "nft add rule inet t in ip daddr 127.0.0.8 tcp dport 80 reject with tcp reset",
        )
    )
    assert answers == {
        "192.0.2.9": "192.0.2.9:80: Network is unreachable",
        "10.1.0.1": "10.1.0.1:80: Invalid argument",
        "10.2.0.1": "10.2.0.1:80: No route to host",
        "10.3.0.1": "10.3.0.1:80: Permission denied",
        "127.0.0.7": "127.0.0.7:80: No route to host",
        "127.0.0.8": "127.0.0.8:80: Connection refused",
    }


@needs_namespace
def test_n4_no_local_port_left_is_a_named_error() -> None:
    code = _DIAL + (
        "import socket\n"
        "server = loop.stack.enter_context(socket.create_server(('127.0.0.1', 80)))\n"
        "attempts = [dial('127.0.0.1', 80) for _ in range(4)]\n"
        "print(json.dumps([attempt.errors for attempt in attempts if attempt.errors]))"
    )
    errors = json.loads(in_namespace(code, "sysctl -q -w net.ipv4.ip_local_port_range='50000 50001'"))
    assert errors
    assert all(error == ["127.0.0.1:80: Cannot assign requested address"] for error in errors)


@needs_namespace
@pytest.mark.parametrize("port", [50000, 50001], ids=["even", "odd"])
def test_n7_a_connection_to_itself_is_no_connection_and_leaves_the_port_free(port: int) -> None:
    code = _DIAL + (
        "import socket\n"
        f"attempts = [dial('127.0.0.1', {port}) for _ in range(500)]\n"
        "errors = sorted({attempt.errors[0] for attempt in attempts if attempt.errors})\n"
        "connected = sum(len(attempt.sockets) for attempt in attempts)\n"
        f"server = socket.socket(); server.bind(('127.0.0.1', {port})); server.listen(); server.close()\n"
        "print(json.dumps([connected, errors]))"
    )
    connected, errors = json.loads(in_namespace(code, "sysctl -q -w net.ipv4.ip_local_port_range='50000 50003'"))
    assert connected == 0
    refused, loop = f"127.0.0.1:{port}: Connection refused", f"127.0.0.1:{port}: loop, connected to itself"
    assert refused in errors
    assert (loop in errors) == (port % 2 == 0)  # the kernel gives connect() even ports first
