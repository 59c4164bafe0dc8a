"""What systemd and a service say to each other: sd_notify(3) and sd_listen_fds(3), without a library.

Every call is harmless where there is no systemd.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, MutableMapping

from relayd.net.datagram import DatagramSender

_FIRST_FD = 3  # SD_LISTEN_FDS_START

# All services of a machine share the manager's queue, and many start at the same time. In seconds.
_AGAIN = 0.1

# Messages that wait for room; of more reloads than the manager has seen, the newest are what it waits for.
_UNTOLD_MAX = 4

CallLater = Callable[[float, Callable[[], None]], object]  # seconds, what to call


class Notifier:
    """Sends states to the service manager; never blocks, and nothing of ours depends on its being heard.

    The manager's own waiting does, for a start or a reload: what ends it is sent again while there is no room.
    """

    def __init__(self, environ: MutableMapping[str, str], call_later: CallLater) -> None:
        """Take NOTIFY_SOCKET and the watchdog's interval out of the environment; `call_later` is the reactor's."""
        self._call_later = call_later
        self._untold: deque[bytes] = deque(maxlen=_UNTOLD_MAX)
        address = environ.pop("NOTIFY_SOCKET", "")
        # "@" stands for an abstract name; what is no Unix socket (vsock) is newer than what we know of.
        name = "\0" + address[1:] if address.startswith("@") else address
        self._sender = DatagramSender(name) if name.startswith(("/", "\0")) else None
        self.watchdog_interval = _watchdog_interval(environ)  # seconds between WATCHDOG=1, 0: none is wanted

    def send(self, *states: str) -> bool:
        """Send states such as READY=1; whether the manager's socket took them."""
        return self._sender is not None and self._sender.send("\n".join(states).encode())

    def close(self) -> None:
        """Send no more."""
        self._untold.clear()
        if self._sender is not None:
            self._sender.close()

    def ready(self, status: str) -> None:
        """The service is up: after the start, and after each reload."""
        self._tell("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it. The time stamp is what Type=notify-reload asks for."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")

    def stopping(self) -> None:
        """The service is on its way out."""
        self._tell("STOPPING=1")

    def _tell(self, *states: str) -> None:
        """Send states that are waited for, after those that had no room."""
        self._untold.append("\n".join(states).encode())
        if len(self._untold) == 1:  # else the next attempt is on its way
            self._tell_rest()

    def _tell_rest(self) -> None:
        while self._sender is not None and self._untold:
            if not self._sender.send(self._untold[0]) and self._sender.full:
                self._call_later(_AGAIN, self._tell_rest)
                return
            self._untold.popleft()


def _watchdog_interval(environ: MutableMapping[str, str]) -> float:
    """Return half of what the manager waits for, in seconds; 0 where it waits for nothing, or for another."""
    microseconds, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    if not microseconds.isdigit() or pid not in ("", str(os.getpid())):
        return 0.0
    return int(microseconds) / 1e6 / 2


def listen_descriptors(environ: MutableMapping[str, str]) -> list[int]:
    """Return the descriptors of the listening sockets that the service manager has passed.

    Which is which is told by their addresses: their order is not that of the unit file.  To be called
    once, before anything forks; the variables are taken out of the environment.
    """
    pid, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    return list(range(_FIRST_FD, _FIRST_FD + int(count)))
