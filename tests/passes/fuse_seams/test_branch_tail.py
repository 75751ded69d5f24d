"""What branches end with and fused writes take in, and what stays outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.nets.structures import C
from tests.passes.fuse_seams.fusing import Pair, fused, given, words

Ending = Callable[[Any, Tensor], Tensor]


def ends_with(ending: Ending, dtype: torch.dtype = torch.float32) -> Pair:
    """Two branches that end so: a seam and a leave take the ending in."""

    def step(self: Any, x: Tensor) -> Tensor:
        x = x + ending(self, self.proj(x))
        return x + ending(self, self.attn.q(x))

    return fused(step, dtype=dtype)


def found(made: Pair) -> list[str]:
    return [word for word in words(made.after) if word not in ("linear", "enter:equal")]


def bias(self: Any) -> Tensor:
    return self.norm2.bias


def row(self: Any) -> Tensor:
    """A parameter of shape [1, 1, C]."""
    return self.gamma.view(1, 1, C)


TAKEN: dict[str, tuple[Ending, str]] = {
    "bias": (lambda self, f: f + bias(self), "offset"),
    "bias first": (lambda self, f: torch.add(bias(self), f), "offset"),
    "layer scale": (lambda self, f: f * self.gamma, "scale"),
    "layer scale first": (lambda self, f: torch.mul(self.gamma, f), "scale"),
    "number": (lambda self, f: 0.5 * f, "0.5"),
    "integer": (lambda self, f: f.mul(3), "3"),
    "division": (lambda self, f: f / 4, "0.25"),
    "named division": (lambda self, f: torch.div(f, 4), "0.25"),
    "negation": (lambda self, f: -f, "-1"),
    "numbers": (lambda self, f: -(2 * f) / 4, "-0.5"),
    "all": (lambda self, f: 3 * ((f + bias(self)) * 0.5 * self.gamma), "offset:scale:1.5"),
    "offset behind a number": (lambda self, f: (f + bias(self)) * 0.5, "offset:0.5"),
    "no-op cast": (lambda self, f: (f * self.gamma).to(f.dtype), "scale"),
    "wide scale": (lambda self, f: (f.float() * self.gamma.float()).to(f.dtype), "scale"),
    "two rows": (lambda self, f: row(self) * (f + bias(self)), "offset:scale"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_a_tail_goes_in(name: str) -> None:
    ending, facts = TAKEN[name]
    made = ends_with(ending)
    extra = {"two rows": ["view", "reshape"], "wide scale": ["float"]}.get(name, [])
    assert found(made) == [*extra, f"seam:{facts}:equal", *extra, f"leave:{facts}"]
    if "cast" in name or "wide" in name:  # these cast to fp32
        made.same(torch.float32, 1e-5)
    else:
        made.same()


def test_vectors_are_1d() -> None:
    made = ends_with(TAKEN["two rows"][0])
    (seam,) = (node for node in made.after.graph.nodes if "mhc.seam" in str(node.target))
    offset, scale, _ = given(seam).written.tail
    assert [vector.meta["example_value"].shape for vector in (offset, scale)] == [(C,), (C,)]


OUTSIDE: dict[str, tuple[Ending, str, str]] = {  # what is left in front of the op, what goes in
    "scale behind an offset": (lambda self, f: f * self.gamma + bias(self), "mul", "offset"),
    "two scales": (lambda self, f: f * self.norm.weight * self.gamma, "mul", "scale"),
    "two offsets": (lambda self, f: f + self.norm.bias + bias(self), "add", "offset"),
    "a factor of the offset": (lambda self, f: torch.add(f, bias(self), alpha=2), "add", ""),
    "difference": (lambda self, f: f - bias(self), "sub", ""),
    "a number is added": (lambda self, f: f + 1, "add", ""),
    "a number is divided": (lambda self, f: 1 / (f + 9), "add truediv", ""),
    "rounded division": (lambda self, f: torch.div(f, 1e-3, rounding_mode="trunc"), "div", ""),
    "one number for all": (lambda self, f: f * self.gamma[0], "mul", ""),
    "a gate per token": (lambda self, f: f * f[..., :1], "mul", ""),
    "a vector per token": (lambda self, f: f * f.sin(), "sin mul", ""),
    "one number in a vector": (lambda self, f: f * self.gamma[:1], "mul", ""),
    "features that a vector makes": (lambda self, f: f[..., :1] * self.gamma, "mul", ""),
    "per position": (lambda self, f: f * self.shared[0].weight[:5, :], "mul", ""),
    "a square": (lambda self, f: f * f, "mul", ""),
    "dropout": (lambda self, f: functional.dropout(f * self.gamma, 0.0), "mul dropout", ""),
    "an activation": (lambda self, f: functional.gelu(f * self.gamma), "mul gelu", ""),
    "a shape": (lambda self, f: (f * self.gamma).unflatten(1, (1, 5)).flatten(1, 2), "mul unflatten flatten", ""),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_stays_outside(name: str) -> None:
    ending, left, facts = OUTSIDE[name]
    made = ends_with(ending)
    behind = [word for word in found(made) if word != "getitem"]
    taken = f":{facts}" if facts else ""
    assert behind == [*left.split(), f"seam{taken}:equal", *left.split(), f"leave{taken}"]
    made.same()


def test_a_difference_is_a_change_of_sign() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = torch.sub(x, self.proj(x), alpha=0.5)
        return x - self.attn.q(x) * self.gamma

    made = fused(step)
    assert found(made) == ["seam:-0.5:equal", "leave:scale:-1"]
    made.same()


def test_branches_that_are_added_first() -> None:
    def step(self: Any, x: Tensor) -> Tensor:
        x = x + self.gamma * self.proj(x) + self.gamma * self.attn.q(x)
        return x + self.attn.v(x)

    made = fused(step)
    assert found(made) == "mul mul add seam:equal leave".split()
    made.same()


def test_what_is_left_is_no_wider_than_the_output() -> None:
    """A scale in fp32 on a 16-bit output goes in, on a wide one it would save twice as much."""

    def wide(self: Any, f: Tensor) -> Tensor:
        return (f.float().exp() * self.gamma.float()).to(f.dtype)

    assert (
        found(ends_with(wide, torch.bfloat16))
        == "float exp float mul to seam:equal float exp float mul to leave".split()
    )
    made = ends_with(TAKEN["wide scale"][0], torch.bfloat16)
    assert found(made) == "float seam:scale:equal float leave:scale".split()
    made.same(torch.bfloat16, 5e-2)


def test_a_narrow_output_is_taken_as_it_is() -> None:
    """Streams in fp32 with branches in bf16, as under autocast."""

    def step(self: Any, x: Tensor) -> Tensor:
        def narrow(f: Tensor) -> Tensor:
            return functional.linear(f.bfloat16(), self.proj.weight.bfloat16())

        x = x + narrow(x).float()
        return x + narrow(x).float() * self.gamma

    made = fused(step)
    assert found(made) == [*["bfloat16"] * 2, "seam:equal", *["bfloat16"] * 2, "leave:scale"]
    made.same(torch.float32, 1e-5)


def test_what_others_read_stays_outside() -> None:
    def step(self: Any, x: Tensor) -> Any:
        f = self.proj(x) * self.gamma
        x = x + 0.5 * f
        return x + self.attn.q(x), f

    made = fused(step)
    assert found(made) == "mul seam:0.5:equal leave".split()
    made.same()
