"""What a relay knows of its ends, and what an end knows of whom it brings links to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from relayd.net.pipe import Pipe
from relayd.net.sockets import SocketOptions
from relayd.net.transport import Buffer, TransportProtocol
from relayd.sink import Outgoing


class LinkProtocol(TransportProtocol, Protocol):
    """Who is told what happens on a link."""

    def interrupted(self) -> None:
        """What comes next, if anything does, does not follow on what came: a file has ended."""


class LinkTransport(Outgoing, Protocol):
    """What carries a link: a socket's Transport, or something that behaves like one."""

    peer: Any
    local: Any
    since: float  # the reactor's time when the link came up
    last_read: float  # the reactor's time when something was last read
    bytes_read: int
    on_bulk: Callable[[], bool]  # see Transport
    feeds: bool  # see the reactor's Handler

    def coalesce(self, seconds: float) -> None:
        """See Transport.coalesce."""

    def start(self, protocol: LinkProtocol) -> None:
        """See Transport.start."""

    def read_into(self, pipe: Pipe, limit: int) -> int:
        """See Transport.read_into."""

    def pause_reading(self) -> None:
        """See Transport.pause_reading."""

    def resume_reading(self) -> None:
        """See Transport.resume_reading."""

    def read_little(self) -> None:
        """See Transport.read_little."""

    def unread(self) -> int:
        """See Transport.unread."""

    def drain(self) -> None:
        """See Transport.drain."""

    def retune(self, options: SocketOptions, linger_timeout: float) -> None:
        """See Transport.retune."""


@dataclass(frozen=True)
class EndpointState:
    """What an end is about while it has no link: listening, connecting or waiting to connect again."""

    name: str
    reconnects: int  # links that came up after the first
    last_error: str  # why the last attempt failed, "" after one that did not
    next_attempt: float | None = None  # seconds until then, None where none is awaited


class Endpoint(Protocol):
    """One end of a relay."""

    def open(self) -> None:
        """Take what can be refused (ports); raises StartError. Nothing moves yet."""

    def start(self) -> None:
        """Begin to bring links."""

    def follow(self, former: Endpoint) -> None:
        """Go on counting where the same end of the configuration before left off; before `adopt` and `start`."""

    def adopt(self, transport: LinkTransport, former: Endpoint) -> None:
        """Take over a link that another end, of the configuration before, has brought."""

    def state(self) -> EndpointState:
        """Return what the end is about."""

    def stop(self) -> None:
        """Bring no more, drop what is under way; links that are up stay."""

    def peer_name(self, transport: LinkTransport) -> str:
        """Return what the link's other side is called in logs."""

    def link_lost(self, transport: LinkTransport, reason: str) -> None:
        """A link that this end brought is closed."""


class LinkOwner(Protocol):
    """Whom an end brings its links to: an Inlet or an Outlet."""

    def is_behind(self) -> bool:
        """Return whether further links are to wait in the kernel, for what came before them."""

    def refusal(self) -> str:
        """Return why no further link may come in now, "" where it may."""

    def link_made(self, transport: LinkTransport, endpoint: Endpoint) -> LinkProtocol:
        """Take a link; return who is to be told of its life."""


__all__ = ["Buffer", "Endpoint", "EndpointState", "LinkOwner", "LinkProtocol", "LinkTransport"]
