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
        name = self._name(config)
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

    def absence(self, config: Config) -> str:
        """Return why nobody sees what is logged, "" where somebody may: the log cannot say it itself."""
        name = self._name(config)
        ways = {"syslog": (SYSLOG_SOCKET, self._syslog), "journal": (JOURNAL_SOCKET, self._journal)}
        path, way = ways.get(name, ("", None))
        if way is None or not way.absence:
            return ""
        others = "log = PATH" if self._stderr is None else "log = PATH or stderr"
        return f"log: no {name} at {path}: {way.absence}; nothing is logged until there is one ({others} would be seen)"

    def _name(self, config: Config) -> str:
        return config.log or ("stderr" if self._stderr is not None else "syslog")

    def close(self) -> None:
        """No target of ours is used any more."""
        self._syslog.close()
        self._journal.close()
