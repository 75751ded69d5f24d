"""What a training step keeps of the streams, and what its backward makes again: a policy, written into the graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from mhc_compile.ops.signatures import (
    History,
    Leave,
    LeaveInBlock,
    Read,
    Replay,
    Seam,
    SeamInBlock,
    SeamResult,
    Write,
    named,
)
from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.graph import checkpoints, ir, optable, provenance
from mhc_compile.passes.plan_recompute.blocks import plan_blocks
from mhc_compile.passes.plan_recompute.site_run import SiteRun
from mhc_compile.passes.widen import Widened

_OPS = torch.ops.mhc
_SEAM, _LEAVE, _WRITE = _OPS.seam.default, _OPS.leave.default, _OPS.write.default
_READ, _READOUT = _OPS.read.default, _OPS.readout.default
_IN_BLOCK = {_SEAM: _OPS.seam_in_block.default, _LEAVE: _OPS.leave_in_block.default}
_OPAQUE = frozenset((_OPS.coefficients.default, _OPS.enter.default, _SEAM, _LEAVE))  # ops that are never run again
_SOURCES = frozenset((_OPS.expand.default, _WRITE))
_FIRST = 1 << 40  # behind the numbers that torch itself gives to checkpoints while it traces


@dataclasses.dataclass(frozen=True)
class Recompute:
    """How the sites of a graph share blocks: runs of sites, each with the size of its blocks."""

    runs: tuple[SiteRun, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlanRecompute:
    """Blocks of sites keep the streams of their first site (see `blocks`), tagged for AOTAutograd's partitioner.

    Before:                          After, in blocks of two:
        X1 = write(X0, f0, ...)          X1 = write(X0, f0, ..., 1)    made again in the backward
        X2 = write(X1, f1, ...)          X2 = write(X1, f1, ..., 1)    kept: the next block reads it
        X3 = write(X2, f2, ...)          X3 = write(X2, f2, ..., 2)    made again in the backward

    What is made again are streams and what is read of them, never a branch, never coefficients. Tags carry the number
    of their block: the partitioner keeps what a block hands to a later one, as with checkpoints in a row. The number is
    an argument of the op as well, since caches go by the text of a graph.

    A seam that kernels run is one op, so nothing of it is tagged: with the head of its block and the writes since as
    further arguments its backward replays them in registers, and keeps nothing else of the streams.

    Inside a checkpoint of the user's everything stays as it is.
    """

    name: ClassVar[str] = "plan-recompute"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Recompute:
        """Decide, and write the decision into the graph."""
        widened = results[Widened]
        if request.inline or not widened.sites:
            return Recompute()
        runs = plan_blocks(widened.sites, request.config)
        ours = [run for run in runs if run.size and not run.under_checkpoint]
        blocks = _blocks(ours)
        tagged = _tag(gm, len(widened.takes), blocks)
        tagged |= _Replay(gm.graph, blocks, ours, request.config.streams).run()
        if tagged:
            _number(gm.graph, tagged)
        return Recompute(runs)


def _blocks(runs: Sequence[SiteRun]) -> dict[str, int]:
    """Return the number of every site's block, from 1."""
    starts = [run.sites[at : at + run.size] for run in runs for at in range(0, len(run.sites), run.size)]
    return {site: number for number, sites in enumerate(starts, 1) for site in sites}


def _tag(gm: fx.GraphModule, takes: int, blocks: dict[str, int]) -> dict[fx.Node, int]:
    """Return what is to be made again, with its block; keep readouts, as the plain model does.

    `takes` is the number of inputs at the end that bring streams.
    """
    inputs = gm.graph.find_nodes(op="placeholder")
    again: dict[fx.Node, int] = {}
    flowing = set(inputs[len(inputs) - takes :])
    for node in gm.graph.nodes:
        if "mhc_site" not in node.meta or node.target in _OPAQUE:
            continue
        block = None if checkpoints.tags(node) else blocks.get(node.meta["mhc_site"])
        if node.target is _READOUT or _is_by_head(node):
            node.meta |= {} if block is None else {"recompute": CheckpointPolicy.MUST_SAVE}
        elif node.target in _SOURCES or not flowing.isdisjoint(node.all_input_nodes):
            flowing.add(node)
            if block is not None:
                again[node] = block
                if node.target is _WRITE:
                    node.args = ir.args(named(Write, node.args)._replace(block=block))
    if _switches_gradients(gm):  # a norm is an op with several results
        again = {node: block for node, block in again.items() if optable.name(node) not in optable.NORM}
    return again


def _is_by_head(node: fx.Node) -> bool:
    """Tell whether a node reads streams out by a head: of its coefficients nothing is used but the read weights."""
    if node.target is not _READ:
        return False
    weights: Any = named(Read, node.args).h_pre
    coefficients, _ = weights.args  # of getitem
    return len(coefficients.users) == 1


def _switches_gradients(gm: fx.GraphModule) -> bool:
    """Tell whether parts of the graph run without gradients.

    Torch takes what it computes twice, there and with gradients, for one, and leaves out the tags of the former. A tag
    on a part of its result alone is then a contradiction to the partitioner.
    """
    return any(optable.name(node) == "_set_grad_enabled" for node in gm.graph.nodes)


def _number(graph: fx.Graph, ours: dict[fx.Node, int]) -> None:
    """Tag what is ours, and number blocks and the user's checkpoints by where they end.

    The partitioner keeps what is read under a higher number. So a block keeps what checkpointed branches within it
    return, since these end before it does, and what comes behind it finds the block's streams kept.
    """
    last: dict[tuple[bool, int], int] = {}
    groups: dict[fx.Node, tuple[bool, int]] = {}
    for place, node in enumerate(graph.nodes):
        number = ours.get(node, node.meta.get("ac_graph_id"))
        if number is not None:
            groups[node] = node in ours, number
            last[groups[node]] = place
    numbers = {group: _FIRST + i for i, group in enumerate(sorted(last, key=last.__getitem__))}
    for node, group in groups.items():
        if node in ours:
            node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
        node.meta["ac_graph_id"] = numbers[group]


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
    """How streams are made again: the writes since a head, which is one stream where all are still equal."""

    head: Any
    equal: bool
    writes: tuple[Seam, ...] = ()

    def history(self) -> History:
        """Return the writes as the ops take them."""
        return History.of((seam.written for seam in self.writes), self.equal)


class _Replay:
    """Lets seams and leaves name the head of their block and the writes since, beside the streams they write to."""

    def __init__(self, graph: fx.Graph, blocks: dict[str, int], runs: Sequence[SiteRun], n: int) -> None:
        self.graph, self.blocks, self.n = graph, blocks, n
        self.heads = {site for run in runs for site in run.sites[:: run.size]}
        self.limits = {site: run.replays for run in runs for site in run.sites}
        self.origins: dict[Any, _Rebuilt] = {}  # by the streams
        self.again: dict[fx.Node, int] = {}

    def run(self) -> dict[fx.Node, int]:
        """Rewrite the ops; return streams that are made again as a whole, with their block."""
        for node in [node for node in self.graph.nodes if node.target in _IN_BLOCK]:
            if node.target is _SEAM:
                self._seam(node, named(Seam, node.args))
            else:
                self._leave(node, named(Leave, node.args))
        return self.again

    def _seam(self, node: fx.Node, given: Seam) -> None:
        origin = self._origin(given.x, given.options.equal_streams)
        if node.meta["mhc_site"] in self.blocks.keys() - self.heads:
            self._follow(node, dataclasses.replace(origin, writes=(*origin.writes, given)))
        if origin.head is not given.x:
            node.target, node.args = _IN_BLOCK[_SEAM], ir.args(SeamInBlock(given, origin.head, origin.history()))

    def _leave(self, node: fx.Node, given: Leave) -> None:
        origin = self._origin(given.x, given.equal_streams)
        if origin.head is not given.x:
            node.target, node.args = _IN_BLOCK[_LEAVE], ir.args(LeaveInBlock(given, origin.head, origin.history()))

    def _origin(self, x: Any, equal: bool) -> _Rebuilt:
        """Return how the streams that a write goes to are made again."""
        return self.origins.get(x) or _Rebuilt(x, equal)

    def _follow(self, seam: fx.Node, origin: _Rebuilt) -> None:
        """Remember how the streams that a seam makes are made again; beyond what a kernel replays, as a whole."""
        site = seam.meta["mhc_site"]
        for streams in [node for name, node in ir.results(seam, SeamResult) if name == "x"]:
            if len(origin.writes) > self.limits[site]:
                given = ir.args(Replay(origin.head, origin.history(), self.n))
                with self.graph.inserting_after(streams):
                    made = self.graph.call_function(_OPS.replay.default, given)
                made.meta = provenance.inherited(seam)
                provenance.give_value(made)
                self.again[made] = self.blocks[site]
                origin = _Rebuilt(made, equal=False)
            self.origins[streams] = origin
