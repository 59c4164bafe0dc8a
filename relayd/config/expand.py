"""What a value may refer to: `${NAME}` is the environment, `@FILE` reads a secret from a file.

What comes in that way is a value and nothing else: it is not looked at again for references, and it
can be neither two lines nor a section.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from relayd.config.textfile import read_regular

_REFERENCE = re.compile(r"\$\{([^{}]*)\}")
_LINE_END = re.compile(r"\r\n|\n|\r")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SECRET_MAX = 64 * 1024  # bytes of a secret file; keys and tokens are smaller


def expand(text: str, environ: Mapping[str, str], directory: str, a_list: bool = False) -> str:
    """Return the text with its references replaced; raises ValueError, which never quotes a secret.

    `a_list`: the lines of a file are the parts of a list.
    """

    def variable(match: re.Match[str]) -> str:
        name = match[1]
        if name not in environ:
            raise ValueError(f"${{{name}}} is not set in the environment")
        return environ[name]

    if "${" in _REFERENCE.sub("", text):
        raise ValueError("'${' is not closed with '}'; write ${NAME}")
    value = _REFERENCE.sub(variable, text)
    if is_secret(text):
        lines = _LINE_END.split(_read_secret(os.path.join(directory, value[1:])))
        if len(lines) > 1 and not a_list:
            raise ValueError("the file holds more than one line; a value is one line, its parts separated with commas")
        value = ", ".join(lines)
    if _CONTROL.search(value):
        raise ValueError(f"what {'the file' if is_secret(text) else text} holds has a control character in it")
    return value


def is_secret(text: str) -> bool:
    """Whether a value is read from a file and must never be shown."""
    return text.startswith("@")


def _read_secret(path: str) -> str:
    try:
        data = read_regular(path, _SECRET_MAX)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
