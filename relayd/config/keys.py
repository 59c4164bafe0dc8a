"""The one table of keys. A row is the whole registration of a key: the configuration's check, the
command line's -o, `--check`, `--help` and the README's tables are all made from it or held against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from relayd.config import kinds
from relayd.config.kinds import Kind
from relayd.observe.dump import FORMATS
from relayd.observe.log import LEVELS
from relayd.observe.targets import RENDERS
from relayd.policy.overflow import OVERFLOW
from relayd.policy.returns import RETURNS

CONNECT = "connect"
LISTEN = "listen"

# A mode is a pair of roles: how relayd meets the source, how it meets the destinations.
MODES = {
    "connect-listen": (CONNECT, LISTEN),
    "listen-connect": (LISTEN, CONNECT),
    "connect-connect": (CONNECT, CONNECT),
    "listen-listen": (LISTEN, LISTEN),
}


AT_START = "at the next start"  # what a reload does with keys that are taken before privileges are given up


@dataclass(frozen=True)
class Key:
    """A key: `default` as it would be written; None where the key must be given."""

    name: str
    kind: Kind
    default: str | None
    help: str
    attribute: str = ""  # of the settings, where it is not the name
    default_help: str = ""  # in words, where the default depends on other keys (see settings.py)
    only_for: str = ""  # the end and role without which the key has no effect: "destination listen"
    reload: str = "live"  # what a reload does with a change: applies it live, or what it has to reopen

    @property
    def field(self) -> str:
        """The name of the settings' attribute."""
        return self.attribute or self.name


def _table(*keys: Key) -> dict[str, Key]:
    return {key.name: key for key in keys}


RELAY_KEYS = _table(
    Key(
        "mode", kinds.choice(MODES), "connect-listen", "how relayd meets the source, and how the destinations",
        reload="reopens the end whose role changes",
    ),
    Key(
        "source", kinds.ADDRESSES, None, "where the stream comes from; several to connect to are tried in turn",
        reload="reopens a connecting source; a listening one opens and closes ports, links stay",
    ),
    Key(
        "destination", kinds.ADDRESSES, None, "where it goes to; several to connect to are all fed",
        reload="connects and drains what was added and removed; a listening one opens and closes ports, clients stay",
    ),
    Key(
        "enabled", kinds.YES_NO, "yes", "`no`: the relay is checked but not run",
        reload="starts the relay, or drains it",
    ),
    Key(
        "framing", kinds.FRAMING, "raw", "what a record is, which is never torn; a table of its own has the choices",
        reload="reopens both ends",
    ),
    Key("max_record", kinds.size(64, 16 * 1024**2), "64K", "a longer record is lost (the link is not) and counted"),
    Key(
        "return", kinds.choice(RETURNS), "", "which destination links may send back to the source",
        attribute="return_rule", default_help="`none`; `all` with one connected destination",
    ),
    Key(
        "second_source", kinds.choice(("replace", "refuse")), "replace",
        "a second source that comes in: it replaces the first, or is refused", only_for="source listen",
    ),
    Key("on_source_loss", kinds.choice(("keep", "close")), "keep", "whether destination links stay without a source"),
    Key("source_idle", kinds.duration(), "0", "a source that sends nothing for that long is closed; 0: never"),
    Key("buffer", kinds.size(4096, 4 * 1024**3), "4M", "what may wait for one destination link, in bytes"),
    Key(
        "overflow", kinds.choice(OVERFLOW), "", "what gives way when it is full: the slow link, records or the source",
        default_help="`disconnect`; `block` with one connected destination or an unpaced replay",
    ),
    Key("slow_after", kinds.SLOW_AFTER, "0", "so much waiting for so long, as `1M 10s`, is an overflow too; 0: off"),
    Key(
        "stall_timeout", kinds.duration(), "", "a destination that takes nothing for that long is cut; 0: never",
        default_help="`60s`; `0` with `overflow = block`",
    ),
    Key("max_age", kinds.duration(), "0", "records that have waited longer are dropped instead of sent; 0: none are"),
    Key(
        "history", kinds.HISTORY, "0",
        "of the past, what a new client gets: `64K`, `100r` (records) or `30s`, at most half of `buffer`; 0: none",
        only_for="destination listen",
    ),
    Key(
        "coalesce", kinds.duration(0, 10), "0",
        "the source is read at most once in that time: fewer sends, more latency; 0: at once",
    ),
    Key(
        "notsent", kinds.size(0, 1024**3), "128K", "what the kernel may hold unsent for a client; 0: its own choice",
        only_for="destination listen",
    ),
    Key("reconnect", kinds.WAITS, "1s..30s", "wait between attempts to connect: doubling, ±20 %; one value: fixed"),
    Key("stable_after", kinds.duration(), "30s", "a link must have lived that long for the waits to start over"),
    Key("connect_timeout", kinds.duration(0.05, 3600), "10s", "for a name's look-up, and for each address"),
    Key(
        "bind_source", kinds.LOCAL_ADDRESS, "", "local address to connect from",
        reload="reopens what connects",
    ),
    Key(
        "keepalive", kinds.KEEPALIVE, "30s/10s/3",
        "finds a dead peer on a quiet link: idle, interval, probes; never before 1.5 times the `stall_timeout`",
    ),
    Key("linger_timeout", kinds.duration(0, 3600), "2s", "on closing, how long a peer may take to end its side"),
    Key(
        "max_clients", kinds.number(1, 1_000_000), "1000", "one client more is reset at once",
        only_for="destination listen",
    ),
    Key(
        "max_clients_per_ip", kinds.number(0, 1_000_000), "0", "the same for one address; 0: no limit",
        only_for="destination listen",
    ),
    Key("allow", kinds.NETWORKS, "", "only these clients may come in; empty: all", only_for="destination listen"),
    Key("deny", kinds.NETWORKS, "", "these clients may not, even if allowed", only_for="destination listen"),
    Key("source_allow", kinds.NETWORKS, "", "only these sources may come in; empty: all", only_for="source listen"),
    Key("source_deny", kinds.NETWORKS, "", "these sources may not, even if allowed", only_for="source listen"),
    Key("unix_mode", kinds.FILE_MODE, "0660", "mode of a listening Unix socket's file"),
    Key("backlog", kinds.number(1, 65535), "511", "connections the kernel holds until they are accepted"),
    Key("nodelay", kinds.YES_NO, "yes", "small records are sent at once (TCP_NODELAY)"),
    Key("send_buffer", kinds.size(0, 1024**3), "0", "kernel's send buffer (SO_SNDBUF); 0: its own choice"),
    Key("receive_buffer", kinds.size(0, 1024**3), "0", "kernel's receive buffer (SO_RCVBUF); 0: its own choice"),
    Key("dump", kinds.choice(("off", *FORMATS)), "off", "show what passes: text, hex as `hexdump -C`, raw bytes alone"),
    Key("dump_file", kinds.PATH, "", "where to; empty: standard output"),
    Key("dump_max", kinds.ROTATION, "100M x 10", "a dump file's size, and how many are kept; `10M` alone is `10M x 1`"),
)  # fmt: skip

# What `log` can be besides a path.
LOG_NAMES = ("stderr", "syslog", "journal")

_UMASK_DEFAULT = "`0027`, in the foreground what it was started with"

_LOG_DEFAULT = "`stderr` in the foreground, else `syslog`"

_CONTROL_DEFAULT = "`control.sock` in the directory that systemd has made (`RuntimeDirectory=`), else none"

DAEMON_KEYS = _table(
    Key(
        "pidfile",
        kinds.PATH,
        "",
        "where the daemon's pid stands, and what keeps a second one out; empty: none",
        reload=AT_START,
    ),
    Key("user", kinds.WORD, "", "who to become once every port is bound; empty: stay who it is", reload=AT_START),
    Key("group", kinds.WORD, "", "likewise; empty: the user's own", reload=AT_START),
    Key(
        "umask",
        kinds.UMASK,
        "",
        "mode bits that no file of the daemon gets, but for the pidfile, which is for all to read",
        default_help=_UMASK_DEFAULT,
        reload=AT_START,
    ),
    Key(
        "chroot",
        kinds.PATH,
        "",
        "directory to lock the daemon up in once every port is bound",
        reload=AT_START,
    ),
    Key(
        "log",
        kinds.name_or_path(LOG_NAMES),
        "",
        "where to: `stderr`, `syslog`, `journal` or a path",
        default_help=_LOG_DEFAULT,
    ),
    Key("log_level", kinds.choice(LEVELS), "info", "the least important events that are logged"),
    Key("log_format", kinds.choice(RENDERS), "text", "`key=value`, or an object a line"),
    Key("control", kinds.PATH, "", "the control socket that relayctl asks", default_help=_CONTROL_DEFAULT),
    Key("control_mode", kinds.FILE_MODE, "0600", "its file's mode"),
    Key("drain_timeout", kinds.duration(0, 3600), "10s", "on SIGTERM, how long to send what still waits"),
    Key("include", kinds.PATH, "", "more files with [relay NAME] sections: conf.d/*.ini, as seen from this file"),
)
