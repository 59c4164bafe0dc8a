"""Who joins gets the newest of the stream first, and then the stream: without a gap, nothing twice."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.daemons import daemon, relay
from tests.support import (
    CELL,
    Collector,
    check_keyed,
    connect,
    free_port,
    keyed,
    receive,
    relayd,
    reset_connection,
    wait_until,
)


class Ends:
    """A relay that both ends come to, with its source and one client that was there from the start."""

    def __init__(self, stack: ExitStack, *options: str) -> None:
        self.source_port, self.port = free_port(), free_port()
        words = f"127.0.0.1:{self.source_port}", f"127.0.0.1:{self.port}", "--mode", "listen-listen"
        settings = [word for option in options for word in ("-o", option)]
        self.running = stack.enter_context(relayd(*words, *settings))
        self.source = stack.enter_context(connect(self.source_port))
        self.first = stack.enter_context(connect(self.port))
        self.running.wait_log("event=connected", times=2)
        self.sent = 0

    def send(self, cells: int) -> None:
        """Send so many cells in pieces that are no whole number of them; they have passed when this returns."""
        data = keyed("feed", self.sent, cells)
        for begin in range(0, len(data), 100):
            self.source.sendall(data[begin : begin + 100])
        assert receive(self.first, len(data)) == data
        self.sent += cells


@pytest.mark.parametrize(
    ("framing", "bound", "least", "most"),
    [
        ("line", "20r", 20 * CELL, 20 * CELL),
        ("line", "1000", 1000 - CELL, 1000),
        ("raw", "1000", 1000, 1000),
        ("line", "1h", 200 * CELL, 200 * CELL),
        ("raw", "1h", 200 * CELL, 200 * CELL),
        ("line", "1000r", 200 * CELL, 200 * CELL),
    ],
)
def test_the_newest_within_the_bound_and_then_the_stream(framing: str, bound: str, least: int, most: int) -> None:
    with ExitStack() as stack:
        ends = Ends(stack, f"framing={framing}", f"history={bound}")
        ends.send(200)
        late = Collector(stack.enter_context(connect(ends.port)))
        ends.running.wait_log("event=connected", times=3)
        ends.send(100)
        wait_until(lambda: keyed("feed", 299, 1) in late.data)
        past = len(late.data) - 100 * CELL
        assert least <= past <= most
        whole = bytes(late.data[past % CELL :])
        assert check_keyed("feed", whole) == range(200 - past // CELL, 300)
        if framing == "line":
            assert past % CELL == 0


def test_hundreds_who_join_a_running_stream_miss_nothing_from_there_on() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "framing=line", "history=50r")
        ends.send(100)
        joined = []
        for _ in range(300):
            joined.append(Collector(stack.enter_context(connect(ends.port))))
            ends.send(1)
        ends.running.wait_log("event=connected", times=302)
        ends.send(10)
        last = keyed("feed", ends.sent - 1, 1)
        for number, client in enumerate(joined):
            wait_until(lambda client=client: last in client.data)  # type: ignore[misc]
            told = check_keyed("feed", bytes(client.data))
            assert told.stop == ends.sent
            assert 100 + number - 50 <= told.start <= ends.sent - 60


def test_a_reload_with_another_bound_goes_on_with_what_is_there(tmp_path: Path) -> None:
    source_port, port = free_port(), free_port()

    def text(bound: str) -> str:
        return relay("feed", source_port, port, framing="line", history=bound)

    with daemon(tmp_path, text("30r")) as running, ExitStack() as stack:
        first = stack.enter_context(connect(port))
        source = stack.enter_context(connect(source_port))
        wait_until(lambda: running.relay("feed")["destinations"] and running.relay("feed")["source"]["peer"])
        source.sendall(keyed("feed", 0, 100))
        receive(first, 100 * CELL)
        told = 0
        for bound, cells in (("10r", 10), ("20r", 20), ("0", 0), ("5r", 0)):
            running.configure(text(bound))
            running.reload()
            late = connect(port)
            if cells:
                assert check_keyed("feed", receive(late, cells * CELL)).stop == 100
            wait_until(lambda: len(running.relay("feed")["destinations"]) == 2)
            reset_connection(late)
            wait_until(lambda: len(running.relay("feed")["destinations"]) == 1)
            told += cells
        source.sendall(keyed("feed", 100, 10))
        assert receive(first, 10 * CELL) == keyed("feed", 100, 10)
        assert not running.lines("error")

        def totals() -> tuple[int, int]:
            found = running.relay("feed")["totals"]
            return found["bytes_in"], found["bytes_out"] + found["dropped"]

        wait_until(lambda: totals()[0] == 110 * CELL and totals()[1] >= (110 + told) * CELL, "the totals")
