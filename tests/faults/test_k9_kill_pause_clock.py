"""K9: a daemon that is killed, paused, started again, under a wall clock that jumps; a client measures the outage."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack

from tests.faults.lives import pause, stop
from tests.faults.oracle import check_log
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.wallclock import DAY, WallClock
from tests.integration.daemons import relay, subreaper
from tests.support import CELL, PATIENCE, SLOWNESS, cells_of, free_port, keyed, reset_connection, wait_until


class Talker(threading.Thread):
    """A source that dials again and again, and sends cells in their order, each once."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        number = 0
        while not self._ending.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    while not self._ending.wait(0.002):
                        sock.sendall(keyed("talk", number, 1))
                        number += 1
            except OSError:
                time.sleep(0.005)

    def end(self) -> None:
        """Say no more."""
        self._ending.set()
        self.join(PATIENCE)
        assert not self.is_alive()


class Listener(threading.Thread):
    """A client that dials again and again, checks what it gets, and notes when it got something."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.last = 0.0  # when something came
        self.error = ""
        self._port = port
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        highest = -1
        while not self._ending.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
                    sock.settimeout(0.05)
                    data = self._receive(sock)
                    reset_connection(sock)
            except OSError:
                time.sleep(0.005)
                continue
            try:
                numbers = cells_of("talk", data[: len(data) // CELL * CELL])
                assert numbers == sorted(set(numbers)) and (not numbers or numbers[0] > highest), "not in order"
                assert not numbers or numbers[-1] - numbers[0] == len(numbers) - 1, "a gap within a link"
                highest = max(numbers, default=highest)
            except AssertionError as error:
                self.error = str(error)
                return

    def _receive(self, sock: socket.socket) -> bytes:
        """Return all that comes until the link ends; a raw stream of single cells is joined between two."""
        data = b""
        while not self._ending.is_set():
            try:
                piece = sock.recv(1 << 16)
            except TimeoutError:
                continue
            except ConnectionResetError:
                break
            if not piece:
                break
            self.last = time.monotonic()
            data += piece
        return data

    def end(self) -> None:
        """Listen no more; fails where something was not as it should be."""
        self._ending.set()
        self.join(PATIENCE)
        assert not self.is_alive() and not self.error, self.error


@row(
    "K9",
    provoked="`kill -9` and a start, SIGSTOP for 1 s (1 to 60 s in the long form), jumps of the wall clock, in random "
    "order, while a source and a client dial again whenever they are cut",
    required="1 s from the start, and 1 s from SIGCONT, to the first byte, at most; no start is refused for what the "
    "former has left; within a link no byte is lost, repeated or swapped",
)
def test_k9_kill_pause_clock(rig: Rig) -> None:
    clock = WallClock(rig.folder)
    source_port, port = free_port(), free_port()
    rounds = rig.times(9, 150)
    faults = ["kill", "pause", "clock"] * (rounds // 3)
    rig.random.shuffle(faults)
    waits: dict[str, list[float]] = {"kill": [], "pause": [], "clock": []}
    with subreaper(), rig.site(relay("one", source_port, port, framing="line")) as site, ExitStack() as stack:
        site.start(env=clock.environ)
        talker, client = Talker(source_port), Listener(port)
        stack.callback(talker.end)
        for fault in faults:
            wait_until(lambda: client.last > time.monotonic() - 0.1, "a stream")
            before = site.pid
            if fault == "kill":
                os.kill(before, signal.SIGKILL)
                os.waitpid(before, 0)
                began = time.monotonic()
                site.start(env=clock.environ)
                site.wait_log("event=pidfile_replaced", f"pid={before} ")
            elif fault == "pause":
                pause(site, rig.random.uniform(1, rig.times(1, 60)))
                began = time.monotonic()
            else:
                clock.jump(rig.random.uniform(-30 * DAY, 30 * DAY))
                began = time.monotonic()
            wait_until(lambda began=began: client.last > began, "the first byte")  # type: ignore[misc]
            waits[fault].append(time.monotonic() - began)
            assert site.processes() == [site.pid]
        client.end()
        talker.end()
        # The dying process may have let the client in once more; who lives must not have cut it.
        links = len(site.lines("relay=one", "client=", "event=connected"))
        assert links == faults.count("kill") + 1, f"{links} links: a pause or the clock has cut some"
        for found in waits.values():  # a busy machine takes its time now and then, relayd would always
            assert min(found) < 1.0 * SLOWNESS and max(found) < 5.0 * SLOWNESS, waits
        stop(site)
        check_log(site.lines())
        rig.saw(
            f"{rounds} faults; first byte " + ", ".join(f"{what} {max(found):.2f} s" for what, found in waits.items())
        )
