"""The descriptor limit and the standard descriptors, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from tests.support import PATIENCE, ROOT


def limited(soft: int, hard: int, code: str) -> Any:
    """Run code in a process with that limit of descriptors; return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json, resource\nfrom relayd.process.limits import *\n{code}"],
        cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard)),
    )  # fmt: skip
    return json.loads(done.stdout)


_RAISE = "print(json.dumps([raise_descriptor_limit(), resource.getrlimit(resource.RLIMIT_NOFILE)]))"


def test_l10_the_soft_limit_is_raised_to_the_hard_one_and_a_reserve_is_kept() -> None:
    assert limited(64, 256, _RAISE) == [256 - 32, [256, 256]]


def test_l10_a_limit_that_is_all_there_is_stays() -> None:
    assert limited(256, 256, _RAISE) == [224, [256, 256]]


def test_l10_there_is_room_for_one_link_at_least() -> None:
    assert limited(20, 20, _RAISE)[0] == 1


def test_l10_where_raising_is_forbidden_the_soft_limit_is_what_there_is() -> None:
    forbid = "def refuse(*_): raise PermissionError\nresource.setrlimit = refuse\n"
    assert limited(100, 256, forbid + _RAISE) == [68, [100, 256]]


def closed(fds: Iterable[int]) -> Callable[[], None]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


def run_closed(fds: Iterable[int], words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run Python with standard descriptors closed."""
    return subprocess.run(
        [sys.executable, *words], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE, check=False, preexec_fn=closed(fds),
    )  # fmt: skip


_SUBSETS = [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)]


@pytest.mark.parametrize("fds", _SUBSETS, ids=str)
def test_p18_closed_standard_descriptors_are_filled_and_no_socket_gets_their_number(
    fds: tuple[int, ...], tmp_path: Any
) -> None:
    result = tmp_path / "result"
    code = (
        "import os, socket\n"
        "from relayd.process.limits import fill_standard_descriptors\n"
        "fill_standard_descriptors()\n"
        "with socket.socket() as sock: number = sock.fileno()\n"
        f"names = [os.readlink(f'/proc/self/fd/{{fd}}') for fd in {list(fds)!r}]\n"
        f"open({str(result)!r}, 'w').write(repr((number, names)))\n"
    )
    assert run_closed(fds, ["-c", code]).returncode == 0
    number, names = eval(result.read_text())
    assert number > 2
    assert names == ["/dev/null"] * len(fds)


def test_p18_open_standard_descriptors_are_left_alone() -> None:
    code = (
        "import os\nfrom relayd.process.limits import fill_standard_descriptors\n"
        "look = lambda: [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3)]\n"
        "before, count = look(), len(os.listdir('/proc/self/fd'))\n"
        "fill_standard_descriptors()\n"
        "assert look() == before and len(os.listdir('/proc/self/fd')) == count\n"
    )
    assert run_closed((), ["-c", code]).returncode == 0


@pytest.mark.parametrize("fds", [(0,), (1,), (2,), (0, 1, 2)], ids=str)
@pytest.mark.parametrize(
    ("words", "status"),
    [(["--version"], 0), ([":5000", "--check"], 2), (["127.0.0.1:1", "127.0.0.1:5000", "--check"], 0)],
    ids=["version", "wrong", "check"],
)
def test_p18_relayd_works_with_standard_descriptors_closed(fds: tuple[int, ...], words: list[str], status: int) -> None:
    done = run_closed(fds, ["-m", "relayd", *words])
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


_READS = """
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(200):
        for data in [bytes(READ_MAX) for _ in range(7)]:  # all at once: reads, and what is made of them
            data.count(0)
        del data
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
lost = faults()
keep_freed_memory()
kept = faults()
print(json.dumps([lost, kept]))
"""


def test_large_reads_use_the_same_memory_again() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("what other C libraries keep is their own affair")
    lost, kept = limited(256, 256, _READS)
    pages = 200 * 7 * (256 * 1024 // os.sysconf("SC_PAGE_SIZE"))
    assert kept < pages / 10 < lost
