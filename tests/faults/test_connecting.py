"""Connecting out: nobody there, nobody answers, a peer that flaps or restarts, many that come back at once."""

from __future__ import annotations

import itertools
import re
import socket
import threading
import time
from contextlib import ExitStack

import pytest

from tests.faults.oracle import logged_at
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import relay
from tests.support import (
    CELL,
    PATIENCE,
    SLOWNESS,
    Stopwatch,
    blackhole_port,
    check_keyed,
    connect,
    free_port,
    keyed,
    listener,
    receive,
    reset_connection,
    wait_until,
)

FOREIGN = "192.0.2.7"  # documentation's (RFC 5737): no address of this machine


class Flapping(threading.Thread):
    """Accepts and ends each link at once, until it is told to end; notes when each came."""

    def __init__(self, server: socket.socket, reset: bool) -> None:
        super().__init__(daemon=True)
        self.came: list[float] = []
        self.port: int = server.getsockname()[1]
        self._server, self._reset = server, reset
        self._ending = threading.Event()
        server.settimeout(0.05)
        self.start()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                link = self._server.accept()[0]
            except TimeoutError:
                continue
            self.came.append(time.monotonic())
            (reset_connection if self._reset else socket.socket.close)(link)

    def end(self) -> list[float]:
        """Accept no more; return when each link came."""
        self._ending.set()
        self.join(PATIENCE)
        self._server.close()
        return self.came


@row(
    "N1",
    provoked="nobody listens (ECONNREFUSED)",
    required="waits that double from 1 s to 30 s, ±20 %; a line of the log for each change of state, not each attempt",
)
def test_n1_nobody_listens(rig: Rig) -> None:
    with rig.daemon(relay("one", free_port(), free_port(), "connect-listen", reconnect="0.1s..0.4s")) as site:
        site.wait_log("relay=one", "event=connect_failed")
        time.sleep(rig.times(1, 60))  # some four attempts, or 150
        assert len(site.lines("relay=one", "event=connect_failed")) == 1, site.tail()
        rig.saw("one line")


@row(
    "N2",
    provoked="nobody answers: a listener whose backlog is full; packets dropped by a firewall",
    required="the attempt ends at `connect_timeout` (10 s unless set) +0.5 s, where the kernel alone takes 130 s",
)
def test_n2_nobody_answers(rig: Rig) -> None:
    limit = rig.times(1, 10)
    with ExitStack() as stack:
        hole = blackhole_port(stack)
        sites = rig.daemon(
            relay("one", hole, free_port(), "connect-listen", connect_timeout=f"{limit}s"),
            relay("two", free_port(), hole, "listen-connect", connect_timeout=f"{limit}s"),
        )
        site = stack.enter_context(sites)
        for name in ("one", "two"):
            failed = site.wait_log(f"relay={name}", "event=connect_failed", f"timed out after {limit} s")
            took = logged_at(failed) - logged_at(site.wait_log("event=started"))
            assert limit - 0.05 < took < limit + 0.5 * SLOWNESS, failed
        rig.saw(f"{took:.2f} s of {limit}")


@row(
    "N6",
    provoked="`bind_source` is no address of this machine",
    required="a failure that names the cause, waits as for any other; an address of the wrong family is one, too",
)
def test_n6_a_local_address_that_is_not_ours(rig: Rig) -> None:
    with listener() as server:
        port = server.getsockname()[1]
        relays = [
            relay("one", port, free_port(), "connect-listen", bind_source=FOREIGN, reconnect="0.2s"),
            relay("two", free_port(), port, "listen-connect", bind_source="::1", reconnect="0.2s"),
        ]
        with rig.daemon(*relays) as site:
            for name, why in (("one", "Cannot assign requested address"), ("two", "not supported by protocol")):
                site.wait_log(f"relay={name}", "event=connect_failed", why)
            # The cure is a reload; what else has failed since was no change of state.
            relays[0] = relays[0].replace(FOREIGN, "127.0.0.9")
            site.configure(*relays, rig.control_relay)
            site.reload()
            link, peer = server.accept()
            assert peer[0] == "127.0.0.9"
            assert len(site.lines("event=connect_failed")) == 2, site.tail()
            site.configure(relays[0].replace("127.0.0.9", FOREIGN), relays[1], rig.control_relay)
            site.reload()
            reset_connection(link)
            rig.saw("both named; connects after a reload with an address that is ours")


@row(
    "N11",
    provoked="a peer accepts and closes at once, for ever, with a FIN or an RST, at either end",
    required="waits start over only after a link of `stable_after`; 1,000 flaps leave no descriptor",
)
def test_n11_a_peer_that_flaps_is_not_hammered(rig: Rig) -> None:
    peers = [Flapping(listener(), reset) for reset in (True, False, True, False)]
    ports = [peer.port for peer in peers]
    keys = {"reconnect": "0.1s..10s", "linger_timeout": "100ms"}
    with rig.daemon(
        *(relay(f"in{port}", port, free_port(), "connect-listen", **keys) for port in ports[:2]),
        *(relay(f"out{port}", free_port(), port, "listen-connect", **keys) for port in ports[2:]),
    ):
        wait_until(lambda: all(len(peer.came) >= 4 for peer in peers), "four attempts each")
        for peer in peers:
            came = peer.end()
            gaps = [later - earlier for earlier, later in itertools.pairwise(came)]
            # 0.1, 0.2, 0.4 s, ±20 %; what a busy machine adds to one it may take from the next.
            assert came[3] - came[0] > 0.8 * 0.7 - 0.1, gaps
        rig.saw("waits of " + ", ".join(f"{gap:.2f}" for gap in gaps[:3]) + " s")


@row("N11", provoked="", required="")
def test_n11_a_thousand_flaps(rig: Rig) -> None:
    flaps = rig.times(100, 1000)
    peers = [Flapping(listener(), reset) for reset in (True, False)]
    # Every link counts as stable, so that the waits stay short until nobody listens any more.
    keys = {"reconnect": "10ms..10s", "stable_after": 0, "linger_timeout": "100ms"}
    with rig.daemon(
        *(relay(f"in{peer.port}", peer.port, free_port(), "connect-listen", **keys) for peer in peers),
        log_level="error",  # a hundred links a second that come and go are a hundred changes of state
    ) as site:
        before = len(site.descriptors())
        wait_until(lambda: all(len(peer.came) >= flaps for peer in peers), f"{flaps} flaps")
        most = len(site.descriptors())
        assert most <= before + 4, site.descriptors()  # at most one link each, and one that lingers
        for peer in peers:
            peer.end()
        rig.saw(f"{flaps} flaps")


@row(
    "N12",
    provoked="the peer answers when nobody wants the connection any more: its relay was taken out while dialling",
    required="the attempt is dropped within 100 ms; who answers later meets nobody",
)
def test_n12_an_answer_that_comes_too_late(rig: Rig) -> None:
    """The listener's backlog is full, so the dial hangs; then its relay goes, then the listener answers."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = full.getsockname()[1]
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        one = relay("one", port, free_port(), "connect-listen")
        off = relay("one", port, free_port(), "connect-listen", enabled="no")
        site = stack.enter_context(rig.daemon(off))
        idle = len(site.descriptors())
        site.configure(one, rig.control_relay)
        site.reload()
        assert site.relay("one")["source"]["state"] == "connecting"
        dialling = len(site.descriptors())
        watch = Stopwatch(site.pid)
        site.configure(off, rig.control_relay)
        site.reload()
        wait_until(lambda: len(site.descriptors()) <= idle < dialling, "the end of the dial")
        took = watch.seconds()
        assert took < 0.1 + 0.4 * SLOWNESS  # 0.1 s are relayd's own, the rest is Python's and the machine's
        full.settimeout(1.3)  # the kernel would send the SYN anew after 1 s
        fillers = 0
        while True:
            try:
                full.accept()[0].close()
            except TimeoutError:
                break
            fillers += 1
        assert fillers <= 2, "the dropped dial went on"
        rig.saw(f"{took * 1000:.0f} ms, the reload included")


@row(
    "N13",
    provoked="a source sends and closes before the destination is there",
    required="all of it is delivered, once; the link then stays for the next source",
)
def test_n13_a_source_that_leaves_before_the_destination_comes(rig: Rig) -> None:
    cells = 100_000  # 1.6 MB: less than `buffer`, so the source need not wait
    source_port, port = free_port(), free_port()
    with rig.daemon(relay("one", source_port, port, "listen-connect", reconnect="50ms")) as site:
        with connect(source_port) as source:
            source.sendall(keyed("frst", 0, cells))
        site.wait_log("relay=one", " source=", "event=closed", "reason=eof")
        with listener(port) as server, ExitStack() as stack:
            link = stack.enter_context(server.accept()[0])
            check_keyed("frst", receive(link, cells * CELL), 0)
            with connect(source_port) as source:
                source.sendall(keyed("scnd", 0, 100))
                check_keyed("scnd", receive(link, 100 * CELL), 0)
            assert not site.lines("relay=one", " destination=", "event=closed"), site.tail()
            reset_connection(link)
        rig.saw(f"{cells * CELL / 1e6:.1f} MB of 1.6")


@row(
    "N17",
    provoked="port 0 or 65536, 0.0.0.0, [::], broadcast or multicast as what to connect to, IPv4-mapped or not",
    required="refused by `--check`: the line, the key, and why",
)
@pytest.mark.parametrize("end", ["source", "destination"])
def test_n17_nothing_that_can_be_connected_to(rig: Rig, end: str) -> None:
    addresses = [
        "127.0.0.1:0", "127.0.0.1:65536", "0.0.0.0:5000", "[::]:5000", "255.255.255.255:5000", "224.0.0.1:5000",
        "[ff02::1]:5000", "[ff02::1%lo]:5000", "[::ffff:0.0.0.0]:5000", "[::ffff:224.0.0.1]:5000",
        "[::ffff:255.255.255.255]:5000",
    ]  # fmt: skip
    ends = [(address, ":6000") if end == "source" else (":6000", address) for address in addresses]
    mode = "connect-listen" if end == "source" else "listen-connect"
    with rig.site(*(relay(f"r{index}", *pair, mode) for index, pair in enumerate(ends))) as site:
        done = site.launch("--check")
        assert done.returncode == 2
        wrong = re.findall(rf"^relayd: .*:\d+: \[relay (r\d+)\] {end}: .+", done.stderr, re.MULTILINE)
        missing = [address for index, address in enumerate(addresses) if f"r{index}" not in wrong]
        assert not missing, f"not refused: {missing}"
        if end == "source":
            rig.saw(f"{len(addresses)} addresses, at either end")


@row(
    "N18",
    provoked="the other side restarts again and again, every 1 to 3 s, with an RST or a FIN",
    required="nothing is left; 99 % of the links are back within 1.5 waits (and `linger_timeout`, for which a "
    "destination that sent FIN is tried); never two links at once",
)
@pytest.mark.parametrize("end", ["source", "destination"])
def test_n18_restarts(rig: Rig, end: str) -> None:
    wait = 0.1  # seconds, fixed
    port, other = free_port(), free_port()
    ends = (port, other, "connect-listen") if end == "source" else (other, port, "listen-connect")
    with rig.daemon(relay("one", *ends, reconnect=wait, linger_timeout="10ms")) as site:
        waits, watch = [], Stopwatch(site.pid)
        for life in range(rig.times(15, 1000)):
            with listener(port) as server:
                watch.start()
                link = server.accept()[0]
                waits.append(watch.seconds())
                time.sleep(rig.random.uniform(1, 3) if rig.long else rig.random.uniform(0, 0.05))
                server.settimeout(0)
                with pytest.raises(BlockingIOError):  # a second link beside the first
                    server.accept()
                (reset_connection if life % 2 else socket.socket.close)(link)
        p99 = sorted(waits)[int(0.99 * (len(waits) - 1))]
        assert p99 < 1.5 * wait + 0.1 * SLOWNESS, sorted(waits)
        site.wait_log("relay=one", "event=connect_failed")
        rig.saw(f"the {end}: {len(waits)} restarts, p99 {p99 / wait:.2f} waits")


@row(
    "N19",
    provoked="hundreds of relays lose one host at the same moment",
    required="they come back spread over the 0.4 s that ±20 % of the first second are: some 25 % of them in 100 ms",
)
def test_n19_a_thundering_herd(rig: Rig) -> None:
    """The destinations are Unix sockets, for 500 ports would have to be found free."""
    herd, port = rig.times(300, 500), free_port()
    keys = {"reconnect": "1s..30s", "stable_after": 0}  # the waits start over after any link
    relays = [relay(f"r{n}", port, f"unix:{n}.sock", "connect-listen", **keys) for n in range(herd)]
    with rig.daemon(*relays, lag=0.5) as site:  # all are lost in one turn of the loop
        with listener(port) as server:
            server.listen(herd)
            links = [server.accept()[0] for _ in range(herd)]
            wait_until(lambda: len(site.lines("event=connected", " source=")) > herd, "all of them, and the untouched")
            for link in links:
                reset_connection(link)
            came, links = [], []
            for _ in range(herd):
                links.append(server.accept()[0])
                came.append(time.monotonic())
        for link in links:
            reset_connection(link)
        most = max(sum(begin <= at < begin + 0.1 for at in came) for begin in came)
        # Twice of what is due: a machine that is held up brings some together. In one beat they would be all.
        assert most < 0.75 * herd, f"{most} of {herd} in 100 ms"
        rig.saw(f"of {herd} {100 * most / herd:.0f} % in 100 ms, all within {came[-1] - came[0]:.2f} s")
