"""Established streams: resets, peers that fall silent, unread input, descriptors that come back, calls that raise."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.faults.lives import stop_process
from tests.faults.oracle import forgive
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import LAG, Ends, check_quiet, deafen, discard, ended_with, ends, fill, seconds_until
from tests.integration.daemons import Feed, Site, name_of, proc_status, relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Collector,
    Sender,
    bulk,
    cells_of,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    needs,
    receive,
    reset_connection,
    spawned,
    wait_until,
)

VANISH = (socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: a close without FIN or RST

_SOON = 0.1 + 0.4 * SLOWNESS  # seconds: 0.1 are relayd's own, the rest is Python's and the machine's


# -- resets -----------------------------------------------------------------------------------------


@row(
    "S1",
    provoked="RST in mid-stream, from a client, from the source, from a server that is dialled",
    required="`reason=reset` within 100 ms; nobody else notices, a record that was cut is not passed on; "
    "where `on_source_loss = close`, clients see a reset too, and a FIN after a FIN",
)
def test_s1_a_client_is_reset(rig: Rig) -> None:
    with ends(rig, framing="line") as relayed:
        staying, leaving, source = Collector(relayed.client()), relayed.client(), relayed.source()
        feed = Feed(source, "feed")
        receive(leaving, 1000 * CELL)
        name = name_of(leaving)
        reset_connection(leaving)
        line = (f" client={name} event=closed", "reason=reset")
        took = seconds_until(lambda: relayed.site.lines(*line), "the end of the client's link")
        assert took < _SOON
        sent = feed.end()
        check_keyed("feed", staying.wait_for(sent), 0)
        assert len(relayed.site.lines("event=closed")) == 1, relayed.site.tail()
        rig.saw(f"told after {took * 1000:.0f} ms")


@row("S1", provoked="", required="")
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s1_the_source_is_reset(rig: Rig, mode: str) -> None:
    """It is cut in a record, of which nobody gets a part, and which is not glued to what the next one sends."""
    with ends(rig, mode, framing="line") as relayed:
        got, source = Collector(relayed.client()), relayed.source()
        source.sendall(keyed("feed", 0, 1001)[:-5])
        got.wait_for(1000 * CELL)
        name = name_of(source)
        reset_connection(source)
        line = (f" source={name} event=closed", "reason=reset")
        assert seconds_until(lambda: relayed.site.lines(*line), "the end of the source's link") < _SOON
        relayed.source().sendall(keyed("feed", 1001, 1000))
        assert cells_of("feed", got.wait_for(2000 * CELL)) == [*range(1000), *range(1001, 2001)]


@row("S1", provoked="", required="")
def test_s1_a_dialled_server_is_reset(rig: Rig) -> None:
    """The source stays; the next link goes on at a record that the first was not given whole."""
    cells = 500_000  # 8 MB: with these sizes more than the kernel takes, so that some of it waits in relayd
    small = {"receive_buffer": "64K", "send_buffer": "64K", "buffer": "1M"}
    with ends(rig, "listen-connect", framing="line", grows=4 << 20, **small) as relayed:
        server, source = relayed.client(), relayed.source()
        sender = Sender(source, bulk(cells))
        sender.wait_stuck()
        reset_connection(server)
        got = Collector(relayed.client())
        relayed.closed("reset")
        sender.wait_end()
        wait_until(lambda: got.data.endswith(keyed("bulk", cells - 1, 1)), "the last record")
        check_keyed("bulk", bytes(got.data))
        assert not relayed.site.lines(" source=", "event=closed"), relayed.site.tail()


@row("S1", provoked="", required="")
@pytest.mark.parametrize("kind", ["fin", "rst"])
def test_s1_an_error_does_not_look_like_a_clean_end(rig: Rig, kind: str) -> None:
    with ends(rig, on_source_loss="close", framing="line") as relayed:
        client, source = relayed.client(), relayed.source()
        source.sendall(keyed("feed", 0, 100))
        receive(client, 100 * CELL)
        (reset_connection if kind == "rst" else socket.socket.close)(source)
        assert ended_with(client) == kind


@row(
    "S4",
    provoked="RST, and FIN then RST, of clients that are not read because the source takes nothing of what they send",
    required="no spinning: less than 1 % of a core; the links are gone as soon as the source takes something, "
    "those that had sent FIN within 1 s",
)
def test_s4_a_reset_while_reads_are_paused(rig: Rig) -> None:
    with ends(rig, return_="all", buffer="64K") as relayed:
        source, clients = relayed.source(), [relayed.client() for _ in range(6)]
        fill(clients)
        check_quiet(rig, relayed.site)
        for client in clients[:2]:
            reset_connection(client)
        for client in clients[2:4]:
            client.shutdown(socket.SHUT_WR)
        check_quiet(rig, relayed.site)
        for client in clients[2:]:
            reset_connection(client)
        check_quiet(rig, relayed.site)
        Collector(source)  # lets go of what is held
        relayed.closed("reset", times=6)


@row("S4", provoked="", required="")
def test_s4_a_reset_after_fin(rig: Rig) -> None:
    """Of a link with no interest left: it has sent FIN, and nothing waits for it."""
    with ends(rig) as relayed:
        clients = [relayed.client() for _ in range(20)]
        for client in clients:
            client.shutdown(socket.SHUT_WR)
        check_quiet(rig, relayed.site)
        for client in clients:
            reset_connection(client)
        took = seconds_until(lambda: len(relayed.site.lines("reason=reset")) == 20, "the end of all")
        assert took < 1.0 + SLOWNESS
        rig.saw(f"after a FIN found in {took:.2f} s")


@row(
    "S5",
    provoked="relayd closes a link whose client floods it with input: its source has ended, its relay is switched off",
    required="all 200,000 bytes arrive, then FIN: input is read and thrown away for `linger_timeout`, "
    "where a plain close lost 36 % of them",
)
@pytest.mark.parametrize(("cause", "returns"), [("source", "none"), ("reload", "all")])
def test_s5_closing_with_unread_input(rig: Rig, cause: str, returns: str) -> None:
    data = bulk(500_000)[:200_000]
    ports = free_port(), free_port()
    on = relay("one", *ports, on_source_loss="close", return_=returns, linger_timeout="10s", notsent="0")
    with rig.daemon(on, grows=4 << 20, lag=LAG) as site, ExitStack() as stack:
        relayed = Ends(site, stack, "one", *ports, connects=False)
        client, source = relayed.client(small=True), relayed.source()
        flood = Sender(client, bytes(1 << 30))
        wait_until(lambda: flood.sent > 1 << 20, "a flood")
        source.sendall(data)
        wait_until(lambda: relayed.totals()["bytes_out"] == len(data), "all of it in the kernel's hands")
        if cause == "source":
            source.shutdown(socket.SHUT_WR)
            relayed.wait(source, "event=closed", "reason=eof ")
        else:
            site.configure(on + "enabled = no\n", rig.control_relay)
            site.reload()
        # Only now it reads, and fast: most of it is still on relayd's side, whose link is closed.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 18)
        got = Collector(client)
        assert got.wait_end() == data
        client.shutdown(socket.SHUT_WR)  # ends the flood
        flood.join(PATIENCE)
        relayed.closed("source_lost" if cause == "source" else "removed")
        discard(source)
        site.configure(on, rig.control_relay)
        site.reload()
        rig.saw(f"{len(got.data):,} bytes of {len(data):,}")


# -- silence ----------------------------------------------------------------------------------------


@row(
    "S8",
    provoked="a peer behind a black hole, and one that is gone without FIN or RST, while nothing is sent",
    required="`keepalive` finds it: idle and all probes, but 1.5 times `stall_timeout` if that is longer, "
    "`reason=timeout`; at the first probe where its host answers",
)
def test_s8_deaf_peers_on_a_quiet_relay(rig: Rig) -> None:
    idle, probes = rig.times(1, 2), rig.times(2, 3)
    with ends(rig, keepalive=f"{idle}s/1s/{probes}", stall_timeout="0") as relayed:
        for sock in (relayed.client(), relayed.source()):
            deafen(sock)
        began = time.monotonic()
        for end in ("client", "source"):
            relayed.site.wait_log(f" {end}=", "event=closed", "reason=timeout ")
        took = time.monotonic() - began
        expected = idle + probes
        assert expected - 1.0 < took < expected + SLOWNESS  # the last data were sent up to a second ago
        rig.saw(f"{took:.1f} s with {idle} + {probes}")


@row("S8", provoked="", required="")
def test_s8_a_peer_that_vanished(rig: Rig) -> None:
    with ends(rig, keepalive="1s/1s/2", stall_timeout="0") as relayed:
        client = relayed.client()
        try:
            client.setsockopt(*VANISH)
        except PermissionError:
            pytest.skip("TCP_REPAIR needs CAP_NET_ADMIN")
        client.close()
        took = seconds_until(lambda: relayed.site.lines(" client=", "reason=reset "), "the end of the link")
        assert took < 1.0 + SLOWNESS
        rig.saw(f"{took:.1f} s where the host answers")


@row(
    "S9",
    provoked="a peer behind a black hole, with data on their way to it",
    required="cut after `stall_timeout` and a quarter of it, `reason=stalled`, where the kernel tries for 15 minutes",
)
@pytest.mark.parametrize("mode", ["listen-listen", "listen-connect"])
def test_s9_a_black_hole_with_pending_data(rig: Rig, mode: str) -> None:
    limit = rig.times(1, 5)
    keys = {"buffer": "16M", "overflow": "block", "stall_timeout": f"{limit}s", "framing": "line"}
    with ends(rig, mode, grows=12 << 20, **keys) as relayed:
        client, source = relayed.client(), relayed.source()
        deafen(client)
        Sender(source, bulk(500_000)).wait_end()
        began = time.monotonic()
        relayed.closed("stalled")
        took = time.monotonic() - began
        # The peer took nothing since before the last byte was sent, by as long as the sending took.
        assert took < 1.25 * limit + 0.5 * SLOWNESS
        rig.saw(f"{took:.2f} s with {limit}")
        if mode == "listen-connect":
            check_keyed("bulk", receive(relayed.client(), CELL))  # the next link gets the rest


@row(
    "S24",
    provoked="a source that is connected and sends nothing",
    required="with `source_idle` it is closed, `reason=idle`, and dialled anew; `last_data` says since when it is; "
    "one that talks stays",
)
def test_s24_a_silent_source(rig: Rig) -> None:
    limit = rig.times(1, 10)
    with listener() as server:
        source_port = server.getsockname()[1]
        one = relay("one", source_port, free_port(), "connect-listen", source_idle=f"{limit}s", reconnect="50ms")
        with rig.daemon(one) as site, ExitStack() as stack:
            talking = stack.enter_context(server.accept()[0])
            ending = time.monotonic() + 1.5 * limit
            while time.monotonic() < ending:
                talking.sendall(b"x")
                time.sleep(0.05)
            assert not site.lines("event=closed"), site.tail()
            wait_until(lambda: (site.relay("one")["source"]["last_data"] or 0) > 0.3, "the age of the last data")
            assert talking.recv(1) == b""
            took = time.monotonic() - ending
            assert took < limit + SLOWNESS
            rig.saw(f"closed after {took:.2f} s with {limit}")
            talking.close()
            site.wait_log(" source=", "event=closed", "reason=idle ")
            discard(server.accept()[0])


# -- descriptors and callbacks ----------------------------------------------------------------------


@row(
    "S27",
    provoked="in one turn of the loop twenty links are reset, twenty others come in, and a record goes to all",
    required="what the kernel had to tell of the dead reaches none of the new, though they may get their descriptors",
)
def test_s27_descriptors_that_come_back(rig: Rig) -> None:
    """What waits while the process is stopped is one batch: some resets, who comes in, the other resets, the data."""
    crowd, rounds = 20, rig.times(10, 300)
    with ends(rig, framing="line", return_="all", pauses=True) as relayed:
        source, site = relayed.source(), relayed.site
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # or its data would miss the batch
        clients = [relayed.client() for _ in range(crowd)]
        for life in range(rounds):
            stop_process(site)
            source.sendall(keyed("feed", 2 * life, 1))
            for client in clients[: crowd // 2]:
                reset_connection(client)
            fresh = [relayed.keep(connect(relayed.port)) for _ in range(crowd)]
            for client in clients[crowd // 2 :]:
                reset_connection(client)
            site.send(signal.SIGCONT)
            relayed.closed("reset", times=(life + 1) * crowd)
            for client in fresh:
                relayed.wait(client, "event=connected")
            for number, client in enumerate(fresh):
                client.sendall(keyed("back", number, 1))
            assert sorted(cells_of("back", receive(source, crowd * CELL))) == list(range(crowd))
            source.sendall(keyed("feed", 2 * life + 1, 1))
            for client in fresh:
                numbers = cells_of("feed", receive(client, CELL))
                if numbers == [2 * life]:  # it came in before that was passed on
                    numbers = cells_of("feed", receive(client, CELL))
                assert numbers == [2 * life + 1]
            clients = fresh
        assert len(site.lines("event=closed")) == rounds * crowd, site.tail()
        rig.saw(f"{rounds} turns with {crowd} each")


@contextmanager
def injected(site: Site, call: str, error: str) -> Iterator[None]:
    """Let the next such call of the daemon fail."""
    needs("strace")
    words = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when=1"]
    with spawned(*words, "-p", str(site.pid)) as tracer:
        traced = lambda: proc_status(site.pid)["TracerPid"] != "0"  # noqa: E731
        wait_until(lambda: traced() or tracer.poll() is not None, "a tracer")
        if not traced():
            pytest.skip("strace may not trace here")
        yield
        tracer.terminate()
        wait_until(lambda: not traced(), "the end of the tracer")


@row(
    "S28",
    provoked="a call on one link fails in a way that nobody has thought of (EXFULL from recv, from send)",
    required="that link is reset, `internal_error` is logged once with its traceback, every other runs on",
)
@pytest.mark.parametrize("victim", ["client", "source"])
def test_s28_a_receive_raises(rig: Rig, victim: str) -> None:
    ports = free_port(), free_port()
    with rig.site(relay("one", *ports, framing="line")) as site, ExitStack() as stack:
        site.start()
        relayed = Ends(site, stack, "one", *ports, connects=False)
        clients, source = [relayed.client() for _ in range(3)], relayed.source()
        sock = clients[0] if victim == "client" else source
        with injected(site, "recvfrom", "EXFULL"):
            sock.sendall(keyed("lost", 0, 1))
            assert ended_with(sock) == "rst"
        check_survived(relayed, sock, clients, relayed.source() if victim == "source" else source, 0)


@row("S28", provoked="", required="")
def test_s28_a_send_raises(rig: Rig) -> None:
    """That to the first client that a record goes to: those after it get the record, and the source stays."""
    ports = free_port(), free_port()
    with rig.site(relay("one", *ports, framing="line")) as site, ExitStack() as stack:
        site.start()
        relayed = Ends(site, stack, "one", *ports, connects=False)
        clients, source = [relayed.client() for _ in range(3)], relayed.source()
        source.sendall(keyed("feed", 0, 1))
        for client in clients:
            receive(client, CELL)
        with injected(site, "sendto", "EXFULL"):
            source.sendall(keyed("feed", 1, 1))
            assert ended_with(clients[0]) == "rst"
        for client in clients[1:]:
            check_keyed("feed", receive(client, CELL), 1)
        check_survived(relayed, clients[0], clients, source, 2)


def check_survived(
    relayed: Ends, victim: socket.socket, clients: list[socket.socket], source: socket.socket, first: int
) -> None:
    """Fail where anybody else than the victim was hurt, or the log does not tell of it once."""
    source.sendall(keyed("feed", first, 10))
    for client in clients:
        if client is not victim:
            check_keyed("feed", receive(client, 10 * CELL), first)
    relayed.wait(victim, "event=closed", "reason=internal ")
    assert len(relayed.site.lines("event=closed")) == 1, relayed.site.tail()
    (line,) = forgive(relayed.site)
    assert "Traceback" in line and "Exchange full" in line
