"""The matrix of slow consumers: a crowd of which a tenth never reads and a tenth reads 1 KiB/s, under each policy."""

from __future__ import annotations

import pytest

from tests.faults.oracle import MIB, kernel_memory
from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.slowcrowd import FAST, NEVER, SLOW, crowd
from tests.faults.streams import LAG
from tests.integration.daemons import relay
from tests.support import free_port, wait_until

# What two shared cores can deliver, the readers included, and have time left for the control client: bytes a
# second, to all readers together. The 20 MB/s to each of 800 that one would like to see are 16 GB/s.
_RATE = 60 * MIB

_BUFFER = MIB // 2

# What a stalled client may keep of the kernel's memory: `notsent` and what its small window holds, in whole buffers.
_KERNEL = 384 * 1024


@row(
    "K4",
    provoked="1,000 clients (50 in short), 10 % of which never read, 10 % read 1 KiB/s, 80 % all they get, "
    "under each policy of `overflow`",
    required="the fast miss nothing, and are not held up unless by `block`; the others are cut, or lose whole records, "
    "counted for each, or hold the source; all that waits costs one `buffer` and 20 %; the kernel's memory is bounded",
)
@pytest.mark.parametrize("overflow", ["disconnect", "drop_oldest", "drop_newest", "block"])
def test_k4_slow_consumers(rig: Rig, overflow: str) -> None:
    tenth, seconds = rig.times(5, 100), rig.times(2, 150)
    ports = free_port(), free_port()
    keys = {
        "framing": "line", "overflow": overflow, "buffer": _BUFFER, "send_buffer": "64K", "receive_buffer": "64K",
        "max_clients": 1100, "stall_timeout": "0",
    }  # fmt: skip
    with (
        rig.daemon(relay("one", *ports, **keys), grows=8 * MIB, lag=LAG) as site,
        crowd(*ports, fast=8 * tenth, slow=tenth, never=tenth) as readers,
    ):
        site.wait_log(" source=", "event=connected")
        before, kernel = site.memory(), kernel_memory()
        found = readers.send(seconds, _RATE // (8 * tenth))
        status = site.relay("one")
        # Under drop_newest those that stopped at different times hold different parts: a buffer each, at most.
        parts = 2 * tenth if overflow == "drop_newest" else 1
        assert site.memory() - before < 1.2 * parts * _BUFFER + 8 * MIB
        if overflow == "block":
            assert found["sent"] < found["due"], "nobody was held up"
            assert readers.links() == {FAST: 8 * tenth, SLOW: tenth, NEVER: tenth}
            assert kernel_memory() - kernel < 2 * tenth * _KERNEL + 16 * MIB
            readers.leave(SLOW, NEVER)
        elif overflow == "disconnect":
            site.wait_log(" client=", "event=closed", "reason=slow", times=2 * tenth)
        else:
            assert readers.links() == {FAST: 8 * tenth, SLOW: tenth, NEVER: tenth}
            late = [link for link in status["destinations"] if link["dropped"]]
            assert len(late) == 2 * tenth
            assert all(link["dropped_records"] * 16 == link["dropped"] for link in late)
            assert site.lines("event=dropping", "reason=slow"), site.tail()
            assert kernel_memory() - kernel < 2 * tenth * _KERNEL + 16 * MIB
        if overflow != "block":
            assert found["sent"] > found["due"] - 2 * MIB, "the source was held up"
            rig.saw(f"{overflow}: the fast ones' p99 {found['p99'] * 1000:.0f} ms")
        rest = readers.catch_up()
        assert not rest["unsent"] and not rest["missing"], rest
        assert readers.links()[FAST] == 8 * tenth
        wait_until(lambda: site.relay("one")["totals"]["bytes_in"] == rest["sent"], "all of it")
