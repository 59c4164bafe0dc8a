"""Connecting out: nobody there, nobody answers, no way, no port, no descriptor, ourselves."""

from __future__ import annotations

import time

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.integration.daemons import relay
from tests.support import free_port


@row(
    "N1",
    provoked="nobody listens (ECONNREFUSED)",
    required="backoff from 1 s to 30 s, ±20 %; one line of the log for each change of state, not for each attempt",
)
def test_n1_nobody_listens(rig: Rig) -> None:
    with rig.daemon(relay("one", free_port(), free_port(), "connect-listen", reconnect="0.1s..0.4s")) as site:
        site.wait_log("relay=one", "event=connect_failed")
        time.sleep(rig.times(2, 60))  # some six attempts, or 150
        assert len(site.lines("relay=one", "event=connect_failed")) == 1, site.tail()
        rig.saw("one line")
