"""A source that comes and goes, again and again: what every client got, to the byte, and how soon it was back."""

from __future__ import annotations

import re
import select
import socket
import time
from contextlib import ExitStack

from tests.faults.crowd import Crowd, Destination, Stream
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Site, name_of, relay
from tests.support import CELL, SLOWNESS, free_port, keyed, reset_connection, wait_until

_LATEST = 1.5  # of the wait between two attempts: the p99 of reconnecting


class FlappingSource:
    """Listens, or not; sends one link at a time a part of a keyed stream, and cuts it anywhere."""

    def __init__(self, rig: Rig, site: Site, port: int) -> None:
        self.waits: list[float] = []  # from when a link could be had until there was one
        self._rig = rig
        self._site = site
        self._port = port
        self._cells = 0  # that were sent by all links
        self._listener: socket.socket | None = None
        self._ready_at = 0.0

    def live(self) -> bytes:
        """Have one link, for 1-3 s in the long form; return what relayd has read of it."""
        random = self._rig.random
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._ready_at = time.monotonic()
        self._listener.settimeout(20 * SLOWNESS)
        link = self._listener.accept()[0]
        self.waits.append(time.monotonic() - self._ready_at)
        sent = b""
        end = time.monotonic() + self._seconds()
        while not sent or time.monotonic() < end:
            piece = keyed("flap", self._cells, random.randrange(1, 200))
            self._cells += len(piece) // CELL
            link.sendall(piece)
            sent += piece
            time.sleep(0.01)
        sent = self._cut(link, sent)
        assert not select.select([self._listener], [], [], 0)[0], "a second link beside the first"
        if random.random() < 0.5:
            link.close()
        else:
            reset_connection(link)
        self._ready_at = time.monotonic()
        closed = self._site.wait_log("source=", "event=closed", times=len(self.waits))
        received = int(re.findall(r" received=(\d+)", closed)[0])
        # What relayd had not read when the reset came is gone; a FIN comes after all that was sent.
        assert received == len(sent) or ("reason=reset" in closed and received < len(sent)), closed
        return sent[:received]

    def _cut(self, link: socket.socket, sent: bytes) -> bytes:
        """Send a part of a cell, or none; return all that was sent."""
        part = keyed("flap", self._cells, 1)[: self._rig.random.randrange(CELL)]
        link.sendall(part)
        self._cells += 1
        return sent + part

    def rest(self) -> None:
        """Be refused for a while, or keep the door open."""
        if self._rig.random.random() < 0.5:
            self.close()
            time.sleep(self._seconds())

    def _seconds(self) -> float:
        return self._rig.random.uniform(1, 3) / (1 if self._rig.long else 20)

    def close(self) -> None:
        """Listen no more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None


def peers(site: Site) -> set[str]:
    """Return whom relayd has as clients."""
    return {link["peer"] for link in site.relay("one")["destinations"]}


def names(clients: list[Destination]) -> set[str]:
    """Return what relayd calls these clients, as far as they are connected."""
    return {name_of(each.link) if each.link else "" for each in clients}


def wait_for(clients: list[Destination], size: int) -> None:
    """Return when each has so many bytes."""
    wait_until(lambda: min(each.waiting for each in clients) >= size, f"{size} bytes for each")


@row(
    "K8",
    provoked="a source that comes for 1-3 s and goes for as long, 1,000 times, by FIN or RST, within a record or not; "
    "50 clients, of which one leaves and one joins each time (short form: 20 times in 6 s, 10 clients)",
    required="each client gets exactly the whole records that relayd has read while it was there, and the totals say "
    "so; the p99 of reconnecting is at most 1.5 times `reconnect`; never two source links at once",
)
def test_k8_a_flapping_source(rig: Rig) -> None:
    source_port, port, step = free_port(), free_port(), rig.times(200, 1000) / 1000
    one = relay("one", source_port, port, "connect-listen", framing="line", reconnect=f"{step}s", linger_timeout="1s")
    records = lost = owed = 0  # whole records, bytes of cut ones, and bytes for all clients together
    with rig.daemon(one) as site, ExitStack() as stack:
        crowd, source = stack.enter_context(Crowd()), FlappingSource(rig, site, source_port)
        stack.callback(source.close)
        stream = Stream("flap")

        def client() -> Destination:
            fresh = Destination(crowd, stream, port, dials=True, framed=True, gaps=False)
            fresh.come_back()
            return fresh

        clients = [client() for _ in range(rig.times(10, 50))]
        for _ in range(rig.times(20, 1000)):
            wait_until(lambda: peers(site) == names(clients), "all clients, and no other")
            read = source.live()
            whole = read[: len(read) // CELL * CELL]
            records, lost, owed = (
                records + len(whole) // CELL,
                lost + len(read) % CELL,
                owed + len(whole) * len(clients),
            )
            wait_for(clients, len(whole))
            for data in crowd.call(lambda: [each.take() for each in clients]):
                assert data == whole, f"{len(data)} bytes, not {len(whole)}"
            leaving = clients.pop(rig.random.randrange(len(clients)))
            crowd.call(leaving.leave)
            clients.append(client())
            source.rest()
        assert all(each.links <= 1 for each in clients), "a client was cut"
        totals = site.relay("one")["totals"]
        assert (totals["records_in"], totals["bytes_in"]) == (records, records * CELL)
        assert (totals["unframed"], totals["dropped"], totals["discarded"]) == (lost, 0, 0)
        assert totals["bytes_out"] == owed
        assert totals["source_links"] == len(source.waits)
    p99 = sorted(source.waits)[int(0.99 * (len(source.waits) - 1))]
    assert p99 <= _LATEST * step * SLOWNESS
    rig.saw(f"{records} records to each in {len(source.waits)} lives, {lost} bytes of cut ones left out; "
            f"reconnect p99 {p99 / step:.2f} x")  # fmt: skip
