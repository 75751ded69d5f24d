"""Graphs before and after fuse_seams, as words, and as functions that must be the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor, fx, nn

from mhc_compile.backend import kernels, rewriting
from mhc_compile.ops import limits
from mhc_compile.ops.signatures import OPS, named
from mhc_compile.passes import PIPELINE, Request, Results
from mhc_compile.passes.graph import optable
from tests.nets import streams
from tests.nets.structures import Layer, Step, example_inputs, graph, rewritten, tokens

CPU = frozenset({"cpu"})


@dataclasses.dataclass(frozen=True)
class Pair:
    """One graph without and with fused ops."""

    before: fx.GraphModule
    after: fx.GraphModule
    results: Results

    def inputs(self, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Random inputs; the parameters of sites have 32 bits at least."""
        wide = torch.promote_types(dtype, torch.float32)
        inputs = self.before.graph.find_nodes(op="placeholder")
        made = zip(inputs, example_inputs(self.before), strict=True)
        return [t.to(wide if node.name.startswith("site_") else dtype) for node, t in made]

    def same(self, dtype: torch.dtype = torch.float64, tolerance: float = 1e-9) -> None:
        """Outputs and the gradients of all inputs, site parameters included, for random upstream gradients."""
        expected, found = (streams.run(gm, {}, self.inputs(dtype)) for gm in (self.before, self.after))
        assert any(name.startswith("argument") for name in expected)
        streams.near(found, expected, tolerance)


def pair(model: nn.Module, *args: Any, devices: frozenset[str] = CPU, **options: Any) -> Pair:
    plain = graph(model, *args)

    def made(where: frozenset[str]) -> tuple[fx.GraphModule, Results]:
        return rewritten(plain, devices=where, **{"streams": 2, **options})

    return Pair(made(frozenset())[0], *made(devices))


def fused(step: Step, *args: Tensor, dtype: torch.dtype = torch.float32, **options: Any) -> Pair:
    """The same of a layer with a structure."""
    layer = Layer(step).to(dtype)
    return pair(layer, *(args or (tokens(dtype=dtype),)), **options)


def words(gm: fx.GraphModule) -> list[str]:
    """The ops; behind a fused one what it takes in; parts of a tuple and changes of mode are left out."""
    ops = [node for node in gm.graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    return [_word(op) for op in ops if optable.name(op) != "getitem"]


def ours(gm: fx.GraphModule) -> list[str]:
    """The same of the ops of the IR alone."""
    return [_word(node) for node in gm.graph.nodes if str(node.target).startswith("mhc.")]


def _word(node: fx.Node) -> str:
    return ":".join((optable.name(node), *_facts(node)))


def given(node: fx.Node) -> Any:
    """What an op of the IR takes, by name."""
    return named(OPS[optable.name(node)].arguments, node.args)


def _facts(node: fx.Node) -> Iterator[str]:
    op = optable.name(node)
    if op not in ("enter", "seam", "leave"):
        return
    taken = given(node)
    if op in ("seam", "leave"):
        offset, scale, multiplier = taken.written.tail
        yield from (word for word, there in (("offset", offset), ("scale", scale)) if there is not None)
        if multiplier != 1:
            yield f"{multiplier:g}"
    if op in ("enter", "seam") and taken.options.norm != "none":
        yield taken.options.norm
    if (taken if op == "leave" else taken.options).equal_streams:
        yield "equal"


@dataclasses.dataclass(frozen=True)
class _Count:
    counts: Counter[str]
    name: ClassVar[str] = "count"
    rewrites: ClassVar[bool] = False

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> None:
        self.counts.update(ours(gm))


@contextmanager
def kernels_everywhere() -> Iterator[Counter[str]]:
    """Let the backend fuse on the CPU and in fp64, and count the ops of the IR that it ends with."""
    counts: Counter[str] = Counter()
    pipeline = (*PIPELINE, _Count(counts))
    with (
        mock.patch.object(rewriting, "PIPELINE", pipeline),
        mock.patch.object(kernels, "enable", return_value=CPU),
        mock.patch.object(kernels, "name_sites"),
        mock.patch.object(limits, "why_not", return_value=None),
    ):
        yield counts
