"""Files and command lines -> Config. Everything wrong is found in one run and told at once."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from relayd.address import rebased
from relayd.config import checks, ini
from relayd.config.expand import expand, is_secret
from relayd.config.keys import DAEMON_KEYS, LOG_NAMES, MODES, RELAY_KEYS, Key
from relayd.config.settings import Config, RelayConfig, dependent_default
from relayd.errors import ConfigError, Problem, did_you_mean

RELAYS_MAX = 4096

# Problems that are told of one file, the others are counted: whoever loads a log by mistake has no use for each line of
# it, and to look for what was meant by each would hold up the streams for minutes.
PROBLEMS_MAX = 100

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # it stands in logs, file names and on terminals
_COMMAND_LINE_RELAY = "relay"

# Names the working directory, proc(5), one that has been removed too. Nothing is found in that, and who looks says so.
REMOVED = "/proc/self/cwd"

_NOT_TOLD = "what the file holds cannot be used here; it is a secret, so no more is said of it"

_WRONG = object()  # stands for a value that could not be made out, and was complained of

Entries = Mapping[str, "tuple[str, str]"]  # key -> (value as written, place)


def load_file(path: str, environ: Mapping[str, str], daemon: bool = False, of_machine: bool = False) -> Config:
    """Return what a configuration file says; raises ConfigError with all that is wrong in it.

    A `daemon` has no terminal for its log and dumps. `of_machine`: users and directories are looked for, too.
    """
    loader = _Loader(environ, of_machine=of_machine)
    sections = loader.read(path)
    own: Entries = {}
    defaults: Entries = {}
    for section in sections:
        if section.name == "relayd":
            own = section.entries
        elif section.name == "defaults":
            defaults = section.entries
    directory = os.path.dirname(absolute(path))
    values = loader.daemon_values(own, directory)
    sections += loader.included(path, values.get("include", ""))
    relays = loader.relays(sections, defaults)
    if not relays and not loader.problems:
        found = "".join(f"; {warning}" for warning in loader.warnings)
        loader.complain(f"no relay is defined; write a section [relay NAME] with source and destination{found}", path)
    if daemon:
        loader.check_detached(values, relays)
    return loader.finish(values, relays, path)


def load_command_line(
    options: Sequence[tuple[str, str, str]], environ: Mapping[str, str], of_machine: bool = False
) -> Config:
    """Return the configuration of one relay from (key, value, word on the command line); raises ConfigError."""
    loader = _Loader(environ, of_words=True, of_machine=of_machine)
    entries: dict[str, tuple[str, str]] = {}
    for key, value, word in options:
        if key in entries:
            loader.complain(f"{entries[key][1]} sets {key} already; keep one of the two", word)
        else:
            entries[key] = (value, word)
    directory = absolute(".")
    values = loader.daemon_values({}, directory)
    relay = loader.relay(_COMMAND_LINE_RELAY, "", entries, {})
    return loader.finish(values, [relay] if relay else [], "")


def absolute(path: str) -> str:
    """Return the path from the root on; below REMOVED where the working directory, at which it starts, is no more."""
    try:
        return os.path.abspath(path)
    except OSError:
        return os.path.normpath(os.path.join(REMOVED, path))


def _position(problem: Problem) -> tuple[str, int]:
    """Return where a problem stands, so that those of a file come in the order of its lines."""
    path, _, line = problem.place.rpartition(":")
    return (path, int(line)) if line.isdigit() else ("", 0)


def _section(relay: str) -> str:
    return f"relay {relay}" if relay else "relayd"


class _Loader:
    """One load: collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str], of_words: bool = False, of_machine: bool = False) -> None:
        """`of_words`: what is loaded is a command line, where the word says which key is meant."""
        self._environ = environ
        self._of_words = of_words
        self._of_machine = of_machine
        self.problems: dict[Problem, None] = {}  # in the order they were found, each once
        self.warnings: list[str] = []
        self._untold = 0  # that were one too many
        self._places: dict[tuple[str, str], str] = {}  # (section, key) -> where its value stands
        self._secrets: set[tuple[str, str]] = set()  # (section, key) whose value nobody may see
        self._known: dict[tuple[str, str, str], Any] = {}  # (key, text, directory) -> value: defaults recur

    def complain(self, text: str, place: str, section: str = "", key: str = "") -> None:
        """Note a problem; the same one is told once."""
        problem = Problem(text, place) if self._of_words else Problem(text, place, section, key)
        if self._is_full and problem not in self.problems:
            self._untold += 1
        else:
            self.problems[problem] = None

    @property
    def _is_full(self) -> bool:
        return len(self.problems) >= PROBLEMS_MAX

    def complain_of_value(self, text: str, section: str, key: str) -> None:
        """Note what is wrong with a value that was read; of a secret no more is said than that."""
        place = self._places.get((section, key)) or self._places.get((section, ""), "")
        if (section, key) in self._secrets:
            text = _NOT_TOLD
        self.complain(text, place, section, key)

    def _complain_of_relay(self, text: str, relay: str, key: str, other: tuple[str, str] | None = None) -> None:
        """Note what the checks find: `relay` is "" where it is about a key of [relayd]; `other` relay and key."""
        place = self._places.get((_section(other[0]), other[1])) if other else ""
        self.complain_of_value(f"{text} ({place})" if place else text, _section(relay), key)

    def _warn_of_relay(self, text: str, relay: str, key: str) -> None:
        """Note what is legal, and yet may not be what was meant."""
        section = _section(relay)
        place = self._places.get((section, key), "")
        text = _NOT_TOLD if (section, key) in self._secrets else text
        self.warnings.append(str(Problem(text, place) if self._of_words else Problem(text, place, section, key)))

    def finish(self, values: Mapping[str, Any], relays: Sequence[RelayConfig], path: str) -> Config:
        """Check the whole; raises ConfigError where anything is wrong."""

        for relay in relays:
            checks.check_relay(relay, self._complain_of_relay)
        enabled = [relay for relay in relays if relay.enabled]
        checks.check_together(enabled, self._complain_of_relay)
        checks.check_files(values, enabled, self._complain_of_relay)
        if values.get("control"):
            checks.check_control(values["control"], enabled, self._complain_of_relay)
        if self._of_machine:
            checks.check_machine(values, enabled, self._complain_of_relay, self._warn_of_relay)
        if self.problems:
            rest = [Problem(f"and {self._untold} more", path)] if self._untold else []
            raise ConfigError([*sorted(self.problems, key=_position), *rest])
        secrets = frozenset(key for section, key in self._secrets if section == "relayd")
        warnings = tuple(self.warnings)
        return Config(
            relays=tuple(relays), path=path, secret_keys=secrets & DAEMON_KEYS.keys(), warnings=warnings, **values
        )

    def check_detached(self, values: Mapping[str, Any], relays: Sequence[RelayConfig]) -> None:
        """Complain of what needs a terminal."""
        if values.get("log") == "stderr":
            self.complain(
                "a daemon has no stderr; choose syslog, journal or a path",
                self._places["relayd", "log"],
                "relayd",
                "log",
            )
        for relay in relays:
            if relay.dump != "off" and not relay.dump_file:
                place, section = self._places.get((_section(relay.name), "dump"), ""), _section(relay.name)
                self.complain("a daemon has no standard output; set dump_file as well", place, section, "dump")

    # -- files ----------------------------------------------------------------------------------

    def read(self, path: str, include: str = "") -> list[ini.Section]:
        """Return a file's sections; an unreadable file has none. `include`: the place that names it."""
        try:
            text = ini.read_text(path)
        except ValueError as error:
            if include:
                self.complain(f"{path} {error}", include, "relayd", "include")
            else:
                self.complain(str(error), path)
            return []
        sections, problems = ini.parse(text, path)
        for problem in problems:
            self.complain(problem.text, problem.place, problem.section, problem.key)
        for section in sections:
            self._check_section(section)
        return sections

    def daemon_values(self, entries: Entries, directory: str) -> dict[str, Any]:
        """Return the values of [relayd], its paths as seen from `directory`."""
        values = self.values(entries, DAEMON_KEYS, "relayd")
        runtime = self._environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
        if runtime and "control" not in entries:
            values["control"] = os.path.join(runtime, "control.sock")
            self._places["relayd", "control"] = "RUNTIME_DIRECTORY"
        for key in ("pidfile", "chroot", "control", "log"):
            if values.get(key, "") not in ("", *LOG_NAMES):
                values[key] = os.path.normpath(os.path.join(directory, values[key]))
        return values

    def included(self, path: str, pattern: str) -> list[ini.Section]:
        """Return the [relay NAME] sections of the files that the pattern names, in the order of their names."""
        if not pattern:
            return []
        place = self._places["relayd", "include"]
        directory = os.path.dirname(path)  # is no part of the pattern: it may have brackets in its name
        paths = [os.path.join(directory, name) for name in sorted(glob.glob(pattern, root_dir=directory))]
        missing = os.path.join(directory, pattern)
        if not paths and not glob.has_magic(pattern):
            self.complain_of_value(f"there is no file {missing}", "relayd", "include")
        elif not paths:
            self._warn_of_relay(f"there is no file {missing}", "", "include")
        sections = []
        for included in paths:
            if os.path.realpath(included) == os.path.realpath(path):
                self.complain(f"{included} includes itself", place, "relayd", "include")
                continue
            for section in self.read(included, place):
                if section.name.startswith("relay "):
                    sections.append(section)
                else:
                    self.complain(f"[{section.name}] belongs into {path}; an included file has relays", section.place)
        return sections

    def _check_section(self, section: ini.Section) -> None:
        kind, _, name = section.name.partition(" ")
        if section.name in ("relayd", "defaults"):
            return
        if kind == "relay" and _NAME.fullmatch(name):
            return
        if kind == "relay":
            shown = repr(name[:64]) if name else "a relay without a name"
            self.complain(f"{shown}: a relay's name has 1 to 64 letters, digits, '_', '-' and '.'", section.place)
        else:
            near = "" if self._is_full else did_you_mean(kind, ("relay", "relayd", "defaults"))
            self.complain(
                f"unknown section [{section.name}]{near or '; there are [relayd], [defaults], [relay NAME]'}",
                section.place,
            )

    # -- relays ---------------------------------------------------------------------------------

    def relays(self, sections: Sequence[ini.Section], defaults: Entries) -> list[RelayConfig]:
        """Return the relays that can be made of the sections."""
        relays = []
        places: dict[str, str] = {}
        # A mistake in [defaults] is told there once, not in every relay.
        sound = self.values(defaults, RELAY_KEYS, "defaults", required=False)
        defaults = {name: entry for name, entry in defaults.items() if name in sound}
        for section in sections:
            kind, _, name = section.name.partition(" ")
            if kind != "relay" or not _NAME.fullmatch(name):
                continue
            if name in places:
                self.complain(f"[relay {name}] stands at {places[name]} already; rename one", section.place)
                continue
            places[name] = section.place
            relay = self.relay(name, section.place, section.entries, defaults)
            relays += [relay] if relay else []
        if len(places) > RELAYS_MAX:
            self.complain(f"{len(places)} relays; one daemon runs {RELAYS_MAX} at most", sections[0].place)
        return relays

    def relay(self, name: str, place: str, entries: Entries, defaults: Entries) -> RelayConfig | None:
        """Return one relay's settings, None where they cannot be made out."""
        section = _section(name)
        self._places[section, ""] = place
        given = {**defaults, **entries}
        values = self.values(given, RELAY_KEYS, section)
        for key in {"source", "destination"} & values.keys():
            directory = self._directory(given[key][1])
            values[key] = tuple(rebased(address, directory) for address in values[key])
        if "mode" in values:
            self._check_roles(values, entries, section)
        if len(values) < len(RELAY_KEYS):
            return None
        values = {RELAY_KEYS[key].field: value for key, value in values.items()}
        if values["dump_file"]:
            directory = self._directory(given["dump_file"][1])
            values["dump_file"] = os.path.normpath(os.path.join(directory, values["dump_file"]))
        secrets = frozenset(key for key, (text, _) in given.items() if is_secret(text))
        return RelayConfig(name=name, secret_keys=secrets, **values)

    def _check_roles(self, values: Mapping[str, Any], entries: Entries, section: str) -> None:
        """Hold the addresses, and the keys that one role alone has, against the roles of the mode."""
        mode = values["mode"]
        roles = dict(zip(("source", "destination"), MODES[mode], strict=True))
        for end, role in roles.items():
            for address in values.get(end, ()):
                problem = checks.address_problem(address, end, role)
                if problem:
                    self.complain_of_value(problem, section, end)
        # A key without effect is an error: whoever wrote `deny` counts on it.
        for name, (_, place) in entries.items():
            only_for = RELAY_KEYS[name].only_for if name in RELAY_KEYS else ""
            if only_for and only_for not in (f"{end} {role}" for end, role in roles.items()):
                end, _, role = only_for.partition(" ")
                self.complain(f"has no effect in mode {mode}, whose {end} does not {role}", place, section, name)

    # -- values ---------------------------------------------------------------------------------

    def values(self, entries: Entries, table: Mapping[str, Key], section: str, required: bool = True) -> dict[str, Any]:
        """Return the table's values by key, of the entries or by default; what is wrong is left out.

        Without `required` only what the entries have is returned.
        """
        for name, (_, place) in entries.items():
            if name not in table:
                self._complain_of_unknown(name, table, place, section)
        values: dict[str, Any] = {}
        for name, key in table.items():
            if name in entries:
                text, place = entries[name]
                self._places[section, name] = place
                value = self._value(key, text, place, section)
            elif not required:
                continue
            elif key.default is None:
                place = name.upper() if self._of_words else self._places[section, ""]
                self.complain("is missing; every relay needs one", place, section, name)
                continue
            else:
                value = self._default(key, values)
            if value is not _WRONG:
                values[name] = value
        return values

    def _value(self, key: Key, text: str, place: str, section: str) -> Any:
        """Return a value as it is given, _WRONG where it cannot be made out, which is complained of."""
        directory = self._directory(place) if is_secret(text) else ""
        if is_secret(text):
            self._secrets.add((section, key.name))
        known = (key.name, text, directory)
        if known not in self._known:
            try:
                value = expand(text, self._environ, directory, key.kind.a_list)
            except ValueError as error:
                self.complain(str(error), place, section, key.name)
                return _WRONG
            try:
                self._known[known] = key.kind.read(value)
            except ValueError as error:
                self.complain_of_value(str(error), section, key.name)
                return _WRONG
        return self._known[known]

    def _directory(self, place: str) -> str:
        """Return the directory of the file that a place is in: paths are as seen from there."""
        return absolute(".") if self._of_words else os.path.dirname(absolute(place.rpartition(":")[0]))

    def _default(self, key: Key, values: Mapping[str, Any]) -> Any:
        text = key.default or ""
        if key.default_help and key.name in RELAY_KEYS:
            if not {"mode", "source", "destination"} <= values.keys() or (
                key.name == "stall_timeout" and "overflow" not in values
            ):
                return _WRONG  # what it depends on is wrong, and that is said
            text = dependent_default(key.name, values)
        known = (key.name, text, "default")
        if known not in self._known:
            self._known[known] = key.kind.read(text)
        return self._known[known]

    def _complain_of_unknown(self, name: str, table: Mapping[str, Key], place: str, section: str) -> None:
        other = DAEMON_KEYS if table is RELAY_KEYS else RELAY_KEYS
        if name in other:
            where = "[relayd] of a configuration file" if other is DAEMON_KEYS else "[defaults] or a [relay NAME]"
            self.complain(f"belongs into {where}", place, section, name)
        else:
            known = f"; there are {', '.join(table)}" if table is DAEMON_KEYS else "; relayd --help lists them"
            near = "" if self._is_full else did_you_mean(name, table) or known
            self.complain(f"unknown key{near}", place, section, name)
