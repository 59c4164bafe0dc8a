"""What a command says on its standard streams, whatever state they are in."""

from __future__ import annotations

import os
from io import TextIOWrapper
from typing import TextIO, Union


def put(stream: TextIO | None, text: Union[str, bytes]) -> OSError | None:
    """Write to a standard stream, which may be closed (None), full, or know few characters; return what went wrong."""
    if stream is None:
        return None
    try:
        stream.flush()
        if isinstance(stream, TextIOWrapper):
            stream.buffer.write(text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text)
        else:  # somebody has put a stream of his own in its place
            stream.write(text if isinstance(text, str) else text.decode("utf-8", "backslashreplace"))
        stream.flush()
    except OSError as error:
        # Or Python would try once more at exit, and complain with a traceback.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        return error
    return None


def one_line(text: str) -> str:
    """Return the text with what is not printable escaped: one error is one line, whatever a name has in it."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
