"""Opening listening sockets, and saying why one cannot be opened."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from relayd.address import Address, TcpAddress, UnixAddress
from relayd.errors import StartError
from relayd.net.owner import listening_process
from relayd.net.sockets import SocketOptions


@dataclass(frozen=True)
class ListenSettings:
    """How to listen: the accept queue's length, the mode of a Unix socket's file."""

    options: SocketOptions
    backlog: int
    unix_mode: int


class Listener:
    """The listening sockets of one address; `close` closes them and removes a Unix socket's file."""

    def __init__(self, address: Address, sockets: Sequence[socket.socket]) -> None:
        self.address = address
        self.sockets = tuple(sockets)
        self._file = _identity(address.path) if isinstance(address, UnixAddress) else None

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()
        if isinstance(self.address, UnixAddress) and self._file == _identity(self.address.path):
            os.unlink(self.address.path)


def open_listener(address: Address, settings: ListenSettings) -> Listener:
    """Bind and listen on the address, on all that its name stands for; raises StartError."""
    sockets: list[socket.socket] = []
    try:
        if isinstance(address, UnixAddress):
            sockets.append(_listen_unix(address.path, settings))
        elif isinstance(address, TcpAddress):
            for family, name in _names(address):
                try:
                    sockets.append(_listen_tcp(family, name, settings))
                except OSError as error:
                    if not address.host and error.errno in _NO_IPV6 and family == socket.AF_INET6:
                        continue  # every address of this machine, and it has no IPv6
                    raise
        return Listener(address, sockets)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StartError([f"cannot listen on {address}: {_explain(error, address)}"]) from error


_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


def _names(address: TcpAddress) -> list[tuple[socket.AddressFamily, tuple[str, int]]]:
    """Return (family, socket address) for all that the address stands for, each once."""
    if not address.host:
        return [(socket.AF_INET6, ("::", address.port)), (socket.AF_INET, ("0.0.0.0", address.port))]
    found = socket.getaddrinfo(address.host, address.port, 0, socket.SOCK_STREAM, 0, socket.AI_PASSIVE)
    return [(entry[0], entry[4]) for entry in found]  # type: ignore[misc]


def _listen_tcp(family: socket.AddressFamily, name: tuple[str, int], settings: ListenSettings) -> socket.socket:
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
    _remove_dead_socket(path)
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


def _remove_dead_socket(path: str) -> None:
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
