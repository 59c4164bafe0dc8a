"""Churn: clients of every kind come and go, several at a time, beside a stream that goes on."""

from __future__ import annotations

import random
import socket
import threading
from collections import Counter
from contextlib import ExitStack

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import Ends
from tests.integration.daemons import Feed, relay
from tests.support import PATIENCE, Collector, check_keyed, free_port, receive, reset_connection, wait_until

KINDS = ("rst", "fin", "half-close", "fin with unread input", "talker", "denied")

DENIED = "127.0.0.2"


class Visitors(threading.Thread):
    """Comes and goes so many times, one visit after the other, each of a kind by lot."""

    def __init__(self, port: int, times: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.kinds: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._port, self._times, self._random = port, times, random.Random(seed)
        self.start()

    def run(self) -> None:
        try:
            for _ in range(self._times):
                kind = self._random.choice(KINDS)
                with socket.socket() as sock:
                    sock.settimeout(PATIENCE)
                    self._visit(sock, kind)
                self.kinds[kind] += 1
        except BaseException as error:
            self.error = error

    def _visit(self, sock: socket.socket, kind: str) -> None:
        sock.bind((DENIED if kind == "denied" else "127.0.0.1", 0))
        if kind == "denied":
            try:
                sock.connect(("127.0.0.1", self._port))
                assert not sock.recv(1), "a denied one was served"
            except ConnectionResetError:
                return
            raise AssertionError("a denied one was not reset")
        sock.connect(("127.0.0.1", self._port))
        if kind == "half-close":
            sock.shutdown(socket.SHUT_WR)  # it goes on receiving
        if kind == "talker":
            sock.sendall(b"what nobody wants to hear\n" * 100)
        if kind in ("half-close", "talker"):
            receive(sock, 1)
        if kind == "fin with unread input":
            sock.sendall(b"\n")
        elif kind != "fin":
            reset_connection(sock)

    def end(self) -> Counter[str]:
        """Return how many visits there were of each kind, when all are over."""
        self.join()
        assert self.error is None, f"after {self.kinds}: {self.error!r}"
        return self.kinds


@row(
    "K6",
    provoked="100,000 clients (3,000 in the short form), four at a time: RST, FIN, FIN with unread input, half-close, "
    "such as talk, such as are denied",
    required="those who wait for data get it, the denied are reset; each that came in is logged as closed, with a "
    "reason; one client misses no byte of it all; nothing is left, less than 2 MiB",
)
def test_k6_churn(rig: Rig) -> None:
    visits, crowd = rig.times(3000, 100_000), 4
    ports = free_port(), free_port()
    with rig.daemon(relay("one", *ports, framing="line", deny=DENIED)) as site, ExitStack() as stack:
        ends = Ends(site, stack, "one", *ports, connects=False)
        client, source = ends.client(), ends.source()
        collector, feed = Collector(client), Feed(source, "feed", cells=50)
        visitors = [Visitors(ports[1], visits // crowd, rig.random.getrandbits(32)) for _ in range(crowd)]
        kinds: Counter[str] = sum((visitor.end() for visitor in visitors), Counter())
        wait_until(lambda: len(site.relay("one")["destinations"]) == 1, "the end of all visits")
        sent = feed.end()
        assert len(check_keyed("feed", collector.wait_for(sent), 0)) == feed.cells
        totals = site.relay("one")["totals"]
        came_in = sum(kinds.values()) - kinds["denied"]
        assert totals["destination_links"] == came_in + 1 and totals["refused"] == kinds["denied"], (totals, kinds)
        closed = site.lines("relay=one client=", "event=closed", "reason=")
        assert len(closed) == came_in, f"{len(closed)} of {came_in} were logged as closed"
        rig.saw(f"{came_in:,} let in, {kinds['denied']:,} denied; {sent / 1e3:.0f} kB to the one that stayed")
        client.shutdown(socket.SHUT_RDWR)
