"""What a plan says of the order of nodes, and of how they lie, that no site says alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from mhc_compile.passes.base import Plan
from mhc_compile.passes.graph import layouts
from mhc_compile.passes.graph.walk import value


def early_lifts(plan: Plan, order: Mapping[fx.Node, int]) -> dict[tuple[int, fx.Node], fx.Node]:
    """Return where to do lifts whose site stands in front of them, by the region and the lift."""
    early: dict[tuple[int, fx.Node], fx.Node] = {}
    for site in plan.sites:
        behind = site.place.behind
        for node in site.lifts:
            first = early.get((site.region, node), node)
            if order[behind] < order[first]:
                early[site.region, node] = behind
    return early


def moved_nodes(plan: Plan, order: Mapping[fx.Node, int]) -> dict[fx.Node, fx.Node]:
    """Return what must stand in front of its site, and the first of the places that ask for it."""
    moved: dict[fx.Node, fx.Node] = {}
    for place in (site.place for site in plan.sites):
        for node in place.moved:
            if order[place.behind] < order[moved.get(node, node)]:
                moved[node] = place.behind
    return moved


def turned_regions(plan: Plan) -> set[int]:
    """Return the regions whose features, in the plain model, do not lie last in memory everywhere."""
    turned: set[int] = set()
    for site in plan.sites:
        held = (value(node) for node in (site.start, *site.lifts, site.residual.total))
        if not all(tensor is None or layouts.lies_last(tensor, site.residual.axis) for tensor in held):
            turned.add(site.region)
    return turned
