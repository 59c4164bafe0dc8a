"""Options of the suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("relayd")
    group.addoption("--long", action="store_true", help="run the long form of the fault suite")
    group.addoption("--seed", type=int, default=1, help="of everything random in the fault suite (default: 1)")
    group.addoption("--table", action="store_true", help="write tests/faults/TABLE.md anew")
