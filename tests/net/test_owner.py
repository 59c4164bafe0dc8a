"""The message about a taken port names who has it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from relayd.net.owner import listening_process
from tests.support import free_port


def command() -> str:
    with open("/proc/self/comm", encoding="utf-8") as text:
        return text.read().strip()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_l1_the_process_that_listens_is_named(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        assert listening_process(server.getsockname()[1]) == f"{command()} (pid {os.getpid()})"


def test_l1_another_process_is_named() -> None:
    code = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert listening_process(port).endswith(f"(pid {process.pid})")
        process.communicate("\n")
    assert listening_process(port) == ""


def test_l1_a_connection_of_that_port_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with client, ours:
        assert listening_process(ours.getsockname()[1]) == ""
        assert listening_process(client.getsockname()[1]) == ""


def test_l1_a_free_port_has_no_owner() -> None:
    assert listening_process(free_port()) == ""


def test_l1_without_proc_the_owner_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no /proc here")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with monkeypatch.context() as patch:
            patch.setattr("builtins.open", refuse)
            assert listening_process(port) == ""
        with monkeypatch.context() as patch:
            patch.setattr(os, "readlink", refuse)
            assert listening_process(port) == ""
