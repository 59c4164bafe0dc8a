"""What can be wrong in a way that has a name: a configuration, a start, an address."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_SHOWN = 20  # names at most in a line
_COMPARED = 200  # names at most: each takes difflib some 20 µs, and a daemon's loop waits for it
_WORD_MAX = 64  # characters of a word that may be a name, mistyped


class RelaydError(Exception):
    """The root of all errors that relayd raises on purpose and shows without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in the configuration: where it stands, what is wrong, what would be right."""

    text: str
    place: str = ""  # "FILE:LINE", "FILE", or the word on the command line
    section: str = ""  # without its brackets
    key: str = ""

    def __str__(self) -> str:
        section = f"[{self.section}]" if self.section else ""
        where = " ".join(part for part in (section, self.key) if part)
        return ": ".join(part for part in (self.place, where, self.text) if part)


class ConfigError(RelaydError):
    """The configuration cannot be used; `problems` holds every reason, in the order of the text."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class StartError(RelaydError):
    """The configuration is right and yet it could not be started: `reasons` says why, one each."""

    def __init__(self, reasons: Iterable[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__("\n".join(self.reasons))


class AddressError(RelaydError, ValueError):
    """A text that is no address; the message says what would be one."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the known word nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""


def nearest_first(word: str, names: Sequence[str]) -> list[str]:
    """Return the names, with those first that `word` may have been meant to be."""
    near = difflib.get_close_matches(word[:_WORD_MAX], names[:_COMPARED], n=3)
    return [*near, *(name for name in names if name not in near)]


def listed(names: Sequence[str]) -> str:
    """Return the names in a line, the first of very many: a, b, c and 5 more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
