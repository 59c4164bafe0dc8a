"""Which peers may come in, by their address."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Union

from relayd.address import unmapped

Network = Union[ipaddress.IPv4Network, ipaddress.IPv6Network]

_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")  # IPv4-mapped, RFC 4291, section 2.5.5.2


def parse_network(text: str) -> Network:
    """Return the network that `text` names, IPv4-mapped ones folded to IPv4; raises ValueError."""
    network = ipaddress.ip_network(text)
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        address = network.network_address.ipv4_mapped
        return ipaddress.IPv4Network((int(address or 0), network.prefixlen - 96))
    return network


class AccessList:
    """`deny` is looked at first; then, where `allow` names anything, it must name the peer."""

    def __init__(self, allow: Sequence[Network] = (), deny: Sequence[Network] = ()) -> None:
        self._allow = tuple(allow)
        self._deny = tuple(deny)

    def permits(self, host: str) -> bool:
        """Whether a peer may come in; `host` is the numeric address that accept gave."""
        if not self._allow and not self._deny:
            return True
        address = unmapped(ipaddress.ip_address(host.partition("%")[0]))
        if any(address in network for network in self._deny):
            return False
        return not self._allow or any(address in network for network in self._allow)
