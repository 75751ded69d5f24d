"""Which connection is which site: by place, by child where the code has changed, by name in plans of older releases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, fx

from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.passes import ANALYSIS, Plan
from mhc_compile.passes.bind_sites import MARKER
from mhc_compile.passes.runner import run
from tests.nets.structures import Layer, graph, marked, request, tokens

Step = Callable[[Any, Tensor], Tensor]


def two(self: Any, x: Tensor) -> Tensor:
    x = x + self.proj(x)
    return x + self.mlp(x)


def edited(self: Any, x: Tensor) -> Tensor:
    x = self.proj(x).add(x)
    out: Tensor = x.add(self.mlp(x))
    return out


def swapped(self: Any, x: Tensor) -> Tensor:
    x = x + self.mlp(x)
    out: Tensor = x + self.proj(x)
    return out


def more(self: Any, x: Tensor) -> Tensor:
    if self.training:
        x = x + self.proj(x * 2)
    x = x + self.proj(x)
    return x + self.mlp(x)


def moved_markers(of: Step, to: Step, spot: Callable[[str], str] = str, *, training: bool = True) -> fx.GraphModule:
    """The graph of one function with the markers of another, whose layer trained or did not."""
    gm, target = marked(graph(Layer(of).train(training), tokens())), marked(graph(Layer(to), tokens()))
    theirs = gm.graph.find_nodes(op="call_function", target=MARKER)
    ours = target.graph.find_nodes(op="call_function", target=MARKER)
    for old, new in zip(theirs, ours, strict=False):
        new.args = (new.args[0], *old.args[1:-1], spot(str(old.args[-1])))
    for extra in ours[len(theirs) :]:
        target.graph.erase_node(extra)
    return target


def bound(gm: fx.GraphModule, **asked: Any) -> list[tuple[str, str]]:
    plan = run(ANALYSIS, gm, dataclasses.replace(request(), planned=True, **asked))[Plan]
    return [(s.residual.label, s.binding.label) for s in plan.sites if s.binding is not None]


@pytest.mark.parametrize("spot", [str, lambda spot: ""], ids=["by place", "older release"])
def test_the_same_code(spot: Callable[[str], str]) -> None:
    assert bound(moved_markers(two, two, spot)) == [("proj", "proj"), ("mlp", "mlp")]


@pytest.mark.parametrize("spot", [str, lambda spot: ""], ids=["by child", "older release"])
@pytest.mark.parametrize("to", [edited, swapped])
def test_code_that_has_changed(to: Step, spot: Callable[[str], str]) -> None:
    assert sorted(bound(moved_markers(two, to, spot))) == [("mlp", "mlp"), ("proj", "proj")]


def test_the_place_decides_where_a_child_has_more_connections_than_sites() -> None:
    gm = moved_markers(more, more, training=False)
    with pytest.raises(PlanMismatchError, match=r"binding\.py:\d+ \(of 'the model'\) has no site: upgrade did not"):
        bound(gm, stays_plain=lambda residual: False)
    gm = moved_markers(more, more, training=False)
    assert bound(gm, stays_plain=lambda residual: True) == [("proj_1", "proj"), ("mlp", "mlp")]


def test_a_site_whose_branch_runs_without_its_add() -> None:
    def lost(self: Any, x: Tensor) -> Tensor:
        x = self.proj(x)
        return x + self.mlp(x)

    gm = marked(graph(Layer(two), tokens()))
    sites = gm.graph.find_nodes(op="call_function", target=MARKER)
    target = marked(graph(Layer(lost), tokens()))
    (kept,) = target.graph.find_nodes(op="call_function", target=MARKER)
    with target.graph.inserting_after(kept):
        again = target.graph.call_function(MARKER, (kept.args[0], *sites[0].args[1:]))
    again.meta = dict(kept.meta)
    with pytest.raises(SiteNotFoundError, match="'proj' is in the plan, but its residual add was not found"):
        bound(target)


def test_a_graph_without_markers_of_a_planned_model() -> None:
    gm = graph(Layer(two), tokens())
    assert bound(gm, stays_plain=lambda residual: True) == []
    with pytest.raises(PlanMismatchError, match=r"options=\{'exclude': \('proj',\)\}"):
        bound(gm, stays_plain=lambda residual: False)
