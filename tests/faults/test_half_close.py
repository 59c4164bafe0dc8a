"""Streams that end on one side only: what still arrives, in which order the ends may go, what bounds each state."""

from __future__ import annotations

import itertools
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.faults.oracle import MIB
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import LAG, Ends, check_quiet, deafen, discard, ended_with, ends, seconds_until
from tests.integration.daemons import relay
from tests.support import (
    CELL,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    cells_of,
    check_keyed,
    free_port,
    keyed,
    receive,
    reset_connection,
    wait_until,
)


@row(
    "S2",
    provoked="a client, or a server that is dialled, sends FIN, and 50 MiB are to come; then the source sends FIN",
    required="who half-closed gets every byte; with `on_source_loss = close` then FIN, and the link is closed for good",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s2_fin_while_50_mib_are_to_come(rig: Rig, mode: str) -> None:
    block = bulk(MIB // CELL)
    with ends(rig, mode, overflow="block", on_source_loss="close", grows=8 * MIB) as relayed:
        client, source = relayed.client(), relayed.source()
        client.shutdown(socket.SHUT_WR)
        got = Collector(client)
        for _ in range(50):
            source.sendall(block)
        source.shutdown(socket.SHUT_WR)
        data = got.wait_end()
        assert len(data) == 50 * MIB
        assert all(data[begin : begin + MIB] == block for begin in range(0, len(data), MIB))
        relayed.closed("source_lost")
        rig.saw(f"{len(data) // MIB} MiB, then FIN")


@row(
    "S3",
    provoked="FIN of twenty clients, of a server that is dialled, of the source, while nothing is sent",
    required="interest in their input ends: less than 1 % of a core; those that only half-closed go on receiving",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s3_no_spinning_after_fin(rig: Rig, mode: str) -> None:
    with ends(rig, mode, linger_timeout="1h") as relayed:
        clients = [relayed.client() for _ in range(20 if mode == "listen-listen" else 1)]
        source = relayed.source()
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        check_quiet(rig, relayed.site)
        source.sendall(keyed("feed", 0, 100))
        for client in clients:
            check_keyed("feed", receive(client, 100 * CELL), 0)
        check_quiet(rig, relayed.site)
        source.shutdown(socket.SHUT_WR)  # relayd ends its own side, too, and the link is done
        relayed.wait(source, "event=closed", "reason=eof ")
        check_quiet(rig, relayed.site)
        assert len(relayed.site.lines("event=closed")) == 1, relayed.site.tail()


# -- all orders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """How the two ends of a relay go, one right after the other."""

    source: str  # "fin" or "rst"
    client: str
    data: bool  # whether some is on its way, which the client has not read
    stops: bool  # whether the relay is switched off at the same time

    def __str__(self) -> str:
        return "-".join([self.source, self.client, "data" if self.data else "idle", "off" if self.stops else "on"])


ORDERS = [Order(*each) for each in itertools.product(("fin", "rst"), ("fin", "rst"), (True, False), (True, False))]

# More than the small window of the client takes: some of it waits in the kernel, some in relayd.
_CELLS = 16 * 1024


@row(
    "S6",
    provoked="the source and a client go, each by FIN or RST, with data on their way or not, "
    "while their relay is switched off or not: all 16 orders, at once",
    required="each link ends once, for its own reason; a client that sent FIN gets all that came before the source's "
    "FIN, of one that broke only whole records; the relay serves the next pair, or is drained and gone",
)
def test_s6_all_orders_of_the_ends(rig: Rig) -> None:
    ports = {order: (free_port(), free_port()) for order in ORDERS}
    keys = {"framing": "line", "notsent": "4K", "send_buffer": "8K", "linger_timeout": "5s", "return_": "all"}
    sections = {order: relay(str(order), *ports[order], **keys) for order in ORDERS}
    off = [section + ("enabled = no\n" if order.stops else "") for order, section in sections.items()]
    with rig.daemon(*sections.values(), grows=8 * MIB, lag=LAG) as site, ExitStack() as stack:
        pairs = {}
        for order in ORDERS:
            relayed = Ends(site, stack, str(order), *ports[order], connects=False)
            pairs[order] = relayed, relayed.client(small=True), relayed.source()
        for order, (_, client, source) in pairs.items():
            source.sendall(keyed("feed", 0, _CELLS if order.data else 1))
            if not order.data:
                receive(client, CELL)
        for relayed, _, _ in pairs.values():
            wait_until(lambda relayed=relayed: relayed.totals()["bytes_in"], "the first of it")  # type: ignore[misc]
        for order, (_, client, source) in pairs.items():
            for sock, kind in ((source, order.source), (client, order.client)):
                sock.shutdown(socket.SHUT_WR) if kind == "fin" else reset_connection(sock)
        site.configure(*off, rig.control_relay)
        site.reload()
        wrong = {}
        for order, (relayed, client, source) in pairs.items():
            try:
                _check_order(order, relayed, client, source)
            except AssertionError as error:
                wrong[str(order)] = f"{error}; {site.lines(f'relay={order} ')}"
        assert not wrong, "\n".join(f"{order}: {why}" for order, why in wrong.items())
        for _, client, source in pairs.values():
            discard(client)
            discard(source)
        site.configure(*sections.values(), rig.control_relay)
        site.reload()
        rig.saw(f"{len(ORDERS)} orders")


def _check_order(order: Order, relayed: Ends, client: socket.socket, source: socket.socket) -> None:
    lines = relayed.site.lines
    name = f"relay={order} "
    if order.client == "fin":
        sent = _CELLS if order.data else 0  # else it has got its one cell before
        got = Collector(client)
        if order.source == "fin" and not order.stops:
            numbers = cells_of("feed", got.wait_for(sent * CELL))
            assert numbers == list(range(sent)), f"{len(numbers)} of {sent} cells"
        if order.stops:
            # What the relay had not read when it was switched off is not its own; all else comes, then FIN.
            numbers = cells_of("feed", got.wait_end())
            assert numbers == list(range(len(numbers)))
            wait_until(lambda: lines(name, " client=", "event=closed reason=removed"), "its end")
        else:
            assert not lines(name, " client=", "event=closed"), "the client was closed"
    else:
        wait_until(lambda: lines(name, " client=", "event=closed reason=reset"), "the client's end")
    wait_until(lambda: lines(name, " source=", "event=closed"), "the source's end")
    assert len(lines(name, " source=", "event=closed")) == 1
    reason = lines(name, " source=", "event=closed")[0].partition(" reason=")[2].split()[0]
    # A FIN or an RST that comes while the relay is being drained may find it lingering already.
    expected = {"eof" if order.source == "fin" else "reset"} | ({"stopped"} if order.stops else set())
    assert reason in expected, f"the source's end was told as {reason}"
    if order.stops:
        wait_until(lambda: order_is_gone(order, relayed), "the end of the relay")
        return
    again = relayed.source()
    fresh = relayed.client()
    again.sendall(keyed("next", 0, 10))
    check_keyed("next", receive(fresh, 10 * CELL), 0)
    discard(again)
    discard(fresh)


def order_is_gone(order: Order, relayed: Ends) -> bool:
    """Whether the relay has been drained."""
    return all(found["name"] != str(order) for found in relayed.site.status()["relays"])


# -- for ever ---------------------------------------------------------------------------------------


@row(
    "S7",
    provoked="a link that stays half-closed: its peer has left, is deaf, reads nothing, or never ends its own side",
    required="left: RST answers the next data, or a `keepalive` probe once its kernel has forgotten the link; "
    "deaf: `keepalive`; reads nothing: `stall_timeout`; never ends: `linger_timeout`, which also bounds "
    "how long a silent server that sent FIN is kept. Who reads stays for ever",
)
@pytest.mark.parametrize("sends", [True, False], ids=["data", "probe"])
def test_s7_half_closed_and_left(rig: Rig, sends: bool) -> None:
    """A closed socket's kernel goes on acknowledging probes for a while, FIN_WAIT2: 60 s, here 1 s."""
    with ends(rig, keepalive="1s/1s/2", stall_timeout="0") as relayed:
        source, client, staying = relayed.source(), relayed.client(), relayed.client()
        staying.shutdown(socket.SHUT_WR)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_LINGER2, 1)
        client.close()
        began = time.monotonic()
        if sends:
            source.sendall(keyed("feed", 0, 1))
        relayed.closed("reset")
        took = time.monotonic() - began
        assert took < (0 if sends else 4) + SLOWNESS
        if not sends:
            source.sendall(keyed("feed", 0, 1))
        check_keyed("feed", receive(staying, CELL), 0)
        assert len(relayed.site.lines("event=closed")) == 1, relayed.site.tail()
        rig.saw(f"left: {took:.2f} s")


@row("S7", provoked="", required="")
def test_s7_half_closed_and_deaf(rig: Rig) -> None:
    with ends(rig, keepalive="1s/1s/2", stall_timeout="0") as relayed:
        client = relayed.client()
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: not relayed.site.lines("event=closed"), "a link")
        time.sleep(0.1)  # its FIN is acknowledged by now
        deafen(client)
        took = seconds_until(lambda: relayed.site.lines(" client=", "reason=timeout "), "the end of the link")
        assert took < 3 + SLOWNESS
        rig.saw(f"deaf: {took:.1f} s with 1 + 2")


@row("S7", provoked="", required="")
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s7_half_closed_and_takes_nothing(rig: Rig, mode: str) -> None:
    small = {"receive_buffer": "64K", "send_buffer": "64K", "overflow": "block", "buffer": "1M"}
    with ends(rig, mode, stall_timeout="1s", grows=6 * MIB, **small) as relayed:
        client, source = relayed.client(small=True), relayed.source()
        client.shutdown(socket.SHUT_WR)
        sender = Sender(source, bulk(400_000))
        took = seconds_until(lambda: relayed.site.lines("event=closed", "reason=stalled "), "the end of the link")
        assert 0.9 < took < 1.5 + SLOWNESS
        rig.saw(f"takes nothing: {took:.2f} s with 1")
        if mode == "listen-connect":
            Collector(relayed.client())  # what was kept goes to the next link, or the source would be held
        sender.wait_end()
        wait_until(lambda: relayed.totals()["bytes_in"] == 400_000 * CELL and not relayed.queued(), "an empty relay")


@row("S7", provoked="", required="")
def test_s7_a_peer_that_never_ends_its_side(rig: Rig) -> None:
    with ends(rig, on_source_loss="close", linger_timeout="1s") as relayed:
        client, source = relayed.client(), relayed.source()
        source.close()
        assert ended_with(client) == "fin"
        took = seconds_until(lambda: relayed.site.lines(" client=", "reason=source_lost "), "the end of the link")
        assert 0.8 < took < 1.0 + SLOWNESS
        rig.saw(f"never ends: {took:.2f} s with 1")


@row("S7", provoked="", required="")
def test_s7_a_silent_server_that_sent_fin(rig: Rig) -> None:
    """There is nothing to find out with whether it is still there, and dialling it anew costs nothing."""
    with ends(rig, "listen-connect", linger_timeout="0.5s") as relayed:
        server = relayed.client()
        server.shutdown(socket.SHUT_WR)
        assert ended_with(server) == "fin"
        server.close()
        relayed.closed("eof")
        source, back = relayed.source(), relayed.client()
        source.sendall(keyed("feed", 0, 1))
        check_keyed("feed", receive(back, CELL), 0)
