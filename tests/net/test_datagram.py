"""Datagrams to somebody who may not be there."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from relayd.net.datagram import DatagramSender
from tests.net.helpers import descriptors


def bound(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.setblocking(False)
    return sock


@pytest.mark.parametrize("abstract", [False, True])
def test_each_datagram_arrives_whole(tmp_path: Path, abstract: bool) -> None:
    address = f"\0relayd-{os.getpid()}" if abstract else str(tmp_path / "s")
    sender = DatagramSender(address)
    with bound(address) as taker:
        assert sender.send(b"one\n")
        assert sender.send(b"")
        assert sender.send(bytes(range(256)) * 100)
        assert [taker.recv(1 << 20) for _ in range(3)] == [b"one\n", b"", bytes(range(256)) * 100]
    assert not sender.send(b"after")
    sender.close()


def test_f3_who_reads_nothing_is_not_awaited_and_heard_again_later(tmp_path: Path) -> None:
    sender = DatagramSender(str(tmp_path / "s"))
    with bound(str(tmp_path / "s")) as taker:
        taken = 0
        while sender.send(b"x" * 1000):
            taken += 1
            assert taken < 100_000
        assert not sender.send(b"x")
        assert sender.full
        for _ in range(taken):
            taker.recv(2000)
        assert sender.send(b"again")
        assert not sender.full
        assert taker.recv(2000) == b"again"
    sender.close()


def test_f3_a_restart_is_survived(tmp_path: Path) -> None:
    sender = DatagramSender(str(tmp_path / "s"))
    assert not sender.send(b"nobody")
    assert not sender.full
    for _ in range(2):
        with bound(str(tmp_path / "s")) as taker:
            assert sender.send(b"x")
            assert taker.recv(10) == b"x"
        (tmp_path / "s").unlink()
        assert not sender.send(b"nobody")
    sender.close()


def test_who_is_out_of_sight_is_heard_by_until_there_is_another(tmp_path: Path) -> None:
    """As from inside a chroot, where the path may lead to a socket of its own, or nowhere."""
    path = tmp_path / "s"
    with bound(str(path)) as outside:
        sender = DatagramSender(str(path))
        path.rename(tmp_path / "aside")
        assert sender.send(b"out")
        assert outside.recv(10) == b"out"
        with bound(str(path)) as inside:
            assert sender.send(b"in")
            assert inside.recv(10) == b"in"
        for _ in range(2):
            assert sender.send(b"out")  # nobody listens any more at the path
            assert outside.recv(10) == b"out"
            path.unlink(missing_ok=True)
    assert not sender.send(b"nobody")
    assert not sender.send(b"nobody")
    sender.close()


@pytest.mark.parametrize("make", ["file", "stream", "long", "missing"])
def test_what_is_no_datagram_socket_takes_nothing(tmp_path: Path, make: str) -> None:
    path = tmp_path / ("x" * 200 if make == "long" else "s")
    if make == "file":
        path.touch()
    with socket.socket(socket.AF_UNIX) as stream:
        if make == "stream":
            stream.bind(str(path))
            stream.listen()
        sender = DatagramSender(str(path))
        assert not sender.send(b"x")
        sender.close()


def test_a_datagram_that_is_too_large_is_lost_and_the_next_is_not(tmp_path: Path) -> None:
    sender = DatagramSender(str(tmp_path / "s"))
    with bound(str(tmp_path / "s")) as taker:
        assert not sender.send(b"x" * 50_000_000)
        assert sender.send(b"y")
        assert taker.recv(10) == b"y"
    sender.close()


def test_p21_the_socket_is_not_inherited_and_goes_with_close(tmp_path: Path) -> None:
    before = len(descriptors())
    sender = DatagramSender(str(tmp_path / "s"))
    assert len(descriptors()) == before + 1
    assert not sender._sock.get_inheritable()
    sender.close()
    assert len(descriptors()) == before
