"""The installed program, the rig of each test, and the table of what was seen."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import relayd
from tests.faults.rig import Rig
from tests.faults.rows import TABLE, table
from tests.support import ROOT


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the suite on one worker: its scenarios are about time, and one at a time is enough."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("faults"))


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
    options = request.config
    return Rig(tmp_path, program, request.function.row_id, options.getoption("--seed"), options.getoption("--long"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table anew, where that is asked for and all is well."""
    if session.config.getoption("--table") and not session.testsfailed:
        form = "long" if session.config.getoption("--long") else "short"
        where = f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
        day = time.strftime("%Y-%m-%d", time.gmtime())
        TABLE.write_text(table(f"Seen in the {form} form: {day}, relayd {relayd.__version__}, {where}."))
