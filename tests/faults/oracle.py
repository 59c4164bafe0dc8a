"""What must be as it was when a scenario is over, whatever it was (FAULTS 2.2)."""

from __future__ import annotations

import datetime
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.control import ControlClient, verdict
from tests.integration.daemons import Site, descriptors
from tests.support import SLOWNESS, kept_waiting, stolen, wait_until

MIB = 1 << 20

CONTROL = "control"  # the relay that nobody touches

_LINE = re.compile(r"\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d{3}Z (debug|info|warning|error) ([ -~]*)")
_CAUSE = re.compile(r"\b(relay|event|reason)=(\S+)")


class Oracle:
    """Looks at a daemon when a scenario begins, and again when it is over."""

    def __init__(self, site: Site, ports: tuple[int, int], long: bool, enter: Sequence[str]) -> None:
        """`ports`: where the control relay has its source and its destination; `enter`: see ControlClient."""
        self._site = site
        self._pid = site.pid
        self._long = long
        self._figures_before = self._figures()
        self._memory_before = site.memory()
        self._kernel_before = kernel_memory()
        self._waited_before = kept_waiting(self._pid) + stolen()
        self._control = ControlClient(*ports, enter)

    def give_up(self) -> None:
        """The scenario failed: what is left behind says nothing."""
        self._control.kill()

    def check(self, grows: int, lag: float, pauses: bool) -> None:
        """Fail where something is not as it was.

        `grows`: bytes that the resident size may have grown; `lag`: the longest turn of the loop, in seconds;
        `pauses`: the process was stopped for a while, so that the control client had to wait.
        """
        seen = self._control.end()
        wrong = verdict(seen, pauses, self._waited())
        assert not wrong, f"the untouched relay: {wrong}"
        assert self._site.pid == self._pid, "it was restarted"
        self._same_figures()
        self._balanced()
        self._at_rest()
        self._shrunk(grows)
        if self._long:  # of the whole machine: others may be at work on it
            wait_until(lambda: kernel_memory() <= self._kernel_before + 2 * MIB, "the kernel's TCP memory")
        found = self._site.status()["loop_lag"]["max"]
        limit = lag * SLOWNESS + 2 * seen["direct_max"] + self._waited()
        assert pauses or found <= limit, f"a turn of the loop took {found} s of {limit}: {self._site.tail()}"
        check_log(self._site.lines())

    def _waited(self) -> float:
        """Return the seconds that others had the CPUs since the beginning: not relayd's to answer for."""
        return kept_waiting(self._pid) + stolen() - self._waited_before

    # -- 1: nothing is left behind ------------------------------------------------------------------

    def _figures(self) -> dict[str, int]:
        status = self._site.status()
        links = sum(len(relay["destinations"]) + (relay["source"]["state"] == "up") for relay in status["relays"])
        return {
            "descriptors": len(descriptors(self._pid)),
            "threads": len(os.listdir(f"/proc/{self._pid}/task")),
            "links": links,
            **status["loop"],
        }

    def _same_figures(self) -> None:
        """A line of the log that may repeat leaves a timer for ten seconds: so many more there may be."""
        bursts = 0 if self._long else len(self._site.lines(" warning ")) + len(self._site.lines(" error "))
        limits = {**self._figures_before, "timers": self._figures_before["timers"] + bursts}

        def same() -> bool:
            found = self._figures()
            return all(found[name] <= limit for name, limit in limits.items())

        try:
            wait_until(same, "what was before")
        except AssertionError:
            raise AssertionError(f"left behind: before {limits}, now {self._figures()}") from None

    # -- 2: every byte is accounted for ---------------------------------------------------------------

    def _balanced(self) -> None:
        for relay in self._site.status()["relays"]:
            unbalanced = books(relay)
            assert not unbalanced, unbalanced

    # -- 3, 4: time and memory ------------------------------------------------------------------------

    def _at_rest(self) -> None:
        """Less than 1 % of a core; a spin never ends, so one quiet moment of several is enough."""
        seconds = 2.0 if self._long else 0.2
        shares = []
        for _ in range(10):
            before = cpu_seconds(self._pid)
            time.sleep(seconds)
            shares.append((cpu_seconds(self._pid) - before) / seconds)
            if shares[-1] < 0.01:
                return
        raise AssertionError(f"not at rest: {shares} of a core")

    def _shrunk(self, grows: int) -> None:
        try:
            wait_until(lambda: self._site.memory() <= self._memory_before + grows)
        except AssertionError:
            now = self._site.memory()
            raise AssertionError(f"{self._memory_before / MIB:.1f} MiB resident before, {now / MIB:.1f} now") from None


def books(relay: dict[str, Any]) -> str:
    """Return what does not add up in a relay's part of the snapshot, or nothing.

    Only what is kept for ever can be added up from outside: the queues of connected destinations, of a raw stream.
    """
    totals, settings = relay["totals"], relay["settings"]
    if not settings["mode"].endswith("-connect") or settings["framing"] != "raw":
        return ""
    kept = len(settings["destination"].split(","))
    put = kept * totals["bytes_in"]
    queued = sum(link["queued"] for link in relay["destinations"])
    known = totals["bytes_out"] - totals["repeated"] + totals["dropped"] + queued
    return "" if known == put else f"{put} bytes were put into {kept} queues, {known} are known of: {relay}"


def check_log(lines: list[str]) -> None:
    """Fail where a line is none, forged, a traceback, or one of a flood."""
    seconds: Counter[tuple[str, ...]] = Counter()
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match, f"not a line of a log: {line!r}"
        at, level, fields = match.groups()
        assert "traceback=" not in fields, line
        # What is wrong with a file is told line by line to whoever has asked for the reload: that is no flood.
        if level in ("warning", "error") and "event=reload_failed" not in fields:
            seconds[(at, *(value for _, value in _CAUSE.findall(fields)))] += 1
    flood = [(cause, count) for cause, count in seconds.items() if count > 10]
    assert not flood, f"more than ten lines in a second of one cause: {flood}"


def logged_at(line: str) -> float:
    """Return when relayd wrote a line of its log, in seconds."""
    return datetime.datetime.fromisoformat(line.split()[0].replace("Z", "+00:00")).timestamp()


def forgive(site: Site) -> list[str]:
    """Return the lines about unexpected exceptions, and empty the log, which is refused with such."""
    found = site.lines("event=internal_error")
    site.log.write_text("")
    return found


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, to the nanosecond where the scheduler tells it (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def kernel_memory() -> int:
    """Return the bytes that TCP has of the whole machine (proc(5), sockstat)."""
    for line in Path("/proc/net/sockstat").read_text().splitlines():
        if line.startswith("TCP:"):
            return int(line.split()[-1]) * os.sysconf("SC_PAGE_SIZE")
    raise AssertionError("no TCP in sockstat")
