"""Why a norm or the end of a branch stays outside of a seam: each reason by the shortest branch that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mhc_compile.backend import kernels
from mhc_compile.passes.fuse_seams import Fused
from mhc_compile.passes.reasons import LEFT_OUT
from tests.nets.structures import C, tokens
from tests.passes.fuse_seams.fusing import fused

Branch = Callable[[Any, Tensor], Tensor]


def centred(self: Any, x: Tensor) -> Tensor:
    """A LayerNorm that is written out."""
    x = x - x.mean(-1, keepdim=True)
    return self.proj(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


def by_heads(self: Any, x: Tensor) -> Tensor:
    return self.proj(F.layer_norm(x, x.shape[-2:]))


def wide_weight(self: Any, x: Tensor) -> Tensor:
    return self.proj(F.rms_norm(x.float(), (C,), self.gamma.double()).float())


def two_scales(self: Any, x: Tensor) -> Tensor:
    return self.proj(x) * self.gamma * self.norm.weight


NORMS: dict[str, Branch] = {
    "norm-shared": lambda self, x: self.proj(self.norm(x)) + self.mlp(x),
    "norm-dtype": lambda self, x: self.proj(F.layer_norm(x.double(), (C,)).float()),
    "norm-axes": by_heads,
    "norm-spelling": centred,
    "norm-weight": wide_weight,
}
ENDS: dict[str, Branch] = {
    "tail-dropout": lambda self, x: F.dropout(self.proj(x), 0.1, True),
    "tail-op": lambda self, x: self.proj(x).tanh(),
    "tail-operand": lambda self, x: self.proj(x) * self.up(self.down(x)).sigmoid(),
    "tail-order": two_scales,
}


def left_out(branch: Branch, *args: Tensor) -> list[tuple[str, str]]:
    """Part and reason of all that stays outside, for a sum in front of one with that branch."""

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return x + branch(self, x)

    return [(left.part, left.reason) for left in fused(step, *args).results[Fused].left_out]


@pytest.mark.parametrize("reason", NORMS)
def test_why_a_norm_stays_outside(reason: str) -> None:
    assert ("norm", reason) in left_out(NORMS[reason])


def test_a_norm_of_another_kind_stays_outside() -> None:
    found = left_out(lambda self, x: self.proj(F.batch_norm(x, None, None, training=True)), tokens()[:, 0])
    assert found == [("norm", "norm-kind")]


@pytest.mark.parametrize("reason", ENDS)
def test_why_the_end_of_a_branch_stays_outside(reason: str) -> None:
    assert left_out(ENDS[reason]) == [("end", reason)]


def test_an_end_that_others_read_stays_outside() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        f = self.proj(x) * self.gamma
        return (x + f) * f.sigmoid()

    assert [left.reason for left in fused(step).results[Fused].left_out] == ["tail-shared"]


def test_a_boundary_keeps_both_outside() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        with torch.no_grad():
            u = self.norm(x)
            f = self.proj(u) * self.gamma
        return x + f

    told = [(left.part, left.reason) for left in fused(step).results[Fused].left_out]
    assert told == [("norm", "norm-place"), ("end", "tail-place")]


def test_what_goes_in_is_not_told() -> None:
    assert left_out(lambda self, x: self.proj(self.norm(x)) * self.gamma) == []
    assert left_out(lambda self, x: self.mlp(x)) == []


def test_it_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.mlp(x)
        return x + ENDS["tail-dropout"](self, x)

    with caplog.at_level("INFO", logger="mhc_compile.backend.kernels"):
        kernels.tell(fused(step).results[Fused].left_out)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "mhc_compile.backend.kernels")
    assert LEFT_OUT["tail-dropout"] in line
    assert "test_left_out.py:" in line
