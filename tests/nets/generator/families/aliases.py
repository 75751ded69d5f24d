"""In-place adds with an alias that is read afterwards, the view spelt in every way that torch has.

A reader of the alias sees the sum, as any reader outside of the region does; else the add must be no site.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tests.nets.generator.structure import Block, Structure

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "mT": lambda h: h.mT,
    "mH": lambda h: h.mH,
    "data": lambda h: h.data,
    "detach": lambda h: h.detach(),
    "real": lambda h: h.real,
    "ravel": lambda h: h.ravel(),
    "flatten": lambda h: torch.flatten(input=h, start_dim=1),
    "unfold": lambda h: h.unfold(1, 1, 1),
    "transpose of keywords": lambda h: torch.transpose(input=h, dim0=0, dim1=1),
    "swapaxes": lambda h: h.swapaxes(0, 1),
    "movedim": lambda h: h.movedim(source=-1, destination=0),
    "view of a keyword": lambda h: h.view(size=(-1,)),
    "view_as": lambda h: h.view_as(h),
    "reshape": lambda h: torch.reshape(input=h, shape=(-1,)),
    "expand_as": lambda h: h.expand_as(h),
    "unsqueeze": lambda h: h.unsqueeze(dim=0),
    "atleast_3d": lambda h: torch.atleast_3d(h),
    "narrow": lambda h: h.narrow(dim=-1, start=1, length=2),
    "select": lambda h: h.select(0, 0),
    "index": lambda h: h[..., 1:],
    "diagonal": lambda h: h.diagonal(dim1=-2, dim2=-1),
    "unflatten": lambda h: h.unflatten(-1, (-1, 2)),
    "detached and split": lambda h: h.detach().split(2, -1)[1],
    "as_strided": lambda h: h.as_strided((h.shape[0],), (h.stride(0),)),
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(h.dtype),
    "squeeze": lambda h: torch.squeeze(h, dim=-1),
}


class Seen(Block):
    """The branch's tensor becomes the sum, under the eyes of a view of it."""

    def __init__(self, c: int, view: str, spelling: str) -> None:
        super().__init__(c)
        self.see, self.add = VIEWS[view], ADDS[spelling]

    def forward(self, x: Any) -> Any:
        if self.hand is not None:
            x = self.connect("f", x, self.branch)
            return x, self.see(self.leave(x)).sin().mean()
        h = self.branch(x)
        alias = self.see(h)
        h = self.add(h, x)
        return h, alias.sin().mean()

    def branch(self, u: Tensor) -> Tensor:
        out: Tensor = self.f(self.norm(u))
        return out


def _iadd(h: Tensor, x: Tensor) -> Tensor:
    h += x
    return h


ADDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+=": _iadd,
    "add_": lambda h, x: h.add_(other=x),
    "add_ of a half": lambda h, x: h.add_(x, alpha=1),
}
STRUCTURES = {
    f"{view}, {spelling}": Structure(partial(Seen, view=view, spelling=spelling), (1, 0))
    for number, view in enumerate(VIEWS)
    for spelling in [list(ADDS)[number % len(ADDS)]]
}
