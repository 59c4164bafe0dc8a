"""Errors that have a name, and how they are shown."""

from __future__ import annotations

import pytest

from relayd.errors import (
    AddressError,
    ConfigError,
    Problem,
    RelaydError,
    StartError,
    did_you_mean,
    listed,
    nearest_first,
)


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (Problem("is wrong"), "is wrong"),
        (Problem("is wrong", "a.ini:3"), "a.ini:3: is wrong"),
        (Problem("is wrong", "a.ini:3", "relay ais"), "a.ini:3: [relay ais]: is wrong"),
        (Problem("is wrong", "a.ini:3", "relay ais", "buffer"), "a.ini:3: [relay ais] buffer: is wrong"),
        (Problem("is wrong", "", "", "buffer"), "buffer: is wrong"),
        (Problem("is wrong", "SOURCE"), "SOURCE: is wrong"),
    ],
)
def test_c21_a_problem_says_where(problem: Problem, shown: str) -> None:
    assert str(problem) == shown


def test_errors_show_every_reason_in_order() -> None:
    error = ConfigError([Problem("one", "f:2"), Problem("two", "f:1")])
    assert str(error) == "f:2: one\nf:1: two"
    assert str(StartError(iter(["b", "a"]))) == "b\na"
    assert StartError(iter(["b", "a"])).reasons == ("b", "a")


def test_all_have_one_root() -> None:
    for error in (ConfigError, StartError, AddressError):
        assert issubclass(error, RelaydError)
    assert issubclass(AddressError, ValueError)  # what a Kind's read raises


@pytest.mark.parametrize(
    ("word", "answer"),
    [("sorce", "; did you mean 'source'?"), ("SOURCE", "; did you mean 'source'?"), ("zzzz", ""), ("", "")],
)
def test_c1_the_nearest_known_word(word: str, answer: str) -> None:
    assert did_you_mean(word, ["source", "destination"]) == answer


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("feed-2", ["feed-2", "feed-3", "feed-1", "ais"]), ("zzzz", ["ais", "feed-1", "feed-2", "feed-3"]),
        ("", ["ais", "feed-1", "feed-2", "feed-3"]), ("sia", ["ais", "feed-1", "feed-2", "feed-3"]),
    ],
)  # fmt: skip
def test_the_nearest_names_come_first_and_none_is_lost(word: str, names: list[str]) -> None:
    assert nearest_first(word, ["ais", "feed-1", "feed-2", "feed-3"]) == names


def test_very_many_names_are_a_line_one_can_read_and_not_all_compared() -> None:
    names = [f"r{number}" for number in range(5000)]
    assert nearest_first("r4999" * 10_000, names) == names
    assert listed(nearest_first("r17", names)).startswith("r17, ")
    assert listed(names).endswith(", r18, r19 and 4980 more")
    assert (listed(names[:20]), listed(names[:2]), listed([])) == (", ".join(names[:20]), "r0, r1", "")
