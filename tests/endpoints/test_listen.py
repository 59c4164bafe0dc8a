"""A listening end: who may come in, who may not, and what is left of either."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from relayd.address import Address, TcpAddress, UnixAddress
from relayd.endpoints.listen import Admission, ListenEndpoint
from relayd.errors import StartError
from relayd.net.connector import Connector, DialSettings
from relayd.net.listener import ListenerPool, ListenSettings
from relayd.net.resolver import Resolver
from relayd.net.sockets import Keepalive, SocketOptions, link_name
from relayd.net.transport import Transport
from relayd.observe.counters import Counters
from relayd.observe.log import EventLog
from relayd.policy.access import AccessList, parse_network
from relayd.policy.loops import End, LoopGuard
from tests.net.helpers import (
    Lines,
    Loop,
    OwnedLink,
    Owner,
    descriptors,
    no_more_descriptors,
    resolver_threads,
    running_loop,
)
from tests.support import PATIENCE, free_port, receive, reset_connection

loop = pytest.fixture(running_loop)

HOME = TcpAddress("127.0.0.1", 0)  # the port is filled in


def _is_open(address: Address) -> bool:
    return isinstance(address, TcpAddress) and not address.port


class House:
    """A listening endpoint with all that it needs, on a port of its own."""

    def __init__(
        self, loop: Loop, addresses: Sequence[Address] = (HOME,), *, allow: str = "", deny: str = "",
        max_links: int = 0, per_ip: int = 0, relay: str = "test", is_source: bool = False,
        guard: LoopGuard | None = None, options: SocketOptions | None = None, start: bool = True,
        pool: ListenerPool | None = None,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.port = free_port()
        self.relay = relay
        self.guard = guard or LoopGuard()
        self.owner = Owner()
        self.pool = pool or ListenerPool()
        self.counters = Counters()
        self.log = Lines()
        networks = [[parse_network(text) for text in texts.split()] for texts in (allow, deny)]
        self.endpoint = ListenEndpoint(
            loop,
            [TcpAddress(address.host, self.port) if _is_open(address) else address for address in addresses],
            self.pool,
            ListenSettings(options or SocketOptions(), backlog=511, unix_mode=0o660),
            linger_timeout=2.0,
            admission=Admission(AccessList(*networks), max_links, per_ip),
            guard=self.guard,
            end=End(relay, is_source),
            owner=self.owner,
            counters=self.counters,
            log=EventLog(loop, self.log, "debug").bind(relay=relay),
        )
        loop.stack.callback(self.close)
        if start:
            self.endpoint.open()
            self.endpoint.start()

    def close(self) -> None:
        self.endpoint.stop()
        for link in self.owner.links:
            link.transport.abort("test over")

    def knock(self, source: str = "") -> socket.socket:
        """Return a peer that is connected as far as it can tell, from a loopback address."""
        peer = socket.create_connection(
            ("127.0.0.1", self.port), timeout=PATIENCE, source_address=(source, 0) if source else None
        )
        return self.loop.stack.enter_context(peer)

    def enter(self, source: str = "") -> tuple[socket.socket, OwnedLink]:
        """Return a peer that has come in, and its link."""
        before = len(self.owner.links)
        peer = self.knock(source)
        self.loop.until(lambda: len(self.owner.links) > before)
        return peer, self.owner.links[-1]

    def assert_refused(self, reason: str, source: str = "") -> None:
        """A peer comes and is reset, counted; the reason is in the log, once a burst."""
        before, links = self.counters.refused, len(self.owner.links)
        peer = self.knock(source)
        self.loop.until(lambda: self.counters.refused > before)
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        assert self.counters.refused == before + 1
        assert len(self.owner.links) == links
        assert len(self.log.having("event=refused", f"reason={reason}")) == 1


# -- coming in ----------------------------------------------------------------------------------------


def test_a_peer_comes_in_and_is_heard_and_answered(loop: Loop) -> None:
    house = House(loop)
    peer, link = house.enter()
    assert link.name == f"127.0.0.1:{peer.getsockname()[1]}"
    peer.send(b"hello")
    loop.until(lambda: link.data == b"hello")
    link.send(b"welcome")
    assert receive(peer, 7) == b"welcome"
    assert house.log.having("event=listening", f"address=127.0.0.1:{house.port}")


def test_a_listener_that_is_kept_is_no_news(loop: Loop) -> None:
    house = House(loop)
    for end in (house.endpoint._end, End("other", is_source=False)):  # a reload of the relay, and of one renamed
        with_other_end = ListenEndpoint(
            loop, house.endpoint._addresses, house.pool, house.endpoint._settings, 2.0, house.endpoint._admission,
            house.guard, end, house.owner, house.counters, EventLog(loop, house.log).bind(relay=end.relay),
        )  # fmt: skip
        with_other_end.open()
        house.endpoint.stop()
        with_other_end.start()
        house.endpoint = with_other_end
    told = house.log.having("event=listening")
    assert [f"relay={house.relay} " in line for line in told] == [True, False]


def test_the_links_socket_has_the_options(loop: Loop) -> None:
    house = House(loop, options=SocketOptions(True, Keepalive(31, 11, 4), 60.0))
    _, link = house.enter()
    sock = link.transport._sock
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 31
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) > 60_000


def test_several_addresses_are_listened_on_together(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "feed.sock")
    house = House(loop, [HOME, UnixAddress(path), TcpAddress("::1", free_port())])
    house.enter()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        loop.until(lambda: len(house.owner.links) == 2)
        assert re.fullmatch(rf"unix:pid{os.getpid()}-\d+", house.owner.links[1].name)


def test_l1_an_end_opens_all_of_its_addresses_or_none_and_names_all_that_is_wrong(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (taken, other)]
        house = House(loop, [HOME, *(TcpAddress("127.0.0.1", port) for port in ports)], start=False)
        before = descriptors()
        with pytest.raises(StartError) as caught:
            house.endpoint.open()
        assert descriptors() == before
        assert [f"127.0.0.1:{port}: Address already in use" in reason for port, reason in
                zip(ports, caught.value.reasons, strict=True)] == [True, True]  # fmt: skip
    with pytest.raises(ConnectionRefusedError):
        house.knock()


def test_open_takes_the_port_but_nobody_comes_in_before_start(loop: Loop) -> None:
    house = House(loop, start=False)
    house.endpoint.open()
    house.knock()
    loop.turns(3)
    assert not house.owner.links
    house.endpoint.start()
    loop.until(lambda: house.owner.links)


def test_p2_stop_gives_the_port_back_and_leaves_the_links(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "feed.sock"
    house = House(loop, [HOME, UnixAddress(str(path))])
    peer, link = house.enter()
    house.endpoint.stop()
    with pytest.raises(ConnectionRefusedError):
        house.knock()
    assert not path.exists()
    link.send(b"still here")
    assert receive(peer, 10) == b"still here"
    house.endpoint.stop()  # once more is harmless
    assert loop.handlers == 1


def test_l18_after_stop_no_accepted_socket_is_left_open(loop: Loop) -> None:
    house = House(loop)
    house.owner.on_link = lambda link: house.endpoint.stop()
    peers = [house.knock() for _ in range(50)]
    loop.turns(3)
    assert len(house.owner.links) == 1
    house.owner.links[0].transport.abort("stopped")
    loop.turns(1)
    for peer in peers:
        with pytest.raises(ConnectionResetError):
            peer.recv(1)


# -- who may not ----------------------------------------------------------------------------------------


def test_l15_a_denied_peer_is_reset_counted_and_logged_once_a_burst(loop: Loop) -> None:
    house = House(loop, deny="127.0.0.2/32")
    for _ in range(20):
        house.assert_refused("denied", "127.0.0.2")
    house.enter("127.0.0.3")
    assert house.counters.refused == 20
    loop.advance(10.0)
    assert house.log.having("event=refused", "repeated 19 times")
    house.knock("127.0.0.2")
    loop.until(lambda: house.counters.refused == 21)
    assert len(house.log.having("event=refused")) == 3  # a new burst is told again


def test_l15_only_those_that_are_allowed_come_in_and_deny_stands_above(loop: Loop) -> None:
    house = House(loop, allow="127.0.1.0/24", deny="127.0.1.9/32")
    house.enter("127.0.1.1")
    house.assert_refused("denied", "127.0.2.1")
    house.assert_refused("denied", "127.0.1.9")


def test_l15_the_refusals_line_names_relay_and_peer(loop: Loop) -> None:
    house = House(loop, deny="127.0.0.0/8")
    peer = house.knock()
    loop.until(lambda: house.counters.refused)
    (line,) = house.log.having("event=refused")
    assert "relay=test" in line
    assert f"peer=127.0.0.1:{peer.getsockname()[1]}" in line


@pytest.mark.parametrize(
    ("allow", "deny", "peer", "reason"),
    [
        ("10.0.0.0/8", "", ("::ffff:10.0.0.1", 1, 0, 0), ""),
        ("::ffff:10.0.0.0/104", "", ("10.0.0.1", 1), ""),
        ("", "10.0.0.1/32", ("::ffff:10.0.0.1", 1, 0, 0), "denied"),
        ("", "::ffff:10.0.0.1/128", ("10.0.0.1", 1), "denied"),
        ("10.0.0.0/8", "", ("::ffff:11.0.0.1", 1, 0, 0), "denied"),
        ("fe80::/10", "", ("fe80::1%eth0", 1, 0, 2), ""),
        ("", "fe80::/10", ("fe80::1%eth0", 1, 0, 2), "denied"),
        ("127.0.0.1/32", "", ("::1", 1, 0, 0), "denied"),
        ("::1/128", "", ("127.0.0.1", 1), "denied"),
        ("0.0.0.0/0", "", ("2001:db8::1", 1, 0, 0), "denied"),
        ("::/0", "", ("10.0.0.1", 1), "denied"),
        ("10.0.0.0/8", "", "", ""),  # a Unix peer has no address to judge
    ],
)
def test_l16_addresses_are_folded_before_they_are_judged(allow: str, deny: str, peer: Any, reason: str) -> None:
    networks = [[parse_network(text) for text in texts.split()] for texts in (allow, deny)]
    assert Admission(AccessList(*networks), 0, 0).refusal(peer) == reason


def test_l13_one_client_too_many_is_reset_and_a_place_that_is_left_is_free(loop: Loop) -> None:
    house = House(loop, max_links=2)
    _, first = house.enter()
    peer, _ = house.enter()
    house.assert_refused("full")
    peer.close()
    loop.until(lambda: len(house.owner.up) == 1)
    house.enter()
    house.assert_refused("full")
    first.transport.abort("slow")
    loop.turn(0)
    house.enter()


def test_l14_one_address_has_so_many_places_and_no_more(loop: Loop) -> None:
    house = House(loop, per_ip=2)
    first, _ = house.enter("127.0.0.2")
    house.enter("127.0.0.2")
    house.assert_refused("full_for_ip", "127.0.0.2")
    house.enter("127.0.0.3")
    first.close()
    loop.until(lambda: len(house.owner.up) == 2)
    house.enter("127.0.0.2")
    house.assert_refused("full_for_ip", "127.0.0.2")


def test_l14_who_has_left_is_forgotten(loop: Loop) -> None:
    house = House(loop, per_ip=1)
    for number in range(1, 40):
        _, link = house.enter(f"127.0.0.{number}")
        link.transport.abort("test over")
        loop.turn(0)
    admission = house.endpoint._admission
    assert not admission._by_host
    assert admission._links == 0


def enter_three(loop: Loop, house: House, path: str) -> None:
    for number in range(3):
        client = loop.stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(path)
        loop.until(lambda count=number: len(house.owner.links) == count + 1)


def test_l14_unix_peers_are_not_counted_as_one_address(loop: Loop, tmp_path: Path) -> None:
    path = str(tmp_path / "feed.sock")
    house = House(loop, [UnixAddress(path)], per_ip=1)
    enter_three(loop, house, path)
    assert house.counters.refused == 0


def test_unix_peers_have_names_of_their_own_in_links_and_refusals(loop: Loop, tmp_path: Path) -> None:
    """One that joins later, over another end even, is not called as one that is there."""
    path = str(tmp_path / "feed.sock")
    house = House(loop, [UnixAddress(path)], max_links=3)
    enter_three(loop, house, path)
    names = [link.name for link in house.owner.links]
    assert len(set(names)) == 3
    assert [house.endpoint.peer_name(link.transport) for link in house.owner.links] == names
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        loop.until(lambda: house.counters.refused)
    assert house.log.having("event=refused", f"peer=unix:pid{os.getpid()}-", "reason=full")


def test_the_owners_refusal_is_kept_to_and_logged(loop: Loop) -> None:
    house = House(loop, is_source=True)
    house.enter()
    house.owner.reason = "second_source"
    house.assert_refused("second_source")
    house.owner.reason = ""
    house.enter()


def test_l6_peers_that_are_gone_before_they_are_accepted_take_no_place(loop: Loop) -> None:
    house = House(loop, max_links=2)
    for _ in range(20):
        reset_connection(house.knock())
        loop.turns(2)
    loop.until(lambda: not house.owner.up)
    house.enter()


def test_p26_a_link_that_could_not_be_made_takes_no_place(loop: Loop) -> None:
    house = House(loop, max_links=1)

    def fail(link: OwnedLink) -> None:
        house.owner.on_link = lambda link: None
        house.owner.links.clear()
        raise MemoryError

    house.owner.on_link = fail
    peer = house.knock()
    loop.until(lambda: loop.failures)
    loop.failures.clear()
    with contextlib.suppress(ConnectionResetError):
        assert peer.recv(1) == b""  # a plain close is as good as a reset
    house.knock()
    loop.turns()
    assert house.owner.links, "the place is taken for ever"


def test_p26_options_that_the_kernel_refuses_take_no_place(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(loop, max_links=1)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    with monkeypatch.context() as patch:
        patch.setattr(SocketOptions, "apply", refuse)
        peer = house.knock()
        loop.until(lambda: house.log.having("event=refused", "reason=ENOBUFS"))
    peer.close()
    house.knock()
    loop.turns()
    assert house.owner.links, "the place is taken for ever"


def test_l8_out_of_descriptors_is_logged_once_and_links_go_on(loop: Loop) -> None:
    house = House(loop)
    peer, link = house.enter()
    for _ in range(5):
        house.knock()
    with no_more_descriptors():
        loop.until(lambda: house.log.having("event=accepting_paused"))
        for _ in range(5):
            loop.advance(1.0)
            loop.turns(3)
        assert len(house.log.having("event=accepting_paused", "reason=EMFILE")) == 1
        link.send(b"goes on")
        assert receive(peer, 7) == b"goes on"
    loop.advance(1.0)
    loop.until(lambda: len(house.owner.links) == 6)


def test_l12_connect_and_close_two_thousand_times_leaves_nothing(loop: Loop) -> None:
    house = House(loop)
    before, timers = len(descriptors()), loop.timers
    for _ in range(100):
        for _ in range(20):
            socket.create_connection(("127.0.0.1", house.port)).close()
        loop.until(lambda: not loop.turns(1))
    loop.until(lambda: len(house.owner.links) == 2000 and not house.owner.up)
    assert {reason for link in house.owner.links for reason in link.lost} == {"eof"}
    assert len(descriptors()) == before
    loop.advance(1.0)  # the reactor's check of dormant handlers, if there were any, ends by itself
    assert loop.timers == timers
    assert loop.handlers == 1
    assert not house.endpoint._admission._by_host


# -- loops ----------------------------------------------------------------------------------------------


class Dialler:
    """A connecting end of a relay, as far as loops are concerned."""

    def __init__(self, loop: Loop, guard: LoopGuard, relay: str, is_source: bool) -> None:
        self.loop = loop
        self.guard = guard
        self.owner = Owner()
        self.errors: list[str] = []
        self.connector = Connector(
            loop, Resolver(loop), DialSettings(SocketOptions(), 10.0), guard, End(relay, is_source)
        )

    def dial(self, port: int, host: str = "127.0.0.1") -> OwnedLink:
        """Return the link, up as far as this end can tell."""
        before = len(self.owner.links)
        self.connector.connect(TcpAddress(host, port), self._connected, self.errors.append)
        self.loop.until(lambda: len(self.owner.links) > before)
        return self.owner.links[-1]

    def assert_loop(self, house: House, host: str = "127.0.0.1") -> None:
        """Dial the house; it must reset us with the reason `loop`, before or after we see that we are up."""
        self.connector.connect(TcpAddress(host, house.port), self._connected, self.errors.append)
        self.loop.until(lambda: self.errors or any(link.lost for link in self.owner.links))
        assert all("Connection reset" in error for error in self.errors)
        assert [link.lost for link in self.owner.links] in ([], [["reset"]])
        assert len(house.log.having("event=refused", "reason=loop", f"relay={house.relay}")) == 1
        assert house.counters.refused == 1

    def _connected(self, sock: socket.socket, peer: Any) -> None:
        transport = Transport(self.loop, sock, peer, 2.0)
        self.loop.stack.callback(transport.abort, "test over")
        transport.start(self.owner.link_made(transport, self))

    def peer_name(self, transport: Any) -> str:
        return "dialled"

    def link_lost(self, transport: Any, reason: str) -> None:
        self.guard.hung_up(link_name(transport.local, transport.peer))


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.9"])
def test_n8_a_relay_that_dials_its_own_listener_is_closed_with_the_reason_loop(loop: Loop, host: str) -> None:
    guard = LoopGuard()
    house = House(loop, [TcpAddress("", 0)], relay="a", guard=guard)
    before = len(descriptors())
    Dialler(loop, guard, "a", is_source=True).assert_loop(house, host)
    assert house.owner.links == []
    assert not guard.edges
    assert not guard._dialled
    loop.until(lambda: not resolver_threads())
    loop.turn(0)
    assert len(descriptors()) == before


def test_n9_a_chain_is_legal_and_closing_the_circle_is_not(loop: Loop) -> None:
    guard = LoopGuard()
    a = House(loop, relay="a", is_source=True, guard=guard)
    b = House(loop, relay="b", is_source=True, guard=guard)
    from_a = Dialler(loop, guard, "a", is_source=False)
    from_b = Dialler(loop, guard, "b", is_source=False)
    chain = from_a.dial(b.port)
    loop.until(lambda: b.owner.links)
    from_b.assert_loop(a)
    assert a.owner.links == []
    loop.turns(3)
    assert chain.lost == []
    assert not b.log.having("event=refused")
    chain.transport.abort("test over")
    loop.until(lambda: b.owner.links[0].lost)
    from_b.dial(a.port)  # the first link is gone: now the other way round is the chain
    loop.until(lambda: a.owner.links)


def test_n9_a_circle_of_three_is_found(loop: Loop) -> None:
    guard = LoopGuard()
    houses = [House(loop, relay=name, is_source=True, guard=guard) for name in "abc"]
    dial = [Dialler(loop, guard, name, is_source=False) for name in "abc"]
    dial[0].dial(houses[1].port)
    dial[1].dial(houses[2].port)
    loop.until(lambda: houses[1].owner.links and houses[2].owner.links)
    dial[2].assert_loop(houses[0])


def test_n9_a_source_that_dials_a_destination_counts_in_the_same_circle(loop: Loop) -> None:
    """A's clients listener feeds B, which dials it as its source; B's clients listener feeds A the same way."""
    guard = LoopGuard()
    a = House(loop, relay="a", is_source=False, guard=guard)
    b = House(loop, relay="b", is_source=False, guard=guard)
    Dialler(loop, guard, "b", is_source=True).dial(a.port)
    loop.until(lambda: a.owner.links)
    Dialler(loop, guard, "a", is_source=True).assert_loop(b)


def test_n9_everything_is_forgotten_when_the_links_are_gone(loop: Loop) -> None:
    guard = LoopGuard()
    b = House(loop, relay="b", is_source=True, guard=guard)
    link = Dialler(loop, guard, "a", is_source=False).dial(b.port)
    loop.until(lambda: guard.edges)
    link.transport.abort("test over")
    loop.until(lambda: b.owner.links[0].lost)
    assert not guard.edges
    assert not guard._dialled


def test_n9_a_stranger_who_shares_the_local_port_of_our_dial_is_no_loop(loop: Loop) -> None:
    """Linux gives one local port to several connections, as long as they go to different places."""
    guard = LoopGuard()
    house = House(loop, relay="a", guard=guard)
    with socket.create_server(("127.0.0.1", 0)) as feed:
        ours = Dialler(loop, guard, "a", is_source=True).dial(feed.getsockname()[1])
        port = ours.transport.local[1]
        stranger = loop.stack.enter_context(socket.socket())
        # IP_LOCAL_PORT_RANGE, ip(7), Linux 6.3: from this very port, as chance would have it one day.
        try:
            stranger.setsockopt(socket.IPPROTO_IP, 51, struct.pack("I", (port << 16) | port))
        except OSError:
            pytest.skip("no IP_LOCAL_PORT_RANGE in this kernel")
        stranger.settimeout(PATIENCE)
        stranger.connect(("127.0.0.1", house.port))
        assert stranger.getsockname() == ours.transport.local
        loop.until(lambda: house.owner.links or house.counters.refused)
        assert not house.log.having("event=refused")
        assert house.owner.links


# -- a reload -------------------------------------------------------------------------------------------


def go_over(before: House, **settings: Any) -> House:
    """Return the end of the next configuration, on the same port, which has taken the links over."""
    after = House(before.loop, before.endpoint._addresses, pool=before.pool, guard=before.guard, relay=before.relay,
                  start=False, **settings)  # fmt: skip
    after.port = before.port
    after.endpoint.open()
    before.endpoint.stop()
    for link in before.owner.links:
        after.endpoint.adopt(link.transport, before.endpoint)
        link.endpoint = after.endpoint
    after.endpoint.start()
    return after


def test_r_the_port_stays_open_and_the_links_are_the_new_end_s(loop: Loop) -> None:
    before = House(loop)
    peer, link = before.enter()
    sock = next(iter(before.endpoint._listeners.values())).sockets[0]
    after = go_over(before)
    assert next(iter(after.endpoint._listeners.values())).sockets[0] is sock
    link.send(b"still here")
    assert receive(peer, 10) == b"still here"
    after.enter()
    assert len(before.owner.links) == 1
    peer.close()
    loop.until(lambda: link.lost)
    assert after.endpoint._admission._links == 1


def test_r_who_knocks_while_it_goes_over_comes_in(loop: Loop) -> None:
    before = House(loop)
    peer = before.knock()
    after = go_over(before)
    loop.until(lambda: before.owner.links or after.owner.links)
    (link,) = before.owner.links + after.owner.links
    link.send(b"welcome")
    assert receive(peer, 7) == b"welcome"


def test_r_an_adopted_link_has_its_place_among_those_that_may_come_in(loop: Loop) -> None:
    before = House(loop)
    peer, _ = before.enter("127.0.0.2")
    before.enter("127.0.0.3")
    after = go_over(before, max_links=3, per_ip=1)
    after.enter("127.0.0.4")
    after.assert_refused("full", "127.0.0.5")
    peer.close()
    loop.until(lambda: len(before.owner.up) == 1)
    after.assert_refused("full_for_ip", "127.0.0.3")
    after.enter("127.0.0.2")


def test_r_a_limit_below_what_is_up_cuts_nobody_and_lets_nobody_in(loop: Loop) -> None:
    before = House(loop)
    links = [before.enter()[1] for _ in range(3)]
    after = go_over(before, max_links=1)
    after.assert_refused("full")
    assert not any(link.lost for link in links)
    for link in links:
        link.transport.abort("kicked")
    loop.turn(0)
    after.enter()


def test_r_an_adopted_link_gets_the_new_options(loop: Loop) -> None:
    before = House(loop, options=SocketOptions(True, Keepalive(31, 11, 4), 60.0))
    _, link = before.enter()
    go_over(before, options=SocketOptions(False, None, 0.0))
    sock = link.transport._sock
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_r_what_closes_a_circle_is_still_known_and_forgotten_after(loop: Loop) -> None:
    guard = LoopGuard()
    b = House(loop, relay="b", is_source=True, guard=guard)
    link = Dialler(loop, guard, "a", is_source=False).dial(b.port)
    loop.until(lambda: guard.edges)
    go_over(b, is_source=True)
    assert list(guard.edges.values()) == [("a", "b")]
    link.transport.abort("test over")
    loop.until(lambda: b.owner.links[0].lost)
    assert not guard.edges


def test_the_state_is_listening(loop: Loop) -> None:
    state = House(loop).endpoint.state()
    assert (state.name, state.reconnects, state.last_error) == ("listening", 0, "")
