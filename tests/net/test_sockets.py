"""What the kernel is told about sockets, read back from it; how its errors and names are shown."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from relayd.net.sockets import (
    ACCEPT_AGAIN,
    Keepalive,
    SocketOptions,
    accepted_name,
    error_name,
    link_name,
    name_of,
    reset,
    show_name,
    unacknowledged,
    unread,
)  # fmt: skip
from tests.support import PATIENCE, free_port


def tcp_option(sock: socket.socket, name: int) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, name)


def test_s8_keepalive_finds_a_dead_peer_on_a_quiet_link() -> None:
    with socket.socket() as sock:
        SocketOptions(keepalive=Keepalive(30, 10, 3)).apply(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert tcp_option(sock, socket.TCP_KEEPIDLE) == 30
        assert tcp_option(sock, socket.TCP_KEEPINTVL) == 10
        assert tcp_option(sock, socket.TCP_KEEPCNT) == 3


def test_s8_keepalive_can_be_off() -> None:
    with socket.socket() as sock:
        SocketOptions(keepalive=None).apply(sock)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@pytest.mark.parametrize("seconds", [0.5, 5.0, 60.0, 365 * 86400.0])
def test_s9_s10_the_kernels_timeout_stands_above_our_own(seconds: float) -> None:
    with socket.socket() as sock:
        SocketOptions(stall_timeout=seconds).apply(sock)
        # Or as high as the kernel can count, 24 days: an int of milliseconds.
        assert min(seconds * 1000, 2**31 - 2) < tcp_option(sock, socket.TCP_USER_TIMEOUT) <= seconds * 2000


def test_s9_no_stall_timeout_leaves_the_kernels_own() -> None:
    with socket.socket() as sock:
        SocketOptions(stall_timeout=0).apply(sock)
        assert tcp_option(sock, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize("wanted", [True, False])
def test_nodelay(wanted: bool) -> None:
    with socket.socket() as sock:
        SocketOptions(nodelay=wanted).apply(sock)
        assert bool(tcp_option(sock, socket.TCP_NODELAY)) == wanted


def test_sizes_are_set_where_given_and_left_alone_where_not() -> None:
    with socket.socket() as plain, socket.socket() as sized:
        SocketOptions().apply_sizes(plain)
        SocketOptions(send_buffer=65536, receive_buffer=32768).apply_sizes(sized)
        for option, size in ((socket.SO_SNDBUF, 65536), (socket.SO_RCVBUF, 32768)):
            assert sized.getsockopt(socket.SOL_SOCKET, option) == size * 2  # socket(7): doubled
            assert plain.getsockopt(socket.SOL_SOCKET, option) != size * 2


def test_a_unix_socket_takes_every_option_in_silence() -> None:
    one, other = socket.socketpair()
    with one, other:
        options = SocketOptions(True, Keepalive(30, 10, 3), 60.0, 65536, 65536)
        options.apply_sizes(one)
        options.apply(one)


def test_l6_options_can_be_set_on_a_connection_that_is_reset_already() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reset(socket.create_connection(server.getsockname()))
        ours, _ = server.accept()
        with ours:
            options = SocketOptions(True, Keepalive(30, 10, 3), 60.0, 65536, 65536)
            options.apply_sizes(ours)
            options.apply(ours)


def test_s1_reset_shows_the_peer_an_error_and_forgets_what_was_not_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname(), timeout=PATIENCE)
        ours, _ = server.accept()
        with peer:
            reset(ours)
            assert ours.fileno() == -1
            with pytest.raises(ConnectionResetError):
                peer.recv(1)


def test_s1_reset_of_a_connection_that_the_peer_has_reset_is_harmless() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
        reset(peer)
        reset(ours)
        assert ours.fileno() == -1


def test_reset_of_a_unix_socket_closes_it() -> None:
    one, other = socket.socketpair()
    with other:
        reset(one)
        assert one.fileno() == -1
        assert other.recv(1) == b""


def test_n7_reset_leaves_the_port_free() -> None:
    port = free_port()  # one that no other program's connection is given meanwhile
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = socket.create_connection(server.getsockname(), source_address=("127.0.0.1", port))
        ours, _ = server.accept()
        reset(peer)
        ours.close()
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


def test_l6_a_name_that_cannot_be_had_is_none() -> None:
    with socket.socket() as sock:
        assert name_of(sock.getpeername) is None
        assert name_of(sock.getsockname) == ("0.0.0.0", 0)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (("10.0.0.7", 51344), "10.0.0.7:51344"),
        (("::1", 80, 0, 0), "[::1]:80"),
        (("fe80::1%eth0", 80, 0, 2), "[fe80::1%eth0]:80"),
        ("/run/feed.sock", "unix:/run/feed.sock"),
        ("", "unix"),
        (b"\0abstract\xff", "unix:\0abstract\\xff"),
        (None, "unix"),
    ],
)
def test_names_are_shown_as_operators_write_them(name: object, shown: str) -> None:
    assert show_name(name) == shown


def test_an_unnamed_unix_peer_is_named_by_its_process_and_our_inode() -> None:
    one, other = socket.socketpair()
    with one, other:
        names = [accepted_name(sock, "") for sock in (one, other)]
        assert names == [f"pid{os.getpid()}-{os.fstat(sock.fileno()).st_ino}" for sock in (one, other)]
        assert names[0] != names[1]
        assert show_name(names[0]) == f"unix:{names[0]}"
        assert accepted_name(one, "/run/feed.sock") == "/run/feed.sock"
    with socket.socket() as tcp:
        assert accepted_name(tcp, ("10.0.0.7", 51344)) == ("10.0.0.7", 51344)


def test_errors_are_shown_as_in_the_manual_pages() -> None:
    assert error_name(errno.ECONNREFUSED) == "ECONNREFUSED"
    assert error_name(99999) == "errno 99999"


@pytest.mark.parametrize("code", ["EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"])
def test_l8_exhaustion_is_not_transient(code: str) -> None:
    """It must make the acceptor rest: tried again at once, it would spin."""
    assert getattr(errno, code) not in ACCEPT_AGAIN


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("::ffff:127.0.0.1", 5, 0, 0), ("127.0.0.1", 5)),
        (("fe80::1", 5, 0, 2), ("fe80::1", 5, 0, 0)),
        ("/run/a", "/run/a"),
    ],
)
def test_n8_both_ends_of_a_link_call_it_the_same(one: object, other: object) -> None:
    assert link_name(one, ("10.0.0.1", 9)) == link_name(other, ("::ffff:10.0.0.1", 9, 0, 0))


def test_n8_a_link_and_the_one_the_other_way_round_are_two() -> None:
    assert link_name(("a", 1), ("b", 2)) != link_name(("b", 2), ("a", 1))


def test_options_are_put_back_where_they_were_set_before() -> None:
    with socket.socket() as sock:
        SocketOptions(True, Keepalive(30, 10, 3), 60.0).apply(sock)
        SocketOptions(False, None, 0.0).apply(sock)
        assert not tcp_option(sock, socket.TCP_NODELAY)
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert tcp_option(sock, socket.TCP_USER_TIMEOUT) == 0


@pytest.mark.parametrize(
    "code", ["ECONNABORTED", "EINTR", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH",
             "EOPNOTSUPP", "ENETUNREACH"],
)  # fmt: skip
def test_l7_what_accept_2_calls_transient_is_tried_again(code: str) -> None:
    assert getattr(errno, code) in ACCEPT_AGAIN, os.strerror(getattr(errno, code))


def test_what_stands_unread_and_what_is_not_acknowledged() -> None:
    ours, peers = socket.socketpair()
    with ours, peers:
        assert (unread(peers), unacknowledged(ours)) == (0, 0)
        ours.sendall(b"12345")
        assert unread(peers) == 5
        assert unacknowledged(ours) >= 5  # a Unix socket counts what the kernel holds it in, too
        peers.recv(2)
        assert unread(peers) == 3
        peers.recv(3)
        assert (unread(peers), unacknowledged(ours)) == (0, 0)
