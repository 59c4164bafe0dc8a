"""Who listens on a port: for the message that says it is taken. Linux's /proc, proc(5)."""

from __future__ import annotations

import os
from collections.abc import Iterator

_LISTEN = "0A"  # the state TCP_LISTEN in /proc/net/tcp


def listening_process(port: int) -> str:
    """Return "NAME (pid N)" of a process that listens on the TCP port, "" where it cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    if not inodes:
        return ""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if any(link in inodes for link in _open_files(pid)):
            return f"{_command(pid)} (pid {pid})"
    return ""


def _listening_inodes(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as lines:
                for fields in map(str.split, lines):
                    if fields[1].endswith(f":{port:04X}") and fields[3] == _LISTEN:
                        yield fields[9]
        except OSError:
            continue  # no IPv6, or no /proc in this sandbox: then the owner stays unknown


def _open_files(pid: str) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    try:
        for fd in os.listdir(folder):
            yield os.readlink(f"{folder}/{fd}")
    except OSError:
        return  # another user's process, or it has just ended


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as text:
            return text.read().strip()
    except OSError:
        return "a process"
