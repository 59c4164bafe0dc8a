"""The installed program, the rig of each test, and the table of what was seen."""

from __future__ import annotations

import importlib
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import relayd
from tests.faults.rig import Rig
from tests.faults.rows import ROWS, TABLE, table
from tests.support import ROOT, Namespace


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep each file on one worker: some share a daemon. Give the long form its time."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
            if config.getoption("--long"):
                item.add_marker(pytest.mark.timeout(2 * 3600))  # seconds; K8 alone takes 45 minutes


_seen: list[tuple[str, str]] = []  # (row, what was seen)


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Relayd as users get it: a wheel is built and installed, and its script run."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    source.mkdir()
    for name in ("relayd", "etc"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    venv, pip = folder / "venv", [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], check=True, timeout=120)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True, timeout=120)
    wheels = list(folder.glob("*.whl"))
    subprocess.run([*pip, "--python", venv / "bin/python", "install", *wheels], check=True, timeout=120)
    return [str(venv / "bin/relayd")]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path, program: list[str]) -> Rig:
    """What a scenario runs on."""
    options, row_id = request.config, request.function.row_id

    def note(text: str) -> None:
        # By the report, for the test may run in another process than the one that writes the table.
        request.node.user_properties.append((row_id, text))

    note("")
    return Rig(tmp_path, program, note, options.getoption("--seed"), options.getoption("--long"))


@pytest.fixture
def public(rig: Rig) -> Iterator[Path]:
    """The rig works in a folder that belongs to nobody (the user)."""
    rig.folder = Path(tempfile.mkdtemp(prefix="relayd-"))
    rig.folder.chmod(0o755)
    shutil.chown(rig.folder, "nobody", "nogroup")
    yield rig.folder
    shutil.rmtree(rig.folder)


@pytest.fixture
def machine() -> Iterator[Namespace]:
    """A machine of the test's own."""
    with Namespace() as made:
        yield made


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep what was seen where all went well."""
    if report.when == "call" and report.passed:
        for row_id, text in report.user_properties:
            _seen.append((row_id, text))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table anew, where that is asked for, with what was seen where all went well."""
    is_worker = hasattr(session.config, "workerinput")
    if session.config.getoption("--table") and not is_worker:
        for file in Path(__file__).parent.glob("test_*.py"):
            importlib.import_module(f"tests.faults.{file.stem}")
        for row_id, text in _seen:
            ROWS[row_id].seen += [text] if text else []
        for row_id, _ in _seen:  # it ran, and there was no figure to tell
            ROWS[row_id].seen = ROWS[row_id].seen or ["as required"]
        form = "long" if session.config.getoption("--long") else "short"
        where = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
        day = time.strftime("%Y-%m-%d", time.gmtime())
        TABLE.write_text(table(f"Seen in the {form} form: {day}, relayd {relayd.__version__}, {where}."))
