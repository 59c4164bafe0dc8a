"""What no single key can see: addresses against roles, loops, ports and files taken twice, keys without effect."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Protocol

from relayd.address import Address, ReplayAddress, TcpAddress, UnixAddress, check_connect, check_listen, unmapped
from relayd.config.keys import CONNECT, LISTEN, LOG_NAMES
from relayd.config.settings import RelayConfig
from relayd.errors import AddressError
from relayd.policy.loops import End, circular, flow
from relayd.policy.overflow import OVERFLOW

Complaint = Callable[[str, str, str], None]  # (what is wrong, relay, key)


class ComplaintOfTwo(Protocol):
    """Complains of two values that cannot both be."""

    def __call__(self, text: str, relay: str, key: str, other: tuple[str, str] | None = None) -> None:
        """`other`: the relay and the key of the other one, whose place follows the text."""


def check_relay(relay: RelayConfig, complain: Complaint) -> None:
    """Check one relay's values against each other."""
    _check_framing(relay, complain)
    _check_bounds(relay, complain)
    for allow, deny in (("allow", "deny"), ("source_allow", "source_deny")):
        for network in set(getattr(relay, allow)) & set(getattr(relay, deny)):
            complain(f"{network} is allowed and denied; take one of the two out", relay.name, deny)


def _check_framing(relay: RelayConfig, complain: Complaint) -> None:
    problem = relay.framing.problem(relay.max_record)
    if problem:
        complain(problem, relay.name, "framing")
    if not relay.framing.has_records:
        for key in _needing_records(relay):
            complain("leaves out or counts records, so it needs a framing: nmea, rtcm3, line, ...", relay.name, key)
    elif relay.buffer < relay.max_record:
        complain("is smaller than max_record, so the longest record would never fit", relay.name, "buffer")


def _check_bounds(relay: RelayConfig, complain: Complaint) -> None:
    if relay.history.size > relay.buffer // 2:
        complain("is more than half of buffer, so a client that joins would be slow at once", relay.name, "history")
    if relay.slow_after.seconds and relay.slow_after.size >= relay.buffer:
        complain("is no less than buffer, which is full before", relay.name, "slow_after")
    if relay.slow_after.seconds and relay.overflow == "block":
        complain("has no effect with overflow = block, which waits as long as it takes", relay.name, "slow_after")
    if 0 < relay.source_idle <= relay.coalesce:
        complain("is no longer than coalesce, so a source that sends would be idle", relay.name, "source_idle")


def _needing_records(relay: RelayConfig) -> Iterator[str]:
    if OVERFLOW[relay.overflow].needs_records:
        yield "overflow"
    if relay.max_age:
        yield "max_age"
    if relay.history.records:
        yield "history"


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


def check_together(relays: Sequence[RelayConfig], complain: ComplaintOfTwo) -> None:
    """Check the relays against each other: each address is listened on once, and no stream runs in a circle."""
    ports = _Ports()
    for relay in relays:
        for end, address in relay.listening:
            if isinstance(address, ReplayAddress):
                continue  # complained of already
            other = ports.listener_like(address)
            if other is not None:
                owner = "this relay" if other.relay == relay.name else f"relay {other.relay}"
                complain(f"{owner} listens there already", relay.name, _key(end), (other.relay, _key(other)))
            ports.add(address, end)
    following: dict[str, list[str]] = {}
    for origin, target in circular({edge for relay in relays for edge in _flows(relay, ports)}):
        following.setdefault(origin, []).append(target)
    for relay in relays:
        if relay.name in following:
            complain(_circle(relay.name, following[relay.name]), relay.name, "destination")


# What the daemon writes, by its keys.
_FILES = {"pidfile": "the pidfile", "control": "the control socket", "log": "the log"}


def check_files(daemon: Mapping[str, str], relays: Sequence[RelayConfig], complain: Complaint) -> None:
    """Check that nothing else is written where a dump, the log, the pidfile or the control socket is.

    `daemon`: the paths of [relayd]. A FIFO or a terminal is no exception: two dumps would tear each other's rows, and
    relays that share the standard output, which is one queue, do not.
    """
    dumping = [relay for relay in relays if relay.dump != "off" and relay.dump_file]
    owners: dict[str, str] = {}
    places = _Places()
    rotated = {places.of(relay.dump_file): relay for relay in reversed(dumping)}
    keys = [(daemon.get(key, ""), "", key, what) for key, what in _FILES.items()]
    dumps = [(relay.dump_file, relay.name, "dump_file", f"the dump of relay {relay.name}") for relay in dumping]
    for path, relay, key, what in (*keys, *dumps):
        if path in ("", *LOG_NAMES):
            continue
        place = places.of(path)
        owner = owners.setdefault(place, what)
        if owner != what:
            complain(f"{owner} is that file already; take another", relay, key)
        base, _, number = place.rpartition(".")
        if base in rotated and number in map(str, range(1, rotated[base].dump_max.files)):
            complain(f"the dump of relay {rotated[base].name} takes that name when rotated; take another", relay, key)


def _key(end: End) -> str:
    return "source" if end.is_source else "destination"


class _Places:
    """Where paths lead to. A link in the last place does not count: none of these files is opened through one."""

    def __init__(self) -> None:
        self._directories: dict[str, str] = {}  # there may be thousands of dumps, but not of directories

    def of(self, path: str) -> str:
        directory, name = os.path.split(path)
        if directory not in self._directories:
            self._directories[directory] = os.path.realpath(directory)
        return os.path.join(self._directories[directory], name)


def check_control(path: str, relays: Sequence[RelayConfig], complain: Complaint) -> None:
    """Check the control socket against what a Unix socket can be, and against the relays, which listen elsewhere."""
    control = UnixAddress(path)
    problem = address_problem(control, "control", LISTEN)
    if problem:
        complain(problem, "", "control")
    taken = _port(control)
    for relay in relays:
        for end, address in relay.listening:
            if isinstance(address, UnixAddress) and _port(address) == taken:
                problem = "the control socket of [relayd] listens there; give one of the two another path"
                complain(problem, relay.name, _key(end))


# What systemd makes for a service when it starts, below which directory, by which key of the unit.
_MADE_BY_SYSTEMD = {"/run/": "RuntimeDirectory", "/var/lib/": "StateDirectory", "/var/log/": "LogsDirectory"}


def check_machine(
    daemon: Mapping[str, str], relays: Sequence[RelayConfig], complain: Complaint, warn: Complaint
) -> None:
    """Check that users and directories exist. Those that may not be looked at are taken to: another user will start.

    Not for a reload, which may be made in a chroot, where all of them are out of sight.
    """
    finders: dict[str, Callable[[str], object]] = {"user": pwd.getpwnam, "group": grp.getgrnam}
    for key, find in finders.items():
        try:
            if daemon[key]:
                find(daemon[key])
        except KeyError:
            complain(f"there is no {key} '{daemon[key]}'; make it ({key}add --system {daemon[key]})", "", key)
    root = daemon["chroot"]
    if root and _is_missing(root):
        complain(f"there is no directory {root}; make it, or leave chroot out", "", "chroot")
        return
    files = [(daemon["pidfile"], "", "pidfile", "")]
    files += [(daemon[key], "", key, root) for key in ("control", "log")]
    files += [(relay.dump_file, relay.name, "dump_file", root) for relay in relays if relay.dump != "off"]
    for path, relay_name, key, inside in files:
        directory = inside + os.path.dirname(path)
        if path in ("", *LOG_NAMES) or not _is_missing(directory):
            continue
        where = f", for chroot = {root} and {key} is looked up in there" if inside else ""
        unit_key = next((unit for base, unit in _MADE_BY_SYSTEMD.items() if directory.startswith(base)), "")
        if unit_key:
            warn(f"there is no directory {directory}; make it, unless systemd does ({unit_key}=)", relay_name, key)
        else:
            complain(f"there is no directory {directory}; make it{where}", relay_name, key)


def _is_missing(directory: str) -> bool:
    try:
        return not stat.S_ISDIR(os.stat(directory).st_mode)
    except PermissionError:
        return False
    except OSError:
        return True


_ALL_HOSTS = ""


class _Ports:
    """Who listens where: looked up by port or path, and by host where that is enough, for there may be thousands."""

    def __init__(self) -> None:
        self._by_place: dict[object, list[tuple[Address, End]]] = {}  # each under its port, and its port and host

    def add(self, address: Address, end: End) -> None:
        """Note an end that listens on the address."""
        port = _port(address)
        places: list[object] = [port]
        if isinstance(address, TcpAddress):
            places.append((port, _ALL_HOSTS if _is_wide(address) else _host(address)))
        for place in places:
            self._by_place.setdefault(place, []).append((address, end))

    def listener_like(self, address: Address) -> End | None:
        """Return an end whose listening excludes listening on the address, None where there is none."""
        found = self._at(address, every_host=_is_wide)
        return next((end for taken, end in found if _same_listener(address, taken)), None)

    def reached_from(self, address: Address) -> Iterator[End]:
        """Yield the ends at which a connection to the address is known to arrive."""
        return (end for listened, end in self._at(address, every_host=_is_here) if _arrives(address, listened))

    def _at(self, address: Address, every_host: Callable[[TcpAddress], bool]) -> list[tuple[Address, End]]:
        """Return who listens at the path or port, with no other host unless the address concerns every one."""
        port = _port(address)
        if not isinstance(address, TcpAddress) or every_host(address):
            return self._by_place.get(port, [])
        return [found for host in (_ALL_HOSTS, _host(address)) for found in self._by_place.get((port, host), [])]


def _port(address: Address) -> object:
    return address.port if isinstance(address, TcpAddress) else os.path.realpath(address.path)


def _same_listener(one: Address, other: Address) -> bool:
    """Whether two addresses of one port cannot both be listened on."""
    if isinstance(one, TcpAddress) and isinstance(other, TcpAddress):
        return _host(one) == _host(other) or any(_covers(a, b) for a, b in ((one, other), (other, one)))
    return True


def _host(address: TcpAddress) -> object:
    """Return the host for comparison: an IPv4-mapped address is the IPv4 one, names are of one case."""
    ip = address.ip
    return unmapped(ip) if ip is not None else address.host.lower().removesuffix(".")


def _covers(wide: TcpAddress, narrow: TcpAddress) -> bool:
    """Whether listening on `wide` takes the host of `narrow` too."""
    if not wide.host:
        return True
    ip, narrow_ip = wide.ip, narrow.ip
    return ip is not None and ip.is_unspecified and narrow_ip is not None and narrow_ip.version == ip.version


# -- loops --------------------------------------------------------------------------------------


def _circle(relay: str, targets: Collection[str]) -> str:
    """Return what is wrong with a relay that feeds itself by way of each of the targets."""
    if relay in targets:
        return "leads back to its own source, in a loop that never ends; give it another address"
    return f"leads through relay {min(targets)} back to its own source, in a loop that never ends"


def _flows(relay: RelayConfig, ports: _Ports) -> Iterator[tuple[str, str]]:
    """Yield (from, to) for every relay of this configuration that this one feeds, or is fed by, or itself."""
    for connecting, dialled in relay.connecting:
        for listening in ports.reached_from(dialled):
            edge = flow(connecting, listening)
            if edge:
                yield edge


def _arrives(dialled: Address, listened: Address) -> bool:
    """Whether a connection to `dialled` is known to arrive at `listened`, of the same port or path.

    Nothing is looked up or bound for it: names other than this host's own, and its other interfaces,
    are seen at run time (LoopGuard).
    """
    if not isinstance(dialled, TcpAddress) or not isinstance(listened, TcpAddress):
        return isinstance(dialled, UnixAddress)
    if _host(dialled) == _host(listened):
        return True
    if not _is_here(dialled):
        return False
    # A name may be any of this host's addresses; a literal arrives at itself and at its family's wildcard.
    if not listened.host or dialled.ip is None or listened.ip is None:
        return _is_wide(listened) or _is_here(listened)
    return _is_wildcard(listened) and getattr(_host(dialled), "version", 0) == listened.ip.version


def _is_wildcard(address: TcpAddress) -> bool:
    return address.ip is not None and address.ip.is_unspecified


def _is_wide(address: TcpAddress) -> bool:
    return not address.host or _is_wildcard(address)


def _is_here(address: TcpAddress) -> bool:
    host = _host(address)
    if isinstance(host, str):
        return host in ("localhost", socket.gethostname().lower())
    return bool(getattr(host, "is_loopback", False))
