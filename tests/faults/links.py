"""Links of a listen-listen relay: those that must live on, and a client that comes and goes beside them."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading

from tests.integration.daemons import Site
from tests.support import CELL, PATIENCE, check_keyed, connect, receive, reset_connection, wait_until


def links_of(site: Site, name: str) -> tuple[bool, int]:
    """Return whether the source is up, and how many destination links are."""
    found = site.relay(name)
    return found["source"]["state"] == "up", sum(link["state"] == "up" for link in found["destinations"])


class Links:
    """A source and clients of a listen-listen relay, which are up, and reset in the end."""

    def __init__(self, site: Site, name: str, source_port: int, port: int, clients: int = 1) -> None:
        self._up = functools.partial(links_of, site, name)
        self.source = connect(source_port)
        self.clients = [connect(port) for _ in range(clients)]

    def __enter__(self) -> Links:
        try:
            wait_until(lambda: self._up() == (True, len(self.clients)), "the links")
        except AssertionError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for sock in (self.source, *self.clients):
            with contextlib.suppress(OSError):  # a thread that reads it would keep it open
                sock.shutdown(socket.SHUT_RD)
            reset_connection(sock)

    def carry(self) -> None:
        """Fail unless these very links are up, with nothing else on its way."""
        self.source.sendall(b"a record\n")
        for client in self.clients:
            found = receive(client, 9)
            assert found == b"a record\n", found


class Churner(threading.Thread):
    """A client that comes, checks a piece of the keyed stream, goes with a reset, and comes again at once."""

    def __init__(self, port: int, key: str) -> None:
        super().__init__(daemon=True)
        self.served = 0
        self.failures: list[str] = []
        self._port, self._key = port, key
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._ending.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE) as sock:
                    data = receive(sock, 20 * CELL)
                    reset_connection(sock)
                begin = data.index(b"\n") + 1  # a raw stream is joined anywhere
                check_keyed(self._key, data[begin : begin + 18 * CELL])
                self.served += 1
            except (OSError, AssertionError) as error:
                self.failures.append(repr(error))
                return

    def end(self) -> int:
        """Come no more; return how often it was served, fail where it was not."""
        self._ending.set()
        self.join(PATIENCE)
        assert not self.is_alive() and not self.failures, self.failures
        return self.served
