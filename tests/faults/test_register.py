"""The register is whole, and TABLE.md says what it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from tests.faults import rows


@pytest.fixture(autouse=True, scope="module")
def _all_scenarios() -> None:
    for file in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.faults.{file.stem}")


def test_every_row_has_a_scenario_or_a_reason() -> None:
    assert sorted(rows.catalogue()) == sorted([*rows.ROWS, *rows.LEFT_OUT])


def test_every_row_says_what_is_provoked_and_required() -> None:
    for row in rows.ROWS.values():
        assert row.provoked and row.required, row.id
        assert not re.search(r"(?<!\\)\|", row.provoked + row.required), f"{row.id} would break the table"


def test_the_table_is_that_of_these_rows() -> None:
    """Only what was seen, and when, is as it was at the last run with --table."""
    said = rows.TABLE.read_text().splitlines()
    for line in rows.table("").splitlines():
        assert not line or any(known.startswith(line.removesuffix(" |")) for known in said), f"not in TABLE.md: {line}"


def test_the_table_holds_a_run_of_all() -> None:
    for line in rows.TABLE.read_text().splitlines():
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        if len(cells) == 4 and cells[0].strip() in rows.ROWS:
            assert cells[3].strip(), f"nothing was seen: {line}"
