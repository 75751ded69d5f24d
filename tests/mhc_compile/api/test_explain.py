"""explain and the report's table: what is found, what is not and why, what it costs; nothing changes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from tests.nets.small import Block, Net, PostBlock, Shared, compiled, inputs, made, snapshot, unchanged, upgraded


class Mixed(nn.Module):
    """Residual connections, decoys, and a residual connection that stands alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Linear(8, 16), nn.ModuleList(Block() for _ in range(2))
        self.position = nn.Parameter(torch.randn(5, 16))
        self.last, self.down, self.head = nn.Linear(12, 12), nn.Linear(16, 12), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.position.expand_as(x)  # no-skip
        for block in self.blocks:
            x = block(x)
        y = self.down(x)
        y = y + self.last(y)  # alone
        y = y + torch.tanh(y)  # pointwise
        y = y + y.exp()  # pointwise
        out: Tensor = self.head(x).sum() + y
        return out


class TransformerLayer(nn.TransformerEncoderLayer):
    """A layer that torch does not know."""


class Broken(Net):
    """A graph break between two blocks."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        torch._dynamo.graph_break()
        out: Tensor = self.head(self.blocks[1](x))
        return out


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table that starts with this head, by its columns."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(head))
    edges = [match.span() for match in re.finditer(r"-+", lines[start + 1])]
    found: list[list[str]] = []
    for line in [lines[start], *lines[start + 2 :]]:
        if found and ("  " not in line or line.startswith("region")):
            break
        found.append([line[a : b if i + 1 < len(edges) else None].strip() for i, (a, b) in enumerate(edges)])
    return found


def test_table_of_sites() -> None:
    report = mhc.explain(made(Mixed), (inputs(),))
    text = str(report)
    assert text.splitlines()[0].startswith("4 sites in 1 regions, 4 other adds, 1 graph(s)")
    head, *body = rows(text, "site ")
    assert head == ["site", "kind", "region", "shape", "adds", "source"]
    names = [f"blocks.{i}.{branch}" for i in (0, 1) for branch in ("attn", "mlp")]
    assert [row[0] for row in body[:4]] == names
    assert {tuple(row[1:5]) for row in body[:4]} == {("pre-norm", "0", "3x5x16", "1")}
    assert all(re.fullmatch(r"small\.py:\d+", row[5]) for row in body[:4])
    assert "region 0: 4 sites, blocks.0.attn .. blocks.1.mlp" in text


def test_table_of_rejections() -> None:
    """Grouped by reason, residual connections that are left alone first."""
    report = mhc.explain(made(Mixed), (inputs(),))
    head, *body = rows(str(report), "not rewritten")
    assert head == ["not rewritten", "residual", "adds", "source", "why"]
    assert [row[:3] for row in body[:3]] == [
        ["single-site-region", "yes", "1"],
        ["pointwise-branch", "no", "2"],
        ["no-skip", "no", "1"],
    ]
    assert sum(int(row[2]) for row in body[:3]) == len(report.rejections) == 4
    assert all(rejection.message and ".py:" in rejection.source for rejection in report.rejections)
    assert body[1][3].count("test_explain.py") == 2


def test_source_lines_are_those_of_the_adds() -> None:
    report = mhc.explain(made(Mixed), (inputs(),))
    for site in report.sites:
        file, _, line = site.source.rpartition(":")
        with open(file, encoding="utf-8") as source:
            text = source.read().splitlines()[int(line) - 1]
        assert "x + self.dropout(" in text
        assert f"self.{site.label}(" in text


def test_costs() -> None:
    """The numbers of the report are those of the upgraded model."""
    for config in (mhc.Config(), mhc.Config(streams=2), mhc.Config(connection="hc"), mhc.Config(projection="identity")):
        report = mhc.explain(made(), (inputs(),), config=config)
        model = upgraded(config=config)
        added = sum(parameter.numel() for _, parameter in mhc.named_parameters(model))
        own = sum(parameter.numel() for parameter in made().parameters())
        assert report.parameters == added
        assert f"adds {added:,} parameters ({added / own:.2%} of the model's {own:,})" in str(report)


def test_lifted_ops_are_named() -> None:
    report = mhc.explain(made(Net, 2, PostBlock), (inputs(),))
    (region,) = report.regions
    assert region.lifts == ("layer_norm",)
    assert "lifted: layer_norm" in str(report)
    assert {site.kind for site in report.sites} == {"post-norm"}


def test_graph_breaks_are_listed() -> None:
    report = mhc.explain(made(Broken), (inputs(),))
    assert report.graphs == 2
    (cut,) = report.cuts
    assert (cut.kind, cut.name, cut.carries) == ("region", "blocks.0.mlp -> blocks.1.attn", True)
    assert cut.source.rpartition(":")[0] == __file__
    assert [region.sites for region in report.regions] == [4]
    assert re.search(r"^graph break: .*graph_break.* \(.*test_explain\.py:\d+\)$", str(report), re.MULTILINE)
    head, row, *_ = rows(str(report), "cut between graphs")
    assert head == ["cut between graphs", "kind", "carries", "broken at", "by"]
    assert row[:3] == ["blocks.0.mlp -> blocks.1.attn", "region", "yes"]
    assert re.fullmatch(r"test_explain\.py:\d+", row[3])
    assert not mhc.explain(made(), (inputs(),)).breaks


def test_a_mask_that_torchs_transformer_reads() -> None:
    """A layer of the user's might trust what torch reads there: the break stays, and how to do without it is told."""
    layer = TransformerLayer(16, 2, 32, 0.0, batch_first=True, norm_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), torch.randn(2, 5, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    report = mhc.explain(model, (x, mask))
    assert not report.sites
    (broken,) = report.breaks
    assert re.search(r"transformer\.py:\d+\): torch's transformer reads the mask .* is_causal=True or False", broken)
    torch._dynamo.reset()
    assert len(mhc.explain(model, (x, mask), {"is_causal": True}).sites) == 4


@pytest.mark.core(1)
@pytest.mark.parametrize("make", [Mixed, Shared, Broken])
def test_nothing_changes(make: type[nn.Module]) -> None:
    model = made(make).train()
    before, expected = snapshot(model), model(inputs())
    report = mhc.explain(model, (inputs(),))
    assert unchanged(model, before)
    assert torch.equal(model(inputs()), expected)
    assert report.max_error is None
    assert str(mhc.explain(model, kwargs={"x": inputs()})) == str(report)


def test_an_upgraded_model(moved: bool) -> None:
    """The same report as before, with the share of the model that is now larger."""
    model, plain = upgraded(Mixed, moved=moved), made(Mixed)
    before = snapshot(model)
    run = compiled(model)
    expected = run(inputs())
    first, again = mhc.explain(plain, (inputs(),)), mhc.explain(model, (inputs(),))
    assert again.sites == first.sites
    assert again.rejections == first.rejections
    assert unchanged(model, before)
    assert torch.equal(run(inputs()), expected)


def test_other_config_on_an_upgraded_model() -> None:
    """What it would be, whatever it is."""
    report = mhc.explain(upgraded(), (inputs(),), config=mhc.Config(streams=2, exclude=("*.attn",)))
    assert report.plan.config.streams == 2
    assert [site.label for site in report.sites] == ["mlp", "mlp"]
    assert [rejection.reason for rejection in report.rejections] == ["excluded"] * 2


@pytest.mark.core(1)
@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"include": "blocks.1.*"}, ["blocks.1.attn", "blocks.1.mlp"]),
        ({"exclude": ["blocks.0.*", "*.2.mlp"]}, ["blocks.1.attn", "blocks.1.mlp", "blocks.2.attn"]),
        ({"every": 2}, ["blocks.0.attn", "blocks.1.attn", "blocks.2.attn"]),
    ],
    ids=["include", "exclude", "every"],
)
def test_what_the_config_leaves_out(options: dict[str, object], names: list[str], moved: bool) -> None:
    """Left out in the report, without parameters, and plain in the rewritten model."""
    config = mhc.Config.from_options(options)
    report = mhc.explain(made(Net, 3), (inputs(),), config=config)
    assert [site.name for site in report.sites] == names
    excluded = [rejection for rejection in report.rejections if rejection.reason == "excluded"]
    assert len(excluded) == 6 - len(names)
    assert all(rejection.residual for rejection in excluded)
    model = upgraded(Net, 3, config=config, moved=moved)
    assert sorted({name.rpartition(".")[0].replace(".mhc", "") for name, _ in mhc.named_parameters(model)}) == names
    out, plain = compiled(model)(inputs()), made(Net, 3)(inputs())
    assert torch.allclose(out, plain, atol=1e-5) is not moved


def test_no_site_left() -> None:
    with pytest.warns(mhc.MHCWarning, match="nothing to rewrite in Net"):
        report = mhc.explain(made(), (inputs(),), config=mhc.Config(exclude=("*",)))
    assert (report.sites, report.regions) == ((), ())
    assert report.parameters == report.memory.kept == 0
    assert "0 sites in 0 regions, 4 other adds" in str(report)


def test_upgrade_tells_what_it_measured() -> None:
    report = mhc.upgrade(made(), (inputs(),))
    assert re.search(r"^verified: outputs differ by at most [\d.]+e-\d+ of the largest entry$", str(report), re.M)


def test_print(capsys: pytest.CaptureFixture[str]) -> None:
    report = mhc.explain(made(), (inputs(),))
    report.print()
    assert capsys.readouterr().out == f"{report}\n"


class Some(Net):
    """Runs some of its blocks, as LayerDrop does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.stem(x))
        for block in self.blocks[5:] if len(self.blocks) > 5 else self.blocks[1:]:
            x = block(x)
        out: Tensor = self.head(x)
        return out


def test_blocks_that_did_not_run_are_told(recwarn: pytest.WarningsRecorder) -> None:
    mhc.explain(made(Some, 3), (inputs(),))
    assert not recwarn.list
    with pytest.warns(mhc.MHCWarning, match=r"blocks\.1, blocks\.2, blocks\.3 and 1 more did not run, .*eval\(\)"):
        mhc.explain(made(Some, 6), (inputs(),))


class Region(Block):
    """Compiled once for all blocks, as one op."""

    @torch.compiler.nested_compile_region
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Branching(Net):
    """Chance in data decides what runs, without a break."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.cond(x.sum() > 0, block, torch.sin, (x,))
        out: Tensor = self.head(x)
        return out


@pytest.mark.filterwarnings("ignore:mhc finds nothing")
@pytest.mark.parametrize(
    ("model", "op"),
    [((Net, 3, Region), "invoke_subgraph"), ((Branching, 1), "cond")],
    ids=["region", "cond"],
)
def test_adds_in_graphs_that_an_op_runs_are_told(model: tuple[Any, ...], op: str) -> None:
    report = mhc.explain(made(*model), (inputs(),))
    assert [(each.reason, each.residual) for each in report.rejections] == [("inside-op", False)] * 2
    assert f"{op} runs the graph that it is in as one op" in str(report)
