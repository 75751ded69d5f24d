"""What a graph break does to a model, and that explain, upgrade and errors name it with the user's line."""

from __future__ import annotations

import copy
import functools
import linecache
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import SiteNotFoundError
from mhc_compile.plan.joints import Cut
from tests.nets.small import Block, Net, compile_blocks, compiled, gradients, inputs, made, perturb


class BetweenBlocks(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()  # between blocks
        out: Tensor = self.head(self.blocks[1](x))
        return out


class MadeAnew(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()
        x = x.clone()
        torch._dynamo.graph_break()  # behind the clone
        out: Tensor = self.head(self.blocks[1](x))
        return out


class BetweenAdds(Block):
    broken = True

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        if self.broken:
            torch._dynamo.graph_break()  # between adds
        return x + self.mlp(self.norm2(x))


class InBranch(Block):
    def forward(self, x: Tensor) -> Tensor:
        y = self.attn(self.norm1(x))
        torch._dynamo.graph_break()  # in the branch
        x = x + y
        return x + self.mlp(self.norm2(x))


class Broken(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        torch._dynamo.graph_break()  # in a layer
        return x.tanh()


class InLayer(Block):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout)
        self.attn = Broken(16, 16)


def told(cuts: tuple[Cut, ...]) -> list[tuple[str, str, bool, str]]:
    """The cuts, with the comment in the line of the user's code that each of them names."""
    found = []
    for cut in cuts:
        file, _, line = cut.source.rpartition(":")
        comment = linecache.getline(file, int(line)).partition("# ")[2].strip()
        found.append((cut.kind, cut.name, cut.carries, comment))
    return found


def line_of(text: str) -> int:
    """The line of this file with a text."""
    return next(i for i, line in enumerate(Path(__file__).read_text("utf-8").splitlines(), 1) if text in line)


def test_a_region_goes_on() -> None:
    report = mhc.explain(made(BetweenBlocks), (inputs(),))
    assert told(report.cuts) == [("region", "blocks.0.mlp -> blocks.1.attn", True, "between blocks")]
    assert "graph_break" in report.cuts[0].reason


def test_a_region_ends_where_the_tensor_is_made_anew() -> None:
    report = mhc.explain(made(MadeAnew), (inputs(),))
    assert told(report.cuts) == [("region", "blocks.0.mlp -> blocks.1.attn", False, "behind the clone")]
    assert report.cuts[0].reason.startswith("the tensor between them is made anew; ")
    assert [region.sites for region in report.regions] == [2, 2]


@pytest.mark.parametrize(
    ("block", "comment", "line"),
    [(InBranch, "in the branch", line_of("x = x + y")), (InLayer, "in a layer", None)],
    ids=["forward", "layer"],
)
def test_a_connection_falls_apart(block: type[nn.Module], comment: str, line: int | None) -> None:
    """Its carrier is in one graph and its add in another."""
    report = mhc.explain(made(Net, 2, block), (inputs(),))
    found = [each for each in told(report.cuts) if each[0] == "branch"]
    assert [(name.partition(",")[0], carries, text) for _, name, carries, text in found] == [
        ("blocks.0", False, comment),
        ("blocks.1", False, comment),
    ]
    assert all(f"test_breaks.py:{line}" in name for _, name, _, _ in found) or line is None
    assert report.sites == ()


@pytest.mark.parametrize("make", [Net, BetweenBlocks])
def test_what_is_no_cut(make: type[nn.Module]) -> None:
    """Adds without a skip are none, whatever graph their terms come from."""

    class Added(make):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            first = self.stem(x)
            torch._dynamo.graph_break()
            out: Tensor = super().forward(x) + self.head(self.stem(x.flip(1)) + first.detach().flip(1))
            return out

    assert {cut.kind for cut in mhc.explain(made(Added), (inputs(),)).cuts} <= {"region"}


# -- a forward that is cut --------------------------------------------------------------------------------------------


def half(layers: int = 2) -> Net:
    """A net whose first block has a break in its forward."""
    model = Net(layers, BetweenAdds)
    for block in list(model.blocks)[1:]:
        block.broken = False  # type: ignore[assignment]
    return model


def test_a_forward_with_a_break_is_left_alone_with_a_reason() -> None:
    report = mhc.explain(made(half, 3), (inputs(),))
    assert told(report.cuts)[-1] == ("forward", "blocks.0", False, "between adds")
    assert [site.owner for site in report.sites] == ["blocks.1"] * 2 + ["blocks.2"] * 2
    reasons = [(rejection.owner, rejection.reason, rejection.residual) for rejection in report.rejections]
    assert reasons == [("blocks.0", "broken-forward", True)] * 2
    assert "a graph break cuts the forward that it stands in" in str(report)


def test_upgrade_takes_the_others(moved: bool) -> None:
    model, plain = made(half, 3), made(half, 3)
    report = mhc.upgrade(model, (inputs(),))
    assert report.max_error is not None
    assert sorted({name.partition(".mhc")[0] for name, _ in mhc.named_parameters(model)}) == ["blocks.1", "blocks.2"]
    perturb(model, 0.5 if moved else 0.0)
    out = compiled(model)(inputs())
    assert torch.allclose(out, plain(inputs()), atol=1e-5) is not moved
    assert all(grad is not None for grad in gradients(out, model.parameters()))


@pytest.mark.parametrize("way", ["whole", "blocks"])
def test_a_break_after_upgrade(way: str) -> None:
    """The error names the site as the model does, and the line that broke the graph."""
    model = made(Net, 2, BetweenAdds)
    for block in model.get_submodule("blocks").children():
        block.broken = False  # type: ignore[assignment]
    mhc.upgrade(model, (inputs(),))
    block.broken = True  # type: ignore[assignment]
    if way == "blocks":
        compile_blocks(model)
    line = line_of("# between adds")
    with pytest.raises(SiteNotFoundError, match=rf"site 'blocks\.1\.attn' .* broken at .*test_breaks\.py:{line}: Call"):
        (model if way == "blocks" else compiled(model))(inputs())


# -- parts that share code ---------------------------------------------------------------------------------------------


def decorated(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Like Hugging Face's decorators: one code object for all forwards."""

    @functools.wraps(forward)
    def wrapper(self: nn.Module, x: Tensor) -> Tensor:
        return forward(self, x)

    return wrapper


class Tower(nn.Linear):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        torch._dynamo.graph_break()
        return x.tanh()


class Text(Net):
    @decorated
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class TowersAndText(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(*(Tower(8, 8) for _ in range(3)), Text())

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.slow
def test_dynamo_leaves_no_part_uncompiled() -> None:
    """Its limit counts by code object; what it left would warn that nobody compiled it."""
    model = made(TowersAndText)
    assert len(mhc.upgrade(model, (inputs(),)).sites) == 4
    perturb(model)
    expected = compiled(copy.deepcopy(model))(inputs())
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=2), warnings.catch_warnings():
        warnings.simplefilter("error", mhc.MHCWarning)
        assert torch.equal(compiled(model)(inputs()), expected)


def test_every_branch_is_cut() -> None:
    """A hook breaks at each module that is called, so that no part holds a branch and its add: no site is skipped."""
    model = made()
    mhc.upgrade(model, (inputs(),))
    for block in model.get_submodule("blocks").children():
        for module in block.children():
            module.register_forward_pre_hook(torch.compiler.disable(lambda *_: None))
    with pytest.raises(SiteNotFoundError, match=r"'blocks\.0\.attn' is cut off .* broken at"):
        compiled(model)(inputs())


# -- without upgrade --------------------------------------------------------------------------------------------------


class Edges(Net):
    """Breaks that leave graphs without any site: a stem and a head."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        torch._dynamo.graph_break()
        x = self.blocks[1](self.blocks[0](x))
        torch._dynamo.graph_break()
        out: Tensor = self.head(x)
        return out


def warned(model: nn.Module) -> list[str]:
    """What the first two calls warn of."""
    run = compiled(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            run(inputs())
    return [str(w.message) for w in caught if issubclass(w.category, mhc.MHCWarning)]


def test_small_graphs_do_not_warn() -> None:
    (message,) = warned(made(Edges))
    assert "created the parameters of 4 hyper-connections" in message


def test_a_model_that_is_left_alone_for_its_breaks_does() -> None:
    (message,) = set(warned(made(Net, 2, BetweenAdds)))  # of each part of the forward
    assert "found nothing to rewrite in this graph of BetweenAdds" in message
