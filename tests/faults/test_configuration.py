"""Configurations that are wrong in their words, lines and bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.rig import Rig
from tests.faults.rows import row
from tests.faults.victim import Victim, ends, victim
from tests.integration.daemons import relay
from tests.support import free_port

__all__ = ["victim"]  # the fixture

# -- sections and keys ----------------------------------------------------------------------------


@row(
    "C1",
    provoked="unknown and misspelt sections and keys, keys in the wrong section",
    required="a reload is refused with FILE:LINE, relay, key and the nearest known name for each, `--check` says the "
    "same words and exits with 2; nothing changes and no stream notices",
)
def test_c1_unknown_words(rig: Rig, victim: Victim) -> None:
    told = victim.refuses(
        ("[relya two]", "unknown section", "did you mean 'relay'?"),
        "source = a.example:1",
        "[relay two]",
        *ends(),
        ("sorce = b.example:1", "[relay two] sorce: unknown key; did you mean 'source'?"),
        ("Buffer = 1M", "Buffer: unknown key; did you mean 'buffer'?"),
        ("xyzzy = 1", "xyzzy: unknown key"),
        ("pidfile = here", "pidfile: belongs into [relayd]"),
        "[defaults]",
        ("drain_timeout = 1s", "drain_timeout: belongs into [relayd]"),
        ("[servers]", "unknown section [servers]; there are [relayd], [defaults], [relay NAME]"),
    )
    rig.saw(f"{len(told)} lines")


@row("C1", provoked="", required="")
def test_c1_a_relay_s_key_in_the_daemon_s_section(victim: Victim) -> None:
    victim.write(b"[relayd]\nbuffer = 1M\n[relay two]\nsource = a:1\ndestination = 127.0.0.1:1\n", good=False)
    file = victim.site.file
    assert victim.refused() == [f"{file}:2: [relayd] buffer: belongs into [defaults] or a [relay NAME]"]


@row(
    "C2",
    provoked="a section twice, a key twice",
    required="refused, and each second one's line names the first one's; keys are of one case, so `Source` is none",
)
def test_c2_twice(rig: Rig, victim: Victim) -> None:
    told = victim.refuses(
        "[relay two]",
        *ends(),
        ("source = b.example:2", "'source' stands at", "already; keep one of the two"),
        ("Source = b.example:2", "Source: unknown key; did you mean 'source'?"),
        ("[relay one]", "section [relay one] stands at", "already; join the two"),
        "source = c.example:3",
    )
    rig.saw(told[0].partition(": ")[2].replace(f"{victim.site.folder}/", ""))


@row(
    "C3",
    provoked="a key before any section; an empty file; only comments; only [relayd]",
    required="refused: the key's line, or that no relay is defined and what to write",
)
@pytest.mark.parametrize("data", [b"", b"\n\n", b"# nothing\n; at all\n", b"[relayd]\nlog_level = info\n"])
def test_c3_no_relay(rig: Rig, victim: Victim, data: bytes) -> None:
    victim.write(data, good=False)
    assert victim.refused() == [
        f"{victim.site.file}: no relay is defined; write a section [relay NAME] with source and destination"
    ]


@row("C3", provoked="", required="")
def test_c3_a_key_before_any_section(rig: Rig, victim: Victim) -> None:
    victim.refuses(("stray = 1", "'stray' stands before any section; begin with"), "[relay x]", *ends(), good=False)
    rig.saw("refused")


# -- bytes and lines ------------------------------------------------------------------------------


@row("C4", provoked="a BOM before the first line", required="it is as if there was none")
def test_c4_bom(rig: Rig, victim: Victim) -> None:
    victim.restore()
    victim.takes(b"\xef\xbb\xbf" + victim.site.file.read_bytes(), good=False)
    rig.saw("taken")


@row(
    "C5",
    provoked="lines that end in CRLF, in CR, in each of them, the last one in none",
    required="it is as if they ended in LF, and errors name the lines that an editor shows",
)
@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
def test_c5_line_ends(rig: Rig, victim: Victim, line_end: bytes) -> None:
    victim.restore()
    good = victim.site.file.read_bytes().rstrip(b"\n")
    victim.takes(good.replace(b"\n", line_end), good=False)
    lines = good.split(b"\n")
    victim.takes(b"".join(line + (line_end if n % 2 else b"\n") for n, line in enumerate(lines)), good=False)
    victim.write(good.replace(b"\n", line_end) + line_end + b"xyzzy = 1", good=False)
    assert victim.refused() == [
        f"{victim.site.file}:{len(lines) + 1}: [relay one] xyzzy: unknown key; relayd --help lists them"
    ]
    rig.saw(f"{line_end!r} taken")


@row(
    "C6",
    provoked="UTF-16, Latin-1, an ELF binary, random bytes; NUL, ESC, DEL, NEL, U+2028 in a line",
    required="refused with offset and line, or line, column and code; none of the bytes stands in the answer",
)
def test_c6_bytes(rig: Rig, victim: Victim) -> None:
    victim.restore()
    good = victim.site.file.read_text()
    wrong = [
        (good.encode("utf-16"), "is not UTF-8: byte 0xff at offset 0, line 1"),
        (good.encode() + "# Grüße\n".encode("latin-1"), f"byte 0xfc at offset {len(good) + 4}"),
        (Path("/bin/true").read_bytes(), "is not UTF-8"),
        (b"\xc3" + rig.random.randbytes(5000), "is not UTF-8"),
    ]
    for data, words in wrong:
        victim.write(data, good=False)
        (told,) = victim.refused()
        assert told.startswith(f"{victim.site.file}: ") and words in told, told
    told = victim.refuses(
        "[relay two]",
        *ends(),
        *(
            (f"bind_source = {char}", f"control character U+{ord(char):04X} at column 15")
            for char in "\0\x1b\x7f\x85\u2028"
        ),
    )
    assert all(line.isprintable() for line in told)
    rig.saw("byte, offset and line; control characters by code and column")


@row("C7", provoked="`%` in a scope id, in a path, alone", required="it is a character like others")
def test_c7_percent(rig: Rig, victim: Victim) -> None:
    paths = {"two": "/tmp/100%/%(name)s", "three": "%", "four": "%%x"}
    local = f"unix:{victim.site.folder}"
    sections = [relay(name, "[fe80::1%lo]:5000", f"{local}/{name}", "connect-listen", dump_file=path)
                for name, path in paths.items()]  # fmt: skip
    found = victim.takes("".join(sections).encode())
    for name, path in paths.items():
        assert found[name]["source"] == "[fe80::1%lo]:5000"
        assert found[name]["dump_file"] == str(victim.site.folder / path)
    rig.saw("taken as it stands")


@row(
    "C8",
    provoked="comments behind values and sections, after a blank and without one",
    required="`#` and `;` begin a comment at the line's start and after a blank, nowhere else",
)
def test_c8_comments(rig: Rig, victim: Victim) -> None:
    text = f"""# whole line
; whole line
[relay two]   # behind a section
source = a.example:1 ; the source
destination = 127.0.0.1:{free_port()}\t# behind a tab
dump_file = /tmp/a#b;c
buffer = 1M #
"""
    found = victim.takes(text.encode())["two"]
    assert (found["source"], found["dump_file"], found["buffer"]) == ("a.example:1", "/tmp/a#b;c", "1M")
    victim.refuses(
        "[relay two]", *ends(), ("backlog = 80;web", "'80;web' is no whole number"), ("max_clients =# 5", "'# 5'")
    )
    rig.saw("`a#b;c` is whole")


@row("C9", provoked="`[DEFAULT]`, `[Defaults]`, `[default]`", required="unknown sections; none leaks into a relay")
@pytest.mark.parametrize("name", ["DEFAULT", "Defaults", "default"])
def test_c9_default(rig: Rig, victim: Victim, name: str) -> None:
    victim.refuses((f"[{name}]", f"unknown section [{name}]; did you mean 'defaults'?"), "buffer = 1M")
    rig.saw(f"`[{name}]` refused")


@row("C10", provoked="an indented line under a value", required="refused: values do not go on in the next line")
def test_c10_continuation(rig: Rig, victim: Victim) -> None:
    victim.refuses(
        "[relay two]",
        "source = a.example:1",
        (" , b.example:1", "an indented line; values do not go on in the next line"),
        ("\tbuffer = 1M", "an indented line"),
        "destination = 127.0.0.1:1",
    )
    rig.saw("refused")


@row("C11", provoked="`10.0.0.1:80 = x`, `source: a:1`, a line without `=`", required="only `=` delimits")
def test_c11_delimiters(rig: Rig, victim: Victim) -> None:
    victim.refuses(
        "[relay two]",
        *ends(),
        ("10.0.0.1:80 = x", "10.0.0.1:80: unknown key"),
        ("buffer: 1M", "'buffer: 1M' is neither [section] nor key = value"),
        ("buffer", "'buffer' is neither"),
        ("= 1M", "'= 1M' is neither"),
    )
    rig.saw("refused")
