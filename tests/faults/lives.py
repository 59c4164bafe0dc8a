"""The life of a daemon: whether it answers, a while in which it stands still, its end, and what that must leave."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time

from tests.faults.oracle import check_log
from tests.integration.daemons import Site, proc_status
from tests.support import wait_until


def answers(site: Site) -> bool:
    """Whether a daemon answers at the control socket, whose file may be there before, and after."""
    try:
        return bool(site.status())
    except OSError:
        return False


def is_refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, if it is let in
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


# -- standing still -------------------------------------------------------------------------------


def pause(site: Site, seconds: float) -> None:
    """Stop the process for a while."""
    site.send(signal.SIGSTOP)
    try:
        time.sleep(seconds)
    finally:
        site.send(signal.SIGCONT)


def stop_process(site: Site) -> None:
    """Stop the daemon, until SIGCONT; return when it stands."""
    site.send(signal.SIGSTOP)
    wait_until(lambda: proc_status(site.pid)["State"].startswith("T"), "a process that is stopped")


# -- the end --------------------------------------------------------------------------------------


def stop(site: Site, *numbers: int) -> float:
    """Send the daemon signals; return the seconds to its end, which must be with status 0 and leave nothing.

    Inside `subreaper`, which makes us the parent who is told the status.
    """
    pid = site.pid
    for number in numbers or (signal.SIGTERM,):
        os.kill(pid, number)
    return ended(site, pid)


def ended(site: Site, pid: int) -> float:
    """Return the seconds until the daemon has ended, with status 0 and leaving nothing."""
    took = site.wait_gone(pid)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"status {status}: {site.tail()}"
    assert site.lines("event=stopped"), site.tail()
    nothing_left(site)
    return took


def nothing_left(site: Site) -> None:
    """Fail where a process, the pidfile or the control socket is left, or the log is not as it should be."""
    wait_until(lambda: not site.processes(), "the end of all processes")
    left = [path for path in (site.pidfile, site.control) if path.exists()]
    assert not left, left
    check_log(site.lines())
