"""The README's tables are made from the table of keys: `python -m tests.test_readme` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS, Key
from tests.support import ROOT

README = ROOT / "README.md"
TABLES = {"relay": RELAY_KEYS, "daemon": DAEMON_KEYS}


def table(keys: Mapping[str, Key]) -> str:
    """Return the keys as a Markdown table."""
    rows = ["| key | type | default | |", "|---|---|---|---|"]
    for key in keys.values():
        kind = key.kind.name.replace(" | ", ", ")
        default = key.default_help or (
            f"`{key.default}`" if key.default else "none" if key.default == "" else "required"
        )
        note = f" ({key.only_for.replace(' listen', '')} that listens)" if key.only_for else ""
        rows.append(f"| `{key.name}` | {kind} | {default} | {key.help}{note} |")
    return "\n".join(rows)


def with_tables(text: str) -> str:
    """Return the README with its tables made anew."""
    for name, keys in TABLES.items():
        head = f"<!-- {name} keys: made by tests/test_readme.py -->"
        text = re.sub(
            f"{re.escape(head)}.*?<!-- end -->",
            lambda _, h=head, k=keys: f"{h}\n{table(k)}\n<!-- end -->",
            text,
            flags=re.S,
        )
    return text


def test_the_tables_are_those_of_the_keys() -> None:
    text = README.read_text()
    assert text == with_tables(text), "python -m tests.test_readme writes them"


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_in_its_table(name: str) -> None:
    part = README.read_text().split(f"<!-- {name} keys")[1].split("<!-- end -->")[0]
    assert re.findall(r"^\| `([a-z_]+)`", part, re.M) == list(TABLES[name])


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
