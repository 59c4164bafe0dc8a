"""What the kernel has to be told about sockets, and the errors it answers with, by name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A peer that left, in all the ways the kernel has of saying so: an end with a name, not a fault.
BROKEN = frozenset({
    errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT,
    errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.ECONNREFUSED, errno.EIO,
    errno.EPROTO, errno.ENETRESET, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.ENOBUFS,
})  # fmt: skip

# accept(2): errors of the connection that was to be accepted, to be treated like EAGAIN.
ACCEPT_AGAIN = frozenset({
    errno.EAGAIN, errno.EINTR, errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT,
    errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.EPERM,
    errno.ETIMEDOUT,
})  # fmt: skip

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 seconds: close sends RST, socket(7)

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: what SO_PEERCRED answers, unix(7)

# TCP_USER_TIMEOUT (tcp(7)) also kills a living peer whose window is closed. It stands above our own
# stall timer by this factor so that ours, which can give the reason, is the one that fires.
_USER_TIMEOUT_FACTOR = 1.5
_INT_MAX = 2**31 - 1  # what setsockopt takes


@dataclass(frozen=True)
class Keepalive:
    """Seconds of silence before the first probe, seconds between probes, probes; tcp(7)."""

    idle: int
    interval: int
    probes: int


@dataclass(frozen=True)
class SocketOptions:
    """How a stream socket is set up. Sizes in bytes, times in seconds; 0 and None: the kernel's own."""

    nodelay: bool = True
    keepalive: Keepalive | None = None
    stall_timeout: float = 0.0
    send_buffer: int = 0
    receive_buffer: int = 0
    notsent: int = 0  # what the kernel may hold that it has not sent yet, TCP_NOTSENT_LOWAT

    def apply_sizes(self, sock: socket.socket) -> None:
        """Set the buffers: before connect or listen, for the window scale is settled in the handshake."""
        if self.send_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.send_buffer)
        if self.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)

    def apply(self, sock: socket.socket) -> None:
        """Set what belongs on a connected socket, whatever was set before."""
        if sock.family == socket.AF_UNIX:
            return  # no packets, no dead peers: the kernel knows both ends
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, self.nodelay)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, self.keepalive is not None)
        if self.keepalive:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, self.keepalive.idle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, self.keepalive.interval)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, self.keepalive.probes)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, self.notsent)
        milliseconds = min(int(self.stall_timeout * _USER_TIMEOUT_FACTOR * 1000), _INT_MAX)  # 0: the kernel's own
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def reset(sock: socket.socket) -> None:
    """Close with RST: what the peer has not been sent is forgotten, and the peer sees an error."""
    with contextlib.suppress(OSError):  # the peer has reset it already
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def unread(sock: socket.socket) -> int:
    """Return what has come and was not read yet; FIONREAD in tcp(7), unix(7)."""
    return _queue_size(sock, termios.FIONREAD)


def unacknowledged(sock: socket.socket) -> int:
    """Return what was sent and not acknowledged by the peer's kernel yet; TIOCOUTQ in tcp(7), unix(7)."""
    return _queue_size(sock, termios.TIOCOUTQ)


def _queue_size(sock: socket.socket, queue: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), queue, b"\0\0\0\0"))[0])


def error_name(code: int) -> str:
    """Return the errno's name as the manual pages have it, ECONNREFUSED."""
    return errno.errorcode.get(code, f"errno {code}")


def name_of(call: Callable[[], Any]) -> Any:
    """Return what getsockname or getpeername answers, None where the connection is gone already."""
    try:
        return call()
    except OSError:
        return None


def accepted_name(sock: socket.socket, peer: Any) -> Any:
    """Return what accept has called the peer; it has no name for most Unix ones, who get one here: pid1234-56789.

    That is the process (0 where it cannot be seen from here) and the inode of our socket, which `ss -x` shows too,
    and which no other socket has while this one is open.
    """
    if peer or sock.family != socket.AF_UNIX:
        return peer
    pid, _, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return f"pid{pid}-{os.fstat(sock.fileno()).st_ino}"


def link_name(connecting: Any, listening: Any) -> tuple[Any, Any]:
    """Return what both ends of a TCP link call it: their hosts and ports, IPv4-mapped ones as IPv4."""
    return _plain(connecting), _plain(listening)


def _plain(name: Any) -> Any:
    return (name[0].removeprefix("::ffff:"), name[1]) if isinstance(name, tuple) else name


def show_name(name: Any) -> str:
    """Return a socket's name as it is shown in logs: 10.0.0.7:51344, [::1]:80, unix:/path, unix:pid1234-56789."""
    if isinstance(name, tuple):
        host, port = name[0], name[1]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(name, bytes):
        name = name.decode("utf-8", "backslashreplace")
    return f"unix:{name}" if name else "unix"
