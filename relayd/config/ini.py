"""One file's text -> sections and entries, each with its line.

`configparser` reads the values, but it stops at the first thing wrong, folds an indented line into
the value above it, knows no line numbers and takes NUL bytes.  So every line is looked at first:
what is wrong with its shape is noted and the line is taken out, comments are taken off, and what is
left is what `configparser` reads as it is.
"""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass, field

from relayd.config.textfile import read_regular
from relayd.errors import Problem

FILE_MAX = 1024 * 1024  # bytes; a configuration of 4,096 relays has half of it

_COMMENT = re.compile(r"(?:^|\s)[#;]")
_SECTION = re.compile(r"\[([^\]]*)\]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass
class Section:
    """A section's entries: key -> (value as written, place)."""

    name: str
    place: str
    entries: dict[str, tuple[str, str]] = field(default_factory=dict)


def read_text(path: str) -> str:
    """Return a configuration file's text without BOM, with LF line ends; raises ValueError, see read_regular."""
    data = read_regular(path, FILE_MAX)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}, line {line}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


# Of one file; twice what a daemon runs. To say what each of fifty thousand lacks would hold up the streams for seconds.
SECTIONS_MAX = 8192


def parse(text: str, path: str) -> tuple[list[Section], list[Problem]]:
    """Return the sections in order and what is wrong with the text's shape."""
    scan = _Scan(path)
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            scan.take(line, number)
    if len(scan.sections) > SECTIONS_MAX:
        return [], [Problem(f"{len(scan.sections)} sections, which is too many: {SECTIONS_MAX} at most", path)]
    parser = configparser.RawConfigParser(
        delimiters=("=",), comment_prefixes=(), default_section="\0", strict=True, empty_lines_in_values=False
    )  # fmt: skip
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string("\n".join(scan.lines), path)
    except configparser.Error as error:  # a shape that the scan does not know: still no traceback
        return [], [*scan.problems, Problem(" ".join(str(error).split()), path)]
    sections = []
    for name, place in scan.sections.items():
        entries = {key: (parser.get(name, key), scan.places[name, key]) for key in parser.options(name)}
        sections.append(Section(name, place, entries))
    return sections, scan.problems


class _Scan:
    """Looks at the lines one by one; `lines` is what configparser may see."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.lines: list[str] = []
        self.problems: list[Problem] = []
        self.sections: dict[str, str] = {}  # name -> place
        self.places: dict[tuple[str, str], str] = {}  # (section, key) -> place
        self._section: str | None = None
        self._skipping = False  # inside a section that cannot be used

    def take(self, line: str, number: int) -> None:
        """Look at a line and note what is wrong with it."""
        place = f"{self._path}:{number}"
        bare = _COMMENT.split(line, maxsplit=1)[0].rstrip()
        problem = self._problem_of(line, bare, place)
        if problem:
            self.problems.append(Problem(problem, place))
        elif bare and not self._skipping:
            self.lines.append(bare)

    def _problem_of(self, line: str, bare: str, place: str) -> str:
        control = _CONTROL.search(line)
        if control:
            self._skipping |= _CONTROL.sub("", bare).lstrip().startswith("[")  # or what follows would seem homeless
            return f"control character U+{ord(control[0]):04X} at column {control.start() + 1}; take it out"
        if not bare:
            return ""
        if bare[0].isspace():
            return "an indented line; values do not go on in the next line, so begin it at the margin"
        if bare[0] == "[":
            return self._problem_of_section(bare, place)
        key, equals, _ = bare.partition("=")
        if not equals or not key:
            return f"'{bare[:40]}' is neither [section] nor key = value"
        return self._problem_of_option(key.rstrip(), place)

    def _problem_of_section(self, bare: str, place: str) -> str:
        match = _SECTION.fullmatch(bare)
        name = " ".join(match[1].split()) if match else ""
        self._skipping = True
        if not match or not name:
            return f"'{bare[:40]}' is no section; write [relay NAME]"
        if name in self.sections:
            return f"section [{name}] stands at {self.sections[name]} already; join the two"
        if match[1] != name:
            return f"write [{name}], with single blanks"
        self._skipping = False
        self._section = name
        self.sections[name] = place
        return ""

    def _problem_of_option(self, key: str, place: str) -> str:
        if self._skipping:
            return ""  # its section was complained of
        if self._section is None:
            return f"'{key}' stands before any section; begin with [relay NAME]"
        first = self.places.setdefault((self._section, key), place)
        return "" if first == place else f"'{key}' stands at {first} already; keep one of the two"
