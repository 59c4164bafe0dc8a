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
    loader = _Loader(environ)
    entries: dict[str, tuple[str, str]] = {}
    for key, value, word in options:
        entries[key] = (value, word)
    directory = os.getcwd()
    values = loader.values({}, DAEMON_KEYS, "", directory)
    values.pop("include")
    relay = loader.relay(_COMMAND_LINE_RELAY, "", entries, {}, directory)
    return loader.finish(values, [relay] if relay else [], "")


class _Loader:
    """One load: collects problems instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[Problem] = []
        self._places: dict[tuple[str, str], str] = {}  # (relay, key) -> where its value stands

    def complain(self, text: str, place: str, relay: str = "", key: str = "") -> None:
        """Note a problem; the same one is told once."""
        problem = Problem(text, place, relay, key)
        if problem not in self.problems:
            self.problems.append(problem)

    def finish(self, values: Mapping[str, Any], relays: Sequence[RelayConfig], path: str) -> Config:
        """Check the whole; raises ConfigError where anything is wrong."""

        def complain(relay: str, key: str, text: str) -> None:
            place = self._places.get((relay, key)) or self._places.get((relay, ""), path)
            self.complain(text, place, relay if path else "", "" if place == key else key)

        for relay in relays:
            checks.check_relay(relay, complain)
        checks.check_together([relay for relay in relays if relay.enabled], complain)
        if self.problems:
            raise ConfigError(self.problems)
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
        self._check_defaults(defaults)
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

    def _check_defaults(self, defaults: Entries) -> None:
        """A mistake in [defaults] is told there once, not in every relay."""
        self.values(defaults, RELAY_KEYS, "", os.getcwd(), required=False)

    def relay(self, name: str, place: str, entries: Entries, defaults: Entries, directory: str) -> RelayConfig | None:
        """Return one relay's settings, None where they cannot be made out."""
        before = len(self.problems)
        shown = name if place else ""
        self._places[name, ""] = place
        known = {key: value for key, value in defaults.items() if key in RELAY_KEYS}
        values = self.values({**known, **entries}, RELAY_KEYS, shown, directory, owner=name)
        if len(self.problems) > before:
            return None
        for key in ("source", "destination"):
            values[key] = tuple(rebased(address, directory) for address in values[key])
        if values["dump_file"]:
            values["dump_file"] = os.path.normpath(os.path.join(directory, values["dump_file"]))
        self._check_effect(entries, values["mode"], shown)
        secrets = frozenset(key for key, (text, _) in {**known, **entries}.items() if is_secret(text))
        return RelayConfig(name=name, secret_keys=secrets, **values)

    def _check_effect(self, entries: Entries, mode: str, relay: str) -> None:
        """A key that has no effect in this mode is an error: whoever wrote `deny` counts on it."""
        source, destination = MODES[mode]
        ends = (f"source {source}", f"destination {destination}")
        for name, (_, place) in entries.items():
            only_for = RELAY_KEYS[name].only_for
            if only_for and only_for not in ends:
                end, _, role = only_for.partition(" ")
                self._complain_of(f"has no effect in mode {mode}, whose {end} does not {role}", place, relay, name)

    # -- values ---------------------------------------------------------------------------------

    def values(
        self, entries: Entries, table: Mapping[str, Key], relay: str, directory: str,
        owner: str = "", required: bool = True,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the table's values by attribute, of the entries or by default; what is wrong is left out."""
        for name, (_, place) in entries.items():
            if name not in table:
                self._complain_of_unknown(name, table, place, relay)
        values: dict[str, Any] = {}
        for name, key in table.items():
            if name in entries:
                text, place = entries[name]
                self._places[owner, name] = place
                value = self._value(key, text, place, relay, directory)
            elif not required:
                continue
            elif key.default is None:
                self.complain("is missing; every relay needs one", self._places[owner, ""], relay, name)
                value = None
            else:
                value = self._default(key, values)
            if value is not None or key.name == "keepalive":
                values[name] = value
        return {table[name].field: value for name, value in values.items()}

    def _value(self, key: Key, text: str, place: str, relay: str, directory: str) -> Any:
        try:
            expanded = expand(text, self._environ, directory)
        except ValueError as error:
            self._complain_of(str(error), place, relay, key.name)
            return None
        try:
            return key.kind.read(expanded)
        except ValueError as error:
            # What a secret file holds must not come out in a message either.
            what = f"what the file holds is no {key.kind.name}" if is_secret(text) else str(error)
            self._complain_of(what, place, relay, key.name)
            return None

    def _default(self, key: Key, values: Mapping[str, Any]) -> Any:
        if not key.default_help:
            return key.kind.read(key.default or "")
        if not {"mode", "source", "destination"} <= values.keys() or (
            key.name == "stall_timeout" and "overflow" not in values
        ):
            return None  # what it depends on is wrong, and said
        return key.kind.read(dependent_default(key.name, values))

    def _complain_of(self, text: str, place: str, relay: str, key: str) -> None:
        self.complain(text, place, relay, "" if place.endswith(key) else key)

    def _complain_of_unknown(self, name: str, table: Mapping[str, Key], place: str, relay: str) -> None:
        other = DAEMON_KEYS if table is RELAY_KEYS else RELAY_KEYS
        if name in other:
            where = "[relayd] of a configuration file" if other is DAEMON_KEYS else "[defaults] or a [relay NAME]"
            self._complain_of(f"belongs into {where}", place, relay, name)
        else:
            self._complain_of(f"unknown key{did_you_mean(name, table)}", place, relay, name)
