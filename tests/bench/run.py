"""One run: a relay on one core, the load on the other, and what was seen."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.bench.cases import Case, Chain, Unit
from tests.bench.measure import Machine, cpu_seconds, family, listening_ports, resident_bytes, wait_until_idle
from tests.bench.peers import ROOT, SEARCH_PATH, Peer, Setup
from tests.bench.results import Row

HERE = Path(__file__).resolve().parent
PROGRAMS = ("load", "floor_copy", "floor_splice")

_START = 10.0  # seconds that a relay may take to listen
_ANSWER = 120.0  # and the load to say the next word; it gives up by itself long before


class RunFailedError(Exception):
    """There are no figures; the text says why, as it stands in the tables."""


def compile_programs(directory: Path) -> None:
    """Compile the C programs into `directory`."""
    for name in PROGRAMS:
        subprocess.run(
            ["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", directory / name, HERE / f"{name}.c"], check=True
        )


@dataclass(frozen=True)
class Cores:
    """Where the relay runs, and where the load and the harness do."""

    relay: int
    load: int

    @classmethod
    def choose(cls) -> Cores:
        """Take the first and the last that there are."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(cores[0], cores[-1])


def raise_descriptor_limit(wanted: int) -> int:
    """Return how many descriptors may be open now; only root can go beyond the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, wanted), hard):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        except (ValueError, OSError):
            continue
        break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def free_port() -> int:
    """Return a TCP port that nobody has, outside the range that outgoing connections are given."""
    while True:
        port = random.randrange(10000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) and port not in listening_ports():
                return port


def run_once(case: Case, peer: Peer, cores: Cores, programs: Path, quick: bool, settle: float = 5) -> Row:
    """Return the figures of one run; what a relay does wrong is in `trouble`.

    The machine has `settle` seconds to become idle before it; then it begins in any case.
    """
    wait_until_idle(settle)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relayd-bench-")))
            return _measure(stack, _setup(case, peer, directory, programs), peer, cores, quick)
    except RunFailedError as failure:
        return {"trouble": str(failure)}


def _setup(case: Case, peer: Peer, directory: Path, programs: Path) -> Setup:
    def pair() -> tuple[int, int]:
        source = free_port()
        return source, source if peer.one_port else free_port()

    return Setup(case, directory, programs, *pair(), pair() if "storm" in case.load else None)


def _measure(stack: ExitStack, setup: Setup, peer: Peer, cores: Cores, quick: bool) -> Row:
    command = _load_command(setup, quick)
    idle = None  # resident memory without clients; of a relay that connects nobody can say when that is
    if setup.case.chain is Chain.PAIR:  # the receiver must be there before the relay that connects to it
        load = stack.enter_context(_started(command, cores.load, setup.directory))
        _answer(load)
        relays = _start_relays(stack, setup, peer, cores)
    else:
        relays = _start_relays(stack, setup, peer, cores)
        idle = resident_bytes(_families(relays))
        load = stack.enter_context(_started(command, cores.load, setup.directory))
    word = _answer(load)
    if word != "ready":
        raise RunFailedError(_trouble_of_start(word, relays, setup))
    pids = _families(relays)
    joined = resident_bytes(pids)
    machine, before, load_before = Machine.now(), cpu_seconds(pids), cpu_seconds([load.pid])
    _stdin(load).write(b"go\n")
    word = _answer(load)
    used, load_used, after = cpu_seconds(pids) - before, cpu_seconds([load.pid]) - load_before, Machine.now()
    if not word or _any_ended(relays):
        raise RunFailedError("dies")
    end = resident_bytes(pids)
    _stdin(load).close()  # the load goes first: a relay that is stopped may wait for its clients to leave
    load.wait(_ANSWER)
    seen = json.loads(word)
    took = after.at - machine.at
    foreign = after.busy - machine.busy + after.stolen - machine.stolen - used - load_used
    return {
        **seen,
        "trouble": trouble_of(seen, setup.case.load_options(quick)),
        "cpu": _each(used, seen, setup.case.unit),
        "relay_busy": used / took,
        "load_busy": load_used / took,
        "foreign": max(0.0, foreign / took),
        "rss_idle": idle,
        "rss_joined": joined,
        "rss_end": end,
    }


def _each(used: float, seen: Mapping[str, Any], unit: Unit) -> float | None:
    """Return the CPU seconds `used` for each unit, None where there was not one."""
    units = {
        Unit.GIGABYTE: seen["timed"]["bytes"] / 1e9,
        Unit.DELIVERY: sum(seen[part]["delivered"] for part in ("calm", "timed") if part in seen) / 1e6,
        Unit.CONNECT: seen.get("storm", {}).get("served", 0) / 1e6,
    }
    return used / units[unit] if units[unit] else None


def _load_command(setup: Setup, quick: bool) -> list[str]:
    case = setup.case
    options = case.load_options(quick)
    options["source"] = setup.source
    options["serve" if case.chain is Chain.PAIR else "clients"] = setup.clients
    if setup.storm:
        options["storm-source"], options["storm-clients"] = setup.storm
    words = [word for name, value in options.items() for word in (f"--{name}", f"{value:.9g}")]
    return [str(setup.programs / "load"), "bulk" if case.bulk else "paced", *words]


# -- processes -----------------------------------------------------------------------------------


@contextmanager
def _started(command: list[str], core: int, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process pinned to a core, ended on the way out; what it complains of goes to a file of its own."""
    with open(directory / f"stderr-{Path(command[0]).name}", "ab") as complaints:
        process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": SEARCH_PATH},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, bufsize=0,
        )  # fmt: skip
    try:
        yield process
    finally:
        _stdin(process).close()
        process.terminate()
        try:
            process.wait(2)
        except subprocess.TimeoutExpired:
            for pid in reversed(family(process.pid)):
                os.kill(pid, 9)
            process.wait()
        _stdout(process).close()


def _start_relays(stack: ExitStack, setup: Setup, peer: Peer, cores: Cores) -> list[subprocess.Popen[bytes]]:
    relays = [stack.enter_context(_started(command, cores.relay, setup.directory)) for command in peer.commands(setup)]
    if setup.case.chain is Chain.PAIR:
        return relays  # the load connects as soon as somebody listens; socat does not after that
    ports = {port for stream in setup.streams for port in stream}
    deadline = time.monotonic() + _START
    while not ports <= listening_ports():
        if _any_ended(relays):
            raise RunFailedError(_last_words(setup.directory))
        if time.monotonic() > deadline:
            raise RunFailedError("does not listen")
        time.sleep(0.02)
    return relays


def _families(relays: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    return [pid for relay in relays for pid in family(relay.pid)]


def _any_ended(relays: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(relay.poll() is not None for relay in relays)


def _last_words(directory: Path) -> str:
    lines = [line for path in directory.glob("stderr-*") for line in path.read_text(errors="replace").splitlines()]
    words = lines[-1] if lines else "ended at once"
    return "not supported by this build" if "coalesce" in words else f"did not start: {words}"


def _answer(load: subprocess.Popen[bytes]) -> str:
    out = _stdout(load)
    if not select.select([out], [], [], _ANSWER)[0]:
        raise RunFailedError("the load does not come to an end")
    return out.readline().decode().strip()  # the load flushes whole lines; "": it has ended


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin
    return process.stdin


def _stdout(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout
    return process.stdout


# -- what went wrong -----------------------------------------------------------------------------


def _trouble_of_start(word: str, relays: Sequence[subprocess.Popen[bytes]], setup: Setup) -> str:
    """Return why the load did not say "ready"."""
    if not word:
        return _last_words(setup.directory) if _any_ended(relays) else "refuses connections"
    if _any_ended(relays):
        return "dies"
    seen = json.loads(word)
    if seen.get("verified"):
        return "loses or tears data: " + _damage(seen["verified"], seen["verified"]["sent"] * seen["count"])
    return f"serves {seen['served']:,} of {seen['count']:,}"


def trouble_of(seen: Mapping[str, Any], options: Mapping[str, float]) -> str:
    """Return what a relay did wrong in a run, as it stands in the tables; "" where all came as it was sent."""
    found = []
    storm = seen.get("storm")
    if storm and storm["served"] < storm["count"]:
        found.append(f"serves {storm['served']:,} of {storm['count']:,}")
    readers = options.get("count", 1) - options.get("stall", 0)
    for part, seconds in (("calm", "calm"), ("timed", "seconds"), ("serving", "")):
        if part not in seen:
            continue
        result = dict(seen[part])
        if not storm and "bytes" not in options:
            wanted = int(options["rate"] * options[seconds] + 0.5)
            if result["sent"] < 0.99 * wanted:
                found.append(f"holds up the source: {result['sent'] / wanted:.0%} of the rate")
                result["lost"] = 0  # it was not waited for
        found.append(_damage(result, result["sent"] * readers))
    return ", ".join(dict.fromkeys(filter(None, found)))


def _damage(result: Mapping[str, Any], expected: float) -> str:
    found = []
    if result["lost"]:
        found.append(f"lost {_percent(result['lost'] / expected)}")
    for what in ("torn", "duplicated", "reordered"):
        if result[what]:
            found.append(f"{result[what]:,} {what}")
    if result["closed"]:
        found.append(f"{result['closed']:,} links closed")
    return ", ".join(found)


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"
