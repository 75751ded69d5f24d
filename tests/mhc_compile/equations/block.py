"""Blocks for tests: streams that a few writes make of a head, and the ops that follow, with and without replay."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops.signatures import History
from tests.mhc_compile.equations.fused import Fused, arguments
from tests.mhc_compile.equations.helpers import normal


@dataclasses.dataclass(frozen=True)
class Block:
    """`writes` writes behind a head, which is plain where the case is; what follows is a site of the same case."""

    case: Fused
    writes: int

    def head(self) -> Tensor:
        return self.case.x()

    def history(self) -> History:
        """Each write is of another branch, with other maps; tails are there in every other one."""
        columns: list[list[Any]] = [[] for _ in range(6)]
        for i in range(self.writes):
            _, f, post, res, offset, scale = self.case.written()
            assert f is not None
            assert post is not None
            assert res is not None
            tail = (offset, scale, self.case.multiplier) if i % 2 == 0 else (None, None, 1.0)
            for column, entry in zip(
                columns, (f.roll(i + 1, -1), post.roll(i, -1), 0.3 * res.roll(i, -1), *tail), strict=True
            ):
                column.append(entry)
        return History._make([*columns, self.case.plain])

    def streams(self) -> Tensor:
        """What the forward's seams make of the head, one after the other."""
        x, plain = self.head(), self.case.plain
        site, options = self.case.site(), list(self.case.options)
        for write in zip(*self.history()[:6], strict=True):
            x = torch.ops.mhc.seam(x, *write, *site, *options[:-1], plain)[0]
            plain = False
        return x

    def gradients(self, op: str, replay: bool) -> list[Tensor]:
        """Values, and gradients of all that the op takes but the block, for random gradients of its results."""
        after = dataclasses.replace(self.case, plain=False)
        given = [self.streams(), *arguments(after, op)[1:]]
        leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in given]
        function = getattr(torch.ops.mhc, f"{op}_in_block" if replay else op)
        made = function(*leaves, *((self.head(), *self.history()) if replay else ()))
        results = [made] if isinstance(made, Tensor) else list(made)[:4]
        upstream = [normal(*t.shape, seed=30 + i).to(t.dtype) for i, t in enumerate(results)]
        asked = [t for t in leaves if isinstance(t, Tensor)]
        found = torch.autograd.grad(results, asked, upstream, allow_unused=True)
        return [*(t.detach() for t in results), *(g for g in found if g is not None)]


def same(block: Block, op: str) -> None:
    """Assert that replayed gradients are those of the streams themselves, bit for bit."""
    found, expected = block.gradients(op, replay=True), block.gradients(op, replay=False)
    assert len(found) == len(expected) > 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
