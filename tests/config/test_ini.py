"""One file's text -> sections and entries with their lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relayd.config.ini import parse, read_text


def entries(text: str) -> dict[str, dict[str, str]]:
    sections, problems = parse(text, "f")
    assert not problems, problems
    return {section.name: {key: value for key, (value, _) in section.entries.items()} for section in sections}


def complaints(text: str) -> list[str]:
    return [str(problem) for problem in parse(text, "f")[1]]


def test_entries_have_their_lines() -> None:
    sections, problems = parse("# c\n[relay a]\n\nsource = x\nb=1\n[relayd]\n c = 2".replace(" c", "c"), "f")
    assert not problems
    assert [(section.name, section.place) for section in sections] == [("relay a", "f:2"), ("relayd", "f:6")]
    assert sections[0].entries == {"source": ("x", "f:4"), "b": ("1", "f:5")}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("a=b", "b"), ("a = b c ", "b c"), ("a =", ""), ("a = b=c", "b=c"), ("a = b ; c", "b"), ("a = b # c", "b"),
        ("a = b\t;c", "b"), ("a = b;c#d", "b;c#d"), ("a = ; c", ""), ("a = [x]", "[x]"), ("a = 100%", "100%"),
        ("a = fe80::1%eth0", "fe80::1%eth0"), ("a = %(b)s", "%(b)s"), ('a = "b"', '"b"'), ("a : b = c", None),
    ],
)  # fmt: skip
def test_c7_c8_values_are_literal_up_to_a_comment(line: str, value: str | None) -> None:
    if value is None:
        assert list(entries(f"[s]\n{line}\n")["s"]) == ["a : b"]  # `:` separates nothing
    else:
        assert entries(f"[s]\n{line}\n") == {"s": {"a": value}}


def test_c11_a_colon_does_not_delimit() -> None:
    assert entries("[s]\n10.0.0.1:80 = x\n") == {"s": {"10.0.0.1:80": "x"}}


def test_c9_default_is_a_section_like_any_other() -> None:
    assert entries("[DEFAULT]\na = 1\n[s]\nb = 2\n") == {"DEFAULT": {"a": "1"}, "s": {"b": "2"}}


def test_c10_an_indented_line_is_no_continuation() -> None:
    sections, problems = parse("[s]\na = 1\n b = 2\n\tc\n\xa0d = 1\n", "f")
    assert [problem.place for problem in problems] == ["f:3", "f:4", "f:5"]
    assert sections[0].entries == {"a": ("1", "f:2")}


def test_an_indented_comment_is_a_comment() -> None:
    assert entries("[s]\na = 1\n  # b\n   \n  ; c\nb = 2\n") == {"s": {"a": "1", "b": "2"}}


@pytest.mark.parametrize("char", ["\0", "\x01", "\x0b", "\x0c", "\x1b", "\x1c", "\x7f", "\x85", "\u2028", "\u2029"])
def test_c6_control_characters_are_refused(char: str) -> None:
    told = complaints(f"[s]\na = x{char}y\n")
    assert told == [f"f:2: control character U+{ord(char):04X} at column 6; take it out"]


def test_c2_duplicates_are_told_with_the_first_place() -> None:
    assert complaints("[s]\na = 1\na = 2\n[t]\n[s]\nb = 3\n") == [
        "f:3: 'a' stands at f:2 already; keep one of the two",
        "f:5: section [s] stands at f:1 already; join the two",
    ]


def test_c3_a_key_before_any_section() -> None:
    assert complaints("a = 1\n[s]\n") == ["f:1: 'a' stands before any section; begin with [relay NAME]"]


@pytest.mark.parametrize("line", ["[]", "[ ]", "[s", "[s] x", "[s]]", "[s] = 1", "s]", "word", "=", "= x", "two words"])
def test_a_line_of_no_shape_is_told_and_the_rest_is_read(line: str) -> None:
    sections, problems = parse(f"[good]\na = 1\n{line}\n[last]\nb = 2\n", "f")
    assert [problem.place for problem in problems] == ["f:3"]
    assert [section.name for section in sections] == ["good", "last"]


@pytest.mark.parametrize("tail", ["", " ", "  ; c", "\t# c", ";c", "#c", ";]", "#]", " ;]"])
def test_c8_a_section_may_have_a_comment(tail: str) -> None:
    sections, problems = parse(f"[s]{tail}\na = 1\n", "f")
    assert problems or sections[0].entries == {"a": ("1", "f:2")}


def test_a_comment_inside_a_key_leaves_the_other_lines_alone() -> None:
    sections, problems = parse("[s]\na ;b = 1\nc = 2\n[t]\nd = 3\n", "f")
    assert [problem.place for problem in problems] == ["f:2"]
    assert sections[-1].entries == {"d": ("3", "f:5")}


@given(st.text(st.sampled_from("[]=;#: \t\nab\xa0\\%\"'"), max_size=60))
@example("[a];]")
@example("[a]\nb ;c = d")
def test_c22_any_text_has_sections_or_problems(text: str) -> None:
    sections, problems = parse(text, "f")
    for section in sections:
        for value, place in section.entries.values():
            assert "\n" not in value
            assert int(place.partition(":")[2]) <= text.count("\n") + 1
    for problem in problems:
        assert "\n" not in str(problem)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfa\n", "a\n"), (b"a\r\nb\rc\nd", "a\nb\nc\nd"), (b"", ""), ("é\n".encode(), "é\n"),
    ],
)  # fmt: skip
def test_c4_c5_bom_and_line_ends(data: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(data)
    assert read_text(str(tmp_path / "f")) == text


def test_c6_what_is_not_utf_8_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"ok\nb\xe9d\n")
    with pytest.raises(ValueError, match="byte 0xe9 at offset 4, line 2"):
        read_text(str(tmp_path / "f"))


def test_c17_a_symlink_is_followed(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "f")
    assert read_text(str(tmp_path / "link")) == "a"
