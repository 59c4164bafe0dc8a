"""python -m tests.bench: see the package's docstring."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.bench import machine, report
from tests.bench.cases import CASES, SLOW_PEERS, Case
from tests.bench.peers import PEERS
from tests.bench.results import Results, Row
from tests.bench.run import HERE, Cores, compile_programs, raise_descriptor_limit, run_once

_SPARE_DESCRIPTORS = 100  # what a process needs besides its links


def main() -> None:
    """Run what was asked for and write the report."""
    arguments = _parse()
    cores = Cores.choose()
    os.sched_setaffinity(0, {cores.load})  # the harness itself must not run where the relay does
    descriptors = raise_descriptor_limit(max(case.links for case in CASES.values()) + _SPARE_DESCRIPTORS)
    results = Results(machine.describe(cores), [])
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as programs:
        compile_programs(Path(programs))
        for number in range(arguments.runs):
            for case, name in _turns(arguments):
                if _hopeless(results, case, name):
                    continue
                row: Row = {"round": number, "case": case.name, "peer": name}
                row["trouble"] = PEERS[name].missing() or _too_many(case, descriptors)
                if not row["trouble"]:
                    settle = 1 if arguments.quick else 2
                    row |= run_once(case, PEERS[name], cores, Path(programs), arguments.quick, settle)
                results.rows.append(row)
                sys.stdout.write(report.one_line(row) + "\n")
                sys.stdout.flush()
            report.write(results, arguments.output)  # what there is, should the next round be interrupted


def _turns(arguments: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    """Yield a round's cases and programs: they take turns in each case, and cases in each round."""
    for case in (CASES[name] for name in arguments.cases):
        yield from ((case, peer) for peer in case.peers if peer in arguments.peers)


def _hopeless(results: Results, case: Case, peer: str) -> bool:
    """Whether another program could not do the case at all: each round would tell the same, and wait for it."""
    before = [row for row in results.rows if (row["case"], row["peer"]) == (case.name, peer)]
    return bool(before) and not peer.startswith("relayd") and not any("timed" in row for row in before)


def _too_many(case: Case, descriptors: int) -> str:
    if case.links + _SPARE_DESCRIPTORS > descriptors:
        return f"needs {case.links:,} descriptors, may open {descriptors:,}"
    return ""


def _names(table: Mapping[str, object]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        chosen = text.split(",")
        unknown = [name for name in chosen if name not in table]
        if unknown:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)}; there are {', '.join(table)}")
        return chosen

    return parse


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--cases", type=_names(CASES), default=list(CASES), help="names, with commas")
    parser.add_argument("--peers", type=_names(PEERS), help="names, with commas")
    parser.add_argument("--runs", type=int, default=0, help="rounds, of which the median counts (5)")
    parser.add_argument("--quick", action="store_true", help="short runs, one round, and only the most telling peers")
    parser.add_argument("--output", type=Path, default=HERE, help="directory for the report and the raw figures")
    arguments = parser.parse_args()
    if not shutil.which("cc"):
        parser.error("a C compiler is needed: there is no cc")
    arguments.runs = arguments.runs or (1 if arguments.quick else 5)
    arguments.peers = arguments.peers or [name for name in PEERS if not (arguments.quick and name in SLOW_PEERS)]
    return arguments


if __name__ == "__main__":
    main()
