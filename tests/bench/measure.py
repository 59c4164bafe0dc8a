"""What /proc says: CPU time and memory of a process and its children, and how busy the machine is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """Return the process and all of its descendants, as far as they still live."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            found += map(int, _read(children).split())
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return what all their threads have run, user and system: in nanoseconds, where /proc/PID/stat counts ticks."""
    tasks = (task for pid in pids for task in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    return sum(int((_read(task) or "0").split()[0]) for task in tasks) / 1e9


def resident_bytes(pids: Iterable[int]) -> int:
    """Return their resident memory; what is shared between them counts for each."""
    lines = (line for pid in pids for line in _read(Path(f"/proc/{pid}/status")).splitlines())
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@dataclass(frozen=True)
class Machine:
    """CPU time of the whole machine up to a moment, in seconds."""

    at: float
    busy: float
    stolen: float

    @classmethod
    def now(cls) -> Machine:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        return cls(time.monotonic(), (user + nice + system + irq + softirq) / _TICK, steal / _TICK)


def wait_until_idle(patience: float, share: float = 0.15, window: float = 0.2) -> None:
    """Return once less than `share` of one core is in use, or when that will not come."""
    deadline = time.monotonic() + patience
    before = Machine.now()
    while time.monotonic() < deadline:
        time.sleep(window)
        after = Machine.now()
        if after.busy - before.busy + after.stolen - before.stolen < share * (after.at - before.at):
            return
        before = after


def listening_ports() -> set[int]:
    """Return the TCP ports that somebody listens on, without connecting to any."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in _read(Path("/proc/net") / name).splitlines()[1:]]
    return {int(fields[1].rpartition(":")[2], 16) for fields in lines if fields[3] == "0A"}


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # it has ended meanwhile
