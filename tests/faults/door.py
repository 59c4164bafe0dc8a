"""A relay whose door is asked at: who is let in, and who is served."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.faults.rig import Rig
from tests.integration.daemons import Site, relay
from tests.support import CELL, PATIENCE, connect, free_port, keyed, receive, reset_connection, wait_until


class Door:
    """A relay that both ends come to, its source, and those who ask to come in."""

    def __init__(self, site: Site, stack: ExitStack, ports: tuple[int, int]) -> None:
        self.site = site
        self.port = ports[1]
        self._stack = stack
        self._asked = self._cells = 0
        self._source = connect(ports[0])
        stack.callback(reset_connection, self._source)

    def ask(self, count: int, host: str = "127.0.0.1", to: str = "127.0.0.1") -> list[socket.socket]:
        """Have so many come from the host; return them, or what is left of them, when relayd has decided on all."""
        found = []
        for _ in range(count):
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            self._stack.callback(reset_connection_if_open, sock)
            sock.settimeout(PATIENCE)
            sock.bind((host, 0))
            try:
                sock.connect((to, self.port))
            except ConnectionResetError:  # it was quick
                sock.close()
            found.append(sock)
        self._asked += count
        deadline = time.monotonic() + PATIENCE
        while self.decided() != self._asked:
            assert time.monotonic() < deadline, f"no decision on {self._asked}"
            time.sleep(0.05)  # a status is work for relayd, with hundreds of links in it
        return found

    def decided(self) -> int:
        """Return how many were let in or turned away."""
        totals = self.site.relay("one")["totals"]
        return int(totals["destination_links"] + totals["refused"])

    def served(self, socks: list[socket.socket]) -> int:
        """Send a cell; return how many of them get it. The others must have been reset."""
        cell = keyed("feed", self._cells, 1)
        self._cells += 1
        self._source.sendall(cell)
        wait_until(lambda: self.site.relay("one")["totals"]["bytes_in"] == self._cells * CELL, "the cell")
        count = 0
        for sock in socks:
            if sock.fileno() < 0:
                continue
            try:
                assert receive(sock, CELL) == cell
                count += 1
            except ConnectionResetError:
                sock.close()
        return count


def reset_connection_if_open(sock: socket.socket) -> None:
    """Close with RST what may be closed already."""
    if sock.fileno() >= 0:
        reset_connection(sock)


@contextmanager
def door(rig: Rig, destination: object = None, **keys: object) -> Iterator[Door]:
    """Run a daemon with one relay, whose source is up."""
    source_port, port = free_port(), free_port()
    one = relay("one", source_port, port if destination is None else f"{destination}:{port}", framing="line", **keys)
    with rig.daemon(one) as site, ExitStack() as stack:
        yield Door(site, stack, (source_port, port))
