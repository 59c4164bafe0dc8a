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
from relayd.config.keys import DAEMON_KEYS, MODES, RELAY_KEYS, Key
from relayd.config.settings import Config, RelayConfig, dependent_default
from relayd.errors import ConfigError, Problem, did_you_mean

RELAYS_MAX = 4096

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")  # it stands in logs, file names and on terminals
_COMMAND_LINE_RELAY = "relay"

_WRONG = object()  # stands for a value that could not be made out, and was complained of

Entries = Mapping[str, "tuple[str, str]"]  # key -> (value as written, place)


def load_file(path: str, environ: Mapping[str, str]) -> Config:
    """Return what a configuration file says; raises ConfigError with all that is wrong in it."""
    loader = _Loader(environ)
    sections = loader.read(path)
    daemon: Entries = {}
    defaults: Entries = {}
    for section in sections:
        if section.name == "relayd":
            daemon = section.entries
        elif section.name == "defaults":
            defaults = section.entries
    values = loader.values(daemon, DAEMON_KEYS, "", os.path.dirname(os.path.abspath(path)))
    sections += loader.included(path, values.pop("include"))
    relays = loader.relays(sections, defaults)
    if not relays and not loader.problems:
        loader.complain("no relay is defined; write a section [relay NAME] with source and destination", path)
    return loader.finish(values, relays, path)


def load_command_line(options: Sequence[tuple[str, str, str]], environ: Mapping[str, str]) -> Config:
    """Return the configuration of one relay from (key, value, word on the command line); raises ConfigError."""
    loader = _Loader(environ, of_words=True)
    entries = {key: (value, word) for key, value, word in options}
    directory = os.getcwd()
    values = loader.values({}, DAEMON_KEYS, "", directory)
    values.pop("include")
    relay = loader.relay(_COMMAND_LINE_RELAY, "", entries, {}, directory)
    return loader.finish(values, [relay] if relay else [], "")


def _position(problem: Problem) -> tuple[str, int]:
    """Return where a problem stands, so that those of a file come in the order of its lines."""
    path, _, line = problem.place.rpartition(":")
    return (path, int(line)) if line.isdigit() else ("", 0)


class _Loader:
    """One load: collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str], of_words: bool = False) -> None:
        """`of_words`: what is loaded is a command line, where the word says which key is meant."""
        self._environ = environ
        self._of_words = of_words
        self.problems: list[Problem] = []
        self._places: dict[tuple[str, str], str] = {}  # (relay, key) -> where its value stands

    def complain(self, text: str, place: str, relay: str = "", key: str = "") -> None:
        """Note a problem; the same one is told once."""
        problem = Problem(text, place) if self._of_words else Problem(text, place, relay, key)
        if problem not in self.problems:
            self.problems.append(problem)

    def finish(self, values: Mapping[str, Any], relays: Sequence[RelayConfig], path: str) -> Config:
        """Check the whole; raises ConfigError where anything is wrong."""

        def complain(relay: str, key: str, text: str) -> None:
            self.complain(text, self._places.get((relay, key)) or self._places.get((relay, ""), path), relay, key)

        for relay in relays:
            checks.check_relay(relay, complain)
        checks.check_together([relay for relay in relays if relay.enabled], complain)
        if self.problems:
            raise ConfigError(sorted(self.problems, key=_position))
        return Config(relays=tuple(relays), path=path, **values)

    # -- files ----------------------------------------------------------------------------------

    def read(self, path: str) -> list[ini.Section]:
        """Return a file's sections; an unreadable file has none."""
        try:
            text = ini.read_text(path)
        except ValueError as error:
            self.complain(str(error), path)
            return []
        sections, problems = ini.parse(text, path)
        self.problems += problems
        for section in sections:
            self._check_section(section)
        return sections

    def included(self, path: str, pattern: str) -> list[ini.Section]:
        """Return the [relay NAME] sections of the files that the pattern names, in the order of their names."""
        if not pattern:
            return []
        place = self._places["", "include"]
        pattern = os.path.join(os.path.dirname(path), pattern)
        paths = sorted(glob.glob(pattern))
        if not paths and not glob.has_magic(pattern):
            self.complain(f"there is no file {pattern}", place, key="include")
        sections = []
        for included in paths:
            if os.path.realpath(included) == os.path.realpath(path):
                self.complain(f"{included} includes itself", place, key="include")
                continue
            for section in self.read(included):
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
            near = did_you_mean(kind, ("relay", "relayd", "defaults"))
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
        sound = self.values(defaults, RELAY_KEYS, "", os.getcwd(), required=False)
        defaults = {name: entry for name, entry in defaults.items() if name in sound}
        for section in sections:
            kind, _, name = section.name.partition(" ")
            if kind != "relay" or not _NAME.fullmatch(name):
                continue
            if name in places:
                self.complain(f"[relay {name}] stands at {places[name]} already; rename one", section.place)
                continue
            places[name] = section.place
            directory = os.path.dirname(os.path.abspath(section.place.rpartition(":")[0]))
            relay = self.relay(name, section.place, section.entries, defaults, directory)
            relays += [relay] if relay else []
        if len(places) > RELAYS_MAX:
            self.complain(f"{len(places)} relays; one daemon runs {RELAYS_MAX} at most", sections[0].place)
        return relays

    def relay(self, name: str, place: str, entries: Entries, defaults: Entries, directory: str) -> RelayConfig | None:
        """Return one relay's settings, None where they cannot be made out."""
        self._places[name, ""] = place
        given = {**defaults, **entries}
        values = self.values(given, RELAY_KEYS, name, directory)
        for key in {"source", "destination"} & values.keys():
            values[key] = tuple(rebased(address, directory) for address in values[key])
        if "mode" in values:
            self._check_roles(values, entries, name)
        if len(values) < len(RELAY_KEYS):
            return None
        values = {RELAY_KEYS[key].field: value for key, value in values.items()}
        if values["dump_file"]:
            values["dump_file"] = os.path.normpath(os.path.join(directory, values["dump_file"]))
        secrets = frozenset(key for key, (text, _) in given.items() if is_secret(text))
        return RelayConfig(name=name, secret_keys=secrets, **values)

    def _check_roles(self, values: Mapping[str, Any], entries: Entries, relay: str) -> None:
        """Hold the addresses, and the keys that one role alone has, against the roles of the mode."""
        mode = values["mode"]
        roles = dict(zip(("source", "destination"), MODES[mode], strict=True))
        for end, role in roles.items():
            for address in values.get(end, ()):
                problem = checks.address_problem(address, end, role)
                if problem:
                    self.complain(problem, self._places[relay, end], relay, end)
        # A key without effect is an error: whoever wrote `deny` counts on it.
        for name, (_, place) in entries.items():
            only_for = RELAY_KEYS[name].only_for if name in RELAY_KEYS else ""
            if only_for and only_for not in (f"{end} {role}" for end, role in roles.items()):
                end, _, role = only_for.partition(" ")
                self.complain(f"has no effect in mode {mode}, whose {end} does not {role}", place, relay, name)

    # -- values ---------------------------------------------------------------------------------

    def values(
        self, entries: Entries, table: Mapping[str, Key], relay: str, directory: str, required: bool = True
    ) -> dict[str, Any]:
        """Return the table's values by key, of the entries or by default; what is wrong is left out.

        Without `required` only what the entries have is returned.
        """
        for name, (_, place) in entries.items():
            if name not in table:
                self._complain_of_unknown(name, table, place, relay)
        values: dict[str, Any] = {}
        for name, key in table.items():
            if name in entries:
                text, place = entries[name]
                self._places[relay, name] = place
                value = self._value(key, text, place, relay, directory)
            elif not required:
                continue
            elif key.default is None:
                place = name.upper() if self._of_words else self._places[relay, ""]
                self.complain("is missing; every relay needs one", place, relay, name)
                continue
            else:
                value = self._default(key, values)
            if value is not _WRONG:
                values[name] = value
        return values

    def _value(self, key: Key, text: str, place: str, relay: str, directory: str) -> Any:
        try:
            expanded = expand(text, self._environ, directory)
        except ValueError as error:
            self.complain(str(error), place, relay, key.name)
            return _WRONG
        try:
            return key.kind.read(expanded)
        except ValueError as error:
            # What a secret file holds must not come out in a message either.
            what = f"what the file holds is no {key.kind.name}" if is_secret(text) else str(error)
            self.complain(what, place, relay, key.name)
            return _WRONG

    def _default(self, key: Key, values: Mapping[str, Any]) -> Any:
        if not key.default_help:
            return key.kind.read(key.default or "")
        if not {"mode", "source", "destination"} <= values.keys() or (
            key.name == "stall_timeout" and "overflow" not in values
        ):
            return _WRONG  # what it depends on is wrong, and that is said
        return key.kind.read(dependent_default(key.name, values))

    def _complain_of_unknown(self, name: str, table: Mapping[str, Key], place: str, relay: str) -> None:
        other = DAEMON_KEYS if table is RELAY_KEYS else RELAY_KEYS
        if name in other:
            where = "[relayd] of a configuration file" if other is DAEMON_KEYS else "[defaults] or a [relay NAME]"
            self.complain(f"belongs into {where}", place, relay, name)
        else:
            self.complain(f"unknown key{did_you_mean(name, table)}", place, relay, name)
