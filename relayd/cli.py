"""The command line: words -> a configuration -> a command -> an exit status.

0: fine.  1: it could not be done (address in use, permission).  2: usage or configuration.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from relayd import __version__
from relayd.config.keys import DAEMON_KEYS, RELAY_KEYS, Key
from relayd.config.load import REMOVED, absolute, load_command_line, load_file
from relayd.config.settings import Config
from relayd.errors import ConfigError, Problem, StartError, did_you_mean
from relayd.output import one_line, put
from relayd.process.daemonize import UMASK
from relayd.process.limits import fill_standard_descriptors
from relayd.process.runner import run_daemon, run_foreground

_USAGE = """\
relayd SOURCE DESTINATION [--mode MODE] [--dump[=FORMAT]] [--retry SECONDS] [-o KEY=VALUE]...
       relayd --config FILE [--foreground] [--pidfile PATH]
       relayd --config FILE --check"""

_HELP = f"""\
usage: {_USAGE}

Carries one byte stream from SOURCE to everybody at DESTINATION, for ever.

addresses:
  host:port  [v6]:port        an address to connect to, or to listen on
  :port                       listen on every address of this machine, IPv6 and IPv4
  unix:/path                  a Unix socket
  replay:FILE?rate=10&loop=yes    as a source: the lines of a file, 10 a second, again and again
  A,B,C                       a list: sources are tried in turn, destinations are all fed

modes:
  connect-listen   (default)  dial the source, serve any number of clients
  listen-connect              await the source, dial each destination
  connect-connect             dial both: from behind NAT to the outside
  listen-listen               await both: the meeting point that both can reach

options:
  --mode MODE                 one of the above
  --dump[=FORMAT]             show what passes on standard output: text (default), hex or raw
  --retry SECONDS             wait that long between attempts to connect (default: 1s..30s, growing)
  -o KEY=VALUE                any key of a relay, as in a configuration file; see the list below
  --config FILE               run the relays of a configuration file as a daemon; returns when every port is bound
  --foreground                stay in the foreground: log on stderr, Ctrl-C ends it gracefully
  --pidfile PATH              the daemon's pidfile, instead of the one in the file
  --check                     check the configuration, print the effective settings of each relay
  --version, -V; --help, -h

examples:
  relayd gnss.example:5000 :2101                  share a receiver that takes one client
  relayd gnss.example:5000 :2101 --dump           ... and look at what passes
  relayd 192.168.1.9:4001 relay.example:7001 --mode connect-connect
                                                  push a feed out from behind NAT
  relayd :7001 :7002 --mode listen-listen         the meeting point outside
  relayd ais:10110 one.example:4001,two.example:4002 --mode connect-connect -o framing=line
                                                  feed several aggregators, whole sentences only
  relayd --config /etc/relayd.ini --check

keys for -o, with their defaults:
%s
signals: SIGTERM and SIGINT stop gracefully, a second one at once; SIGHUP reads the file again;
SIGUSR1 reopens log and dump files
exit status: 0 fine; 1 it could not be done (address in use); 2 wrong usage or configuration
"""


@dataclass
class _Arguments:
    """What the words say."""

    words: list[str] = field(default_factory=list)  # SOURCE and DESTINATION
    options: list[tuple[str, str, str]] = field(default_factory=list)  # (key, value, word): a relay's keys
    config: str | None = None
    pidfile: str | None = None
    flags: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    misread: bool = False  # an option is wrong, so the words after it may not be what they seem


_FLAGS = ("--foreground", "--check", "--help", "-h", "--version", "-V")
_KEY_OF = {"--mode": "mode", "--retry": "reconnect"}  # options that are short for -o KEY=
_WITH_VALUE = ("--config", "--pidfile", "-o", *_KEY_OF)
_KNOWN = (*_FLAGS, *_WITH_VALUE, "--dump")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status. Nothing that a user can type makes a traceback."""
    fill_standard_descriptors()
    arguments = _parse(sys.argv[1:] if argv is None else argv)
    if arguments.flags & {"--help", "-h"}:
        return _print(_HELP % _key_list())
    if arguments.flags & {"--version", "-V"}:
        return _print(f"relayd {__version__}\n")
    if arguments == _Arguments():
        return _complain(["SOURCE and DESTINATION, or --config FILE, are missing; relayd --help has examples"], 2)
    try:
        config = _load(arguments, os.environ)
        if "--check" in arguments.flags:
            _complain([f"warning: {warning}" for warning in config.warnings], 0)
            return _print(_effective(config, arguments.config is None or "--foreground" in arguments.flags))
        _run(config, arguments)
    except ConfigError as error:
        return _complain(map(str, error.problems), 2)
    except StartError as error:
        return _complain(error.reasons, 1)
    except KeyboardInterrupt:
        if not _stays(arguments):
            return _complain(["interrupted"], 1)  # whoever waits for a daemon, or for --check, has neither
        return 0  # before the loop had taken the signal over
    return 0


def _print(text: str) -> int:
    """Write text to standard output; return the exit status."""
    error = put(sys.stdout, text)
    # A broken pipe is `relayd --help | head`: the reader has seen enough.
    if error is None or error.errno == errno.EPIPE:
        return 0
    return _complain([f"cannot write to standard output: {error.strerror}"], 1)


def _complain(lines: Iterable[str], status: int) -> int:
    """Write each line to standard error; return the status."""
    for line in lines:
        put(sys.stderr, f"relayd: {one_line(line)}\n")
    return status


# -- words ----------------------------------------------------------------------------------------


def _parse(words: Sequence[str]) -> _Arguments:
    arguments = _Arguments()
    waiting = iter(words)
    for word in waiting:
        if word == "--":
            arguments.words += waiting
        elif word.startswith("-") and word != "-":
            _take_option(arguments, word, waiting)
        else:
            arguments.words.append(word)
    if not arguments.flags & {"--help", "-h", "--version", "-V"} and not arguments.misread:
        _check_combination(arguments)
    return arguments


def _take_option(arguments: _Arguments, word: str, waiting: Iterator[str]) -> None:
    name, equals, value = word.partition("=")
    if name.startswith("-o") and name != "-o" and not name.startswith("--"):
        name, equals, value = "-o", "=", word[2:]  # -oKEY=VALUE
    if name in _FLAGS:
        if equals:
            arguments.problems.append(Problem("takes no value", name))
        arguments.flags.add(name)
    elif name == "--dump":
        # Its value needs the equals sign: `--dump SOURCE` must not take the source for a format.
        arguments.options.append(("dump", value if equals else "text", name))
    elif name in _WITH_VALUE:
        following = value if equals else next(waiting, None)
        if following is None:
            arguments.problems.append(Problem("needs a value", name))
            arguments.misread = True
        else:
            _take_value(arguments, name, following)
    else:
        cure = did_you_mean(name, _KNOWN) or "; relayd --help lists them"
        arguments.problems.append(Problem(f"unknown option{cure}", name))
        arguments.misread = True


def _take_value(arguments: _Arguments, name: str, value: str) -> None:
    if name in ("--config", "--pidfile") and not os.path.isabs(value) and absolute(".") == REMOVED:
        arguments.problems.append(Problem("the working directory has been removed; give an absolute path", name))
    if name == "--config":
        if arguments.config is not None:
            arguments.problems.append(Problem("given twice; a file can `include` others", name))
        arguments.config = value
    elif name == "--pidfile":
        if arguments.pidfile is not None:
            arguments.problems.append(Problem("given twice; keep one of the two", name))
        arguments.pidfile = absolute(value)
    elif name in _KEY_OF:
        arguments.options.append((_KEY_OF[name], value, name))
    else:
        key, equals, setting = (part.strip() for part in value.partition("="))
        if equals and key:
            arguments.options.append((key, setting, f"-o {key}"))
        else:
            arguments.problems.append(Problem(f"'{value}' is not KEY=VALUE", name))


def _check_combination(arguments: _Arguments) -> None:
    problems, words = arguments.problems, arguments.words
    if arguments.config is not None:
        for word in words:
            problems.append(Problem("is one word too many: --config FILE has its relays' addresses", word))
        for _, _, option in arguments.options:
            problems.append(Problem("belongs into the file that --config names", option))
        return
    if arguments.pidfile is not None:
        problems.append(Problem("belongs to --config FILE", "--pidfile"))
    for word in words[2:]:
        problems.append(Problem("is one word too many after SOURCE and DESTINATION", word))


def _load(arguments: _Arguments, environ: Mapping[str, str]) -> Config:
    """Return the configuration; raises ConfigError with the problems of words and values together."""
    if arguments.misread:
        raise ConfigError(arguments.problems)
    try:
        if arguments.config is not None:
            config = _load_file(arguments, arguments.config, environ)
        else:
            places = zip(("source", "destination"), arguments.words, ("SOURCE", "DESTINATION"), strict=False)
            config = load_command_line([*places, *arguments.options], environ, "--check" in arguments.flags)
    except ConfigError as error:
        raise ConfigError([*arguments.problems, *error.problems]) from None
    if arguments.problems:
        raise ConfigError(arguments.problems)
    return config


def _load_file(arguments: _Arguments, path: str, environ: Mapping[str, str]) -> Config:
    detached = not arguments.flags & {"--foreground", "--check"}
    config = load_file(path, environ, detached, "--check" in arguments.flags)
    return config if arguments.pidfile is None else replace(config, pidfile=arguments.pidfile)


def _stays(arguments: _Arguments) -> bool:
    """Whether the relays run in this process, until somebody ends it."""
    return "--check" not in arguments.flags and (arguments.config is None or "--foreground" in arguments.flags)


def _run(config: Config, arguments: _Arguments) -> None:
    """Run until the end, or start a daemon; raises StartError."""
    if arguments.config is None:
        run_foreground(config, None, os.environ)
        return
    path = absolute(arguments.config)  # a daemon's working directory is another

    def load_again() -> Config:
        return _load_file(arguments, path, os.environ)

    (run_foreground if _stays(arguments) else run_daemon)(config, load_again, os.environ)


# -- what is printed ------------------------------------------------------------------------------


def _key_list() -> str:
    return "".join(f"  {_key_line(key)}\n" for key in RELAY_KEYS.values() if key.default is not None)


def _key_line(key: Key) -> str:
    default = "" if key.default_help else f" = {key.default}"
    depends = f" ({key.default_help})" if key.default_help else ""
    return f"{key.name}{default}".ljust(24) + f"  {key.help}{depends}".replace("`", "")


def _effective(config: Config, foreground: bool = False) -> str:
    """Return the configuration with every default filled in, as a file that means the same."""
    lines = [f"# {config.path or 'command line'}: {len(config.relays)} relay(s), no errors", "[relayd]"]
    by_place = {"log": "stderr"} if foreground else {"log": "syslog", "umask": f"{UMASK:04o}"}
    for key in DAEMON_KEYS.values():
        value = "***" if key.name in config.secret_keys else key.kind.show(getattr(config, key.field))
        line = f"{key.name} = {value or by_place.get(key.name, '')}".rstrip()
        # What it names is shown, and would be there twice.
        lines.append(f"# {line}" if key.name == "include" else line)
    for relay in config.relays:
        lines += ["", f"[relay {relay.name}]"]
        lines += [f"{key} = {value}".rstrip() for key, value in relay.shown.items()]
    return "\n".join(lines) + "\n"
