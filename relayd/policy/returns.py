"""Which destination links may send back to the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Order = Mapping[Any, object]  # the links that can still send, the longest connected first


@dataclass(frozen=True)
class ReturnRule:
    """One row of the choices for `return`: `admits(link, order)` for a link that stands in `order`."""

    name: str
    admits: Callable[[object, Order], bool]
    help: str


RETURNS = {
    rule.name: rule
    for rule in (
        ReturnRule("none", lambda link, order: False, "what comes back is read, thrown away and counted"),
        ReturnRule("all", lambda link, order: True, "every link may send to the source, whole records at a time"),
        ReturnRule("first", lambda link, order: next(iter(order)) is link, "the longest-connected link alone may"),
    )
}
