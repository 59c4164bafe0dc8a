"""References: the environment, and secrets read from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.config.expand import expand, is_secret


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"), ("${A}", "1"), ("x${A}y${A}z", "x1y1z"), ("${EMPTY}", ""), ("$A $ {A} $", "$A $ {A} $"),
        ("${ODD}", "${A} @x % ]"), ("a@b", "a@b"), ("%(A)s", "%(A)s"),
    ],
)  # fmt: skip
def test_c20_references_are_replaced_once(text: str, value: str) -> None:
    environ = {"A": "1", "EMPTY": "", "ODD": "${A} @x % ]"}
    assert expand(text, environ, "/nowhere") == value


def test_c20_an_unset_name_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\$\{B\} is not set in the environment"):
        expand("${A}${B}", {"A": "1"}, "/")


@pytest.mark.parametrize("text", ["${A:5000", "${A}:${", "@${A/x"])
def test_a_brace_that_is_not_closed_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=r"'\$\{' is not closed with '\}'; write \$\{NAME\}"):
        expand(text, {"A": "1"}, "/")


def test_c20_what_the_environment_brings_is_no_file_name(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    assert expand("${A}", {"A": "@secret"}, str(tmp_path)) == "@secret"


@pytest.mark.parametrize("evil", ["a\nb", "a\rb", "a\0b", "\x1b[2J", "a\x85b", "a\u2028b", "\x7f"])
def test_c20_no_control_character_comes_in(evil: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="control character") as caught:
        expand("${A}", {"A": evil}, "/")
    assert evil not in str(caught.value)
    (tmp_path / "secret").write_text(f"hunter2{evil}hunter2", newline="")
    with pytest.raises(ValueError, match=r"control character|more than one line") as caught:
        expand("@secret", {}, str(tmp_path))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_is_a_file_without_its_line_end(end: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"@${{A}} {end}", newline="")
    assert expand("@secret", {"A": "1"}, str(tmp_path)) == "@${A} "


def test_a_secret_s_path_may_be_absolute_and_hold_the_environment(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    assert expand(f"@{tmp_path}/secret", {}, "/") == "s"
    assert expand("@${DIR}/secret", {"DIR": str(tmp_path)}, "/") == "s"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_lines_of_a_file_are_the_parts_of_a_list(end: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(end.join(["10.0.0.0/8", "", "192.0.2.1, 192.0.2.2", ""]), newline="")
    assert expand("@list", {}, str(tmp_path), a_list=True) == "10.0.0.0/8, , 192.0.2.1, 192.0.2.2"


def test_a_large_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    for name in (f"{tmp_path}/large", "/dev/zero"):
        with pytest.raises(ValueError, match=r"larger than 64 KiB|not a regular file"):
            expand(f"@{name}", {}, "/")


def test_what_is_a_secret() -> None:
    assert is_secret("@file")
    assert not is_secret("a@file")
