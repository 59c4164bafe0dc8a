"""The tables of the README and the manual are made from the tables that the program reads.

`python -m tests.test_readme` writes them anew.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS, Key
from relayd.wire.framings import FRAMINGS, parse_framing
from tests.support import ROOT

KEYS = {"relay keys": RELAY_KEYS, "daemon keys": DAEMON_KEYS}


def default(key: Key) -> str:
    """Return a key's default in words."""
    return key.default_help or (f"`{key.default}`" if key.default else "none" if key.default == "" else "required")


def note(key: Key) -> str:
    """Return for which ends a key is."""
    return f" ({key.only_for.replace(' listen', '')} that listens)" if key.only_for else ""


def type_of(key: Key) -> str:
    """Return what a value may be."""
    return f"{key.kind.name.replace(' | ', ', ')} {key.kind.bounds}".strip()


def markdown_keys(keys: Mapping[str, Key]) -> str:
    """Return the keys as a table."""
    rows = ["| key | type | default | | on reload |", "|---|---|---|---|---|"]
    for key in keys.values():
        rows.append(f"| `{key.name}` | {type_of(key)} | {default(key)} | {key.help}{note(key)} | {key.reload} |")
    return "\n".join(rows)


def markdown_framings() -> str:
    """Return the framings as a table."""
    rows = ["| `framing` | |", "|---|---|"]
    rows += ["| `{}` | {} |".format(kind.usage.replace("|", "\\|"), kind.help) for kind in FRAMINGS.values()]
    return "\n".join(rows)


def roff(text: str) -> str:
    """Return a text as man(7) wants it."""
    return text.replace("\\", "\\e").replace("`", "").replace("-", "\\-").replace("±", "\\[+-]")


def roff_keys(keys: Mapping[str, Key]) -> str:
    """Return the keys as tagged paragraphs, man(7)."""
    rows = []
    for key in keys.values():
        text = f"{key.help}{note(key)}. Default: {default(key)}. On reload: {key.reload}."
        rows += [".TP", roff(f'.BR {key.name} " ({type_of(key)})"'), roff(text[0].upper() + text[1:])]
    return "\n".join(rows)


def roff_framings() -> str:
    """Return the framings as tagged paragraphs, man(7)."""
    rows = []
    for kind in FRAMINGS.values():
        rows += [".TP", roff(f'.B "{kind.usage}"'), roff(kind.help[0].upper() + kind.help[1:] + ".")]
    return "\n".join(rows)


README, MANUAL = "README.md", "etc/man/relayd.8"

# What stands around a table, and the tables by name.
MARKS = {
    README: ("<!-- {}: made by tests/test_readme.py -->", "<!-- end -->"),
    MANUAL: ('.\\" {}: made by tests/test_readme.py', '.\\" end'),
}
TABLES = {
    README: {**{name: markdown_keys(keys) for name, keys in KEYS.items()}, "framings": markdown_framings()},
    MANUAL: {**{name: roff_keys(keys) for name, keys in KEYS.items()}, "framings": roff_framings()},
}


def made_anew(name: str) -> str:
    """Return a file with its tables made anew."""
    text = (ROOT / name).read_text()
    mark, end = MARKS[name]
    for table, rows in TABLES[name].items():
        begin = mark.format(table)
        before, found, rest = text.partition(begin + "\n")
        assert found, f"{name} has no {begin}"
        _, _, after = rest.partition(end + "\n")
        text = f"{before}{begin}\n{rows}\n{end}\n{after}"
    return text


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_the_program(name: str) -> None:
    assert (ROOT / name).read_text() == made_anew(name), "python -m tests.test_readme writes them"


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_is_in_its_table(kind: str) -> None:
    part = (ROOT / README).read_text().split(f"<!-- {kind}")[1].split("<!-- end -->")[0]
    assert re.findall(r"^\| `([a-z_]+)`", part, re.M) == list(KEYS[kind])


def test_every_framing_that_the_readme_writes_out_is_one() -> None:
    for text in re.findall(r"framing ?= ?([a-z0-9]+[^\s`]*)", (ROOT / README).read_text()):
        parse_framing(text)


def words_of_the_log() -> set[str]:
    """Return the events that the program logs, and the reasons that it gives for the end of a link or a refusal."""
    logging = {"debug", "info", "warning", "error", "burst", "tell"}
    ending = {"abort", "close", "finish", "end", "_retire", "_exhausted", "_lose"}
    words: set[str] = set()
    # The links of the control socket are not in the log.
    for path in set((ROOT / "relayd").rglob("*.py")) - {ROOT / "relayd/controller.py"}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", "tell" if node.keywords else ""))
                given = [*(node.args if name in logging | ending else ())]
                given += [keyword.value for keyword in node.keywords if keyword.arg == "reason"]
            elif isinstance(node, ast.FunctionDef) and node.name.lstrip("_") == "refusal":
                given = [found.value for found in ast.walk(node) if isinstance(found, ast.Return) and found.value]
            else:
                continue
            found = [inner for value in given for inner in ast.walk(value) if isinstance(inner, ast.Constant)]
            words |= {constant.value for constant in found if re.fullmatch(r"[a-z_]+", str(constant.value))}
    return words


def test_every_event_and_reason_of_the_log_is_in_the_manual() -> None:
    words = words_of_the_log()
    assert {"listening", "closed", "caught_up", "slow", "stale", "second_source", "loop", "removed", "behind"} <= words
    section = (ROOT / MANUAL).read_text().split(".SH LOG")[1].split(".SH FILES")[0]
    assert words <= set(re.findall(r"[a-z_]+", section)), words - set(re.findall(r"[a-z_]+", section))


if __name__ == "__main__":
    for path in TABLES:
        Path(ROOT / path).write_text(made_anew(path))
