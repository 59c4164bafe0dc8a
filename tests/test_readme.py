"""The tables of the README and the manual are made from the table of keys.

`python -m tests.test_readme` writes them anew.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS, Key
from tests.support import ROOT

TABLES = {"relay": RELAY_KEYS, "daemon": DAEMON_KEYS}


def default(key: Key) -> str:
    """Return a key's default in words."""
    return key.default_help or (f"`{key.default}`" if key.default else "none" if key.default == "" else "required")


def note(key: Key) -> str:
    """Return for which ends a key is."""
    return f" ({key.only_for.replace(' listen', '')} that listens)" if key.only_for else ""


def markdown(keys: Mapping[str, Key]) -> str:
    """Return the keys as a table."""
    rows = ["| key | type | default | | on reload |", "|---|---|---|---|---|"]
    for key in keys.values():
        kind = key.kind.name.replace(" | ", ", ")
        rows.append(f"| `{key.name}` | {kind} | {default(key)} | {key.help}{note(key)} | {key.reload} |")
    return "\n".join(rows)


def roff(keys: Mapping[str, Key]) -> str:
    """Return the keys as tagged paragraphs, man(7)."""
    rows = []
    for key in keys.values():
        kind = key.kind.name.replace(" | ", ", ")
        text = f"{key.help}{note(key)}. Default: {default(key)}. On reload: {key.reload}."
        rows += [".TP", f'.BR {key.name} " ({kind})"', text[0].upper() + text[1:].replace("`", "").replace("\\", "\\e")]
    return "\n".join(rows).replace("-", "\\-").replace("±", "\\[+-]")


FILES: dict[str, tuple[str, str, Callable[[Mapping[str, Key]], str]]] = {
    "README.md": ("<!-- {} keys: made by tests/test_readme.py -->", "<!-- end -->", markdown),
    "etc/man/relayd.8": ('.\\" {} keys: made by tests/test_readme.py', '.\\" end', roff),
}


def made_anew(name: str) -> str:
    """Return a file with its tables made anew."""
    head, end, render = FILES[name]
    text = (ROOT / name).read_text()
    for kind, keys in TABLES.items():
        begin = head.format(kind)
        before, _, rest = text.partition(begin + "\n")
        _, _, after = rest.partition(end + "\n")
        text = f"{before}{begin}\n{render(keys)}\n{end}\n{after}"
    return text


@pytest.mark.parametrize("name", FILES)
def test_the_tables_are_those_of_the_keys(name: str) -> None:
    assert (ROOT / name).read_text() == made_anew(name), "python -m tests.test_readme writes them"


@pytest.mark.parametrize("kind", TABLES)
def test_every_key_is_in_its_table(kind: str) -> None:
    part = (ROOT / "README.md").read_text().split(f"<!-- {kind} keys")[1].split("<!-- end -->")[0]
    assert re.findall(r"^\| `([a-z_]+)`", part, re.M) == list(TABLES[kind])


if __name__ == "__main__":
    for path in FILES:
        Path(ROOT / path).write_text(made_anew(path))
