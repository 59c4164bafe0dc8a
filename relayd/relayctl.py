"""relayctl: asks a running relayd, over its control socket.

Exit status: 0 fine; 1 it could not be done, or no daemon is running; 2 usage.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from relayd import __version__
from relayd.errors import did_you_mean, listed
from relayd.output import one_line, put
from relayd.statustable import relay_table, table

DEFAULT_SOCKET = "/run/relayd/control.sock"

_TIMEOUT = 10.0  # seconds for an answer; the daemon's loop is never busy for long
_MOMENT = 1.0  # seconds between two answers, of which a rate is made: many feeds send once a second

_Shown = TypeVar("_Shown")

_HELP = f"""\
usage: relayctl [--socket PATH] COMMAND

commands:
  status [--json]          what every relay is doing; --json: the whole snapshot
  status RELAY [--json]    one relay: its source, and its destination links, the one that lags most first
  top                      the same as a table that is refreshed each second; Ctrl-C ends it
  reload                   read the configuration again; says what has changed, or what was wrong with it
  stop                     stop gracefully
  kick RELAY PEER          reset the links of a peer, as `status RELAY` shows it
  dump RELAY FORMAT        show what passes (text, hex or raw) until Ctrl-C
  dump RELAY off           end everybody's live dumps of a relay

options:
  --socket PATH            the daemon's `control` (default: {DEFAULT_SOCKET}, or $RELAYD_CONTROL)
  --version, --help

exit status: 0 fine; 1 it could not be done, or no daemon is running; 2 wrong usage
"""

# command -> how many words may follow it
_COMMANDS = {"status": (0, 1), "top": (0,), "reload": (0,), "stop": (0,), "kick": (2,), "dump": (2,)}

_WANTED = {
    "status": "one RELAY at most",
    "kick": "RELAY and PEER, as in `relayctl kick ais 10.0.0.7:51344`",
    "dump": "RELAY and FORMAT, as in `relayctl dump ais text`",
}


class UsageError(Exception):
    """Words that make no command."""


class FailedError(Exception):
    """The daemon is not there, or it refused."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status. Nothing that a daemon or a user says makes a traceback."""
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        return _complain([one_line(str(error))], 2)
    except FailedError as error:
        return _complain(map(one_line, str(error).split("\n")), 1)
    except (KeyboardInterrupt, _ReaderLeft):
        return 0


def _run(words: list[str]) -> int:
    if {"--help", "-h"} & set(words):
        _print(_HELP)
        return 0
    if "--version" in words:
        _print(f"relayctl {__version__}\n")
        return 0
    path, words = _socket_path(words)
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    command, arguments = _command(words, as_json)
    with _Daemon(path) as daemon:
        if command == "status":
            _status(daemon, arguments, as_json)
        elif command == "top":
            _top(daemon)
        elif command == "dump":
            _dump(daemon, *arguments)
        else:
            names = ("relay", "peer") if command == "kick" else ()
            answer = daemon.ask({"command": command, **dict(zip(names, arguments, strict=True))})
            _print(_shown(_report, answer, command))
    return 0


def _complain(lines: Iterable[str], status: int) -> int:
    for line in lines:
        put(sys.stderr, f"relayctl: {line}\n")
    return status


class _ReaderLeft(Exception):  # noqa: N818 - it is no error: `relayctl top | head`
    """Whoever read our output has seen enough."""


def _print(text: str | bytes) -> None:
    """Write to standard output; raises _ReaderLeft, or FailedError where it cannot be written."""
    error = put(sys.stdout, text)
    if error is not None:
        if error.errno == errno.EPIPE:
            raise _ReaderLeft
        raise FailedError(f"cannot write to standard output: {error.strerror}")


def _socket_path(words: list[str]) -> tuple[str, list[str]]:
    path = os.environ.get("RELAYD_CONTROL", DEFAULT_SOCKET)
    rest = []
    waiting = iter(words)
    for word in waiting:
        name, equals, value = word.partition("=")
        if name != "--socket":
            rest.append(word)
            continue
        following = value if equals else next(waiting, "")
        if not following:
            raise UsageError("--socket: needs a path")
        path = following
    return path, rest


def _command(words: list[str], as_json: bool) -> tuple[str, list[str]]:
    for word in words:
        if word.startswith("-"):
            raise UsageError(f"{word}: unknown option{did_you_mean(word, ('--socket', '--json', '--help'))}")
    if not words:
        raise UsageError("a command is missing; relayctl --help lists them")
    command, *arguments = words
    if command not in _COMMANDS:
        near = did_you_mean(command, _COMMANDS) or f"; there are {listed(list(_COMMANDS))}"
        raise UsageError(f"{command}: unknown command{near}")
    if as_json and command != "status":
        raise UsageError("--json: belongs to status")
    if len(arguments) not in _COMMANDS[command]:
        raise UsageError(f"{command}: takes {_WANTED.get(command, 'no more words')}")
    return command, arguments


class _Daemon:
    """A connection to the control socket."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The kernel keeps the time: where too many others wait to be let in, a Unix socket that does not block, as one
        # with a timeout of Python's, says EAGAIN at once, and this one when the time is over.
        timeval = struct.pack("ll", *divmod(int(_TIMEOUT * 1_000_000), 1_000_000))
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
        self._received = b""
        self._answered = False  # it was there, and let us in
        try:
            self._sock.connect(path)
        except (OSError, ValueError) as error:
            self._sock.close()
            if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
                raise FailedError(f"no relayd is running with the control socket {path}") from None
            if isinstance(error, BlockingIOError):
                raise FailedError(f"no answer: others wait to be let in at {path}, and nobody is") from None
            raise FailedError(f"cannot reach {path}: {getattr(error, 'strerror', None) or error}") from None
        self._sock.settimeout(_TIMEOUT)

    def __enter__(self) -> _Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()

    def ask(self, request: dict[str, str]) -> dict[str, Any]:
        """Return the answer; raises FailedError with the daemon's reason."""
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self._received:
                self._receive()
        except (ConnectionResetError, BrokenPipeError, EOFError):
            if self._answered:
                raise FailedError("relayd has ended (or has hung up, after a minute without a question)") from None
            raise FailedError("no answer: relayd has hung up; it is ending, or has too many callers") from None
        except OSError as error:
            raise FailedError(f"no answer: {error.strerror or error}") from None
        self._answered = True
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict) or not (answer.get("ok") or "error" in answer):
            raise FailedError("the answer is none of relayd's; is it its control socket?")
        if not answer.get("ok"):
            raise FailedError(str(answer["error"]))
        return answer

    def stream(self) -> Iterator[bytes]:
        """Yield what comes after the answer, until the daemon hangs up."""
        self._sock.settimeout(None)
        yield self._received
        try:
            while data := self._sock.recv(65536):
                yield data
        except OSError as error:
            raise FailedError(f"the daemon is gone: {error.strerror}") from None

    def _receive(self) -> None:
        data = self._sock.recv(1 << 20)
        if not data:
            raise EOFError
        self._received += data


def _shown(text: Callable[..., _Shown], answer: dict[str, Any], *more: Any) -> _Shown:
    """Return what is made of an answer; raises FailedError where the answer has not what it is made of."""
    try:
        return text(answer, *more)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        lacks = f"has no {error}" if isinstance(error, KeyError) else "has other fields"
        raise FailedError(
            f"the answer {lacks}: it is of another version than relayctl {__version__}, or none of relayd's"
        ) from None


def _status(daemon: _Daemon, relay: Sequence[str], as_json: bool) -> None:
    """Show every relay, or the one that is named."""
    request = {"command": "status", **dict(zip(("relay",), relay, strict=False))}
    answer = daemon.ask(request)
    before = None
    if not as_json and _shown(_flows, answer):
        time.sleep(_MOMENT)
        before, answer = answer["status"], daemon.ask(request)
    if as_json:
        _print(_shown(_json_text, answer, relay))
    else:
        _print(_shown(_status_text, answer, relay, before))


def _flows(answer: dict[str, Any]) -> bool:
    """Return whether anything can have a rate, for which the daemon is to be asked twice."""
    return any(relay["source"]["state"] == "up" for relay in answer["status"]["relays"])


def _json_text(answer: dict[str, Any], relay: Sequence[str]) -> str:
    status = answer["status"]
    if relay:
        (status,) = status["relays"]
    return json.dumps(status, indent=2) + "\n"


def _status_text(answer: dict[str, Any], relay: Sequence[str], before: dict[str, Any] | None) -> str:
    status = answer["status"]
    width, height = _terminal()
    lines = relay_table(status, width, before, height) if relay else table(status, width, before)
    return "\n".join(lines) + "\n"


def _top(daemon: _Daemon) -> None:
    """Show the table again and again, in its place on a terminal, one below the other elsewhere."""
    text = _screen_text if _on_terminal() else _frame_text
    before: dict[str, Any] | None = None
    while True:
        answer = daemon.ask({"command": "status"})
        _print(_shown(text, answer, before))
        before = answer["status"]
        time.sleep(_MOMENT)


def _screen_text(answer: dict[str, Any], before: dict[str, Any] | None) -> str:
    width, height = _terminal()
    rows = table(answer["status"], width, before, by_lag=True, height=height)
    # Home, the rows, each clearing what stood behind it, and all that stood below.
    return "\x1b[H" + "\n".join(f"{row}\x1b[K" for row in rows) + "\n\x1b[J"


def _frame_text(answer: dict[str, Any], before: dict[str, Any] | None) -> str:
    return "\n".join(table(answer["status"], _terminal()[0], before, by_lag=True)) + "\n\n"


def _dump(daemon: _Daemon, relay: str, style: str) -> None:
    answer = daemon.ask({"command": "dump", "relay": relay, "format": style})
    if style == "off":
        _print(_shown(lambda answer: f"{answer['ended']} live dump(s) ended\n", answer))
        return
    for data in daemon.stream():
        _print(data)
    # What passes has no end of its own, so this is one that was not asked for here.
    raise FailedError(f"the dump has ended: {relay} is removed, the daemon stops, or somebody says `dump {relay} off`")


def _report(answer: dict[str, Any], command: str) -> str:
    if command == "reload":
        return _reload_text(answer)
    if command == "kick":
        return f"{answer['links']} link(s) reset\n"
    return "stopping\n"


def _reload_text(answer: dict[str, Any]) -> str:
    lines = [f"reloaded: {answer['summary']}"]
    # A daemon that runs since before an upgrade does not say what has changed, but it has reloaded.
    changes = {what: answer.get(what, ()) for what in ("added", "removed", "changed")}
    lines += [f"{what}: {listed(names)}" for what, names in changes.items() if names]
    if "changed" in answer and not any(changes.values()):
        lines.append("no relay has changed")
    if keys := answer.get("needs_restart"):
        lines.append(f"from the next start of relayd on: {listed(keys)}")
    return "\n".join(lines) + "\n"


def _on_terminal() -> bool:
    try:
        return os.isatty(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # it is closed, or something of somebody's own
        return False


def _terminal() -> tuple[int, int]:
    """Return the columns, and the lines, 0 for any number of them; a terminal that has no size yet says 0 of each."""
    try:
        columns, lines = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # it is no terminal, or it is closed
        columns, lines = 0, 0
    return columns or 100, lines


if __name__ == "__main__":
    sys.exit(main())
