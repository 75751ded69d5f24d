"""Blocks for tests: streams that a few writes make of a head, and the ops that follow, with and without replay."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import History, LeaveInBlock, Seam, SeamInBlock, Tail, Written, flat, named
from tests.equations.fused import Fused, upstream, with_gradients
from tests.equations.helpers import tensors


@dataclasses.dataclass(frozen=True)
class Block:
    """`writes` writes behind a head of the case's streams; what follows is a site of the same case."""

    case: Fused
    writes: int

    def head(self) -> Tensor:
        return self.case.x()

    def history(self) -> History:
        """Each write is of another branch, with other maps; tails are there in every other one."""
        f, post, res, tail = self.case.written()
        tails = (Tail(None, None, 1.0) if i % 2 else tail for i in range(self.writes))
        writes = (Written(f.roll(i + 1, -1), post.roll(i, -1), 0.3 * res.roll(i, -1), t) for i, t in enumerate(tails))
        return History.of(writes, self.case.equal_streams)

    def streams(self) -> Tensor:
        """What the forward's seams make of the head, one after the other."""
        x, options = self.head(), self.case.options
        for written in self.history().writes():
            x = call("seam", Seam(x, written, self.case.site(), options)).x
            options = options._replace(equal_streams=False)
        return x

    def gradients(self, op: str, replay: bool) -> list[Tensor]:
        """Values, and gradients of all that the op takes but the block, for random gradients of its results."""
        after = dataclasses.replace(self.case, equal_streams=False)
        given: Any = after.signature(op)._replace(x=self.streams())
        leaves = [t.clone().requires_grad_() if isinstance(t, Tensor) else t for t in flat(given)]
        given = named(type(given), leaves)
        if replay:
            in_block = SeamInBlock if op == "seam" else LeaveInBlock
            made = call(f"{op}_in_block", in_block(given, self.head(), self.history()))
        else:
            made = call(op, given)
        results = tensors(with_gradients(made))
        grads = [upstream(t, i) for i, t in enumerate(results)]
        asked = [t for t in leaves if isinstance(t, Tensor)]
        found = torch.autograd.grad(results, asked, grads, allow_unused=True)
        return [*(t.detach() for t in results), *(g for g in found if g is not None)]


def same(block: Block, op: str) -> None:
    """Assert that replayed gradients are those of the streams themselves, bit for bit."""
    found, expected = block.gradients(op, replay=True), block.gradients(op, replay=False)
    assert len(found) == len(expected) > 4
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
