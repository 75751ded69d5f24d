"""An upgraded model that nobody compiles, compiles itself, or stops and says what to do; only `plain` runs it plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import CarryError, MHCError, NotCompiledError, SiteNotFoundError
from tests.nets.small import Block, Net, compiled, inputs, made, relative, upgraded

REMEDY = r"model\.compile\(backend='mhc'\)"


def refused(call: Callable[[], Any], error: type[MHCError] = NotCompiledError, match: str = REMEDY) -> None:
    with pytest.raises(error, match=match):
        call()


def same_as_compiled(model: nn.Module, x: Tensor) -> None:
    assert relative(model(x), compiled(model)(x)) < 1e-6


def test_eager() -> None:
    model = upgraded(moved=True)
    same_as_compiled(model, inputs())
    same_as_compiled(model.get_submodule("blocks.0"), torch.randn(2, 16))
    block = model.get_submodule("blocks.1")
    refused(lambda: block(torch.randn(2, 16)), CarryError, r"'blocks\.1\.attn' continues the streams")


@pytest.mark.core(2)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_other_backends(backend: str) -> None:
    model = upgraded()
    refused(lambda: torch.compile(model, backend=backend)(inputs()))


def test_other_backend_after_ours() -> None:
    model = upgraded()
    compiled(model)(inputs())
    refused(lambda: torch.compile(model, backend="aot_eager")(inputs()))


def test_export() -> None:
    model = upgraded()
    refused(lambda: torch.export.export(model, (inputs(),)), match=r"mhc_compile\.export\(model, args\)")


def test_strict_export() -> None:
    """Dynamo wraps the error; its text stays."""
    model = upgraded()
    with pytest.raises(
        torch._dynamo.exc.TorchRuntimeError, match=r"NotCompiledError.*mhc_compile\.export\(model, args\)"
    ):
        torch.export.export(model, (inputs(),), strict=True)


def test_jit_trace() -> None:
    model = upgraded()
    refused(lambda: torch.jit.trace(model, (inputs(),)))


def test_fx_trace() -> None:
    model = upgraded()
    refused(lambda: torch.fx.symbolic_trace(model)(inputs()))


def test_forced_eager() -> None:
    model = upgraded()
    run = compiled(model)
    run(inputs())
    with torch.compiler.set_stance("force_eager"):
        refused(lambda: run(inputs()), match=r"set_stance\('force_eager'\)")


def test_recompile_limit() -> None:
    model = upgraded(moved=True)
    run = torch.compile(model, backend="mhc", dynamic=False, options={"compiler": "eager"})
    with torch._dynamo.config.patch(recompile_limit=1):
        run(inputs(2, 3))
        out = run(inputs(2, 4))
    assert relative(out, compiled(model)(inputs(2, 4))) < 1e-6


def test_disabled_block() -> None:
    """It compiles itself, takes the streams of the block before, and hands its own on."""
    model = upgraded(Net, 3, moved=True)
    expected = compiled(model)(inputs())
    block = model.get_submodule("blocks.1")
    block.forward = torch.compiler.disable(block.forward)
    assert relative(compiled(model)(inputs()), expected) < 1e-6


class Broken(Block):
    """A graph break between a branch and its add."""

    broken = False

    def forward(self, x: Tensor) -> Tensor:
        f = self.attn(self.norm1(x))
        if self.broken:
            torch._dynamo.graph_break()
        x = x + f
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def test_graph_break_between_branch_and_add(moved: bool) -> None:
    model = upgraded(Net, 2, Broken, moved=moved)
    model.get_submodule("blocks.1").broken = True  # type: ignore[assignment]
    run = compiled(model)
    refused(lambda: run(inputs()), SiteNotFoundError, r"attn'.*TORCH_LOGS=graph_breaks")


class Branching(Block):
    """The add of the first connection is on one path through the model only."""

    skip = False

    def forward(self, x: Tensor) -> Tensor:
        f = self.attn(self.norm1(x))
        x = f if self.skip else x + f
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


def test_site_that_this_call_does_not_reach() -> None:
    model = upgraded(Net, 2, Branching)
    model.get_submodule("blocks.1").skip = True  # type: ignore[assignment]
    refused(lambda: compiled(model)(inputs()), SiteNotFoundError, r"blocks\.1\.attn.*another path")


def test_plain_is_the_way_out() -> None:
    x = inputs()
    expected = made()(x)
    model = upgraded(moved=True)
    run = compiled(model)
    rewritten = run(x)
    assert relative(rewritten, expected) > 1e-2
    with mhc.plain(model):
        assert torch.equal(model(x), expected)
        assert torch.equal(torch.compile(model, backend="aot_eager")(x), expected)
        assert torch.equal(run(x), expected)
        assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)
    assert torch.equal(run(x), rewritten)
    same_as_compiled(model, x)


def test_plain_ends_with_an_error_and_nests() -> None:
    model, expected = upgraded(moved=True), made()(inputs())
    with pytest.raises(RuntimeError, match="mine"), mhc.plain(model):
        raise RuntimeError("mine")
    same_as_compiled(model, inputs())
    with mhc.plain(model):
        with mhc.plain(model):
            assert torch.equal(model(inputs()), expected)
        assert torch.equal(model(inputs()), expected)
    same_as_compiled(model, inputs())


def test_plain_of_a_part() -> None:
    """A block alone may run plain, and the others not."""
    model, original = upgraded(moved=True), made()
    block = model.get_submodule("blocks.0")
    x = torch.randn(2, 16)
    whole = model(inputs())
    with mhc.plain(block):
        assert torch.equal(block(x), original.get_submodule("blocks.0")(x))
        same_as_compiled(model, inputs())
        assert all(relative(model(inputs()), other) > 1e-2 for other in (whole, original(inputs())))
