"""Where and with what the figures were made."""

from __future__ import annotations

import datetime
import os
import platform
import re
from pathlib import Path

from tests.bench.peers import PEERS
from tests.bench.run import Cores


def describe(cores: Cores) -> dict[str, str]:
    """Return what a reader has to know to compare figures, in the order it is shown."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    virtual = " (virtual)" if "hypervisor" in Path("/proc/cpuinfo").read_text() else ""
    versions = [f"{peer.label} {peer.read_version()}" for peer in PEERS.values() if peer.read_version()]
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{cpu[1] if cpu else platform.machine()}, {os.cpu_count()} cores{virtual}, {memory:.0f} GiB",
        "cores used": f"relay {cores.relay}, load {cores.load}" + (", the same!" if cores.relay == cores.load else ""),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "programs": ", ".join(versions),
    }
