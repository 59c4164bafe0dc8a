"""Listening sockets: taken whole or not at all, with a reason that helps."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from relayd.address import Address, AddressError, TcpAddress, UnixAddress, parse_address
from relayd.errors import StartError
from relayd.net.listener import Listener, ListenerPool, ListenSettings
from relayd.net.sockets import SocketOptions
from tests.net.helpers import descriptors, in_namespace, namespaces_missing, needs_namespace
from tests.support import PATIENCE, free_port, reset_connection

assert namespaces_missing  # needs_namespace names it

SETTINGS = ListenSettings(SocketOptions(), backlog=511, unix_mode=0o660)


def take(address: TcpAddress | UnixAddress, settings: ListenSettings = SETTINGS) -> Listener:
    """Return a listener of a pool of its own."""
    return ListenerPool().take(address, settings)


def refusal(address: TcpAddress | UnixAddress, settings: ListenSettings = SETTINGS) -> str:
    """Return why the address cannot be listened on; nothing may be left open."""
    before = descriptors()
    with pytest.raises(StartError) as caught:
        take(address, settings)
    assert descriptors() == before
    assert len(caught.value.reasons) == 1
    return caught.value.reasons[0]


def connected(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=PATIENCE):
        return True


# -- TCP ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "0.0.0.0", "::"])
def test_listens_on_what_the_host_stands_for(host: str) -> None:
    port = free_port()
    listener = take(TcpAddress(host, port), SETTINGS)
    target = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    assert connected(target, port)
    assert not any(sock.getblocking() for sock in listener.sockets)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        connected(target, port)


def test_an_empty_host_is_every_address_of_both_families() -> None:
    port = free_port()
    listener = take(TcpAddress("", port), SETTINGS)
    assert [sock.family for sock in listener.sockets] == [socket.AF_INET6, socket.AF_INET]
    assert connected("127.0.0.1", port)
    assert connected("::1", port)
    listener.close()


def test_l3_a_second_listener_on_the_same_port_fails() -> None:
    port = free_port()
    listener = take(TcpAddress("127.0.0.1", port), SETTINGS)
    for host in ("127.0.0.1", "0.0.0.0"):
        assert "Address already in use" in refusal(TcpAddress(host, port))
    assert connected("127.0.0.1", port)
    listener.close()


def test_l3_a_wildcard_listener_keeps_single_addresses_out() -> None:
    port = free_port()
    listener = take(TcpAddress("", port), SETTINGS)
    for host in ("127.0.0.1", "::1", "", "0.0.0.0", "::"):
        assert "Address already in use" in refusal(TcpAddress(host, port))
    listener.close()


def test_l3_where_one_family_is_taken_neither_is_kept() -> None:
    port = free_port()
    with socket.create_server(("0.0.0.0", port)):
        assert "Address already in use" in refusal(TcpAddress("", port))
        with socket.create_server(("::", port), family=socket.AF_INET6):
            pass  # nobody has it


@pytest.mark.parametrize("hosts", [("0.0.0.0", "::"), ("::", "0.0.0.0")])
def test_l4_both_wildcards_can_stand_together(hosts: tuple[str, str]) -> None:
    port = free_port()
    listeners = [take(TcpAddress(host, port), SETTINGS) for host in hosts]
    assert all(
        sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) for sock in listeners[hosts.index("::")].sockets
    )
    for listener in listeners:
        listener.close()


def test_l1_the_message_names_the_address_and_the_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = refusal(TcpAddress("127.0.0.1", port))
    assert text.startswith(f"cannot listen on 127.0.0.1:{port}: Address already in use, by ")
    assert text.endswith(f"(pid {os.getpid()})")


def test_l2_an_address_of_another_host_says_so() -> None:
    text = refusal(TcpAddress("192.0.2.1", free_port()))
    assert "Cannot assign requested address" in text
    assert "no interface of this machine has it" in text


def test_l2_a_name_that_cannot_be_found_says_so() -> None:
    assert "cannot listen on nosuch.invalid:5000: " in refusal(TcpAddress("nosuch.invalid", 5000))


def test_n16_an_unknown_interface_says_so() -> None:
    assert "cannot listen on [fe80::1%nosuch]:5000: " in refusal(TcpAddress("fe80::1%nosuch", 5000))


@needs_namespace
def test_l5_a_privileged_port_names_what_is_needed() -> None:
    code = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.prctl(24, 10, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE: lost at the next exec
os.execv(os.environ["PYTHON"], [os.environ["PYTHON"], "-c", '''
from tests.net.test_listener import SETTINGS, take, TcpAddress, StartError
try:
    take(TcpAddress("127.0.0.1", 80), SETTINGS)
except StartError as error:
    print(error)
'''])
"""
    printed = in_namespace(f"import os; os.environ['PYTHON'] = {sys.executable!r}\n{code}")
    assert "Permission denied; a port below 1024 needs CAP_NET_BIND_SERVICE" in printed


@needs_namespace
def test_an_empty_host_on_a_machine_without_ipv6_is_ipv4() -> None:
    code = (
        "from tests.net.test_listener import *\n"
        "listener = take(TcpAddress('', 5000), SETTINGS)\n"
        "print([sock.getsockname() for sock in listener.sockets]); listener.close()"
    )
    printed = in_namespace(code, "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.lo.disable_ipv6=1")
    assert "('0.0.0.0', 5000)" in printed


def named(*names: Any) -> ListenerPool:
    """Return a pool for which every name stands for these socket addresses."""
    families = {2: socket.AF_INET, 4: socket.AF_INET6}
    found = [(families[len(name)], socket.SOCK_STREAM, socket.IPPROTO_TCP, "", name) for name in names]
    return ListenerPool(lookup=lambda *_: found)


def test_l2_a_name_with_the_same_address_twice_is_listened_on_once() -> None:
    """Two lines of /etc/hosts, or two name services that both know it."""
    port = free_port()
    pool = named(("127.0.0.1", port), ("127.0.0.2", port), ("127.0.0.1", port))
    listener = pool.take(TcpAddress("feed", port), SETTINGS)
    assert [sock.getsockname()[0] for sock in listener.sockets] == ["127.0.0.1", "127.0.0.2"]
    pool.close()


@pytest.mark.parametrize("order", [1, -1])
def test_l2_of_a_name_those_addresses_are_listened_on_that_this_machine_has(order: int) -> None:
    """`::1 localhost` stands in /etc/hosts of containers that have no IPv6."""
    port = free_port()
    pool = named(*[("127.0.0.1", port), ("2001:db8::1", port, 0, 0), ("192.0.2.1", port)][::order])
    listener = pool.take(TcpAddress("feed", port), SETTINGS)
    assert [sock.getsockname() for sock in listener.sockets] == [("127.0.0.1", port)]
    pool.close()


def test_l2_a_name_of_another_host_says_so() -> None:
    port = free_port()
    with pytest.raises(
        StartError, match=r"feed:\d+: Cannot assign requested address; no interface of this machine has it"
    ):
        named(("192.0.2.1", port), ("2001:db8::1", port, 0, 0)).take(TcpAddress("feed", port), SETTINGS)


def test_l3_a_name_with_one_address_that_is_taken_is_refused_whole() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.2", port)):
        before = descriptors()
        with pytest.raises(StartError, match="Address already in use"):
            named(("127.0.0.1", port), ("127.0.0.2", port)).take(TcpAddress("feed", port), SETTINGS)
        assert descriptors() == before


def test_a_port_whose_old_connections_are_in_time_wait_can_be_taken_again() -> None:
    port = free_port()
    listener = take(TcpAddress("127.0.0.1", port), SETTINGS)
    client = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    listener.sockets[0].setblocking(True)
    ours, _ = listener.sockets[0].accept()
    ours.close()  # our side ends first: TIME_WAIT is ours
    client.recv(1)
    client.close()
    listener.close()
    take(TcpAddress("127.0.0.1", port), SETTINGS).close()


def test_buffer_sizes_are_set_before_listening_so_that_links_inherit_them() -> None:
    port = free_port()
    settings = ListenSettings(SocketOptions(receive_buffer=16384, send_buffer=8192), 511, 0o660)
    listener = take(TcpAddress("127.0.0.1", port), settings)
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        listener.sockets[0].setblocking(True)
        with listener.sockets[0].accept()[0] as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32768
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 16384
    listener.close()


def test_p21_listening_sockets_are_not_inherited(tmp_path: Path) -> None:
    listeners = [
        take(TcpAddress("", free_port()), SETTINGS),
        take(UnixAddress(str(tmp_path / "s")), SETTINGS),
    ]
    for listener in listeners:
        assert not any(sock.get_inheritable() for sock in listener.sockets)
        listener.close()


# -- Unix ---------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feed.sock"


def unix_listener(path: Path, mode: int = 0o660) -> Listener:
    return take(UnixAddress(str(path)), ListenSettings(SocketOptions(), 511, mode))


def unix_connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_unix_listens_and_is_removed_at_close(path: Path) -> None:
    listener = unix_listener(path)
    unix_connect(path)
    listener.close()
    assert not path.exists()
    listener.close()  # once more is harmless


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777, 0o000])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_unix_mode_is_exact_whatever_the_umask(path: Path, mode: int, umask: int) -> None:
    before = os.umask(umask)
    try:
        listener = unix_listener(path, mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
        listener.close()
        assert os.umask(umask) == umask  # and is given back
    finally:
        os.umask(before)


def test_unix_a_dead_socket_file_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    assert path.exists()
    listener = unix_listener(path)
    unix_connect(path)
    listener.close()


def test_unix_a_live_socket_is_refused_and_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        assert refusal(UnixAddress(str(path))) == f"cannot listen on unix:{path}: Address already in use"
        unix_connect(path)


def test_unix_a_live_socket_with_a_full_backlog_is_refused(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as waiting:
        live.bind(str(path))
        live.listen(0)
        waiting.connect(str(path))
        assert "Address already in use" in refusal(UnixAddress(str(path)))
        assert path.exists()


def test_unix_a_live_datagram_socket_is_refused_and_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        refusal(UnixAddress(str(path)))
        assert path.exists()


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "link to a file", "dangling link"])
def test_unix_what_is_no_socket_is_refused_and_left_alone(path: Path, kind: str) -> None:
    target = path.with_name("precious")
    if kind == "file":
        path.write_text("precious")
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target)
        if kind == "link to a file":
            target.write_text("precious")
    assert refusal(UnixAddress(str(path))) == f"cannot listen on unix:{path}: a file that is no socket has that name"
    assert os.path.lexists(path)
    if kind == "link to a file":
        assert target.read_text() == "precious"


def test_unix_without_its_folder_is_refused(path: Path) -> None:
    assert "No such file or directory" in refusal(UnixAddress(str(path / "deeper")))


def test_unix_at_close_a_file_that_is_not_ours_stays(path: Path) -> None:
    listener = unix_listener(path)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        listener.close()
        unix_connect(path)


def test_unix_at_close_a_file_that_is_gone_is_no_error(path: Path) -> None:
    listener = unix_listener(path)
    path.unlink()
    listener.close()


def test_unix_at_close_a_file_that_cannot_be_removed_is_no_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder has become read-only, or the privileges have been dropped after binding."""
    listener = unix_listener(path)

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "unlink", refuse)
    listener.close()


def test_unix_a_path_that_is_too_long_is_a_matter_of_the_configuration() -> None:
    with pytest.raises(AddressError, match="107"):
        parse_address("unix:/" + "x" * 107)
    assert parse_address("unix:/" + "x" * 106) == UnixAddress("/" + "x" * 106)


def test_unix_the_longest_path_can_be_listened_on(tmp_path: Path) -> None:
    path = str(tmp_path / "x")
    path += "x" * (107 - len(path))
    take(UnixAddress(path), SETTINGS).close()


def test_l6_a_reset_before_accept_does_not_hurt_the_listener() -> None:
    port = free_port()
    listener = take(TcpAddress("127.0.0.1", port), SETTINGS)
    reset_connection(socket.create_connection(("127.0.0.1", port)))
    listener.sockets[0].accept()[0].close()
    assert connected("127.0.0.1", port)
    listener.close()


# -- the pool -----------------------------------------------------------------------------------------


def is_open(listener: Listener) -> bool:
    return all(sock.fileno() >= 0 for sock in listener.sockets)


def test_r_one_address_is_one_listener_until_its_last_user_gives_it_back() -> None:
    pool, address = ListenerPool(), TcpAddress("127.0.0.1", free_port())
    one = pool.take(address, SETTINGS)
    assert pool.take(address, SETTINGS) is one
    assert one.users == 2
    pool.give_back(one)
    assert is_open(one) and connected("127.0.0.1", address.port)
    pool.give_back(one)
    assert not is_open(one)
    with pytest.raises(ConnectionRefusedError):
        connected("127.0.0.1", address.port)
    again = pool.take(address, SETTINGS)  # it can be had anew
    assert again is not one
    pool.give_back(again)


def test_r_who_waits_in_the_backlog_is_there_for_the_next_user() -> None:
    pool, address = ListenerPool(), TcpAddress("127.0.0.1", free_port())
    former = pool.take(address, SETTINGS)
    with socket.create_connection(("127.0.0.1", address.port), timeout=PATIENCE):
        following = pool.take(address, SETTINGS)
        pool.give_back(former)
        following.sockets[0].accept()[0].close()
    pool.give_back(following)


def test_r_taking_again_applies_what_can_be_changed_while_listening(path: Path) -> None:
    pool, port = ListenerPool(), free_port()
    unix, tcp = UnixAddress(str(path)), TcpAddress("127.0.0.1", port)
    listeners = [pool.take(unix, SETTINGS), pool.take(tcp, SETTINGS)]
    inode = path.stat().st_ino
    changed = ListenSettings(SocketOptions(receive_buffer=16384), backlog=7, unix_mode=0o600)
    assert [pool.take(unix, changed), pool.take(tcp, changed)] == listeners
    assert stat.S_IMODE(path.stat().st_mode) != 0o600  # a reload that fails must not have changed anything
    for listener in listeners:
        listener.retune(changed)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_ino == inode
    assert listeners[1].sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32768
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE):
        listeners[1].sockets[0].setblocking(True)
        with listeners[1].sockets[0].accept()[0] as ours:
            assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 32768
    pool.close()


def take_and_be_refused(pool: ListenerPool, *addresses: TcpAddress, meanwhile: Callable[[], object] = bool) -> None:
    """Take the addresses of another configuration that is refused in the end, as a service does; raises StartError."""
    with pool.taking_over(addresses, {}):
        for address in addresses:
            pool.give_back(pool.take(address, SETTINGS))
        meanwhile()
        raise StartError(["the first"])


WIDER_OR_NARROWER = [
    ("127.0.0.1", ""), ("", "127.0.0.1"), ("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1"), ("::1", "::"),
    ("::", "::1"), ("127.0.0.1", "localhost"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after"), WIDER_OR_NARROWER)
def test_r_what_stands_in_the_way_of_its_successor_listens_again_where_that_is_refused(before: str, after: str) -> None:
    pool, port = ListenerPool(), free_port()
    former = pool.take(TcpAddress(before, port), SETTINGS)
    sockets = [(sock.fileno(), sock.getsockname()) for sock in former.sockets]
    with pytest.raises(StartError, match=r"\Athe first\Z"):
        take_and_be_refused(pool, TcpAddress(after, port))
    # The same sockets, never closed: who has given up root could not bind a low port again.
    assert [(sock.fileno(), sock.getsockname()) for sock in former.sockets] == sockets
    for sock in former.sockets:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(sock.getsockname()[0], sock.getsockname()[0])
        assert connected(host, port)
        sock.accept()[0].close()
    pool.give_back(former)


@pytest.mark.parametrize(("before", "after"), WIDER_OR_NARROWER)
def test_r_what_stands_in_the_way_of_its_successor_makes_way(before: str, after: str) -> None:
    pool, port = ListenerPool(), free_port()
    former = pool.take(TcpAddress(before, port), SETTINGS)
    with pool.taking_over([TcpAddress(after, port)], {}):
        following = pool.take(TcpAddress(after, port), SETTINGS)
    pool.give_back(former)
    sock = following.sockets[-1]
    assert connected({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(sock.getsockname()[0], sock.getsockname()[0]), port)
    sock.accept()[0].close()
    pool.give_back(following)


def test_r_only_what_overlaps_makes_way_and_not_for_what_others_have() -> None:
    """Who waits in the backlog of any other listener is not turned away."""
    pool, port = ListenerPool(), free_port()
    former = [pool.take(TcpAddress(host, port), SETTINGS) for host in ("127.0.0.1", "::1")]
    with (
        socket.create_server(("127.0.0.2", port)),
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE),
        socket.create_connection(("::1", port), timeout=PATIENCE),
    ):
        with pytest.raises(StartError, match="Address already in use"):
            take_and_be_refused(pool, TcpAddress("127.0.0.2", port))
        for listener in former:
            listener.sockets[0].accept()[0].close()
    pool.close()


def test_r_what_is_wanted_makes_no_way() -> None:
    pool, port = ListenerPool(), free_port()
    addresses = [TcpAddress(host, port) for host in ("127.0.0.1", "")]
    stays = pool.take(addresses[0], SETTINGS)
    with pytest.raises(StartError, match="Address already in use"):
        take_and_be_refused(pool, *addresses)
    assert connected("127.0.0.1", port)
    pool.give_back(stays)


def test_r_what_another_process_has_taken_meanwhile_is_told_and_the_rest_listens_again() -> None:
    pool, ports = ListenerPool(), [free_port(), free_port()]
    former = [pool.take(TcpAddress("127.0.0.1", port), SETTINGS) for port in ports]
    with contextlib.ExitStack() as stack:
        with pytest.raises(StartError) as caught:
            take_and_be_refused(
                pool,
                *[TcpAddress("0.0.0.0", port) for port in ports],
                meanwhile=lambda: stack.enter_context(socket.create_server(("127.0.0.1", ports[0]))),
            )
        first, second = caught.value.reasons
        assert first == "the first"
        assert second.startswith(f"127.0.0.1:{ports[0]} is not listened on any more: Address already in use")
        assert connected("127.0.0.1", ports[1])
    for listener in former:
        pool.give_back(listener)


def test_l1_an_address_that_cannot_be_had_leaves_nothing_in_the_pool() -> None:
    pool = ListenerPool()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = TcpAddress("127.0.0.1", taken.getsockname()[1])
        with pytest.raises(StartError):
            pool.take(address, SETTINGS)
    pool.give_back(pool.take(address, SETTINGS))


def test_close_closes_what_is_still_used_and_removes_its_file(path: Path) -> None:
    before = descriptors()
    pool = ListenerPool()
    listeners = [pool.take(UnixAddress(str(path)), SETTINGS), pool.take(TcpAddress("", free_port()), SETTINGS)]
    pool.close()
    assert not any(map(is_open, listeners))
    assert not path.exists()
    assert descriptors() == before
    pool.close()


def test_d1_what_has_to_be_looked_up_is_known_before_and_asked_once(tmp_path: Path) -> None:
    """A reload has the answers already: the pool, whose look-ups block, must not ask again."""
    asked: list[object] = []

    def lookup(host: str, port: int, *_: object) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    pool, port = ListenerPool(lookup=lookup), free_port()
    feed, other = TcpAddress("feed", port), TcpAddress("other", free_port())
    literals = [
        UnixAddress(str(tmp_path / "s")),
        TcpAddress("127.0.0.1", port),
        TcpAddress("", port),
        TcpAddress("::1", 1),
    ]
    assert pool.to_look_up([*literals, feed, other, feed]) == [feed, other]
    with pool.taking_over([feed], {feed: [(socket.AF_INET, ("127.0.0.1", port))]}):
        pool.take(feed, SETTINGS)
    assert asked == []
    assert connected("127.0.0.1", port)
    assert pool.to_look_up([feed, other]) == [other]
    with pool.taking_over([feed], {}):
        pool.take(feed, SETTINGS)
    pool.take(other, SETTINGS)  # at the start, it may block
    assert asked == ["other"]
    pool.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "Temporary failure"),
        (LookupError("no idna"), "no idna"),
    ],
)
def test_d1_an_error_instead_of_an_answer_is_the_reason(answer: Exception, reason: str) -> None:
    feed = TcpAddress("feed", free_port())
    pool = ListenerPool()
    with (
        pytest.raises(StartError, match=f"cannot listen on {feed}: {reason}"),
        pool.taking_over([feed], {feed: answer}),
    ):
        pool.take(feed, SETTINGS)


class Passed:
    """Listening sockets of a service manager, which keeps them; a pool gets duplicates, as after an exec."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.fds: list[int] = []

    def add(self, sock: socket.socket) -> int:
        self.sockets.append(sock)
        fd = os.dup(sock.fileno())
        os.set_inheritable(fd, True)  # they come without CLOEXEC
        self.fds.append(fd)
        return fd

    def tcp(self, host: str, port: int, dual: bool = False) -> int:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return self.add(socket.create_server((host, port), family=family, dualstack_ipv6=dual))

    def unix(self, path: Path) -> int:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(path))
        sock.listen()
        return self.add(sock)


@pytest.fixture
def passed() -> Iterator[Passed]:
    """They are the pool's until it is closed as a whole, and no give_back closes them."""
    passed = Passed()
    yield passed
    for fd in passed.fds:
        with contextlib.suppress(OSError):  # the pool was closed
            os.close(fd)
    for sock in passed.sockets:
        sock.close()


@pytest.fixture
def pools() -> Iterator[Callable[[Sequence[int]], ListenerPool]]:
    """Pools whose passed sockets Python's own objects do not close when the test is over."""
    made: list[ListenerPool] = []
    listeners: list[Listener] = []

    def make(fds: Sequence[int]) -> ListenerPool:
        pool = ListenerPool(fds)
        take = pool.take

        def noted(address: Address, settings: ListenSettings) -> Listener:
            listeners.append(take(address, settings))
            return listeners[-1]

        pool.take = noted  # type: ignore[method-assign]
        made.append(pool)
        return pool

    yield make
    for pool in made:
        pool.close()
        for sock in pool._adopted:
            sock.detach()
    for listener in listeners:
        for sock in listener.sockets:
            if listener.adopted:
                sock.detach()
        assert listener.adopted or not is_open(listener)


Pools = Callable[[Sequence[int]], ListenerPool]


def test_p23_a_passed_socket_is_taken_by_its_address_and_not_bound_again(passed: Passed, pools: Pools) -> None:
    port, other = free_port(), free_port()
    fds = [passed.tcp("127.0.0.1", other), passed.tcp("127.0.0.1", port)]
    pool = pools(fds)
    listener = pool.take(TcpAddress("127.0.0.1", port), SETTINGS)
    assert [sock.fileno() for sock in listener.sockets] == [fds[1]]
    assert listener.adopted
    assert not listener.sockets[0].getblocking() and not listener.sockets[0].get_inheritable()
    assert pool.unclaimed() == [f"127.0.0.1:{other}"]


def test_p23_a_passed_socket_is_never_closed_and_can_be_taken_again(passed: Passed, pools: Pools) -> None:
    port = free_port()
    pool = pools([passed.tcp("127.0.0.1", port)])
    address = TcpAddress("127.0.0.1", port)
    for _ in range(3):
        listener = pool.take(address, SETTINGS)
        pool.give_back(listener)
        assert is_open(listener) and connected("127.0.0.1", port)
    pool.close()
    assert connected("127.0.0.1", port)


def test_p23_a_dual_stack_socket_is_the_whole_of_a_port(passed: Passed, pools: Pools) -> None:
    """ListenStream=PORT is one socket on [::] that takes IPv4 too."""
    port = free_port()
    pool = pools([passed.tcp("::", port, dual=True)])
    listener = pool.take(TcpAddress("", port), SETTINGS)
    assert listener.adopted and len(listener.sockets) == 1
    assert pool.unclaimed() == []
    for host in ("127.0.0.1", "::1"):
        assert connected(host, port)
        listener.sockets[0].accept()[0].close()


def test_p23_two_sockets_of_one_port_are_one_listener(passed: Passed, pools: Pools) -> None:
    port = free_port()
    pool = pools([passed.tcp("0.0.0.0", port), passed.tcp("::", port)])
    listener = pool.take(TcpAddress("", port), SETTINGS)
    assert sorted(sock.family for sock in listener.sockets) == [socket.AF_INET, socket.AF_INET6]
    assert pool.unclaimed() == []


def test_p23_a_name_claims_the_sockets_of_its_addresses(passed: Passed, pools: Pools) -> None:
    port = free_port()
    pool = pools([passed.tcp("127.0.0.1", port), passed.tcp("::1", port)])
    addresses = {entry[4][0] for entry in socket.getaddrinfo("localhost", port, 0, socket.SOCK_STREAM)}
    listener = pool.take(TcpAddress("localhost", port), SETTINGS)
    assert {sock.getsockname()[0] for sock in listener.sockets} == addresses & {"127.0.0.1", "::1"}


@pytest.mark.parametrize(("host", "wanted"), [("127.0.0.2", "127.0.0.1"), ("::1", "127.0.0.1")])
def test_p23_a_socket_of_another_address_is_not_taken_for_it(
    passed: Passed, pools: Pools, host: str, wanted: str
) -> None:
    port = free_port()
    pool = pools([passed.tcp(host, port)])
    assert not pool.take(TcpAddress(wanted, port), SETTINGS).adopted
    shown = f"[{host}]" if ":" in host else host
    assert pool.unclaimed() == [f"{shown}:{port}"]


def test_p23_a_socket_of_one_address_is_not_taken_for_every_address(passed: Passed, pools: Pools) -> None:
    port = free_port()
    pool = pools([passed.tcp("127.0.0.1", port)])
    with pytest.raises(StartError, match="Address already in use"):  # the two cannot stand together
        pool.take(TcpAddress("", port), SETTINGS)
    assert pool.unclaimed() == [f"127.0.0.1:{port}"]


def test_p23_a_passed_unix_socket_is_taken_and_its_file_is_not_ours(
    passed: Passed, pools: Pools, path: Path, tmp_path: Path
) -> None:
    pool = pools([passed.unix(path), passed.unix(tmp_path / "other.sock")])
    mode = stat.S_IMODE(path.stat().st_mode)
    listener = pool.take(UnixAddress(str(path)), ListenSettings(SocketOptions(), 511, 0o600))
    assert listener.adopted
    pool.take(UnixAddress(str(path)), ListenSettings(SocketOptions(), 511, 0o666))
    assert stat.S_IMODE(path.stat().st_mode) == mode  # the unit says SocketMode=
    unix_connect(path)
    pool.give_back(listener)
    pool.give_back(listener)
    unix_connect(path)
    assert pool.unclaimed() == [f"unix:{tmp_path}/other.sock"]
    pool.close()
    assert path.exists()


def test_p23_what_was_not_passed_is_opened(passed: Passed, pools: Pools) -> None:
    pool = pools([passed.tcp("127.0.0.1", free_port())])
    address = TcpAddress("127.0.0.1", free_port())
    listener = pool.take(address, SETTINGS)
    assert not listener.adopted
    pool.give_back(listener)
    assert not is_open(listener)


@pytest.mark.parametrize("kind", ["datagram", "unix datagram", "seqpacket", "bound", "accepted"])
def test_p23_a_passed_socket_that_accepts_no_streams_is_refused_by_its_number(passed: Passed, kind: str) -> None:
    """It would be readable for ever: ListenDatagram=, or Accept=yes, where a stream was meant."""
    family = socket.AF_INET if kind in ("datagram", "bound") else socket.AF_UNIX
    types = {"datagram": socket.SOCK_DGRAM, "unix datagram": socket.SOCK_DGRAM, "seqpacket": socket.SOCK_SEQPACKET}
    if kind == "accepted":
        one, other = socket.socketpair()
        passed.sockets.append(other)
    else:
        one = socket.socket(family, types.get(kind, socket.SOCK_STREAM))
        one.bind(("127.0.0.1", 0) if family == socket.AF_INET else "")
        if kind == "seqpacket":
            one.listen()
    fd = passed.add(one)
    with pytest.raises(StartError) as caught:
        ListenerPool([passed.tcp("127.0.0.1", free_port()), fd])
    (reason,) = caught.value.reasons
    assert reason.startswith(f"descriptor {fd} of LISTEN_FDS accepts no streams; the socket unit needs ListenStream=")
    for fd in passed.fds:
        os.fstat(fd)  # left as they were


def test_p23_passed_descriptors_that_are_no_sockets_or_closed_are_all_told(passed: Passed, path: Path) -> None:
    path.write_text("")
    with path.open() as file:
        closed = os.dup(file.fileno())
        os.close(closed)
        with pytest.raises(StartError) as caught:
            ListenerPool([file.fileno(), closed])
        assert caught.value.reasons == (
            f"descriptor {file.fileno()} of LISTEN_FDS cannot be listened on: Socket operation on non-socket",
            f"descriptor {closed} of LISTEN_FDS cannot be listened on: Bad file descriptor",
        )
