"""Who listens on a port: for the message that says it is taken. Linux's /proc, proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice, takewhile

# Descriptors to look at, some twenty milliseconds. A reload looks while streams run, and some programs hold a hundred
# thousand.
_LOOKS_MAX = 5000

_LISTEN = "0A"  # the state TCP_LISTEN in /proc/net/tcp


def listening_process(port: int) -> str:
    """Return "NAME (pid N)" of a process that listens on the TCP port, "" where it cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return ""
    for pid, link in islice(_open_files(), _LOOKS_MAX):
        if link in inodes:
            return f"{_command(pid)} (pid {pid})"
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on the port."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="utf-8") as lines:  # a codec that is loaded: there is no other in a chroot
                next(lines, None)  # the headings
                # Those that listen stand first; of the others there may be very many: each of the last minute.
                for fields in takewhile(lambda fields: fields[3] == _LISTEN, map(str.split, lines)):
                    if fields[1].endswith(f":{port:04X}"):
                        yield fields[9]
        except OSError:
            continue  # no IPv6, or no /proc in this sandbox: then the owner stays unknown


def _open_files() -> Iterator[tuple[str, str]]:
    """Yield each process with each of its descriptors, as far as they can be seen."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    yield pid, os.readlink(entry.path)
        except OSError:
            continue  # another user's process, or it has just ended


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as text:
            return text.read().strip()
    except OSError:
        return "a process"
