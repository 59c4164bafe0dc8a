"""The dump: what passes, for human eyes or for a file.

Text and hex are safe to look at: a feed cannot drive the operator's terminal, because nothing but
printable ASCII is ever written.  A dump never delays the stream.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from relayd.errors import StartError
from relayd.observe.log import BoundLog, WallClock
from relayd.observe.targets import timestamp
from relayd.observe.writer import LossyWriter, Lost, Scheduler, close_fd, unheard, write_whole

# As it stands in a row: `ais > from 192.0.2.1:80` came from the source, `ais < from` came back from a destination.
TO_DESTINATION = ">"
TO_SOURCE = "<"

# A full disk, or a reader that has left, is tried again this often, in seconds.
RETRY_INTERVAL = 30.0

_NAMED = {0x09: r"\t", 0x0A: r"\n", 0x0D: r"\r", 0x5C: r"\\"}
_ESCAPES = {code: _NAMED.get(code, f"\\x{code:02x}") for code in (*range(0x20), 0x5C, *range(0x7F, 0x100))}
_DOTS = dict.fromkeys((*range(0x20), *range(0x7F, 0x100)), ".")


def escaped(data: bytes) -> str:
    """Return the bytes as printable ASCII: the printable as they are, the rest as \\r, \\n, \\x1b."""
    return data.decode("latin-1").translate(_ESCAPES)


def text_rows(data: bytes) -> list[str]:
    """Return one row a line; the line end itself, LF or CR LF, is not shown."""
    lines = data.split(b"\n")
    last = lines.pop()
    rows = [escaped(line[:-1] if line.endswith(b"\r") else line) for line in lines]
    return [*rows, escaped(last)] if last else rows


def hex_rows(data: bytes) -> list[str]:
    """Return rows as `hexdump -C` prints them, the offset counted from the start of `data`."""
    rows = []
    for offset in range(0, len(data), 16):
        piece = data[offset : offset + 16]
        digits = f"{piece[:8].hex(' '):23}  {piece[8:].hex(' '):23}"
        rows.append(f"{offset:08x}  {digits}  |{piece.decode('latin-1').translate(_DOTS)}|")
    return rows


def render_text(head: str, data: bytes) -> bytes:
    """Return the rows of text, each behind the head."""
    return "".join(f"{head} {row}\n" for row in text_rows(data)).encode()


def render_hex(head: str, data: bytes) -> bytes:
    """Return the head and the number of bytes, and below it the rows."""
    return "\n".join([f"{head} {len(data)} bytes", *hex_rows(data), ""]).encode()


def render_raw(head: str, data: bytes) -> bytes:
    """Return the bytes alone."""
    return data


FORMATS: dict[str, Callable[[str, bytes], bytes]] = {"text": render_text, "hex": render_hex, "raw": render_raw}


class DumpTarget(Protocol):
    """Where a dump goes."""

    def open(self) -> None:
        """Make ready; raises StartError."""

    def has_room(self) -> bool:
        """Whether something would be taken now, as far as is known."""

    def write(self, data: bytes, lost: Lost) -> bool:
        """Take the bytes whole, at once, or not at all; `lost()` is called where they were taken for nothing."""

    def reopen(self) -> None:
        """Go on in a new file of the same name."""

    def close(self) -> None:
        """No more will come."""


class DumpStream:
    """A target that somebody else opens and closes: the standard output, an operator's connection."""

    def __init__(self, write: Callable[[bytes, Lost], bool], has_room: Callable[[], bool]) -> None:
        self.write = write
        self.has_room = has_room

    def open(self) -> None:
        """It is open."""

    def reopen(self) -> None:
        """It has no name."""

    def close(self) -> None:
        """It stays open."""


class Dump:
    """One relay's dump: renders what passes and hands it to a target that takes it or loses it."""

    def __init__(
        self, relay: str, style: str, target: DumpTarget, log: BoundLog, wall_clock: WallClock = time.time
    ) -> None:
        self._relay = relay
        self._render = FORMATS[style]
        self._bytes_alone = style == "raw"
        self._target = target
        self._log = log
        self._wall_clock = wall_clock
        self._lost = 0  # bytes of the stream that the dump did not show since it last said so

    def show(self, data: bytes, direction: str, peer: str) -> None:
        """Dump a chunk that goes in `direction` and came from `peer`."""
        if not self._target.has_room():
            self._miss(len(data))  # rendering costs more than the stream itself
            return
        # A peer may have chosen its own name: the path of a Unix socket.
        shown = escaped(peer.encode("utf-8", "surrogateescape"))
        head = f"{timestamp(self._wall_clock())} {self._relay} {direction} from {shown}"
        rendered = self._render(head, data)
        if self._lost:
            notice = b"" if self._bytes_alone else f"{head} ... {self._lost} bytes are missing here\n".encode()
            rendered = notice + rendered
        missing = self._lost + len(data)  # if what is told of it here is lost too
        if not self._target.write(rendered, lambda: self._miss(missing)):
            self._miss(len(data))
        elif self._lost:
            self._log.warning("dump_lost", bytes=self._lost)
            self._lost = 0

    def _miss(self, count: int) -> None:
        self._lost += count

    def open(self) -> None:
        """Make the target ready; raises StartError."""
        self._target.open()

    def reopen(self) -> None:
        """Go on in a new file of the same name."""
        self._target.reopen()

    def close(self) -> None:
        """Let go of the target, and tell what nothing that follows can tell."""
        self._target.close()
        if self._lost:
            self._log.warning("dump_lost", bytes=self._lost)
            self._lost = 0


@dataclass(frozen=True)
class Rotation:
    """A dump file is closed at `size` bytes, and of all files the newest `files` are kept."""

    size: int
    files: int


class DumpFile:
    """A file that takes a dump, rotated by size: dump, dump.1, dump.2, the highest number the oldest."""

    def __init__(self, scheduler: Scheduler, path: str, rotation: Rotation, log: BoundLog) -> None:
        self._scheduler = scheduler
        self._path = path
        self._rotation = rotation
        self._log = log
        self._fd = -1
        self._size = 0
        self._writer: LossyWriter | None = None
        self._suspended_until = 0.0

    def open(self) -> None:
        try:
            self._open()
        except OSError as error:
            raise StartError([f"cannot write dump_file {self._path}: {error.strerror}"]) from error

    def has_room(self) -> bool:
        if self._writer is not None:
            return self._writer.has_room()
        return self._fd >= 0 or self._scheduler.now >= self._suspended_until

    def write(self, data: bytes, lost: Lost = unheard) -> bool:
        """Write the bytes whole; False where they are lost, because the disk is full or the reader slow or gone."""
        if self._fd < 0 and not self._resumed():
            return False
        taken = self._append(data) if self._writer is None else self._writer.write(data, lost)
        if taken and self._suspended_until:
            self._suspended_until = 0.0
            self._log.info("dump_resumed", file=self._path)
        return taken

    def _append(self, data: bytes) -> bool:
        try:
            if self._size and self._size + len(data) > self._rotation.size:
                self._rotate()
            write_whole(self._fd, data)
            self._size += len(data)
        except OSError as error:
            self._suspend(error)
            return False
        return True

    def reopen(self) -> None:
        self.close()
        try:
            self._open()
        except OSError as error:
            self._suspend(error)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._fd >= 0:
            former, self._fd = self._fd, -1
            close_fd(former)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o600)
        found = os.fstat(self._fd)
        self._size = found.st_size
        # Only a regular file is always ready. What is not (a FIFO, a terminal) has a queue before it.
        regular = os.path.isfile(self._path)
        self._writer = None if regular else LossyWriter(self._scheduler, self._fd, failed=self._suspend)

    def _rotate(self) -> None:
        self.close()
        for number in range(self._rotation.files - 1, 0, -1):
            older = f"{self._path}.{number}"
            newer = f"{self._path}.{number - 1}" if number > 1 else self._path
            if os.path.lexists(newer):
                os.replace(newer, older)
        if self._rotation.files == 1:
            os.unlink(self._path)
        self._open()

    def _suspend(self, error: OSError) -> None:
        self.close()
        if not self._suspended_until:
            self._log.warning("dump_suspended", file=self._path, error=error.strerror, retry=RETRY_INTERVAL)
        self._suspended_until = self._scheduler.now + RETRY_INTERVAL

    def _resumed(self) -> bool:
        if self._scheduler.now < self._suspended_until:
            return False
        try:
            self._open()
        except OSError as error:
            self._suspend(error)
            return False
        return True
