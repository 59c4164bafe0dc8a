"""Time: a process that is stopped for a while, a wall clock that jumps, a loop that stands still."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack

from tests.faults.links import Links
from tests.faults.lives import pause
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.wallclock import DAY, WallClock
from tests.integration.daemons import Feed, Site, relay
from tests.support import (
    PATIENCE,
    ROOT,
    SLOWNESS,
    Collector,
    check_keyed,
    free_port,
    listener,
    reset_connection,
    wait_until,
)

# -- a process that is stopped --------------------------------------------------------------------


class Refuser(threading.Thread):
    """A server that resets whoever comes, and notes when."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.came: list[float] = []
        self._sock = sock
        self.start()

    def run(self) -> None:
        try:
            while True:
                peer, _ = self._sock.accept()
                self.came.append(time.monotonic())
                reset_connection(peer)
        except OSError:
            return  # closed: the end


@row(
    "P16",
    provoked="SIGSTOP, for longer than every timeout that is set; SIGCONT",
    required="timers fire once, not as often as they would have; nobody is cut who did nothing wrong: a source that "
    "has sent meanwhile is not idle, a client that reads is not stalled; the stream is whole",
)
def test_p16_a_pause(rig: Rig) -> None:
    seconds = rig.times(2, 60)
    ports, refused_port = [free_port() for _ in range(4)], free_port()
    timed = {"source_idle": "1s", "stall_timeout": "1s", "keepalive": "1s/1s/3", "slow_after": "64K 1s"}
    relays = [
        relay("one", *ports[:2], buffer="64M", **timed),
        relay("quiet", *ports[2:], stall_timeout="1s", keepalive="1s/1s/3"),
        relay("dials", refused_port, free_port(), "connect-listen", reconnect="100ms"),
    ]
    with ExitStack() as stack:
        server = stack.enter_context(listener(refused_port))
        server.settimeout(None)
        refuser = Refuser(server)
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        with rig.daemon(*relays, grows=8 << 20, pauses=True) as site:
            with Links(site, "one", *ports[:2]) as links, Links(site, "quiet", *ports[2:]) as quiet:
                collector, feed = Collector(links.clients[0]), Feed(links.source, "feed")
                collector.wait_for(1600)
                wait_until(lambda: len(refuser.came) > 2, "attempts to connect")
                pause(site, seconds)
                resumed = time.monotonic()
                wait_until(lambda: time.monotonic() > resumed + 1, "a second")
                attempts = sum(came >= resumed for came in refuser.came)
                # One at once and ten in the second, ±20 %; one more may have been under way.
                assert attempts <= 15, f"a burst of {attempts} attempts"
                total = feed.end()
                check_keyed("feed", collector.wait_for(total), 0)
                quiet.carry()
            for name in ("one", "quiet"):
                early = [line for line in site.lines(f"relay={name}", "event=closed") if "reason=reset" not in line]
                assert not early, early
            assert site.lines("event=loop_lag")
            rig.saw(f"stopped {seconds} s: {attempts} attempts in the second after it, nobody cut")


# -- a wall clock that jumps ----------------------------------------------------------------------


@row(
    "P17",
    provoked="the wall clock jumps by a day, back and forth, and strobes every 4 ms",
    required="no timer notices: no link is cut, no attempt to connect is early or late; the log's times jump, "
    "and nothing else",
)
def test_p17_the_wall_clock_jumps(rig: Rig) -> None:
    clock = WallClock(rig.folder)
    source_port, port, refused_port = (free_port() for _ in range(3))
    timed = {"source_idle": "2s", "stall_timeout": "2s", "max_age": "2s", "history": "2s", "framing": "line"}
    dump = {"dump": "text", "dump_file": rig.folder / "dump"}
    relays = [
        relay("one", source_port, port, buffer="64M", **timed, **dump),
        relay("dials", refused_port, free_port(), "connect-listen", reconnect="100ms"),
    ]
    with ExitStack() as stack:
        server = stack.enter_context(listener(refused_port))
        server.settimeout(None)
        refuser = Refuser(server)
        stack.callback(server.shutdown, socket.SHUT_RDWR)
        with rig.daemon(*relays, prefix=clock.words, grows=4 << 20) as site:
            with Links(site, "one", source_port, port) as links:
                collector, feed = Collector(links.clients[0]), Feed(links.source, "feed")
                uptime = site.status()["uptime"]
                began = time.monotonic()
                for jump in (DAY, -DAY, 365 * DAY, 0):
                    clock.jump(jump)
                    site.hang_up()  # a line of the log, at the new time
                    time.sleep(0.2)
                while time.monotonic() < began + rig.times(2, 60):
                    clock.jump(rig.random.choice([-DAY, DAY, -1, 1, 3600, 0]))
                    time.sleep(0.004)
                clock.jump(0)
                total = feed.end()
                check_keyed("feed", collector.wait_for(total), 0)
                passed = time.monotonic() - began
                status = site.status()
                assert abs(status["uptime"] - uptime - passed) < 0.5 * SLOWNESS
                one = site.relay("one")
                for age in (one["source"]["last_data"], one["source"]["for"], one["destinations"][0]["for"]):
                    assert 0 <= age < passed + PATIENCE, one
                assert one["totals"]["stale_records"] == one["totals"]["dropped"] == 0
                attempts = sum(began <= came < began + passed for came in refuser.came)
                assert passed / 0.12 / 2 / SLOWNESS - 1 < attempts < passed / 0.08 + 2, (attempts, passed)
            days = {line[:10] for line in site.lines()}
            assert len(days) >= 3, f"the clock has not jumped: {days}"
            rig.saw(f"{attempts} attempts in {passed:.1f} s, nobody cut, {len(days)} days in the log")


# -- a loop that stands still ---------------------------------------------------------------------


class Supervisor:
    """What systemd does with Type=notify and WatchdogSec: starts, listens, aborts who is silent, starts again."""

    def __init__(self, site: Site, watchdog: float) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.bind(str(site.folder / "notify"))
        self._sock.settimeout(watchdog)
        self._words = [*site.program, "--config", str(site.file), "--foreground"]
        self._environ = {
            **os.environ, "NOTIFY_SOCKET": str(site.folder / "notify"), "WATCHDOG_USEC": str(int(watchdog * 1e6)),
        }  # fmt: skip
        self.process = self._start()
        self.aborted: list[int] = []

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._words, env=self._environ, cwd=ROOT, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def watch(self, state: str) -> None:
        """Return when it says so; whoever says nothing in time is aborted, and started again."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if state in self._sock.recv(65536).decode().split("\n"):
                    return
            except TimeoutError:
                self.process.kill()
                self.aborted.append(self.process.wait(PATIENCE))
                self.process = self._start()
        raise AssertionError(f"no {state}")

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait(PATIENCE)
        self._sock.close()


@row(
    "P24",
    provoked="a loop that stands still (SIGSTOP) under a service manager with a watchdog",
    required="WATCHDOG=1 comes from inside the loop, twice in the time that is allowed, and stops with it: the manager "
    "starts relayd again, which serves; a turn of over 0.1 s is logged",
)
def test_p24_a_loop_that_stands_still(rig: Rig) -> None:
    source_port, port = free_port(), free_port()
    allowed = 1.0 * SLOWNESS
    with rig.site(relay("one", source_port, port)) as site, ExitStack() as stack:
        manager = Supervisor(site, allowed)
        stack.callback(manager.close)
        manager.watch("READY=1")
        began = time.monotonic()
        for _ in range(4):
            manager.watch("WATCHDOG=1")
        assert time.monotonic() - began < 4 * allowed and not manager.aborted
        first = manager.process.pid
        os.kill(first, signal.SIGSTOP)
        stopped = time.monotonic()
        manager.watch("READY=1")
        with Links(site, "one", source_port, port) as links:
            links.carry()
        took = time.monotonic() - stopped
        assert manager.aborted == [-signal.SIGKILL] and manager.process.pid != first
        assert site.lines("event=pidfile_replaced", f"pid={first} ")
        rig.saw(f"serves again {took:.1f} s after it stood still ({allowed:.0f} s are allowed)")
