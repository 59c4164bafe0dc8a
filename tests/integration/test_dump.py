"""The dump: it shows what passes, safe for the terminal, and never stands in the way of the stream."""

from __future__ import annotations

import os
import pty
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import pytest

from tests.support import (
    CELL,
    Collector,
    Sender,
    bulk,
    check_keyed,
    connect,
    free_port,
    keyed,
    receive,
    relayd,
    wait_until,
)

# Sets the title, clears the screen, shifts the character set, deletes, asks for an answer; and CSI in one byte.
ESCAPES = b"\x1b]0;owned\x07\x1b[2J\x0e\x7f\x08\x1b[6n\x9b31m\xff\r$GPGGA,1*00\r\n\x00\n"


class Ends:
    """A relay that both ends come to, with a dump on standard output."""

    def __init__(self, stack: ExitStack, *options: str, stdout: object = subprocess.PIPE) -> None:
        source_port, port = free_port(), free_port()
        words = f"127.0.0.1:{source_port}", f"127.0.0.1:{port}", "--mode", "listen-listen"
        self.running = stack.enter_context(relayd(*words, *options, stdout=stdout))
        self.source = stack.enter_context(connect(source_port))
        self.client = stack.enter_context(connect(port))
        self.running.wait_log("event=connected", times=2)

    @property
    def stdout(self) -> IO[bytes]:
        assert self.running.process.stdout is not None
        return self.running.process.stdout

    def end(self) -> bytes:
        """Stop relayd; return all that it has dumped."""
        self.source.close()
        self.client.close()
        assert self.running.stop() == 0
        return self.stdout.read()


def test_text_shows_each_line_behind_its_time_relay_direction_and_peer() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "--dump", "-o", "framing=line", "-o", "return=all")
        ends.source.sendall(b"$GPGGA,1*00\r\n$GPGGA,2*00\r\n")
        receive(ends.client, 26)
        ends.client.sendall(b"hello\n")
        receive(ends.source, 6)
        names = ["{}:{}".format(*sock.getsockname()) for sock in (ends.source, ends.client)]
        rows = ends.end().decode().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    shown = ((">", names[0], "$GPGGA,1*00"), (">", names[0], "$GPGGA,2*00"), ("<", names[1], "hello"))
    assert len(rows) == 3
    for row, (direction, name, text) in zip(rows, shown, strict=True):
        assert re.fullmatch(rf"{stamp} relay {direction} from {re.escape(name)} {re.escape(text)}", row), row


def test_hex_looks_like_hexdump() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "--dump=hex")
        ends.source.sendall(b"0123456789abcdefXYZ\x1b\n")
        receive(ends.client, 21)
        rows = ends.end().decode().splitlines()
    assert rows[0].endswith(" 21 bytes")
    assert rows[1:] == [
        "00000000  30 31 32 33 34 35 36 37  38 39 61 62 63 64 65 66  |0123456789abcdef|",
        "00000010  58 59 5a 1b 0a                                    |XYZ..|",
    ]


@pytest.mark.parametrize("style", ["text", "hex"])
@pytest.mark.parametrize("framing", ["raw", "line"])
def test_the_feed_cannot_drive_the_terminal(style: str, framing: str) -> None:
    """Nothing but printable ASCII and line feeds comes out, whatever comes in; the stream is unchanged."""
    feed = ESCAPES + bytes(range(256)) + b"\n"
    with ExitStack() as stack:
        ends = Ends(stack, f"--dump={style}", "-o", f"framing={framing}")
        ends.source.sendall(feed)
        assert receive(ends.client, len(feed)) == feed
        shown = ends.end()
    assert b"$GPG" in shown
    assert set(shown) <= {0x0A, *range(0x20, 0x7F)}


def test_raw_is_the_stream_alone() -> None:
    data = keyed("feed", 0, 5000)
    with ExitStack() as stack:
        ends = Ends(stack, "--dump=raw")
        ends.source.sendall(data)
        receive(ends.client, len(data))
        assert ends.stdout.read(len(data)) == data
        assert ends.end() == b""


def test_dump_file_raw_equals_the_stream(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    data = bulk(2_000_000)[: 4 << 20]
    with ExitStack() as stack:
        ends = Ends(stack, "--dump=raw", "-o", f"dump_file={file}", "-o", "overflow=block")
        got = Collector(ends.client)
        Sender(ends.source, data).wait_end()
        assert got.wait_for(len(data)) == data
        assert ends.running.stop() == 0
    assert file.read_bytes() == data
    assert file.stat().st_mode & 0o077 == 0


def test_dump_file_is_rotated_by_size(tmp_path: Path) -> None:
    file = tmp_path / "dump"
    with ExitStack() as stack:
        options = ("--dump=raw", "-o", f"dump_file={file}", "-o", "dump_max=64K x 3", "-o", "framing=line")
        ends = Ends(stack, *options)
        for first in range(0, 20_000, 100):
            ends.source.sendall(keyed("feed", first, 100))
            receive(ends.client, 100 * CELL)
        ends.end()
    files = [tmp_path / name for name in ("dump.2", "dump.1", "dump")]
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert all(each.stat().st_size <= 64 * 1024 for each in files)
    assert check_keyed("feed", b"".join(each.read_bytes() for each in files)).stop == 20_000


@pytest.mark.parametrize("style", ["text", "hex", "raw"])
def test_a_dump_that_nobody_reads_delays_nothing(style: str) -> None:
    """Standard output is a pipe that is full: the stream goes on, memory stays bounded, the gap is told."""
    data = bulk(2_000_000)[: 3 << 20]
    with ExitStack() as stack:
        ends = Ends(stack, f"--dump={style}", "-o", "framing=line", "-o", "overflow=block")
        before = ends.running.memory()
        got = Collector(ends.client)
        Sender(ends.source, data).wait_end()
        assert got.wait_for(len(data)) == data
        assert ends.running.memory() - before < 24 << 20
        assert ends.running.cpu_share(0.5) < 0.1
        drained = stack.enter_context(subprocess.Popen(["cat"], stdin=ends.stdout, stdout=subprocess.DEVNULL))
        wait_until(lambda: ends.source.send(keyed("more", 0, 1)) and ends.running.logged("event=dump_lost"))
        ends.source.close()
        assert ends.running.stop() == 0
        drained.wait(20)


def test_a_terminal_that_stands_still_delays_nothing() -> None:
    """A connection that hangs behind sshd, or Ctrl-S: what the terminal does not take is lost to the dump alone."""
    terminal, fd = pty.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, terminal)
        stack.callback(os.close, fd)
        ends = Ends(stack, "--dump", "-o", "framing=line", stdout=fd)
        for first in range(0, 20_000, 100):
            ends.source.sendall(keyed("feed", first, 100))
            assert check_keyed("feed", receive(ends.client, 100 * CELL), first)
        ends.source.close()
        ends.client.close()
        assert ends.running.stop() == 0
        assert ends.running.logged("relay=relay event=dump_lost bytes=")
        assert ends.running.logged("event=dump_lost file=stdout chunks=")


def test_a_dump_whose_reader_has_left_delays_nothing() -> None:
    """FAULTS P18: `relayd ... --dump | head -1`."""
    with ExitStack() as stack:
        ends = Ends(stack, "--dump")
        ends.stdout.close()
        for first in range(0, 1000, 100):
            ends.source.sendall(keyed("feed", first, 100))
            assert check_keyed("feed", receive(ends.client, 100 * CELL), first)
        assert ends.running.process.poll() is None
