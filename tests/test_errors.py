"""Errors that have a name, and how they are shown."""

from __future__ import annotations

import pytest

from relayd.errors import AddressError, ConfigError, Problem, RelaydError, StartError, did_you_mean


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (Problem("is wrong"), "is wrong"),
        (Problem("is wrong", "a.ini:3"), "a.ini:3: is wrong"),
        (Problem("is wrong", "a.ini:3", "ais"), "a.ini:3: [relay ais]: is wrong"),
        (Problem("is wrong", "a.ini:3", "ais", "buffer"), "a.ini:3: [relay ais] buffer: is wrong"),
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
