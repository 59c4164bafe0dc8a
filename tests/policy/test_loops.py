"""Finding streams that would run in a circle."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.policy.loops import End, LoopGuard, circular, flow, reaches
from tests.support import is_linear

A, B, C = (End(name, True) for name in "abc")  # sources
A_OUT, B_OUT, C_OUT = (End(name, False) for name in "abc")


@pytest.mark.parametrize(
    ("connecting", "listening", "edge"),
    [
        (A, A, None),
        (A, A_OUT, ("a", "a")),
        (A, B_OUT, ("b", "a")),
        (A_OUT, B, ("a", "b")),
        (A_OUT, B_OUT, None),
        (A, B, None),
    ],
)
def test_which_way_data_flows(connecting: End, listening: End, edge: object) -> None:
    assert flow(connecting, listening) == edge


@pytest.mark.parametrize(
    ("edges", "start", "goal", "reached"),
    [
        ([], "a", "a", True), ([], "a", "b", False), ([("a", "b")], "a", "b", True), ([("a", "b")], "b", "a", False),
        ([("a", "b"), ("b", "c")], "a", "c", True), ([("a", "b"), ("b", "a")], "a", "c", False),
        ([("a", "b"), ("b", "c"), ("c", "b")], "a", "d", False),
        ([("a", "b"), ("a", "c"), ("c", "d")], "a", "d", True),
    ],
)  # fmt: skip
def test_reaching_along_the_edges(edges: list[tuple[str, str]], start: str, goal: str, reached: bool) -> None:
    assert reaches(edges, start, goal) == reached


def test_a_chain_of_a_thousand_is_no_recursion() -> None:
    edges = [(str(number), str(number + 1)) for number in range(5000)]
    assert reaches(edges, "0", "5000")
    assert not reaches(edges, "5000", "0")


EDGES = st.sets(st.tuples(*[st.sampled_from("abcdefg")] * 2), max_size=14)


@pytest.mark.parametrize(
    ("edges", "on_a_circle"),
    [
        ("", ""), ("ab", ""), ("aa", "aa"), ("aa ab", "aa"), ("ab ba", "ab ba"), ("ab bc ca", "ab bc ca"),
        ("ab bc cb cd", "bc cb"), ("ab ba bc cd dc", "ab ba cd dc"), ("ab ac bd cd", ""),
        ("ab bc ac ca", "ab bc ac ca"),
    ],
)  # fmt: skip
def test_what_lies_on_a_circle(edges: str, on_a_circle: str) -> None:
    assert circular({(edge[0], edge[1]) for edge in edges.split()}) == {tuple(edge) for edge in on_a_circle.split()}


@given(EDGES)
def test_an_edge_lies_on_a_circle_where_its_end_leads_back_to_its_beginning(edges: set[tuple[str, str]]) -> None:
    assert circular(edges) == {(origin, target) for origin, target in edges if reaches(edges, target, origin)}


SHAPES: dict[str, Callable[[int], tuple[int, int]]] = {
    "chain": lambda number: (number, number + 1),
    "chain, from its end": lambda number: (-number, -number - 1),
    "hub": lambda number: (0, number + 1),
    "funnel": lambda number: (number + 1, 0),
    "hub in a circle": lambda number: (0, number) if number % 2 else (number - 1, 0),
    "circles": lambda number: (number, number ^ 1),
    "tree": lambda number: (number // 2, number + 1),
    "ladder": lambda number: (number // 2, number // 2 + number % 2 + 1),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_edges_take_twice_the_time(shape: str) -> None:
    def prepared(size: int) -> Callable[[], object]:
        edges = {(str(origin), str(target)) for origin, target in map(SHAPES[shape], range(size))}
        return lambda: circular(edges)

    assert is_linear(prepared, 4000)


def test_n8_a_link_from_our_own_end_that_leads_back_to_it_is_refused() -> None:
    guard = LoopGuard()
    guard.dialled("name", A)
    assert not guard.admits("name", A_OUT)
    assert not guard.edges


def test_strangers_come_in() -> None:
    guard = LoopGuard()
    guard.dialled("ours", A)
    assert guard.admits("theirs", A_OUT)
    guard.hung_up("ours")
    assert guard.admits("ours", A_OUT)


def test_n9_a_chain_is_admitted_the_link_that_closes_the_circle_is_not() -> None:
    guard = LoopGuard()
    for name, end in (("a-b", A_OUT), ("b-c", B_OUT), ("c-a", C_OUT)):
        guard.dialled(name, end)
    assert guard.admits("a-b", B)
    assert guard.admits("b-c", C)
    assert not guard.admits("c-a", A)
    assert sorted(guard.edges.values()) == [("a", "b"), ("b", "c")]
    guard.left("b-c")
    assert guard.admits("c-a", A)
    assert not guard.admits("b-c", C)


def test_two_sources_that_meet_feed_nobody() -> None:
    guard = LoopGuard()
    guard.dialled("name", A)
    assert guard.admits("name", B)
    assert not guard.edges
    guard.left("name")
    guard.left("name")
    guard.hung_up("name")
    guard.hung_up("name")
