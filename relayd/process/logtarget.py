"""The log's target, by its configuration."""

from __future__ import annotations

from relayd.config.settings import Config
from relayd.errors import StartError
from relayd.net.datagram import DatagramSender
from relayd.observe.targets import (
    JOURNAL_SOCKET,
    RENDERS,
    SYSLOG_SOCKET,
    FileTarget,
    JournalTarget,
    LogTarget,
    StreamTarget,
    SyslogTarget,
)
from relayd.observe.writer import LossyWriter


class LogTargets:
    """Makes targets: one at the start, and one for each reload that wants another.

    The ways to the system's own logs are found once, for all of them: after a chroot they are out of sight.
    """

    def __init__(self, stderr: LossyWriter | None) -> None:
        """`stderr` is None for a daemon, which has none."""
        self._stderr = stderr
        self._syslog = DatagramSender(SYSLOG_SOCKET)
        self._journal = DatagramSender(JOURNAL_SOCKET)

    def make(self, config: Config) -> LogTarget:
        """Return the target that is configured. Raises StartError."""
        render = RENDERS[config.log_format]
        name = config.log or ("stderr" if self._stderr is not None else "syslog")
        if name == "stderr":
            if self._stderr is None:
                raise StartError(["log = stderr: a daemon has no terminal; choose syslog, journal or a path"])
            return StreamTarget(self._stderr, render)
        if name == "syslog":
            return SyslogTarget(self._syslog.send, render)
        if name == "journal":
            return JournalTarget(self._journal.send)
        try:
            return FileTarget(name, render)
        except OSError as error:
            raise StartError([f"cannot write log {name}: {error.strerror}"]) from error

    def close(self) -> None:
        """No target of ours is used any more."""
        self._syslog.close()
        self._journal.close()
