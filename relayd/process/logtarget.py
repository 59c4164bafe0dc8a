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


def log_target(config: Config, stderr: LossyWriter | None) -> LogTarget:
    """Return the target; `stderr` is None for a daemon, which has none. Raises StartError."""
    render = RENDERS[config.log_format]
    name = config.log or ("stderr" if stderr is not None else "syslog")
    if name == "stderr":
        if stderr is None:
            raise StartError(["log = stderr: a daemon has no terminal; choose syslog, journal or a path"])
        return StreamTarget(stderr, render)
    try:
        if name == "syslog":
            syslog = DatagramSender(SYSLOG_SOCKET)
            return SyslogTarget(syslog.send, render, syslog.close)
        if name == "journal":
            journal = DatagramSender(JOURNAL_SOCKET)
            return JournalTarget(journal.send, journal.close)
        return FileTarget(name, render)
    except OSError as error:
        raise StartError([f"cannot write log {name}: {error.strerror}"]) from error
