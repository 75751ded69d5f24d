"""Modules that are called again, in other modes, on other shapes: a site is its place, not a count of this run."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.nets.generator.structure import Block, Structure


class SameName(Block):
    """`f` twice beside a module that is called `f_1`."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.f_1 = nn.Linear(c, c)

    def forward(self, x: Any) -> Any:
        x = self.connect("f", x, lambda u: self.f(u).tanh())
        x = self.connect("f", x, lambda u: self.f(u).tanh())
        return self.connect("f_1", x, lambda u: self.f_1(u).tanh())


class OneToken(Block):
    """Tokens plus their mean's branch: no site, though with one token it looks like one."""

    def forward(self, x: Any) -> Any:
        context = self.f(self.leave(x).mean(1, keepdim=True)).tanh()
        x = self.lift(lambda s: s + context, x)
        x = self.connect("f", x, lambda u: self.f(u).tanh())
        return self.connect("g", x, lambda u: self.g(u).tanh())


class TrainsOnly(Block):
    """A connection that only training makes, of a module that evaluation calls too."""

    def forward(self, x: Any) -> Any:
        if self.training:
            x = self.connect("in training", x, lambda u: self.f(u * 0.5).tanh())
        x = self.connect("f", x, lambda u: self.f(u).tanh())
        return self.connect("g", x, lambda u: self.g(u).tanh())


class Tied(Block):
    """A layer that is run `times` times."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.times = 2

    def forward(self, x: Any) -> Any:
        for _ in range(self.times):
            x = self.connect("f", x, self.layer)
        return x


class TiedModule(Tied):
    """The same, where the layer is a module with its connection inside."""

    def __init__(self, c: int) -> None:
        super().__init__(c)
        self.inner = Inner(c)

    def forward(self, x: Any) -> Any:
        for _ in range(self.times):
            x = self.inner(x)
        return x


class Inner(Block):
    def forward(self, x: Any) -> Any:
        return self.connect("f", x, self.layer)


STRUCTURES = {
    "f twice beside f_1": Structure(SameName, (3,)),
    "one token": Structure(OneToken, (2,)),
    "in training only": Structure(TrainsOnly, (2, 3), trains_only=True),
    "tied": Structure(Tied, (2,), loops=True),
    "tied module": Structure(TiedModule, (2,), loops=True),
}
