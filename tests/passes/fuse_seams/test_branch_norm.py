"""Norms that fused ops take in: every spelling, the bits of the plain graph, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn import functional

from mhc_compile.passes.graph.optable import is_cast
from tests.nets.structures import C, tokens
from tests.passes.fuse_seams.fusing import Pair, fused, given, words
from tests.passes.fuse_seams.norm_spellings import (
    EPS,
    F32,
    LIBRARY,
    OTHERS,
    WRITTEN,
    Spelling,
    gemma,
    rms_norm_by_default,
    wide_rms_norm,
    wide_weight,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


def two_sites(spelling: Spelling, dtype: torch.dtype) -> Pair:
    """Both branches begin with a norm; what it makes of the first read is returned."""

    def step(self: Any, x: Tensor) -> Any:
        u = spelling(x, self.gamma, self.norm.bias)
        x = x + self.proj(u)
        return x + self.attn.v(spelling(x, self.norm.weight, self.norm2.bias)), u

    return fused(step, dtype=dtype)


def kinds(made: Pair) -> list[str]:
    return [
        given(node).options.norm
        for node in made.after.graph.nodes
        if "mhc.enter" in str(node.target) or "mhc.seam" in str(node.target)
    ]


@pytest.mark.core
@DTYPES
@pytest.mark.parametrize("spelling", [*WRITTEN, *LIBRARY], ids=lambda f: f.__name__)
def test_a_norm_goes_in(spelling: Spelling, dtype: torch.dtype) -> None:
    made = two_sites(spelling, dtype)
    kind = (WRITTEN | LIBRARY)[spelling]
    assert kinds(made) == [kind if dtype == torch.bfloat16 else kind.removesuffix("_cast")] * 2
    left = [word for word in words(made.after) if word.split(":")[0] not in ("enter", "seam", "leave")]
    of_the_weight = ("float", "add") if spelling in (gemma, wide_weight, wide_rms_norm) else ()
    assert [word for word in left if word not in of_the_weight] == ["linear", "linear"]
    made.same(dtype, 1e-5 if dtype == F32 else 5e-2)


@pytest.mark.core
@DTYPES
@pytest.mark.parametrize("spelling", WRITTEN, ids=lambda f: f.__name__)
def test_its_bits_are_those_of_the_plain_graph(spelling: Spelling, dtype: torch.dtype) -> None:
    """It rounds where the plain graph does."""
    made = two_sites(spelling, dtype)
    expected, found = (gm(*made.inputs(dtype))[1] for gm in (made.before, made.after))
    assert found.dtype == dtype
    assert torch.equal(found, expected) if dtype == torch.bfloat16 else (found - expected).abs().max() < 1e-6


@pytest.mark.core
@DTYPES
@pytest.mark.parametrize("spelling", OTHERS, ids=lambda f: f.__name__)
def test_what_only_looks_like_a_norm_stays_out(spelling: Spelling, dtype: torch.dtype) -> None:
    made = two_sites(spelling, dtype)
    assert kinds(made) == ["none", "none"]
    if dtype == F32:
        made.same(F32, 2e-5)  # some of these make a rounding a hundred times larger


def narrow(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return weight * (u * torch.rsqrt(u.pow(2).mean(-1, keepdim=True) + EPS))


def wide_result(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    h = u.float()
    return torch.tanh(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + EPS)).to(u.dtype)


@pytest.mark.parametrize("spelling", [narrow, wide_result])
def test_in_16_bits_it_must_be_computed_wide_and_rounded(spelling: Spelling) -> None:
    assert kinds(two_sites(spelling, torch.bfloat16)) == ["none", "none"]
    assert kinds(two_sites(spelling, F32)) == ["rms", "rms"]


@pytest.mark.parametrize(
    "behind",
    [
        pytest.param(lambda h, w: h * w[:1], id="h * w[:1]"),
        pytest.param(lambda h, w: h * w.sum(), id="h * w.sum()"),
        pytest.param(lambda h, w: h * w.view(1, C), id="h * w.view(1, C)"),
        pytest.param(lambda h, w: h + w, id="h + w"),
        pytest.param(lambda h, w: h * 2, id="h * 2"),
    ],
)
def test_what_is_no_weight_stays_behind(behind: Callable[[Tensor, Tensor], Tensor]) -> None:
    made = two_sites(lambda u, w, s: behind(functional.rms_norm(u, (C,), eps=EPS), w), F32)
    assert kinds(made) == ["rms", "rms"]
    assert [given(node).site.weight for node in made.after.graph.nodes if "mhc.enter" in str(node.target)] == [None]
    made.same(F32, 1e-5)


def test_a_layer_norm_has_its_weight_inside() -> None:
    made = two_sites(lambda u, w, s: functional.layer_norm(u, (C,)) * w, F32)
    assert [word for word in words(made.after) if word != "linear"] == (
        "enter:layer:equal mul seam:layer:equal mul leave".split()
    )
    made.same(F32, 1e-5)


def test_a_mean_that_falls_on_features() -> None:
    """Without keepdim the sizes of 8 tokens broadcast over 8 features."""

    def step(self: Any, x: Tensor) -> Tensor:
        def norm(u: Tensor) -> Tensor:
            return u * torch.rsqrt(u.pow(2).mean(-1) + EPS)

        x = x + self.proj(norm(x))
        return x + self.attn.v(norm(x))

    made = fused(step, tokens(1, C))
    assert kinds(made) == ["none", "none"]
    made.same()


def test_a_move_to_another_device_is_no_cast() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    nodes = [graph.call_method("to", (x, where)) for where in ("cpu", "meta")]
    for node, where in zip((x, *nodes), ("cpu", "cpu", "meta"), strict=True):
        node.meta["example_value"] = torch.empty(3, device=where)
    assert [is_cast(node) for node in nodes] == [True, False]


def test_a_second_weight_stays_behind() -> None:
    made = two_sites(lambda u, w, s: functional.rms_norm(u, (C,), w, EPS) * s, F32)
    assert [
        word for word in words(made.after) if word != "linear"
    ] == "enter:rms:equal mul seam:rms:equal mul leave".split()
    made.same(F32, 1e-5)


def test_eps_by_default_is_that_of_the_dtype_it_is_computed_in() -> None:
    made = two_sites(rms_norm_by_default, torch.bfloat16)
    (enter,) = (node for node in made.after.graph.nodes if "mhc.enter" in str(node.target))
    assert given(enter).options.norm_eps == torch.finfo(torch.float32).eps
    small = 1e-4 * torch.randn(64, dtype=torch.bfloat16)
    eager = small.float() * torch.rsqrt(small.float().square().mean() + torch.finfo(torch.float32).eps)
    torch.testing.assert_close(torch.rms_norm(small, (64,)), eager.bfloat16())


def test_its_result_may_be_overwritten() -> None:
    def doubled(u: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        made = functional.rms_norm(u, (C,), weight, EPS)
        made.view(-1, C).mul_(2)
        return made

    made = two_sites(doubled, F32)
    assert kinds(made) == ["rms", "rms"]
    made.same(F32, 1e-5)
