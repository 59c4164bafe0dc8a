"""Everything at once: twenty relays, two hundred clients, and a fault every fifth of a second."""

from __future__ import annotations

import resource
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress

from tests.faults.chaosproxy import ChaosProxy
from tests.faults.crowd import Crowd, Destination, Peer, Source, Stream
from tests.faults.oracle import MIB
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import Site, descriptors, relay
from tests.support import CELL, connect, free_port, keyed, receive, reset_connection, stalled_client, wait_until

_EVERY = 0.2  # seconds between two faults
_MODES = ("connect-listen", "listen-connect", "connect-connect", "listen-listen")
_CLIENTS = 24  # of each relay that has many: with the others some two hundred
_CELLS = 40  # of each source, twenty times a second: 12.8 KB/s
_FLOOD = 20_000  # cells at once: 320 KB, more than a queue and the kernel's part of it

# Limits that are reached within a run.
_LIMITS = {
    "reconnect": "100ms..400ms", "connect_timeout": "500ms", "keepalive": "1s/1s/1", "stall_timeout": "1s",
    "linger_timeout": "500ms", "buffer": "64K",
}  # fmt: skip
_NO_WAY = "[fe80::1%lo]:9"  # to connect there is ENETUNREACH, or another error at once where there is no IPv6

# What each mode has one relay of: its settings, and how many clients or connected destinations.
_KINDS: dict[str, tuple[dict[str, str], int, int]] = {
    "pair": ({"overflow": "block", "return_": "all"}, 1, 1),
    "fan": ({"framing": "line"}, _CLIENTS, 3),
    "drop": ({"framing": "line", "overflow": "drop_oldest"}, _CLIENTS, 2),
    "past": ({"framing": "line"}, _CLIENTS, 1),  # with history; a source that is dialled has an address without a way
    "net": ({"framing": "line"}, _CLIENTS, 1),  # with a bad network before the source
}


class Party:
    """One relay's peers."""

    def __init__(self, crowd: Crowd, number: int, kind: str, mode: str, stack: ExitStack, seed: int) -> None:
        source_role, _, destination_role = mode.partition("-")
        settings, clients, servers = _KINDS[kind]
        framed = "framing" in settings
        self.name = f"{kind}-{mode}"
        self._crowd = crowd
        stream = Stream(f"k{number:03d}")
        near = free_port()  # where relayd listens for the source, or dials it
        self.proxy: ChaosProxy | None = None
        port = near
        if kind == "net" and source_role == "connect":
            port = free_port()
            self.proxy = stack.enter_context(ChaosProxy(("127.0.0.1", port), ("127.0.0.1", near), seed))
        elif kind == "net":
            self.proxy = stack.enter_context(ChaosProxy(("127.0.0.1", near), seed=seed))
            port = self.proxy.port
        self.source_port = near
        self.source = Source(crowd, stream, port, source_role == "listen", _CELLS)
        connected = destination_role == "connect"
        ports = [free_port() for _ in range(servers if connected else 1)]
        self.destination_ports = ports
        self.destinations = [
            Destination(crowd, stream, each, not connected, framed, kind == "drop")
            for each in (ports if connected else ports * clients)
        ]
        of_clients = {"history": "50r", "notsent": "16K"} if kind == "past" and not connected else {}
        sources = [_NO_WAY, near] if kind == "past" and source_role == "connect" else near
        self.text = relay(self.name, sources, ports, mode, **{**_LIMITS, **settings, **of_clients})

        if self.proxy is not None:
            self.proxy.disable()

    def come(self) -> None:
        """Begin."""
        if self.proxy is not None:
            self.proxy.enable()
        for peer in (self.source, *self.destinations):
            peer.come_back()

    def go(self) -> None:
        """Leave nothing behind."""
        if self.proxy is not None:
            self.proxy.disable()
        for peer in (self.source, *self.destinations):
            peer.leave()

    def wait_at_work(self) -> None:
        """Return when each destination has got the last that the source has sent."""
        wait_until(lambda: not self._crowd.call(self._is_behind), f"relay {self.name} at work")

    def _is_behind(self) -> bool:
        newest = self.source.newest
        return newest < 0 or any(each.newest < newest for each in self.destinations)


class Chaos:
    """Does one fault after another."""

    def __init__(self, rig: Rig, site: Site, crowd: Crowd, parties: list[Party]) -> None:
        self.done: Counter[str] = Counter()
        self._random = rig.random
        self._site = site
        self._crowd = crowd
        self._parties = parties
        self._fd_limit = resource.prlimit(site.pid, resource.RLIMIT_NOFILE)
        self._text = site.file.read_text()

    def strike(self) -> None:
        """Do one fault, of any kind, to anybody; in the crowd's thread."""
        fault = self._random.choice(FAULTS)
        fault(self)
        self.done[fault.__name__] += 1

    def heal(self) -> None:
        """End whatever lasts."""
        self._crowd.call(self._crowd.hurry)
        for party in self._parties:
            if party.proxy is not None:
                party.proxy.clear()
                party.proxy.enable()

    # -- whom it hits -----------------------------------------------------------------------------

    @property
    def _party(self) -> Party:
        return self._random.choice(self._parties)

    @property
    def _source(self) -> Source:
        return self._party.source

    @property
    def _destination(self) -> Destination:
        return self._random.choice(self._party.destinations)

    @property
    def _peer(self) -> Peer:
        return self._random.choice([self._source, self._destination])

    def _for(self, low: float, high: float, end: Callable[[], None]) -> None:
        self._crowd.later(self._random.uniform(low, high), end)

    # -- established streams: S1-S10 ------------------------------------------------------------------

    def s1_reset(self) -> None:
        self._peer.reset()

    def s2_half_close(self) -> None:
        self._destination.end()

    def s3_source_ends(self) -> None:
        self._source.end()

    def s4_source_resets_while_held_up(self) -> None:
        party = self._party
        for each in party.destinations[:1]:
            each.stop()
            self._for(0.5, 1.5, each.read)
        party.source.send(_FLOOD)
        self._for(0.2, 0.4, party.source.reset)

    def s5_unread_input(self) -> None:
        each = self._destination
        each.chatter(b"nobody asked\n" * 5000)
        self._for(0, 0.1, each.reset)

    def s6_both_end(self) -> None:
        party = self._party
        party.source.end()
        self._random.choice(party.destinations).end()

    def s6_reset_after_end(self) -> None:
        peer = self._peer
        peer.end()
        self._for(0, 0.2, peer.reset)

    def s7_half_closed_and_quiet(self) -> None:
        party = self._party
        party.source.cells = 0
        self._random.choice(party.destinations).end()
        self._for(0.5, 1.5, lambda: setattr(party.source, "cells", _CELLS))

    def s8_deaf_source(self) -> None:
        self._deafen(self._source)

    def s9_deaf_destination(self) -> None:
        self._deafen(self._destination)

    def s10_stop(self) -> None:
        party = self._party
        each = self._random.choice(party.destinations)
        each.stop()
        party.source.send(_FLOOD)
        self._for(0.5, 2, each.read)

    def _deafen(self, peer: Peer) -> None:
        peer.go_deaf()
        self._for(1, 3, peer.reset)

    # -- connecting and accepting: N1, N2 (N3: see _NO_WAY), L6, L8 ---------------------------------------------------

    def n1_away(self) -> None:
        peer = self._peer
        peer.leave()
        self._for(0.2, 1, peer.come_back)

    def n2_black_hole(self) -> None:
        peer = self._random.choice([peer for peer in self._crowd.peers if not (peer.dials or peer.is_away)])
        peer.leave()
        hole = socket.create_server(("127.0.0.1", peer.port), backlog=0)
        fillers = [socket.socket() for _ in range(2)]
        for each in fillers:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", peer.port))

        def lift() -> None:
            for each in [*fillers, hole]:
                each.close()
            peer.come_back()

        self._for(0.3, 1.2, lift)

    def l6_reset_before_accept(self) -> None:
        party = self._party
        for port in [party.source_port, *party.destination_ports] * 5:
            if port not in self._listened:
                continue
            with socket.socket() as sock, suppress(OSError):
                sock.setblocking(False)
                sock.connect_ex(("127.0.0.1", port))
                reset_connection(sock)

    @property
    def _listened(self) -> set[int]:
        """Ports where relayd listens for clients; a source's would take the place of the one that is there."""
        return {peer.port for peer in self._crowd.peers if peer.dials and isinstance(peer, Destination)}

    def l8_no_descriptors(self) -> None:
        taken = max(descriptors(self._site.pid)) + 1
        resource.prlimit(self._site.pid, resource.RLIMIT_NOFILE, (taken, self._fd_limit[1]))
        for _ in range(3):
            self._destination.reset()
        self._for(0.3, 0.6, lambda: resource.prlimit(self._site.pid, resource.RLIMIT_NOFILE, self._fd_limit))

    # -- the process: P6, P8 -------------------------------------------------------------------------

    def p6_reload(self) -> None:
        self._site.send(signal.SIGHUP)

    def p8_reload_of_nonsense(self) -> None:
        self._site.file.write_text(self._text + "[relay broken]\nsource = nowhere\n")
        self._site.send(signal.SIGHUP)
        self._for(0.1, 0.3, lambda: self._site.file.write_text(self._text) and None)

    # -- the network, in toxiproxy's words -----------------------------------------------------------

    def network(self) -> None:
        proxy = self._random.choice([party.proxy for party in self._parties if party.proxy is not None])
        kind, attributes = self._random.choice(TOXICS)
        stream = self._random.choice(["upstream", "downstream"])
        toxic = proxy.add(kind, stream=stream, **attributes)

        def lift() -> None:
            with suppress(ValueError):  # all were cleared
                proxy.remove(toxic)

        self._for(0.3, 1.5, lift)
        if kind == "latency":
            proxy.cut()


TOXICS: list[tuple[str, dict[str, float]]] = [
    ("latency", {"latency": 0.1, "jitter": 0.05}),
    ("bandwidth", {"rate": 4096}),
    ("slow_close", {"delay": 0.3}),
    ("timeout", {"timeout": 0.3}),
    ("reset_peer", {"timeout": 0.1}),
    ("slicer", {"average_size": 5, "size_variation": 4, "delay": 0.001}),
    ("limit_data", {"bytes": 10_007}),
]

FAULTS = [fault for name, fault in vars(Chaos).items() if name[0] in "slnp" and callable(fault) and name != "strike"]


@row(
    "K1",
    provoked="20 relays of all modes (raw pairs, fan-outs, dropping ones, with history, with a bad network before the "
    "source), 200 clients, and every 0.2 s one of S1-S10, N1-N3, L6, L8, P6, P8 or a toxic; the schedule is the seed's",
    required="no byte is lost, doubled, torn or swapped on any link that lives; when it is over, every relay carries",
)
def test_k1_chaos(rig: Rig) -> None:
    crowd = Crowd()
    with ExitStack() as stack:
        stack.enter_context(crowd)
        plan = [(kind, mode) for kind in _KINDS for mode in _MODES]
        parties = [Party(crowd, number, *each, stack, rig.seed + number) for number, each in enumerate(plan)]
        with rig.daemon(*(party.text for party in parties), grows=12 * MIB) as site:
            for party in parties:
                crowd.call(party.come)
            for party in parties:
                party.wait_at_work()
            chaos = Chaos(rig, site, crowd, parties)
            for _ in range(rig.times(25, 100)):
                crowd.call(chaos.strike)
                time.sleep(_EVERY)
            chaos.heal()
            for party in parties:
                party.wait_at_work()
            for party in parties:
                crowd.call(party.go)
            assert not crowd.faults, crowd.faults
            # All ends wait from now on, as in the beginning, but seldom try: to be at rest is to do nothing.
            site.configure(*(party.text.replace(_LIMITS["reconnect"], "30s") for party in parties), rig.control_relay)
            site.reload()
            links = sum(each["totals"]["destination_links"] for each in site.status()["relays"])
        rig.saw(f"seed {rig.seed}: {sum(chaos.done.values())} faults of {len(chaos.done)} kinds, {links} links, "
                "0 integrity errors")  # fmt: skip


@row("K1", provoked="", required="")
def test_k1_all_clients_of_a_history_come_back_at_once(rig: Rig) -> None:
    """Found by chance: after a burst, each who joined cost the loop a walk through all records of a chunk."""
    source_port, port, burst = free_port(), free_port(), 60_000
    with rig.daemon(relay("past", source_port, port, framing="line", history="50r"), grows=8 * MIB) as site:
        with ExitStack() as stack:
            source = stack.enter_context(connect(source_port))
            source.sendall(keyed("past", 0, burst))
            wait_until(lambda: site.relay("past")["totals"]["records_in"] == burst, "the burst")
            clients = [connect(port) for _ in range(200)]
            for client in clients:
                stack.callback(reset_connection, client)
            for client in clients:
                assert receive(client, 50 * CELL) == keyed("past", burst - 50, 50)
        rig.saw(f"200 clients that join a history at once: loop at most {site.status()['loop_lag']['max']:.2f} s late")


@row("K1", provoked="", required="")
def test_k1_all_clients_of_a_dropping_relay_fall_behind_at_once(rig: Rig) -> None:
    """Found by chance: that is one cause, and a log of some lines, not of two for each client."""
    source_port, port = free_port(), free_port()
    text = relay("drop", source_port, port, framing="line", overflow="drop_oldest", buffer="64K", notsent="16K")
    with rig.daemon(text, grows=8 * MIB) as site, ExitStack() as stack:
        source = stack.enter_context(connect(source_port))
        for _ in range(_CLIENTS):
            stack.callback(reset_connection, stalled_client(port))
        wait_until(lambda: len(site.relay("drop")["destinations"]) == _CLIENTS, "all clients")
        sent = 0
        while not all(link["dropped"] for link in site.relay("drop")["destinations"]):
            source.sendall(keyed("drop", sent, _FLOOD))
            sent += _FLOOD
        rig.saw(f"{_CLIENTS} clients that fall behind at once: {len(site.lines('event=dropping'))} lines")
