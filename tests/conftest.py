"""Options of the suite, and its skips: one that nobody knows of is a test that nobody runs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

# What is asserted in the tests' own modules is to tell its values, too.
for _package in ("bench", "fakes", "faults", "fuzz", "integration", "net", "support", "wire"):
    pytest.register_assert_rewrite(f"tests.{_package}")

KNOWN_SKIPS = Path(__file__).with_name("skips.txt")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("relayd")
    group.addoption("--no-new-skips", action="store_true", help="fail where a test is skipped that is not in skips.txt")
    group.addoption("--long", action="store_true", help="run the long form of the fault suite")
    group.addoption("--seed", type=int, default=1, help="of everything random in the fault suite (default: 1)")
    group.addoption("--table", action="store_true", help="write tests/faults/TABLE.md anew")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Started in the background by a script; what the tests start would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    is_worker = hasattr(config, "workerinput")  # of xdist, whose reports come here too
    if config.getoption("--no-new-skips") and not is_worker:
        config.pluginmanager.register(_Skips(config))


class _Skips:
    """Counts what is skipped, and fails the run where one is new."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._known = {line for line in KNOWN_SKIPS.read_text().splitlines() if line and not line.startswith("#")}
        self._known_count = 0
        self._new: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._note(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._note(report)

    def _note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped:
            return
        test = report.nodeid.partition("[")[0].partition("@")[0]
        if test in self._known:
            self._known_count += 1
        else:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self._new.append(f"{test}: {reason}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"skips: {self._known_count} known, {len(self._new)} new")
        for skip in self._new:
            terminalreporter.write_line(f"NEW SKIP {skip}")

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._new and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
