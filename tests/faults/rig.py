"""What a scenario runs on: a daemon as users install it, with a relay that nobody touches beside those that suffer."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.faults.oracle import CONTROL, MIB, Oracle
from tests.integration.daemons import Site, relay, site
from tests.support import Namespace, free_port


class Rig:
    """One test's: its folder, its seed, and the daemons it starts."""

    def __init__(
        self, folder: Path, program: Sequence[str], note: Callable[[str], None], seed: int, long: bool
    ) -> None:
        """`note` takes what was seen."""
        self.folder = folder
        self.program = program  # the words that start relayd
        self.long = long
        self.seed = seed
        self.random = random.Random(seed)
        self._note = note
        self.control_ports = free_port(), free_port()

    def times(self, short: int, long: int) -> int:
        """Return how often something is to be done, in the form that is run."""
        return long if self.long else short

    def saw(self, text: str) -> None:
        """Note what was seen, for the table."""
        self._note(text)

    @property
    def control_relay(self) -> str:
        """The section of the relay that nobody touches; for scenarios that write the file anew."""
        return relay(CONTROL, *self.control_ports)

    @contextlib.contextmanager
    def site(self, *relays: str, **keys: object) -> Iterator[Site]:
        """Return a site with nothing running and nobody looking on: for daemons that do not live through it."""
        with site(self.folder, *relays, self.control_relay, **keys) as found:
            found.program = self.program
            yield found

    @contextlib.contextmanager
    def daemon(
        self,
        *relays: str,
        prefix: Sequence[str] = (),
        namespace: Namespace | None = None,
        grows: int = 2 * MIB,
        lag: float = 0.1,
        pauses: bool = False,
        **keys: object,
    ) -> Iterator[Site]:
        """Run a daemon; when the scenario is over, the oracle looks at it (see Oracle.check).

        `prefix`: the words of a command that starts another. Whatever the scenario opened must be closed by then,
        and all relays as they were.
        """
        with self.site(*relays, **keys) as found:
            enter = namespace.enter if namespace is not None else []
            found.start(prefix=[*enter, *prefix])
            oracle = Oracle(found, self.control_ports, self.long, enter)
            try:
                yield found
            except BaseException:
                oracle.give_up()
                raise
            oracle.check(grows, lag, pauses)
