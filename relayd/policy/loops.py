"""Finding streams that would run in a circle through this process.

Data flow between relays is a graph: an edge from A to B where a link leaves A and enters B.  A chain
is legal, a circle multiplies the same bytes for ever.  A TCP link of our own is recognised by its
two addresses: the connecting end notes them before the peer can see it, and the accepting end looks
for them when it comes in.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class End:
    """One end of one relay."""

    relay: str
    is_source: bool


def flow(connecting: End, listening: End) -> tuple[str, str] | None:
    """Return (from, to) of the data between a connecting and a listening end, None if none flows."""
    if connecting.is_source == listening.is_source:
        return None  # two sources or two destinations: neither feeds the other
    if connecting.is_source:
        return listening.relay, connecting.relay
    return connecting.relay, listening.relay


def reaches(edges: Iterable[tuple[str, str]], start: str, goal: str) -> bool:
    """Whether `goal` can be reached from `start` along the edges; a node reaches itself."""
    following: dict[str, list[str]] = {}
    for origin, target in edges:
        following.setdefault(origin, []).append(target)
    seen = {start}
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node == goal:
            return True
        fresh = [target for target in following.get(node, ()) if target not in seen]
        seen.update(fresh)
        waiting.extend(fresh)
    return False


def circular(edges: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the edges that lie on a circle, in a time that grows as their number does.

    They are the edges within a strongly connected component. In Kosaraju's way: of all nodes the one that is left last
    can be reached, against the edges, from no component but its own; without that one the next is so, and so on.
    """
    following: dict[str, list[str]] = {}
    preceding: dict[str, list[str]] = {}
    for origin, target in edges:
        following.setdefault(origin, []).append(target)
        preceding.setdefault(target, []).append(origin)
    seen: set[str] = set()
    left = [node for start in following for node in _walk(following, start, seen)]
    seen = set()
    component: dict[str, str] = {}  # node -> a node that stands for all of its component
    for start in reversed(left):
        component.update(dict.fromkeys(_walk(preceding, start, seen), start))
    return {(origin, target) for origin, target in edges if component[origin] == component[target]}


def _walk(following: Mapping[str, Sequence[str]], start: str, seen: set[str]) -> list[str]:
    """Return the nodes that can be reached from `start` and were not seen, each after those it leads to; see them."""
    left: list[str] = []
    path = [] if start in seen else [(start, iter(following.get(start, ())))]
    seen.add(start)
    while path:
        node, targets = path[-1]
        target = next((target for target in targets if target not in seen), None)
        if target is None:
            left.append(node)
            path.pop()
        else:
            seen.add(target)
            path.append((target, iter(following.get(target, ()))))
    return left


class LoopGuard:
    """The links of this process that begin and end in it, while they live.

    A name is the pair of the link's two addresses, the connecting end's first: a local port alone may
    be shared by links to several peers.
    """

    def __init__(self) -> None:
        self._dialled: dict[Hashable, End] = {}
        self._edges: dict[Hashable, tuple[str, str]] = {}

    def dialled(self, name: Hashable, end: End) -> None:
        """A connecting end has begun to dial."""
        self._dialled[name] = end

    def hung_up(self, name: Hashable) -> None:
        """The connecting end of `name` is gone."""
        self._dialled.pop(name, None)

    def admits(self, name: Hashable, end: End) -> bool:
        """Whether the peer of the link `name` may come in at `end`; one that closes a circle may not."""
        origin = self._dialled.get(name)
        edge = flow(origin, end) if origin else None
        if edge is None:
            return True
        if reaches(self._edges.values(), edge[1], edge[0]):
            return False
        self._edges[name] = edge
        return True

    def left(self, name: Hashable) -> None:
        """The accepted link is gone."""
        self._edges.pop(name, None)

    @property
    def edges(self) -> Mapping[Hashable, tuple[str, str]]:
        """The flows between relays of this process, by the name of the link that carries them."""
        return self._edges
