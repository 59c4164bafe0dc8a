"""A running daemon with a stream on it, whose configuration goes wrong: by a reload, and as `--check` sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Union

import pytest

from tests.faults.oracle import MIB
from tests.faults.rig import Rig
from tests.integration.daemons import Site, relay
from tests.support import CELL, connect, free_port, keyed, receive, reset_connection, wait_until

Line = Union[str, tuple[str, ...]]  # a line, and the words that the complaint of it has


class Victim:
    """A daemon with a stream on it, whose configuration goes wrong."""

    def __init__(self, site: Site, good: str, ports: tuple[int, int], stack: ExitStack) -> None:
        self.site = site
        self._good = good  # the relays, as they run
        self._cells = 0
        self._client, self._source = (connect(port) for port in reversed(ports))
        stack.callback(reset_connection, self._client)
        stack.callback(reset_connection, self._source)
        wait_until(lambda: site.relay("one")["source"]["state"] == "up" and site.relay("one")["destinations"], "a link")
        self._before = self._as_it_is()

    def restore(self) -> None:
        """Write the good file again."""
        self.site.configure(self._good)

    def write(self, data: bytes, good: bool = True) -> None:
        """Write the file, without the good sections if they are not wanted."""
        self.restore()
        before = self.site.file.read_bytes() if good else b""
        self.site.file.write_bytes(before + data)

    def refuses(self, *lines: Line, good: bool = True) -> list[str]:
        """Append the lines; fail unless each that has words is complained of with them, and nothing else is."""
        self.write("".join(f"{line if isinstance(line, str) else line[0]}\n" for line in lines).encode(), good)
        first = self.site.file.read_text().count("\n") - len(lines) + 1
        wanted = [(first + n, line[1:]) for n, line in enumerate(lines) if not isinstance(line, str)]
        told = self.refused()
        assert len(told) == len(wanted), told
        for found, (number, words) in zip(told, wanted, strict=True):
            assert found.startswith(f"{self.site.file}:{number}: "), found
            assert all(word in found for word in words), (found, words)
        return told

    def refused(self) -> list[str]:
        """Reload, and check; return the lines of complaint, the same of both. Nothing has changed."""
        answer = self.site.ask("reload")
        assert not answer["ok"], "it was taken"
        told: list[str] = answer["error"].split("\n")
        assert self.check() == (2, "", [f"relayd: {line}" for line in told])
        assert self.site.status()["reload"] == {"failed": True, "error": told[0]}
        self.is_as_before()
        return told

    def check(self) -> tuple[int, str, list[str]]:
        """Return the exit status of --check, and what it said."""
        done = self.site.launch("--check")
        return done.returncode, done.stdout, done.stderr.splitlines()

    def takes(self, data: bytes, good: bool = True) -> dict[str, dict[str, str]]:
        """Write the file, which must be taken by both; return the settings of the relays that it has added."""
        self.write(data, good)
        status, _, told = self.check()
        assert (status, told) == (0, []), told
        self.site.reload()
        self.is_as_before()
        found = {relay["name"]: relay["settings"] for relay in self.site.status()["relays"]}
        self.restore()
        self.site.reload()
        return found

    def is_as_before(self) -> None:
        """Fail where the relay that runs, or its stream, is not what it was."""
        assert self._as_it_is() == self._before
        self._source.sendall(keyed("conf", self._cells, 1))
        assert receive(self._client, CELL) == keyed("conf", self._cells, 1)
        self._cells += 1

    def _as_it_is(self) -> tuple[object, ...]:
        found = self.site.relay("one")
        links = (found["source"]["peer"], *(link["peer"] for link in found["destinations"]))
        return self.site.pid, found["settings"], links, found["totals"]["destination_links"]


@contextmanager
def victim_of(rig: Rig, pauses: bool = False, grows: int = 2 * MIB) -> Iterator[Victim]:
    """Run a daemon; it logs errors only, for what is taken here is taken many times a second.

    `pauses`, `grows`: what it is given takes it long to read, or much memory; see Oracle.
    """
    ports = free_port(), free_port()
    one = relay("one", *ports)
    with rig.daemon(one, log_level="error", pauses=pauses, grows=grows) as site, ExitStack() as stack:
        found = Victim(site, f"{rig.control_relay}\n{one}", ports, stack)
        yield found
        found.restore()
        site.reload()


@pytest.fixture(scope="module")
def victim(
    program: list[str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Victim]:
    """One daemon for all of these: it must survive them."""
    options = request.config
    rig = Rig(
        tmp_path_factory.mktemp("victim"), program, "C1", options.getoption("--seed"), options.getoption("--long")
    )
    with victim_of(rig) as found:
        yield found


def ends(number: int = 1, source: str = "a.example:1", destination: str | None = None) -> list[str]:
    """Return the two lines that every relay must have."""
    return [f"source = {source}", f"destination = {destination or f'127.0.0.1:{number}'}"]
