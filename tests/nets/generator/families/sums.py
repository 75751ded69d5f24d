"""Sums of many terms: one connection, however they are summed."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.nets.generator.structure import Block, Structure


class Mixture(Block):
    """`x + sum of experts`, all of them run, weighed by a softmax."""

    def __init__(self, c: int, terms: int, total: str, skip_first: bool) -> None:
        super().__init__(c)
        self.experts = nn.ModuleList(nn.Linear(c, c) for _ in range(terms))
        self.gate, self.total, self.skip_first = nn.Linear(c, terms), TOTALS[total], skip_first

    def forward(self, x: Any) -> Any:
        if self.hand is not None:
            return self.connect("experts", x, lambda u: torch.stack(self.made(u)).sum(0))
        made = self.made(x)
        return self.total([x, *made] if self.skip_first else [*made, x])

    def made(self, u: Tensor) -> list[Tensor]:
        u = self.norm(u)
        weights = self.gate(u).softmax(-1).unbind(-1)
        return [w[..., None] * expert(u) for w, expert in zip(weights, self.experts, strict=True)]


def _chain(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _tree(terms: list[Tensor]) -> Tensor:
    while len(terms) > 1:
        terms = [functools.reduce(operator.add, terms[i : i + 2]) for i in range(0, len(terms), 2)]
    return terms[0]


TOTALS: dict[str, Callable[[list[Tensor]], Tensor]] = {
    "a chain": _chain,
    "a tree": _tree,
    "reduce": lambda terms: functools.reduce(operator.add, terms),
    "sum": lambda terms: sum(terms[1:], start=terms[0]),
    "a stack": lambda terms: torch.stack(terms).sum(0),
}
STRUCTURES = {
    f"{terms} terms by {total}, skip {place}": Structure(partial(Mixture, terms=terms, total=total, skip_first=first))
    for total, terms in zip(TOTALS, (24, 16, 5, 12, 8), strict=True)
    for place, first in {"first": True, "last": False}.items()
}
