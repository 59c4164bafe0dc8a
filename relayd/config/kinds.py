"""The types of configuration values.

Each `Kind` reads a text and shows a value so that reading it again gives the same value.  `read`
raises ValueError, whose message says what would be right.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from relayd.address import parse_addresses
from relayd.errors import did_you_mean
from relayd.net.sockets import Keepalive
from relayd.observe.dump import Rotation
from relayd.policy.access import Network, parse_network
from relayd.policy.history import HistoryBound
from relayd.policy.overflow import SlowAfter
from relayd.wire.framings import parse_framing

_DURATION = re.compile(r"([0-9]{1,11}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)?")
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION_MAX = 365 * 86400.0  # longer is a slip of the pen

_SIZE = re.compile(r"([0-9]{1,12})([KMG])?", re.IGNORECASE)
_BYTES = {"K": 1024, "M": 1024**2, "G": 1024**3, "": 1}
_SIZE_MAX = 64 * 1024**3

_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Kind:
    """A type of value: `name` is what the manual calls it; of `a_list`, a file may have one part on each line.

    `bounds`: low..high, where they are narrower than anybody would think.
    """

    name: str
    read: Callable[[str], Any]
    show: Callable[[Any], str]
    a_list: bool = False
    bounds: str = ""


@dataclass(frozen=True)
class Waits:
    """How long to wait between attempts to connect: from `low` to `high` seconds."""

    low: float
    high: float


def read_duration(text: str) -> float:
    """Return seconds: `500ms`, `10s`, `5m`, `1h`, `1d`; a bare number is seconds. No finer than 1 ms."""
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is no duration; write 500ms, 10s, 5m or 1h")
    milliseconds = Decimal(match[1]) * _MILLISECONDS[match[2] or "s"]
    if milliseconds % 1:
        raise ValueError(f"'{text}' is finer than a millisecond")
    if milliseconds > _DURATION_MAX * 1000:
        raise ValueError(f"'{text}' is longer than a year")
    return int(milliseconds) / 1000


def show_duration(seconds: float) -> str:
    """Return the shortest text that `read_duration` reads as the same number."""
    milliseconds = round(seconds * 1000)
    for unit in ("d", "h", "m", "s"):
        if milliseconds and milliseconds % _MILLISECONDS[unit] == 0:
            return f"{milliseconds // _MILLISECONDS[unit]}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


def read_size(text: str) -> int:
    """Return bytes: `64K`, `4M`, `1G` (powers of 1024); a bare number is bytes."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"'{text}' is no size; write 4096, 64K, 4M or 1G")
    size = int(match[1]) * _BYTES[(match[2] or "").upper()]
    if size > _SIZE_MAX:
        raise ValueError(f"'{text}' is more than {show_size(_SIZE_MAX)}")
    return size


def show_size(size: int) -> str:
    """Return the shortest text that `read_size` reads as the same number."""
    for unit in ("G", "M", "K"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return str(size)


def _within(
    kind: str, read: Callable[[str], Any], show: Callable[[Any], str], low: float, high: float, tell: bool = True
) -> Kind:
    def read_within(text: str) -> Any:
        value = read(text)
        if not low <= value <= high:
            raise ValueError(f"'{text}' is not between {show(low)} and {show(high)}")
        return value

    return Kind(kind, read_within, show, bounds=f"{show(low)}..{show(high)}" if tell else "")


def duration(low: float = 0.0, high: float = _DURATION_MAX) -> Kind:
    """A duration between two bounds, in seconds."""
    return _within("duration", read_duration, show_duration, low, high, tell=(low, high) != (0.0, _DURATION_MAX))


def size(low: int = 0, high: int = _SIZE_MAX) -> Kind:
    """A size between two bounds, in bytes."""
    return _within("size", read_size, show_size, low, high, tell=(low, high) != (0, _SIZE_MAX))


def _read_number(text: str) -> int:
    # int() alone would take '+8', '8_0' and digits of other scripts.
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"'{text}' is no whole number")
    return int(text)


def number(low: int, high: int) -> Kind:
    """A whole number between two bounds."""

    def read(text: str) -> int:
        try:
            return _read_number(text)
        except ValueError as error:
            raise ValueError(f"{error}, {low} or more") from None

    return _within("number", read, str, low, high)


def choice(names: Iterable[str]) -> Kind:
    """One of the names."""
    known = tuple(names)

    def read(text: str) -> str:
        if text not in known:
            *most, last = known
            listed = f"{', '.join(most)} or {last}" if most else last
            raise ValueError(f"'{text}' is not known; choose {listed}{did_you_mean(text, known)}")
        return text

    return Kind(" | ".join(known), read, str)


def name_or_path(names: Iterable[str]) -> Kind:
    """One of the names, or a path; a word without slash and dot is a slip of the pen rather than a file's name."""
    known = tuple(names)

    def read(text: str) -> str:
        if text and text not in known and not set(text) & set("/."):
            near = did_you_mean(text, known)
            raise ValueError(f"'{text}' is not known; choose {', '.join(known)} or a path like ./{text}{near}")
        return _read_path(text)

    return Kind(" | ".join((*known, "path")), read, str)


def _read_yes_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"'{text}' is neither 'yes' nor 'no'")
    return text == "yes"


def _read_mode(text: str) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError(f"'{text}' is no file mode; write three octal digits: 0660")
    return int(text, 8)


def _read_umask(text: str) -> int | None:
    return _read_mode(text) if text else None


def _show_umask(umask: int | None) -> str:
    return "" if umask is None else f"{umask:04o}"


def _read_waits(text: str) -> Waits:
    low_text, dots, high_text = text.partition("..")
    low = read_duration(low_text)
    high = read_duration(high_text) if dots else low
    if not 0.01 <= low <= high:
        raise ValueError(f"'{text}' is no wait; write 5s, or 1s..30s for one that grows (10ms at least)")
    return Waits(low, high)


def _show_waits(waits: Waits) -> str:
    low, high = show_duration(waits.low), show_duration(waits.high)
    return low if low == high else f"{low}..{high}"


def _read_keepalive(text: str) -> Keepalive | None:
    if text == "off":
        return None
    parts = text.split("/")
    try:
        idle, interval = (read_duration(part) for part in parts[:2])
        probes = _read_number(parts[2])
        # The kernel takes whole seconds up to 32767 and up to 127 probes, tcp(7).
        if len(parts) != 3 or not (1 <= idle <= 32767 and 1 <= interval <= 32767 and 1 <= probes <= 127):
            raise ValueError
        if idle % 1 or interval % 1:
            raise ValueError
    except (ValueError, IndexError):
        raise ValueError(
            f"'{text}' is no keepalive; write 30s/10s/3 (idle, interval, probes; whole seconds) or off"
        ) from None
    return Keepalive(int(idle), int(interval), probes)


def _show_keepalive(value: Keepalive | None) -> str:
    if value is None:
        return "off"
    return f"{show_duration(value.idle)}/{show_duration(value.interval)}/{value.probes}"


def _read_networks(text: str) -> tuple[Network, ...]:
    networks = []
    for part in filter(None, re.split(r"[,\s]+", text)):
        try:
            networks.append(parse_network(part))
        except ValueError as error:
            raise ValueError(f"{error}; write networks like 192.0.2.0/24, 2001:db8::/32") from None
    return tuple(networks)


def _read_local_address(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"'{text}' is no address of this machine; write one like 192.0.2.7") from None


def _read_rotation(text: str) -> Rotation:
    size_text, times, files_text = (part.strip() for part in text.partition("x"))
    try:
        rotation = Rotation(read_size(size_text), _read_number(files_text) if times else 1)
    except ValueError:
        rotation = Rotation(0, 0)
    if rotation.size < 4096 or not 1 <= rotation.files <= 1000:
        raise ValueError(f"'{text}' is no rotation; write 100M x 10 (a size of 4K at least, 1 to 1000 files)")
    return rotation


def _read_slow_after(text: str) -> SlowAfter:
    if text == "0":
        return SlowAfter()
    size_text, _, duration_text = text.partition(" ")
    try:
        slow = SlowAfter(read_size(size_text), read_duration(duration_text.strip()))
    except ValueError:
        slow = SlowAfter()
    if not slow.size or not slow.seconds:
        raise ValueError(
            f"'{text}' is no size and duration; write 1M 10s: more than 1 MiB waiting for 10 seconds, or 0"
        )
    return slow


def _show_slow_after(slow: SlowAfter) -> str:
    return f"{show_size(slow.size)} {show_duration(slow.seconds)}" if slow.seconds else "0"


def _read_history(text: str) -> HistoryBound:
    try:
        if text.endswith("r"):
            return HistoryBound(records=_read_number(text[:-1]))
        if text.endswith(("s", "m", "h", "d")):  # 5m is minutes; 5M is a size
            return HistoryBound(seconds=read_duration(text))
        return HistoryBound(size=read_size(text))
    except ValueError:
        raise ValueError(f"'{text}' is no history; write 64K (bytes), 100r (records), 30s, or 0") from None


def _show_history(bound: HistoryBound) -> str:
    if bound.seconds:
        return show_duration(bound.seconds)
    return f"{bound.records}r" if bound.records else show_size(bound.size)


def _read_path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL")
    return text


def _read_word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{0,64}", text):
        raise ValueError(f"'{text}' is no name of a user or group")
    return text


YES_NO = Kind("yes | no", _read_yes_no, lambda value: "yes" if value else "no")
FILE_MODE = Kind("file mode", _read_mode, lambda value: f"{value:04o}")
UMASK = Kind("file mode", _read_umask, _show_umask)
WAITS = Kind("duration or low..high", _read_waits, _show_waits)
KEEPALIVE = Kind("idle/interval/probes or off", _read_keepalive, _show_keepalive)
NETWORKS = Kind("networks", _read_networks, lambda value: ", ".join(map(str, value)), a_list=True)
ADDRESSES = Kind("addresses", parse_addresses, lambda value: ", ".join(map(str, value)))
LOCAL_ADDRESS = Kind("address", _read_local_address, str)
ROTATION = Kind("size x files", _read_rotation, lambda value: f"{show_size(value.size)} x {value.files}")
FRAMING = Kind("framing", parse_framing, str)
SLOW_AFTER = Kind("size duration", _read_slow_after, _show_slow_after)
HISTORY = Kind("size, records or duration", _read_history, _show_history)
WORD = Kind("name", _read_word, str)
PATH = Kind("path", _read_path, str)
