"""The status as a table that can be read at a glance, in a hundred columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_NAME_MAX = 16  # columns of a relay's name: 64 would push out what matters

_COLUMNS = ("RELAY", "SOURCE", "SINCE", "LAST DATA", "RATE", "LINKS", "QUEUED", "LAG", "DROPPED", "LAST ERROR")

_HELD_ONCE = "QUEUED adds up what waits for each link; in memory it is held once, however many wait for it"


def table(
    status: Mapping[str, Any],
    width: int,
    before: Mapping[str, Any] | None = None,
    by_lag: bool = False,
    height: int = 0,
) -> list[str]:
    """Return the lines. The rates are those since an earlier status; without one there are none.

    They leave a terminal of `height` lines one for the cursor; the last says how many relays have no room. 0: no limit.
    """
    relays = list(status["relays"])
    if by_lag:
        relays.sort(key=lambda relay: -_lag(relay))
    rates = _rates(status, before)
    titles, *rows = _aligned([_COLUMNS, *(_row(relay, rates) for relay in relays)])
    shared = any(sum(link["queued"] > 0 for link in relay["destinations"]) > 1 for relay in relays)
    head = [_headline(status), _failure(status), titles]
    return _fitted(head, rows, "relays", [_HELD_ONCE] if shared else [], width, height)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(wide) for cell, wide in zip(row, widths, strict=True)).rstrip() for row in rows]


def _fitted(head: list[str], rows: list[str], what: str, note: list[str], width: int, height: int) -> list[str]:
    """Return all lines, or those that a terminal has room for; the note is the first to give way."""
    lines = [*head, *rows]
    room = max(1, height - 1) if height else len(lines) + len(note)
    if room < len(lines):
        hidden = min(len(lines) - room + 1, len(rows))
        lines[room - 1 :] = [f"… {hidden} of {len(rows)} {what} are not shown"]
    elif len(lines) + len(note) <= room:
        lines += note
    return [_cut(line, width) for line in lines]


def duration(seconds: float) -> str:
    """Return a time span in its two largest units: 3d 4h, 12m 5s, 0.4s."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    seconds = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if seconds >= size:
            return f"{int(seconds // size)}{unit} {int(seconds % size // part)}{smaller}"
    return f"{seconds:.0f}s"


def amount(count: float) -> str:
    """Return a number of bytes in three digits or so: 999, 1.5K, 12M."""
    for unit in ("", "K", "M", "G", "T"):
        if count < 999.5 or unit == "T":
            return f"{count:.0f}{unit}" if count >= 10 or not unit else f"{count:.1f}{unit}"
        count /= 1024
    raise AssertionError("the last unit takes everything")


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _headline(status: Mapping[str, Any]) -> str:
    up = sum(relay["source"]["state"] == "up" for relay in status["relays"])
    parts = [
        f"relayd {status['version']}{' is stopping' if status['stopping'] else ''}", f"pid {status['pid']}", f"up {duration(status['uptime'])}",
        f"{up} of {len(status['relays'])} sources up", f"loop lag {status['loop_lag']['max'] * 1000:.0f} ms at most",
    ]  # fmt: skip
    return ", ".join(parts)


def _failure(status: Mapping[str, Any]) -> str:
    failure = status["reload"]["error"]
    return f"last reload failed: {failure}" if failure else ""


def _row(relay: Mapping[str, Any], rates: Mapping[str, float]) -> tuple[str, ...]:
    source, totals, links = relay["source"], relay["totals"], relay["destinations"]
    up = sum(link["state"] == "up" for link in links)
    waiting = len(links) - up
    return (
        _cut(relay["name"], _NAME_MAX),
        source["state"],
        duration(source["for"]),
        _last_data(source),
        _rate(relay, rates),
        f"{up}" + (f" (+{waiting} down)" if waiting else ""),
        amount(sum(link["queued"] for link in links)),
        duration(_lag(relay)) if _lag(relay) else "-",
        amount(totals["dropped"]) if totals["dropped"] else "-",
        _trouble(relay),
    )


def _trouble(relay: Mapping[str, Any]) -> str:
    """Return what is wrong with the source, or else with the first destination that is down."""
    source = relay["source"]
    found = source["last_error"] or (source["last_reason"] if source["state"] != "up" else "")
    for link in relay["destinations"]:
        if not found and link["state"] != "up":
            found = link["last_error"] or (f"{link['peer']}: {link['last_reason']}" if link["last_reason"] else "")
    return found or "-"


def _lag(relay: Mapping[str, Any]) -> float:
    return float(max((link["lag"] for link in relay["destinations"]), default=0.0))


def _last_data(source: Mapping[str, Any]) -> str:
    """Return the age of what the source's link has sent last."""
    if source["state"] != "up":
        return "-"
    return duration(source["last_data"]) if source["bytes"] else "none"


def _rates(
    status: Mapping[str, Any], before: Mapping[str, Any] | None, total: str = "bytes_in"
) -> dict[str, float]:
    """Return by how much a second each relay's total has grown since the status before, where it was in that."""
    seconds = status["uptime"] - before["uptime"] if before is not None else 0.0
    if before is None or seconds <= 0:
        return {}
    earlier = {relay["name"]: relay["totals"][total] for relay in before["relays"]}
    now = {relay["name"]: relay["totals"][total] for relay in status["relays"]}
    return {name: max(0, count - earlier[name]) / seconds for name, count in now.items() if name in earlier}


def _rate(relay: Mapping[str, Any], rates: Mapping[str, float]) -> str:
    """Return the bytes per second, where the source is up: what it has sent before it ended is no rate."""
    if relay["source"]["state"] != "up" or relay["name"] not in rates:
        return "-"
    figure = amount(rates[relay["name"]])
    digits = figure.rstrip("KMGT")
    return f"{digits} {figure[len(digits) :]}B/s"
