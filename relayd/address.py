"""Addresses as operators write them: parsed once, printed back the same, never guessed at.

    host:port   [v6]:port   [fe80::1%eth0]:port   :port   unix:/path   replay:FILE?rate=10&loop=yes

A host is a name or a literal in its canonical form: the short and numeric spellings that the C
library also takes (`127.1`, `2130706433`, `0x7f000001`, `1.2.3`) reach other hosts than they seem
to name and are refused.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, replace
from typing import Union

from relayd.errors import AddressError, did_you_mean

IpAddress = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

UNIX_PATH_MAX = 107  # sockaddr_un.sun_path is 108 bytes with its NUL, unix(7)

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")  # RFC 1123, and the _ seen in LANs
_PORT = re.compile(r"[0-9]{1,5}")
_RATE = re.compile(r"[0-9]{1,7}(\.[0-9]{1,6})?")


@dataclass(frozen=True)
class TcpAddress:
    """A host and a port. An empty host is every address of this machine; only listeners have it."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> IpAddress | None:
        """The host as an address, or None where it is a name or empty."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


@dataclass(frozen=True)
class UnixAddress:
    """A Unix stream socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class ReplayAddress:
    """A file whose records are sent as a source would: `rate` records per second, None: unpaced."""

    path: str
    rate: float | None = None
    loop: bool = False

    def __str__(self) -> str:
        options = [f"rate={self.rate:.6f}".rstrip("0").rstrip(".")] if self.rate is not None else []
        options += ["loop=yes"] if self.loop else []
        return f"replay:{self.path}" + ("?" + "&".join(options) if options else "")


Address = Union[TcpAddress, UnixAddress, ReplayAddress]


def parse_address(text: str) -> Address:
    """Return the address that `text` names; raises AddressError with what would be right."""
    if text.startswith("unix:"):
        return _parse_unix(text[len("unix:") :])
    if text.startswith("replay:"):
        return _parse_replay(text[len("replay:") :])
    return _parse_tcp(text)


def parse_addresses(text: str) -> tuple[Address, ...]:
    """Return the addresses of a comma-separated list, in its order; raises AddressError."""
    addresses = tuple(parse_address(part.strip()) for part in text.split(","))
    seen: set[Address] = set()
    for address in addresses:
        if address in seen:
            raise AddressError(f"'{address}' is named twice")
        seen.add(address)
    return addresses


def rebased(address: Address, directory: str) -> Address:
    """Return the address with a relative path made absolute, as seen from `directory`."""
    if isinstance(address, TcpAddress):
        return address
    return replace(address, path=os.path.normpath(os.path.join(directory, address.path)))


def check_listen(address: Address) -> None:
    """Raise AddressError where nothing can listen on the address."""
    if isinstance(address, ReplayAddress):
        raise AddressError("a replay is a connecting source; nothing can listen on it")
    _check_common(address)
    ip = address.ip if isinstance(address, TcpAddress) else None
    if ip is not None and ip.is_multicast:
        raise AddressError(f"{ip} is a multicast address; a byte stream has one address of this machine")


def unmapped(ip: IpAddress) -> IpAddress:
    """Return the IPv4 address that an IPv4-mapped IPv6 one stands for, ::ffff:192.0.2.1 (RFC 4291); else itself."""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip


def check_connect(address: Address) -> None:
    """Raise AddressError where nothing can be connected to."""
    _check_common(address)
    if not isinstance(address, TcpAddress):
        return
    if not address.host:
        raise AddressError(f"a connecting end needs a host; for this machine write localhost:{address.port}")
    ip = address.ip
    if ip is None:
        return
    host = unmapped(ip)
    if host.is_unspecified:
        raise AddressError(f"{ip} stands for every address and can only be listened on; name one host")
    if host.is_multicast or str(host) == "255.255.255.255":
        raise AddressError(f"{ip} is a multicast or broadcast address; a byte stream needs one host")


def _check_common(address: Address) -> None:
    if isinstance(address, UnixAddress):
        _check_path(address.path)  # which may have been made absolute since it was read
    if not isinstance(address, TcpAddress):
        return
    ip = address.ip
    if isinstance(ip, ipaddress.IPv6Address) and ip.is_link_local and not ip.scope_id:
        raise AddressError(f"a link-local address needs its interface: [{ip}%eth0]:{address.port}")


def _parse_tcp(text: str) -> TcpAddress:
    if not text:
        raise AddressError("an address is missing; write host:port, :port or unix:/path")
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or not rest.startswith(":"):
            raise AddressError(f"'{text}' is no address; an IPv6 one is written [2001:db8::1]:5000")
        return TcpAddress(_checked_v6(host), _parse_port(rest[1:], text))
    if text.count(":") > 1:
        raise AddressError(f"'{text}' can be read in two ways; put the IPv6 address in brackets: [::1]:5000")
    host, colon, port = text.rpartition(":")
    if not colon:
        scheme = did_you_mean(text.partition("/")[0], ("unix", "replay"))
        raise AddressError(f"'{text}' has no port; write host:port, :port or unix:/path{scheme}")
    return TcpAddress(_checked_host(host) if host else "", _parse_port(port, text))


def _parse_port(text: str, whole: str) -> int:
    # int() alone would take '+80', '8_0', ' 80' and Arabic digits.
    if not _PORT.fullmatch(text) or not 1 <= int(text) <= 65535:
        raise AddressError(f"'{text}' in '{whole}' is no port; write a number from 1 to 65535")
    return int(text)


def _checked_v6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError:
        raise AddressError(f"'{host}' is no IPv6 address; one is written [2001:db8::1]:5000") from None


def _checked_host(host: str) -> str:
    labels = host.removesuffix(".").split(".")
    if _looks_numeric(labels[-1]):
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise AddressError(f"'{host}' is no IPv4 address; write all four numbers: 192.0.2.1") from None
    if not host.isascii():
        raise AddressError(f"'{host}' is not ASCII; write the name in its xn-- form")
    # 253 characters and 63 a label: RFC 1035, section 2.3.4. getaddrinfo raises UnicodeError past them.
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise AddressError(f"'{host}' is no host name; names have letters, digits, '-' and dots between them")
    return host


def _looks_numeric(label: str) -> bool:
    return label.isdigit() or label.lower().startswith("0x")


def _parse_unix(path: str) -> UnixAddress:
    if not path or path.startswith("@"):
        raise AddressError("a Unix socket needs a path in the file system: unix:/run/relayd/feed.sock")
    _check_path(path)
    return UnixAddress(path)


def _check_path(path: str) -> None:
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX:
        raise AddressError(f"{path} has {size} bytes; a Unix socket's path may have {UNIX_PATH_MAX}")


def _parse_replay(text: str) -> ReplayAddress:
    path, _, query = text.partition("?")
    if not path or path != path.strip():  # a blank at its end would not be read back
        raise AddressError("a replay needs a file: replay:etc/demo.nmea?rate=10&loop=yes")
    rate: float | None = None
    loop = False
    for item in filter(None, query.split("&")):
        name, _, value = item.partition("=")
        if name == "rate":
            if not _RATE.fullmatch(value) or float(value) <= 0:
                raise AddressError(f"rate '{value}' is no number of records per second; write rate=10")
            rate = float(value)
        elif name == "loop":
            if value not in ("yes", "no"):
                raise AddressError(f"loop '{value}' is neither 'yes' nor 'no'")
            loop = value == "yes"
        else:
            raise AddressError(f"a replay has no option '{name}'{did_you_mean(name, ('rate', 'loop'))}")
    return ReplayAddress(path, rate, loop)
