"""Listening sockets: opening them, sharing them over a reload, saying why one cannot be had."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relayd.address import Address, TcpAddress, UnixAddress
from relayd.errors import StartError
from relayd.net.owner import listening_process
from relayd.net.resolver import Answer, Found, Lookup
from relayd.net.sockets import SocketOptions, show_name


@dataclass(frozen=True)
class ListenSettings:
    """How to listen: the accept queue's length, the mode of a Unix socket's file."""

    options: SocketOptions
    backlog: int
    unix_mode: int


class Listener:
    """The listening sockets of one address."""

    def __init__(
        self, address: Address, sockets: Sequence[socket.socket], settings: ListenSettings, adopted: bool
    ) -> None:
        """`adopted`: they are the service manager's, which keeps them when we go."""
        self.address = address
        self._settings = settings
        self.sockets = tuple(sockets)
        self.adopted = adopted
        self.users = 0  # ends that accept on it; for the pool
        self.told: object = None  # the end that is known to accept on it
        self._file = _identity(address.path) if isinstance(address, UnixAddress) else None

    def retune(self, settings: ListenSettings) -> None:
        """Apply what has changed and can be changed while listening."""
        if settings == self._settings:
            return
        self._settings = settings
        with contextlib.suppress(OSError):  # a socket file that is no longer ours keeps its mode
            for sock in self.sockets:
                settings.options.apply_sizes(sock)
                sock.listen(settings.backlog)
            if isinstance(self.address, UnixAddress) and not self.adopted:
                os.chmod(self.address.path, settings.unix_mode)

    def overlapping(self, names: Found) -> list[socket.socket]:
        """Return the sockets that keep one of the names from being listened on."""
        return [sock for sock in self.sockets if any(_overlap(sock, family, name) for family, name in names)]

    def make_way(self, sock: socket.socket) -> None:
        """Listen no more on one of the sockets, and stay bound: others can have what it overlaps with."""
        # Not close: a port that a service has bound as root cannot be bound again once it is somebody else.
        sock.shutdown(socket.SHUT_RDWR)

    def listen_again(self, sock: socket.socket) -> None:
        """Undo `make_way`; raises OSError where another process was quicker."""
        sock.listen(self._settings.backlog)

    def close(self) -> None:
        """Close the sockets, and remove a Unix socket's file where it is ours, and still there."""
        for sock in self.sockets:
            sock.close()
        if not self.adopted and isinstance(self.address, UnixAddress) and self._file == _identity(self.address.path):
            with contextlib.suppress(OSError):  # the directory is not ours any more
                os.unlink(self.address.path)


class ListenerPool:
    """All listening sockets of the process, by address.

    A reload takes what the new configuration needs before it gives back what the old one had, so an
    address that stays, in whatever relay, is never closed.  Sockets that the service manager has
    passed are in the pool from the start, are taken by their address, and never closed.
    """

    def __init__(self, passed: Sequence[int] = (), lookup: Lookup = socket.getaddrinfo) -> None:
        """`passed` are the descriptors of the service manager's sockets; raises StartError for what cannot be used."""
        self._lookup = lookup
        self._adopted = _adopted(passed)
        self._listeners: dict[Address, Listener] = {}
        self._leaving: list[Listener] = []  # while another configuration takes over, those that it does not want
        self._made_way: list[tuple[Listener, socket.socket]] = []
        self._answers: Mapping[TcpAddress, Answer] = {}

    def take(self, address: Address, settings: ListenSettings) -> Listener:
        """Return the listener of the address, opened where there is none; raises StartError.

        One that is there keeps its settings until somebody calls its `retune`: taking changes nothing.
        """
        listener = self._listeners.get(address)
        try:
            if listener is None:
                names = self._names(address) if isinstance(address, TcpAddress) else []
                listener = self._adopt(address, names, settings) or self._open(address, names, settings)
                self._listeners[address] = listener
        except OSError as error:
            raise StartError([f"cannot listen on {address}: {_explain(error, address)}"]) from error
        listener.users += 1
        return listener

    def give_back(self, listener: Listener) -> None:
        """One user less; the last one's listener is closed."""
        listener.users -= 1
        if not listener.users:
            listener.told = None
        if not listener.users and not listener.adopted:
            del self._listeners[listener.address]
            listener.close()

    def to_look_up(self, addresses: Iterable[Address]) -> list[TcpAddress]:
        """Return those that to take now would block: they have names that were not looked up, for `taking_over`."""
        fresh = [address for address in addresses if address not in self._listeners]
        named = [address for address in fresh if isinstance(address, TcpAddress) and address.host and not address.ip]
        return list(dict.fromkeys(named))

    @contextlib.contextmanager
    def taking_over(self, wanted: Iterable[Address], answers: Mapping[TcpAddress, Answer]) -> Iterator[None]:
        """Let listeners that are not wanted any more make way for those that are taken in the meantime.

        127.0.0.1:P stands in the way of :P.  Where the block raises, all listen again that made way; where it
        does not, their users are to give them back.  `answers`: to the look-ups of those `to_look_up`.
        """
        unwanted = self._listeners.keys() - set(wanted)
        # What the service manager has passed is its socket, too.
        self._leaving = [self._listeners[address] for address in unwanted if not self._listeners[address].adopted]
        self._answers = answers
        try:
            yield
        except BaseException as error:
            lost = self._listen_again()
            if lost:
                raise StartError([*getattr(error, "reasons", [repr(error)]), *lost]) from error
            raise
        finally:
            self._leaving, self._made_way, self._answers = [], [], {}

    def _make_way(self, names: Found) -> bool:
        """Let those that are not wanted any more make way for the names; return whether one does."""
        before = len(self._made_way)
        for listener in self._leaving:
            for sock in listener.overlapping(names):
                if (listener, sock) not in self._made_way:
                    listener.make_way(sock)
                    self._made_way.append((listener, sock))
        return len(self._made_way) > before

    def _listen_again(self) -> list[str]:
        """Undo all `make_way`; return the reasons for those where it cannot be done."""
        lost = []
        for listener, sock in self._made_way:
            try:
                listener.listen_again(sock)
            except OSError as error:
                lost.append(f"{listener.address} is not listened on any more: {_explain(error, listener.address)}")
        return lost

    def close(self) -> None:
        """Close all there is: the process ends, or could not begin. The service manager has copies of its own."""
        for listener in self._listeners.values():
            listener.close()
        for sock in self._adopted:
            sock.close()
        self._listeners, self._adopted = {}, []

    def unclaimed(self) -> list[str]:
        """Return the names of passed sockets that no address has claimed."""
        return [show_name(sock.getsockname()) for sock in self._adopted]

    def _names(self, address: TcpAddress) -> Found:
        """Return (family, socket address) for all that the address stands for, each once; raises OSError."""
        if not address.host:
            return [(socket.AF_INET6, ("::", address.port)), (socket.AF_INET, ("0.0.0.0", address.port))]
        answer = self._answers.get(address)
        if answer is None:
            found = self._lookup(address.host, address.port, 0, socket.SOCK_STREAM)
            answer = [(entry[0], entry[4]) for entry in found]
        if isinstance(answer, OSError):
            raise answer
        if isinstance(answer, Exception):
            raise OSError(str(answer)) from answer
        return list(dict.fromkeys(answer))

    def _open(self, address: Address, names: Found, settings: ListenSettings) -> Listener:
        try:
            return _open(address, names, settings)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not self._make_way(names):
                raise
        return _open(address, names, settings)

    def _adopt(self, address: Address, names: Found, settings: ListenSettings) -> Listener | None:
        """Return a listener of passed sockets for the address, None where none was passed."""
        found = [sock for sock in self._adopted if _listens_for(sock, address, names)]
        if not found:
            return None
        self._adopted = [sock for sock in self._adopted if sock not in found]
        return Listener(address, found, settings, adopted=True)


def _adopted(passed: Sequence[int]) -> list[socket.socket]:
    """Return the passed sockets; raises StartError with all that accept no connections."""
    reasons: list[str] = []
    sockets = []
    for fd in passed:
        try:
            os.set_inheritable(fd, False)  # they come without CLOEXEC
            sock = socket.socket(fileno=fd)
        except OSError as error:
            reasons.append(f"descriptor {fd} of LISTEN_FDS cannot be listened on: {error.strerror}")
            continue
        sock.setblocking(False)
        sockets.append(sock)
        if not _accepts(sock):
            reasons.append(
                f"descriptor {fd} of LISTEN_FDS accepts no streams; the socket unit needs ListenStream= and Accept=no"
            )
    if reasons:
        for sock in sockets:
            sock.detach()  # who knows whose they are
        raise StartError(reasons)
    return sockets


def _accepts(sock: socket.socket) -> bool:
    if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
        return False
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _listens_for(sock: socket.socket, address: Address, names: Found) -> bool:
    name = sock.getsockname()
    if isinstance(address, UnixAddress):
        return bool(name == address.path)
    if not isinstance(address, TcpAddress) or not isinstance(name, tuple) or name[1] != address.port:
        return False
    # A unit's ListenStream=PORT is one socket on [::] that takes IPv4 too, so it is the whole of ":port".
    return name[0] in [wanted[0] for _, wanted in names]


def _open(address: Address, names: Found, settings: ListenSettings) -> Listener:
    """Bind and listen on the address, on all that its name stands for; raises OSError."""
    if isinstance(address, UnixAddress):
        sockets = [_listen_unix(address.path, settings)]
    else:
        assert isinstance(address, TcpAddress)
        sockets = _listen_on_each(names, settings, some=address.ip is None)
    return Listener(address, sockets, settings, adopted=False)


# What a name stands for and this machine has not: `::1 localhost` in /etc/hosts, and no IPv6.
_NOT_HERE = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def _listen_on_each(names: Found, settings: ListenSettings, some: bool) -> list[socket.socket]:
    """Listen on all the names; with `some`, on those that this machine has, if there is one."""
    sockets: list[socket.socket] = []
    not_here: OSError | None = None
    try:
        for family, name in names:
            try:
                sockets.append(_listen_tcp(family, name, settings))
            except OSError as error:
                if not some or error.errno not in _NOT_HERE:
                    raise
                not_here = error
        if not_here is not None and not sockets:
            raise not_here
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _overlap(sock: socket.socket, family: socket.AddressFamily, name: Any) -> bool:
    """Whether the socket, while it listens, keeps others from listening on the name."""
    own = sock.getsockname()
    if sock.family != family or own[1] != name[1]:
        return False
    return own[0] == name[0] or any(ipaddress.ip_address(host).is_unspecified for host in (own[0], name[0]))


def _listen_tcp(family: socket.AddressFamily, name: Any, settings: ListenSettings) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port in TIME_WAIT must not keep a restarted daemon out. Never SO_REUSEPORT: with it, a
        # second daemon on the same port starts in silence and takes half of the clients.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # so 0.0.0.0 and [::] can stand together
        settings.options.apply_sizes(sock)
        sock.setblocking(False)
        sock.bind(name)
        sock.listen(settings.backlog)
        return sock
    except BaseException:
        sock.close()
        raise


def _listen_unix(path: str, settings: ListenSettings) -> socket.socket:
    remove_dead_socket(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        # By the mask, so that the file never exists with a wider mode than asked for.
        before = os.umask(0o777 & ~settings.unix_mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        sock.listen(settings.backlog)
        return sock
    except BaseException:
        sock.close()
        raise


def remove_dead_socket(path: str) -> None:
    """Remove a socket file that nobody listens on; raises OSError where somebody does, or it is a file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket has that name")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    if code == errno.ECONNREFUSED:
        os.unlink(path)
    elif code in (0, errno.EAGAIN):  # EAGAIN: alive, with a full backlog
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    else:
        raise OSError(code, os.strerror(code))


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _explain(error: OSError, address: Address) -> str:
    text = error.strerror or str(error)
    if not isinstance(address, TcpAddress):
        return text
    if error.errno == errno.EADDRINUSE:
        owner = listening_process(address.port)
        return f"{text}, by {owner}" if owner else text
    if error.errno == errno.EACCES and address.port < 1024:
        return f"{text}; a port below 1024 needs CAP_NET_BIND_SERVICE or a systemd socket unit"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}; no interface of this machine has it (yet)"
    return text
