"""The same behaviour of two peers through relayd, HAProxy, nginx and socat: relayd is never the worse one.

The source sends a keyed stream through the proxy to the destination; what comes out there, how it ends, how long
that takes and what it costs is compared.  How each is set, and why that is fair: see peers.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.oracle import MIB, cpu_seconds
from tests.faults.peers import PEERS, family, relayd_keys
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.streams import deafen
from tests.integration.daemons import relay
from tests.support import CELL, PATIENCE, SLOWNESS, bulk, connect, free_port, receive, reset_connection, wait_until

_SOON = 0.1 * SLOWNESS  # seconds
_MARGIN = 0.25 * SLOWNESS  # seconds that relayd may be later; whether a half-closed peer is there takes it 0.1 to see
_SPIN = 0.1  # of a core: a loop that spins takes all of it


@dataclass
class Ends:
    """The two peers of a proxy, and the proxy."""

    source: socket.socket
    destination: socket.socket
    server: socket.socket  # that accepted the destination, and would again
    pids: list[int]

    def cpu(self, seconds: float = 0.3) -> float:
        """Return the part of a core that the proxy uses from now on."""
        before = sum(map(cpu_seconds, self.pids))
        time.sleep(seconds)
        return (sum(map(cpu_seconds, self.pids)) - before) / seconds

    def seconds_held(self) -> float:
        """Return how long the proxy keeps its link to the destination; as long as we look, if for longer."""
        began = time.monotonic()
        theirs, ours = self.destination.getpeername()[1], self.destination.getsockname()[1]
        words = f":{theirs:04X}", f":{ours:04X}"
        while time.monotonic() < began + _LOOK:
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            # The inode of a connection that no process has is 0.
            if not any(r[1].endswith(words[0]) and r[2].endswith(words[1]) and r[9] != "0" for r in rows):
                break
            time.sleep(0.05)
        return time.monotonic() - began


# Seconds that a limit may be exceeded by: for what the kernel has taken its own timer counts, which is 1.5 times ours.
_LATE = 1.5 * SLOWNESS
_LOOK = 2 + _LATE  # seconds: all limits are 2 or less


@dataclass
class Seen:
    """What came of it."""

    arrived: int = 0  # bytes, each of them the right one
    end: str = ""  # FIN, RST, or what else became of the link
    took: float = 0.0  # seconds to the end
    cpu: float = 0.0  # part of a core, while nothing was to be done
    lost: int = 0  # bytes that the proxy's kernel had acknowledged


def read_to_the_end(sock: socket.socket, expected: bytes) -> Seen:
    """Read and compare until the stream ends."""
    began, arrived = time.monotonic(), 0
    sock.settimeout(PATIENCE)
    while True:
        try:
            data = sock.recv(MIB)
        except ConnectionResetError:
            return Seen(arrived, "RST", time.monotonic() - began)
        except TimeoutError:
            return Seen(arrived, "no end", time.monotonic() - began)
        if not data:
            return Seen(arrived, "FIN", time.monotonic() - began)
        assert data == expected[arrived : arrived + len(data)], f"another byte after {arrived}"
        arrived += len(data)


def send_what_is_taken(sock: socket.socket, data: bytes) -> int:
    """Send until nothing is taken for a while; return the bytes."""
    sock.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(data):
            sent += sock.send(data[sent : sent + 64 * 1024])
    sock.settimeout(PATIENCE)
    return sent


def unacknowledged(sock: socket.socket) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


# -- what the two do to each other ------------------------------------------------------------------

Play = Callable[[Ends], Seen]

SOME = bulk(2_000_000)[:MIB]
MUCH = bulk(2_000_000)[: 8 * MIB]
ALL = bulk(3_000_000)  # 48 MB, more than is taken on the way: a receive buffer may have 32 (net.ipv4.tcp_rmem)


def source_resets(ends: Ends) -> Seen:
    ends.source.sendall(SOME)
    assert receive(ends.destination, len(SOME)) == SOME
    reset_connection(ends.source)
    seen = read_to_the_end(ends.destination, b"")
    return Seen(len(SOME), seen.end, seen.took)


def destination_resets(ends: Ends) -> Seen:
    """A proxy can only end the source; a relay may go on with the next destination, from where the first was lost."""
    ends.source.sendall(SOME)
    assert receive(ends.destination, len(SOME)) == SOME
    began = time.monotonic()
    reset_connection(ends.destination)
    ready, _, _ = select.select([ends.source, ends.server], [], [], PATIENCE)
    took = time.monotonic() - began
    if ends.server in ready:
        with ends.server.accept()[0] as again:
            ends.source.sendall(SOME)
            assert receive(again, len(SOME)) == SOME
            ends.source.shutdown(socket.SHUT_WR)
            return Seen(2 * len(SOME), "goes on", took)
    return Seen(len(SOME), read_to_the_end(ends.source, b"").end, took)


def destination_half_closes(ends: Ends) -> Seen:
    ends.destination.shutdown(socket.SHUT_WR)
    time.sleep(0.1)  # so that the FIN is dealt with
    return _in_one_go(ends, MUCH)


def source_half_closes(ends: Ends) -> Seen:
    """What the destination answers after the source's end: a pair of connections has that, a one-way stream has not."""
    ends.source.sendall(SOME)
    ends.source.shutdown(socket.SHUT_WR)
    seen = read_to_the_end(ends.destination, SOME)
    with ThreadPoolExecutor(1) as pool, contextlib.suppress(OSError):
        answer = pool.submit(read_to_the_end, ends.source, SOME)
        with contextlib.suppress(OSError):
            ends.destination.sendall(SOME)
        ends.destination.close()
        answered = answer.result().arrived
    return Seen(seen.arrived, f"{seen.end}, {answered // 1024} KiB of the answer", seen.took)


def quiet_after_half_close(ends: Ends) -> Seen:
    ends.source.sendall(SOME)
    assert receive(ends.destination, len(SOME)) == SOME
    ends.destination.shutdown(socket.SHUT_WR)
    share = ends.cpu()
    return Seen(len(SOME), f"{100 * share:.0f} % CPU", cpu=share)


def source_resets_while_held_up(ends: Ends) -> Seen:
    """What the source's kernel has handed over by then is what can arrive; how much that is, its windows decide."""
    taken = send_what_is_taken(ends.source, ALL)
    assert taken < len(ALL), "it is not held up"
    taken -= unacknowledged(ends.source)
    reset_connection(ends.source)
    share = ends.cpu()
    seen = read_to_the_end(ends.destination, ALL)
    return Seen(seen.arrived, seen.end, seen.took, share, max(0, taken - seen.arrived))


def ends_with_unread_input(ends: Ends) -> Seen:
    """The destination has sent what the source did not read, so it waits in the proxy when the source ends."""
    assert send_what_is_taken(ends.destination, ALL) < len(ALL), "all of it was read"
    return _in_one_go(ends, SOME)


def both_end_at_once(ends: Ends) -> Seen:
    ends.source.sendall(SOME)
    ends.source.shutdown(socket.SHUT_WR)
    ends.destination.shutdown(socket.SHUT_WR)
    return read_to_the_end(ends.destination, SOME)


def reset_after_end(ends: Ends) -> Seen:
    """Everything was handed over and the end was said before the source's host forgot about it."""
    with contextlib.suppress(AssertionError):
        ends.source.sendall(SOME)
        ends.source.shutdown(socket.SHUT_WR)
        wait_until(lambda: not unacknowledged(ends.source))
        time.sleep(0.1)  # so that the FIN is dealt with
    reset_connection(ends.source)
    time.sleep(0.1)
    return read_to_the_end(ends.destination, SOME)


def end_in_the_same_segment(ends: Ends) -> Seen:
    ends.source.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    ends.source.sendall(SOME[: 10 * CELL])
    ends.source.shutdown(socket.SHUT_WR)
    return read_to_the_end(ends.destination, SOME)


def half_closed_for_ever(ends: Ends) -> Seen:
    ends.destination.shutdown(socket.SHUT_WR)
    return _until_given_up(ends)


def vanished(ends: Ends) -> Seen:
    deafen(ends.destination)
    return _until_given_up(ends)


def vanished_with_data_on_the_way(ends: Ends) -> Seen:
    deafen(ends.destination)
    ends.source.sendall(SOME[:CELL])
    return _until_given_up(ends)


def stops_for_a_moment(ends: Ends) -> Seen:
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(_send_and_end, ends.source, MUCH)
        time.sleep(0.6)
        seen = read_to_the_end(ends.destination, MUCH)
        sending.result()
    return seen


def _until_given_up(ends: Ends) -> Seen:
    took = ends.seconds_held()
    return Seen(0, f"{took:.1f} s" if took < _LOOK else f"over {_LOOK:.1f} s", took)


def _in_one_go(ends: Ends, data: bytes) -> Seen:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(_send_and_end, ends.source, data)
        return read_to_the_end(ends.destination, data)


def _send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.settimeout(PATIENCE)
    with contextlib.suppress(OSError):  # what arrives is what counts
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


# -- the comparison -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Behaviour:
    """One script, and what is right."""

    row: str  # of the catalogue
    play: Callable[[Ends], Seen]
    all_of: int  # bytes that must arrive, 0: what was acknowledged
    ends: tuple[str, ...] = ()  # the right ones
    timed: bool = True  # whether to be early is to be better
    within: float = PATIENCE  # seconds
    stall: int = 30  # seconds in which the destination may take nothing

    @property
    def test(self) -> str:
        """Where it is played; those that wait for a limit wait together."""
        return "S7-S9" if self.row in ("S7", "S8", "S9") else self.row

    @property
    def title(self) -> str:
        return f"{self.row} {self.play.__name__.replace('_', ' ')}"

    def told(self, label: str, seen: Seen) -> str:
        """Return what became of it, in short."""
        whole = self.all_of and seen.arrived == self.all_of
        part = "" if whole or not seen.arrived else f", {seen.arrived / MIB:.1f} MiB arrived"
        part += f", {seen.lost / MIB:.1f} MiB lost" if seen.lost else ""
        took = f" after {1000 * seen.took:.0f} ms" if self.timed and self.ends else ""
        return f"{label} {seen.end}{took}{part}"

    def worse(self, ours: Seen, *others: Seen) -> Iterator[str]:
        """Say in what relayd is worse than the best of the others, or not right."""
        if ours.arrived < self.all_of or ours.lost:
            yield "less arrives"
        if self.ends and ours.end not in self.ends:
            yield f"the end should be {' or '.join(self.ends)}"
        if ours.cpu > _SPIN:
            yield f"it spins, {ours.cpu:.2f} of a core"
        as_good = [seen.took for seen in others if not self.ends or seen.end in self.ends]
        if ours.took > (min([self.within, *(took + _MARGIN for took in as_good)]) if self.timed else self.within):
            yield f"late, {ours.took:.2f} s"


BEHAVIOURS = [
    Behaviour("S1", source_resets, len(SOME), ("RST",), within=_SOON),
    Behaviour("S1", destination_resets, 2 * len(SOME), ("goes on",), within=_SOON),
    Behaviour("S2", destination_half_closes, len(MUCH), ("FIN",), timed=False),
    Behaviour("S2", source_half_closes, len(SOME)),
    Behaviour("S3", quiet_after_half_close, len(SOME)),
    Behaviour("S4", source_resets_while_held_up, 0, ("RST",), timed=False),
    Behaviour("S5", ends_with_unread_input, len(SOME), ("FIN",), timed=False),
    Behaviour("S6", both_end_at_once, len(SOME), ("FIN",)),
    Behaviour("S6", reset_after_end, len(SOME), ("FIN",), timed=False),
    Behaviour("S6", end_in_the_same_segment, 10 * CELL, ("FIN",)),
    Behaviour("S7", half_closed_for_ever, 0, timed=False, within=1 + _LATE, stall=1),
    Behaviour("S8", vanished, 0, timed=False, within=2 + _LATE, stall=1),
    Behaviour("S9", vanished_with_data_on_the_way, 0, timed=False, within=1 + _LATE, stall=1),
    Behaviour("S10", stops_for_a_moment, len(MUCH), ("FIN",), timed=False),
]


@row(
    "K13",
    provoked="the behaviours of S1-S10 through relayd as 1:1 (`return = all`, `on_source_loss = close`), HAProxy, "
    "nginx and socat, each at its best settings",
    required="of the stream, relayd is never the worse one: in bytes that arrive, in how the end looks, in how soon it "
    "comes (what a destination answers after the source's end is no part of the stream)",
)
@pytest.mark.parametrize("name", [*dict.fromkeys(behaviour.test for behaviour in BEHAVIOURS)])
def test_k13_relayd_is_never_the_worse_one(rig: Rig, name: str) -> None:
    """The behaviours of one test are played at the same time, each through proxies of its own."""
    missing = [peer.program for peer in PEERS if peer.missing()]
    if missing:
        pytest.skip(f"no {', '.join(missing)} here")
    behaviours = [behaviour for behaviour in BEHAVIOURS if behaviour.test == name]
    with ExitStack() as stack:
        lanes = [Lane(behaviour, label, stack) for behaviour in behaviours for label in LABELS]
        ours = [lane for lane in lanes if lane.label == "relayd"]
        relays = [
            relay(f"one{lane.port}", lane.port, lane.server_port, buffer="256K", **relayd_keys(lane.behaviour.stall))
            for lane in ours
        ]
        site = stack.enter_context(rig.daemon(*relays, grows=4 * MIB))
        for lane in lanes:
            ports = lane.port, lane.server_port
            peer = next((peer for peer in PEERS if peer.label == lane.label), None)
            running = peer.running(rig.folder, *ports, lane.behaviour.stall) if peer else nullcontext(site.pid)
            lane.pid = stack.enter_context(running)
        with ThreadPoolExecutor(len(lanes)) as pool:
            seen = list(pool.map(Lane.play, lanes))
    wrong: list[str] = []
    for behaviour in behaviours:
        found = [each for each, lane in zip(seen, lanes, strict=True) if lane.behaviour is behaviour]
        line = ", ".join(behaviour.told(*each) for each in zip(LABELS, found, strict=True))
        rig.saw(f"{behaviour.title}: {line}")
        wrong += [f"{behaviour.title}: {what}: {line}" for what in behaviour.worse(*found)]
    assert not wrong, "\n".join(wrong)


LABELS = ["relayd", *(peer.label for peer in PEERS)]


class Lane:
    """One proxy between a source and a server of ours, for one script."""

    def __init__(self, behaviour: Behaviour, label: str, stack: ExitStack) -> None:
        self.behaviour = behaviour
        self.label = label
        self.pid = 0  # of the proxy, once it runs
        self.port = free_port()
        self._server = stack.enter_context(socket.socket())
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # so that windows are full soon
        self._server.bind(("127.0.0.1", 0))
        self._server.listen()
        self._server.settimeout(PATIENCE)
        self.server_port: int = self._server.getsockname()[1]

    def play(self) -> Seen:
        """Run the script."""
        with connect(self.port) as source, self._server.accept()[0] as destination:
            try:
                return self.behaviour.play(Ends(source, destination, self._server, family(self.pid)))
            finally:
                for sock in (destination, source):
                    if sock.fileno() >= 0:
                        reset_connection(sock)
