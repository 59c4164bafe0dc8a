"""The benchmark tells a good relay from one that drops, doubles, swaps or tears."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import report
from tests.bench.bars import BARS
from tests.bench.cases import CASES, Case, Chain
from tests.bench.peers import PEERS
from tests.bench.plot import draw
from tests.bench.results import Results
from tests.bench.run import Cores, compile_programs, run_once, trouble_of
from tests.support import PATIENCE, listener

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")

Blocks = Iterator[bytes]

MESSAGE, LINE = 100, 64  # what the load sends while everybody joins, too


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("programs")
    compile_programs(directory)  # warnings are errors
    return directory


# -- the load, and relays that do wrong ------------------------------------------------------------


def drop(blocks: list[bytes]) -> list[bytes]:
    return blocks[1:]


def double(blocks: list[bytes]) -> list[bytes]:
    return [blocks[0], *blocks]


def swap(blocks: list[bytes]) -> list[bytes]:
    return blocks[::-1]


def tear(blocks: list[bytes]) -> list[bytes]:
    return [blocks[0][:-10], blocks[1]]


def spoil(blocks: list[bytes]) -> list[bytes]:
    return [blocks[0][:40] + b"?" + blocks[0][41:], blocks[1]]


def faultless(blocks: list[bytes]) -> list[bytes]:
    return blocks


Fault = Callable[[list[bytes]], list[bytes]]


def relay(sources: socket.socket, clients: socket.socket, size: int, at: int, fault: Fault) -> None:
    """Carry blocks of `size` bytes; what is done to two of them, from number `at` on, is `fault`."""
    with sources.accept()[0] as source, clients.accept()[0] as client:
        source.settimeout(PATIENCE)
        number = 0
        while block := source.recv(size, socket.MSG_WAITALL):
            number += 1
            blocks = [block]
            if number == at:
                blocks = fault([block, source.recv(size, socket.MSG_WAITALL)])
            client.sendall(b"".join(blocks))


def run_load(programs: Path, fault: Fault, mode: str, at: int, **options: float) -> dict[str, Any]:
    """Return what the load says of a relay with that fault."""
    with listener() as sources, listener() as clients:
        size = LINE if mode == "bulk" else MESSAGE
        carrier = threading.Thread(target=relay, args=(sources, clients, size, at, fault), daemon=True)
        carrier.start()
        ports = {"source": sources.getsockname()[1], "clients": clients.getsockname()[1]}
        words = [word for name, value in {**ports, **options}.items() for word in (f"--{name}", str(value))]
        done = subprocess.run(
            [programs / "load", mode, "--patience", "0.5", *words], input=b"go\n", capture_output=True, timeout=PATIENCE
        )
        carrier.join(PATIENCE)
    assert done.returncode == 0, done.stderr.decode()
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return seen


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (faultless, {}),
        (drop, {"lost": 1}),
        (double, {"duplicated": 1}),
        (swap, {"reordered": 1}),
        (tear, {"lost": 2, "torn": 2}),  # the torn one, and the one whose beginning was taken for its end
        (spoil, {"lost": 1, "torn": 1}),
    ],
)
def test_faults_in_messages_are_found(programs: Path, fault: Fault, wrong: dict[str, int]) -> None:
    seen = run_load(programs, fault, "paced", 50, size=MESSAGE, rate=1000, seconds=0.2)["timed"]
    assert {name: seen[name] for name in ("lost", "torn", "duplicated", "reordered") if seen[name]} == wrong
    assert seen["sent"] == 200 and seen["delivered"] == 200 - wrong.get("lost", 0)


@needs_compiler
@pytest.mark.parametrize("fault", [drop, double, swap, tear, spoil])
def test_faults_in_the_verified_part_of_bulk_end_the_run(programs: Path, fault: Fault) -> None:
    seen = run_load(programs, fault, "bulk", 1000, size=65536, verify=2**17, bytes=2**20)
    assert seen["verified"]["torn"] == 1 and "timed" not in seen


@needs_compiler
@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        (faultless, {}),
        (drop, {"lost": LINE, "torn": 1}),
        (double, {"duplicated": LINE, "torn": 1}),
        (tear, {"lost": 10, "torn": 1}),
    ],
)
def test_faults_in_the_timed_part_of_bulk_are_found(programs: Path, fault: Fault, wrong: dict[str, int]) -> None:
    seen = run_load(programs, fault, "bulk", 4000, size=65536, verify=2**17, bytes=2**20)["timed"]
    assert {name: seen[name] for name in ("lost", "torn", "duplicated") if seen[name]} == wrong


@needs_compiler
def test_a_stream_that_never_comes_is_no_success(programs: Path) -> None:
    def nothing(blocks: list[bytes]) -> list[bytes]:
        return []

    seen = run_load(programs, nothing, "paced", 1, size=MESSAGE, rate=1000, seconds=0.2, count=2)
    assert seen["served"] < seen["count"] and "timed" not in seen


# -- the harness, with relayd ----------------------------------------------------------------------


@needs_compiler
@pytest.mark.skipif(not shutil.which("taskset"), reason="no taskset here")
@pytest.mark.parametrize(
    ("chain", "peer", "load"),
    [
        (Chain.PAIR, "relayd", {"size": 65536, "bytes": 2**23, "seconds": 5, "verify": 2**20}),
        (Chain.FAN, "relayd", {"count": 8, "size": 100, "rate": 500, "seconds": 0.2}),
        (Chain.FAN, "floor-copy", {"count": 8, "size": 65536, "bytes": 2**23, "seconds": 5, "verify": 2**20}),
        (Chain.PAIR, "floor-splice", {"size": 100, "rate": 500, "seconds": 0.2}),
    ],
)
def test_a_small_run_is_intact(programs: Path, chain: Chain, peer: str, load: dict[str, float]) -> None:
    keys = {"overflow": "block"}
    load = {**load, "patience": PATIENCE}
    case = Case("tiny", "tiny", chain, "bytes" in load, load, (peer,), keys)
    row = run_once(case, PEERS[peer], Cores.choose(), programs, quick=False, settle=0)
    assert row["trouble"] == ""
    assert row["cpu"] > 0 and row["rss_end"] > 0


@needs_compiler
def test_a_relayd_that_does_not_start_says_why(programs: Path) -> None:
    case = Case("tiny", "tiny", Chain.FAN, False, {"size": 100}, ("relayd",), {"buffer": "none"})
    assert "buffer" in run_once(case, PEERS["relayd"], Cores.choose(), programs, quick=True, settle=0)["trouble"]


# -- what is made of the figures -------------------------------------------------------------------


def part(**wrong: int) -> dict[str, int]:
    return {"sent": 1000, "lost": 0, "torn": 0, "duplicated": 0, "reordered": 0, "closed": 0, **wrong}


@pytest.mark.parametrize(
    ("seen", "trouble"),
    [
        ({"timed": part()}, ""),
        ({"timed": part(lost=500)}, "lost 5 %"),
        ({"timed": part(torn=3, closed=1)}, "3 torn, 1 links closed"),
        ({"timed": part(sent=500, lost=500)}, "holds up the source: 50% of the rate"),
        ({"timed": part(), "storm": {"served": 9, "count": 10}}, "serves 9 of 10"),
    ],
)
def test_trouble_is_told(seen: dict[str, Any], trouble: str) -> None:
    assert trouble_of(seen, {"count": 10, "rate": 100, "seconds": 10}) == trouble


def row(number: int, peer: str, cpu: float, trouble: str = "") -> dict[str, Any]:
    return {"round": number, "case": "messages-100", "peer": peer, "trouble": trouble, "cpu": cpu, "rss_idle": 2**24}


def test_ratios_are_of_the_same_round() -> None:
    figures = [("relayd", 2.0), ("floor-copy", 1.0), ("relayd", 30.0), ("floor-copy", 10.0), ("relayd", 4.0)]
    results = Results({}, [row(number // 2, *figure) for number, figure in enumerate(figures)])
    seen = results.ratio("messages-100", "relayd", "floor-copy", "cpu")
    assert seen and (seen.low, seen.middle, seen.high) == (2.0, 2.5, 3.0)


def test_the_report_shows_what_was_missed_and_what_went_wrong(tmp_path: Path) -> None:
    rows = [row(0, "relayd", 2.0), row(0, "floor-copy", 1.0), row(0, "ncat", 3.0, "lost 12 %")]
    results = Results({"date": "today"}, rows)
    report.write(results, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text("utf-8")
    assert "| 1.35 x | 2.00 x | **missed** |" in text
    assert "| 25.0 MB | 16.0 MB | met |" in text
    assert text.count("lost 12 %") == 1
    assert "(lost 12 %)" in report.summary_markdown(results)


def test_the_plot_is_small_and_shows_who_failed(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row(0, peer, 1.0) for peer in ("relayd", "floor-copy")] + [row(0, "str2str", 0.0, "serves 32 of 100")]
    draw(Results({"date": "today"}, rows), tmp_path / "results.svg")
    drawn = (tmp_path / "results.svg").read_bytes()
    assert len(drawn) < 60_000 and b"serves 32 of 100" in drawn


def test_every_bar_and_case_names_what_there_is() -> None:
    nothing = Results({}, [])
    assert all(bar.seen(nothing) is None for bar in BARS)
    assert {peer for case in CASES.values() for peer in case.peers} == set(PEERS)
