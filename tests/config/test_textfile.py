"""Reading a file that somebody else has named: a regular one, of a bounded size, or a reason."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from relayd.config.textfile import read_regular


@pytest.mark.parametrize("size", [0, 1, 1023, 1024])
def test_a_file_up_to_the_limit_is_read_whole(tmp_path: Path, size: int) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(index % 256 for index in range(size)))
    assert read_regular(str(file), 1024) == file.read_bytes()


@pytest.mark.parametrize("size", [1025, 5_000_000])
def test_a_larger_one_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "f").write_bytes(b"x" * size)
    with pytest.raises(ValueError, match="is larger than 1 KiB, which is too large"):
        read_regular(str(tmp_path / "f"), 1024)


def test_a_symbolic_link_to_a_file_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"text")
    (tmp_path / "link").symlink_to("f")
    assert read_regular(str(tmp_path / "link"), 10) == b"text"


@pytest.mark.parametrize("kind", ["fifo", "directory", "/dev/zero", "/dev/null", "/dev/stdin-like-tty"])
def test_what_is_not_regular_is_refused_and_never_waited_for(tmp_path: Path, kind: str) -> None:
    path = str(tmp_path / "x")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        os.mkdir(path)
    elif kind.endswith("tty"):
        _, slave = os.openpty()
        path = os.ttyname(slave)
    else:
        path = kind
    with pytest.raises(ValueError, match="cannot be read: it is not a regular file"):
        read_regular(path, 1024)


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        with pytest.raises(ValueError, match="cannot be read"):
            read_regular(str(tmp_path / "s"), 1024)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file or directory"), ("file/below", "Not a directory"), ("nul\0", "null byte"),
        ("x" * 300, "File name too long"), ("loop", "Too many levels of symbolic links"),
    ],
)  # fmt: skip
def test_why_a_file_cannot_be_read_is_told(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=f"^cannot be read: .*{reason}"):
        read_regular(str(tmp_path / name), 1024)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no /proc")
def test_a_file_that_fails_while_it_is_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Input/output error"):
        read_regular("/proc/self/mem", 1024)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 2000)
    before = os.listdir("/proc/self/fd")
    for path, limit in ((tmp_path / "f", 4000), (tmp_path / "f", 10), (tmp_path, 10)):
        try:
            read_regular(str(path), limit)
        except ValueError:
            continue
    assert os.listdir("/proc/self/fd") == before
