"""Words that the long form puts together, where it would have to guess them byte by byte."""

from __future__ import annotations

from collections.abc import Iterable

from relayd.config.keys import DAEMON_KEYS, MODES, RELAY_KEYS
from relayd.wire.framings import FRAMINGS

_KEYS = (*RELAY_KEYS.values(), *DAEMON_KEYS.values())
_DEFAULTS = {key.default for key in _KEYS if key.default}
_ADDRESSES = (
    "a.example:1", ":2101", "127.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "[::ffff:10.0.0.1]:1", "unix:/run/a",
    "unix:", "replay:", "?rate=10", "&loop=yes", "&rate=0.5", "more.ini", "localhost:1", "0.0.0.0:1", "[::]:1", ".",
)  # fmt: skip
_VALUES = (
    *MODES, *_DEFAULTS, *(kind.usage for kind in FRAMINGS.values()), *_ADDRESSES, "500ms", "1h", "1d", "4G", "4K",
    "100r", "30s", "1M 10s", "1s..30s", "30s/10s/3", "off", "yes", "no", "10M x 3", "192.0.2.0/24", "2001:db8::/32",
    "::ffff:0:0/96", "length:u16be@2+4", "u32le@1-3", "delimiter:\\x00", "block", "drop_oldest", "raw", "all", "hex",
)  # fmt: skip
_SYNTAX = (
    "[relay a]\n", "[relay b]\n", "[relayd]\n", "[defaults]\n", " = ", "\n", "\r\n", " ; ", " # ", "@secret",
    "${NAME}", "${PORT}", "${", "}", ", ", "include = more.ini\n", "\ufeff",
    "[relay a]\nsource = :1\ndestination = :2\nmode = listen-listen\n",
)  # fmt: skip
_OPTIONS = ("--mode\0", "--retry\0", "--dump\0", "--dump=hex\0", "-o\0", "--pidfile\0", "--foreground\0", "--check\0")


def _words(*lists: Iterable[str]) -> list[bytes]:
    return [word.encode() for words in lists for word in words]


WORDS = {
    "config": _words((f"{key.name} = " for key in _KEYS), _VALUES, _SYNTAX),
    "words": _words((f"{key.name}=" for key in _KEYS), _VALUES, _OPTIONS, ("\0", "a:1\0:2\0")),
    "values": _words(_VALUES),
    "addresses": _words(_ADDRESSES, (",", ", ", "%", "::", "0x7f", "255")),
}
