"""What no single key can see: addresses against roles, loops, ports taken twice, keys without effect."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence

from relayd.address import Address, ReplayAddress, TcpAddress, UnixAddress, check_connect, check_listen
from relayd.config.keys import CONNECT
from relayd.config.settings import RelayConfig
from relayd.errors import AddressError
from relayd.policy.loops import End, flow, reaches

Complaint = Callable[[str, str, str], None]  # (relay, key, what is wrong)


def check_relay(relay: RelayConfig, complain: Complaint) -> None:
    """Check one relay's values against each other."""
    if relay.framing != "raw" and relay.buffer < relay.max_record:
        complain(relay.name, "buffer", "is smaller than max_record, so the longest record would never fit")
    for allow, deny in (("allow", "deny"), ("source_allow", "source_deny")):
        for network in set(getattr(relay, allow)) & set(getattr(relay, deny)):
            complain(relay.name, deny, f"{network} is allowed and denied; take one of the two out")


def address_problem(address: Address, key: str, role: str) -> str:
    """Return why the address cannot stand under `key` in that role, "" where it can."""
    try:
        if isinstance(address, ReplayAddress):
            if key == "destination":
                return "a replay is a source; to keep what passes, write dump = raw and a dump_file"
            if role == CONNECT:
                return _replay_problem(address)
        (check_connect if role == CONNECT else check_listen)(address)
    except AddressError as error:
        return str(error)
    return ""


def _replay_problem(address: ReplayAddress) -> str:
    if not os.path.exists(address.path):
        return f"there is no file {address.path} to replay"
    if not os.path.isfile(address.path):
        return f"{address.path} is no regular file, so it cannot be replayed"
    return "" if os.access(address.path, os.R_OK) else f"{address.path} cannot be read"


def check_together(relays: Sequence[RelayConfig], complain: Complaint) -> None:
    """Check the relays against each other: each address is listened on once, and no stream runs in a circle."""
    seen: list[tuple[RelayConfig, Address]] = []
    for relay in relays:
        for address in relay.listening:
            for other, taken in seen:
                if _same_listener(address, taken):
                    owner = "this relay" if other is relay else f"relay {other.name}"
                    complain(relay.name, _end_of(relay, address), f"{owner} listens on {taken} already")
            seen.append((relay, address))
    for relay in relays:
        circle = _circle(relay, relays)
        if circle:
            complain(relay.name, "destination", circle)


def _end_of(relay: RelayConfig, address: Address) -> str:
    return "source" if address in relay.source and relay.source_role != CONNECT else "destination"


def _same_listener(one: Address, other: Address) -> bool:
    if isinstance(one, TcpAddress) and isinstance(other, TcpAddress):
        if one.port != other.port:
            return False
        return one.host == other.host or any(_covers(a, b) for a, b in ((one, other), (other, one)))
    return isinstance(one, UnixAddress) and one == other


def _covers(wide: TcpAddress, narrow: TcpAddress) -> bool:
    """Whether listening on `wide` takes the host of `narrow` too."""
    if not wide.host:
        return True
    ip, narrow_ip = wide.ip, narrow.ip
    return ip is not None and ip.is_unspecified and narrow_ip is not None and narrow_ip.version == ip.version


# -- loops --------------------------------------------------------------------------------------


def _circle(relay: RelayConfig, relays: Sequence[RelayConfig]) -> str:
    edges = list(_flows(relays))
    if (relay.name, relay.name) in edges:
        return "leads back to its own source, in a loop that never ends; give it another address"
    following = [target for origin, target in edges if origin == relay.name]
    others = [target for target in following if reaches(edges, target, relay.name)]
    return f"leads through relay {others[0]} back to its own source, in a loop that never ends" if others else ""


def _flows(relays: Sequence[RelayConfig]) -> Iterator[tuple[str, str]]:
    """Yield (from, to) for every relay of this configuration that feeds another, or itself."""
    for dialling in relays:
        for dialled, connecting in _connecting(dialling):
            for listening_relay in relays:
                for listened, listening in _listening(listening_relay):
                    edge = flow(connecting, listening) if _arrives(dialled, listened) else None
                    if edge:
                        yield edge


def _connecting(relay: RelayConfig) -> Iterable[tuple[Address, End]]:
    if relay.source_role == CONNECT:
        yield from ((address, End(relay.name, True)) for address in relay.source)
    if relay.destination_role == CONNECT:
        yield from ((address, End(relay.name, False)) for address in relay.destination)


def _listening(relay: RelayConfig) -> Iterable[tuple[Address, End]]:
    if relay.source_role != CONNECT:
        yield from ((address, End(relay.name, True)) for address in relay.source)
    if relay.destination_role != CONNECT:
        yield from ((address, End(relay.name, False)) for address in relay.destination)


def _arrives(dialled: Address, listened: Address) -> bool:
    """Whether a connection to `dialled` is known to arrive at `listened`.

    Nothing is looked up or bound for it: names other than this host's own, and its other interfaces,
    are seen at run time (LoopGuard).
    """
    if isinstance(dialled, UnixAddress) and isinstance(listened, UnixAddress):
        return os.path.realpath(dialled.path) == os.path.realpath(listened.path)
    if not isinstance(dialled, TcpAddress) or not isinstance(listened, TcpAddress) or dialled.port != listened.port:
        return False
    if dialled.host == listened.host:
        return True
    here = _is_here(dialled)
    wildcard = not listened.host or (listened.ip is not None and listened.ip.is_unspecified)
    return here and (wildcard or _is_here(listened))


def _is_here(address: TcpAddress) -> bool:
    ip = address.ip
    if ip is not None:
        return ip.is_loopback and ip in (ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1"))
    return address.host.lower().rstrip(".") in ("localhost", socket.gethostname().lower())
