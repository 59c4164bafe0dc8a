"""The status as tables that can be read at a glance, in a hundred columns: of all relays, and of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_PEER_MAX = 48  # columns: an IPv6 address with its port, and any Unix one that was given here
_NAME_MAX = 16  # columns of a relay's name: 64 would push out what matters

_COLUMNS = ("RELAY", "SOURCE", "SINCE", "LAST DATA", "RATE", "LINKS", "QUEUED", "LAG", "DROPPED", "LAST ERROR")

_LINK_COLUMNS = ("PEER", "UP FOR", "SENT", "QUEUED", "LAG", "DROPPED")

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
    head = [_headline(status, _sources(relays)), _failure(status), titles]
    return _fitted(head, rows, "relays", [_HELD_ONCE] if shared else [], width, height)


def relay_table(
    status: Mapping[str, Any], width: int, before: Mapping[str, Any] | None = None, height: int = 0
) -> list[str]:
    """Return the lines for a status of one relay: its source, and its destination links, the worst lag first.

    See `table` for the arguments; the last line says how many links have no room.
    """
    (relay,) = status["relays"]
    links = sorted(relay["destinations"], key=lambda link: (-link["lag"], -link["queued"]))
    facts = [("relay", relay["name"]), *_source_facts(relay, status, before), ("links", _links(links))]
    head = [_headline(status), _failure(status), *_aligned(facts), ""]
    if not links:
        return _fitted(head[:-1], [], "links", [], width, height)
    titles, *rows = _aligned([(*_LINK_COLUMNS, "WHY DOWN" if _are_down(links) else ""), *map(_link_row, links)])
    shared = sum(link["queued"] > 0 for link in links) > 1
    return _fitted([*head, titles], rows, "links", [_HELD_ONCE] if shared else [], width, height)


def _source_facts(
    relay: Mapping[str, Any], status: Mapping[str, Any], before: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """Return what there is to say of the source, each with its name."""
    source = relay["source"]
    where = source["peer"] or relay["settings"]["source"]
    last_data = _last_data(source) + (" ago" if source["state"] == "up" and source["bytes"] else "")
    rate = _rate(relay, _rates(status, before))
    if relay["totals"]["records_in"] and rate != "-":
        records = _rates(status, before, "records_in")[relay["name"]]
        rate += f", {records:.{0 if records >= 10 else 1}f} records/s"
    facts = [
        ("source", f"{source['state']} for {duration(source['for'])}, {where}"),
        ("next attempt", _next_attempt(source)), ("last data", last_data), ("rate", rate),
        ("reconnects", str(source["reconnects"])), ("last reason", source["last_reason"]),
        ("last error", source["last_error"]),
    ]  # fmt: skip
    return [(name, text) for name, text in facts if text not in ("", "-")]


def _next_attempt(end: Mapping[str, Any]) -> str:
    return "" if end["next_attempt"] is None else f"in {duration(end['next_attempt'])}"


def _link_row(link: Mapping[str, Any]) -> tuple[str, ...]:
    up = link["state"] == "up"
    return (
        _cut(link["peer"], _PEER_MAX),
        duration(link["for"]) if up else "-",
        amount(link["sent"]),
        amount(link["queued"]),
        duration(link["lag"]) if link["lag"] else "-",
        amount(link["dropped"]) if link["dropped"] else "-",
        "" if up else _down(link),
    )


def _down(link: Mapping[str, Any]) -> str:
    """Return why a connected destination is down, and what it is about."""
    after = _next_attempt(link)
    what = f"{link['state']} for {duration(link['for'])}" + (f", next attempt {after}" if after else "")
    reason = link["last_error"].removeprefix(f"{link['peer']}: ") or link["last_reason"]
    return f"{reason} ({what})" if reason else what


def _links(links: Sequence[Mapping[str, Any]]) -> str:
    """Return how many are up, and down: 3, 2 (+1 down)."""
    down = _are_down(links)
    return f"{len(links) - down}" + (f" (+{down} down)" if down else "")


def _are_down(links: Sequence[Mapping[str, Any]]) -> int:
    return sum(link["state"] != "up" for link in links)


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


def _sources(relays: Sequence[Mapping[str, Any]]) -> list[str]:
    up = sum(relay["source"]["state"] == "up" for relay in relays)
    return [f"{up} of {len(relays)} sources up"]


def _headline(status: Mapping[str, Any], sources: Sequence[str] = ()) -> str:
    stopping = " is stopping" if status["stopping"] else ""
    parts = [
        f"relayd {status['version']}{stopping}", f"pid {status['pid']}", f"up {duration(status['uptime'])}",
        *sources, f"loop lag {status['loop_lag']['max'] * 1000:.0f} ms at most",
    ]  # fmt: skip
    return ", ".join(parts)


def _failure(status: Mapping[str, Any]) -> str:
    failure = status["reload"]["error"]
    return f"last reload failed: {failure}" if failure else ""


def _row(relay: Mapping[str, Any], rates: Mapping[str, float]) -> tuple[str, ...]:
    source, totals, links = relay["source"], relay["totals"], relay["destinations"]
    return (
        _cut(relay["name"], _NAME_MAX),
        source["state"],
        duration(source["for"]),
        _last_data(source),
        _rate(relay, rates),
        _links(links),
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


def _rates(status: Mapping[str, Any], before: Mapping[str, Any] | None, total: str = "bytes_in") -> dict[str, float]:
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
