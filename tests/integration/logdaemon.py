"""A log daemon of the test's own, syslog or the journal, in a namespace."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from tests.support import PATIENCE, Namespace


class Datagrams:
    """A socket of the test's own in the place of a log daemon's, inside a namespace."""

    def __init__(self, folder: Path, namespace: Namespace, path: str, stack: ExitStack) -> None:
        folder.mkdir()
        self._sock = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        self._sock.bind(str(folder / Path(path).name))
        self._sock.settimeout(PATIENCE)
        self.received: list[str] = []
        place = str(Path(path).parent)
        if place == "/dev":  # another one, with what a program needs of it
            for name in ("null", "urandom"):
                (folder / name).touch()
                namespace.run("mount", "--bind", f"/dev/{name}", folder / name)
            namespace.run("mount", "--rbind", folder, place)
        else:
            namespace.run("mount", "-t", "tmpfs", "tmpfs", "/run")
            namespace.run("mkdir", "-p", place)
            namespace.run("mount", "--bind", folder, place)

    def wait(self, *parts: str) -> str:
        """Return the first datagram that holds all the parts."""
        while True:
            for datagram in self.received:
                if all(part in datagram for part in parts):
                    return datagram
            try:
                self.received.append(self._sock.recv(65536).decode())
            except TimeoutError:
                raise AssertionError(f"{parts} in {self.received}") from None
