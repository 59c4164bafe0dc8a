"""The register of faults: each row is provoked by one test or more, or left out for a reason that stands here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

TABLE = Path(__file__).with_name("TABLE.md")

# Families of rows: the letter, what it is about, how many there are.
FAMILIES = {
    "N": ("Connecting out", 19),
    "L": ("Listening and accepting", 18),
    "S": ("Established streams", 28),
    "D": ("Names", 9),
    "P": ("The process", 28),
    "C": ("The configuration", 24),
    "F": ("Files, logs, disk", 8),
    "R": ("Resources and time", 15),
    "K": ("Long runs", 13),
}

# What is not tried, and why.
LEFT_OUT = {
    "S23": "TLS is not built",
    "C18": "relayd does not judge a file's mode; what nobody may see stands in a file of its own, `@FILE`",
    "F8": "relayd writes no state file; the pidfile is in the P rows",
    "R6": "`python -m tests.bench` has it: 1:1 bulk against HAProxy, nginx, socat and a C program, in one run",
    "K3": "to fail each allocation in turn takes `_testcapi`, which is not everywhere; P26 and K10 make memory short",
    "K5": "`python -m tests.bench` has its figures: 10,000 idle clients, 10,000 and 1,000 that are fed, 15,000 at once",
    "K11": "`python -m tests.fuzz` is the long form, `tests/fuzz` the short one",
    "K12": "a day long; K1 with `--long` and other seeds is the same load, and the oracle looks at the same figures",
}


@dataclass
class Row:
    """One fault."""

    id: str
    provoked: str
    required: str
    seen: list[str] = field(default_factory=list)


ROWS: dict[str, Row] = {}

_Test = TypeVar("_Test", bound=Callable[..., Any])


def row(row_id: str, *, provoked: str, required: str) -> Callable[[_Test], _Test]:
    """Register the decorated test as one of those that provoke the fault `row_id`.

    Of several tests of one row the first says what it is; the others pass empty texts.
    """

    def register(test: _Test) -> _Test:
        name = test.__name__
        assert name.startswith(f"test_{row_id.lower()}_"), f"{name} does not carry its row's id, {row_id}"
        known = ROWS.setdefault(row_id, Row(row_id, provoked, required))
        known.provoked, known.required = known.provoked or provoked, known.required or required
        test.row_id = row_id  # type: ignore[attr-defined]
        return test

    return register


def catalogue() -> list[str]:
    """Return the ids of all rows, in their order."""
    return [f"{letter}{number}" for letter, (_, count) in FAMILIES.items() for number in range(1, count + 1)]


def table(where_and_when: str) -> str:
    """Return the table of all rows, as Markdown."""
    lines = [
        "# The fault suite", "",
        "Made by `pytest tests/faults --table`; do not edit. Each fault is made for real, against an installed relayd.",
        "After it, descriptors, timers and threads are what they were before, every byte is accounted for, the process",
        "is at rest, its memory is back, its log holds no traceback and no flood, and a client of another relay of the",
        "same process has missed no byte and waited for none.", "",
        where_and_when,
    ]  # fmt: skip
    for letter, (title, count) in FAMILIES.items():
        lines += ["", f"## {title}", "", "| row | provoked by | required | seen |", "|---|---|---|---|"]
        lines += [_line(f"{letter}{number}") for number in range(1, count + 1)]
    return "\n".join([*lines, ""])


def _line(row_id: str) -> str:
    if row_id in LEFT_OUT:
        return f"| {row_id} | *left out:* {LEFT_OUT[row_id]} | | |"
    found = ROWS.get(row_id)
    if found is None:
        return f"| {row_id} | *no test* | | |"
    return f"| {row_id} | {found.provoked} | {found.required} | {'; '.join(found.seen)} |"
