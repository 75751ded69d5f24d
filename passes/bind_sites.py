"""Markers of an upgraded model become bindings: which sites the graph must realise, and where their parameters are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.errors import NarrowParametersError, SiteNotFoundError
from mhc_compile.ops.signatures import Marker, named
from mhc_compile.passes.base import Binding, Parameters, Request, Results, site_name
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value

MARKER = torch.ops.mhc.site.default


@dataclasses.dataclass(frozen=True)
class Bindings:
    """The sites that a graph's markers name, by name in the graph; none in a graph of a model that has no plan yet."""

    by_name: Mapping[str, Binding]


@dataclasses.dataclass(frozen=True)
class BindSites:
    """Read the markers, in program order, and take them away.

    Before:                                               After:
        site([phi, alpha, bias, base], "mlp", ...)
        f = linear(x, w)                                      f = linear(x, w)
        y = x + f                                             y = x + f

    with Bindings({"layers.0.mlp": Binding(parameters=(phi, alpha, bias, base), ...)}).

    This comes after the splice of activation checkpoints, since their bodies hold markers, too.

    Raises:
        SiteNotFoundError: a marker stands in a graph that an op of this graph runs.
        NarrowParametersError: a site's parameters come in 16 bits.
    """

    name: ClassVar[str] = "bind-sites"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Bindings:
        """Return the bindings."""
        found = dict(_bind(marker, request) for marker in markers(gm))
        for body in dict(checkpoints.bodies(gm)).values():
            for marker in markers(body):
                site, owner = named(Marker, marker.args).name, request.namer.owner(marker)
                raise SiteNotFoundError(
                    f"site {site!r} of {owner!r} runs inside an op with a graph of its own, such as torch.cond, where"
                    " it did not when the model was upgraded: remove(model) and upgrade it as it runs now"
                )
        for marker in list(markers(gm)):
            gm.graph.erase_node(marker)
        return Bindings(found)


def markers(module: Any) -> Iterator[fx.Node]:
    """Iterate over the markers in a module's own graph, if it has one."""
    if isinstance(module, fx.GraphModule):
        yield from module.graph.find_nodes(op="call_function", target=MARKER)


def _bind(marker: fx.Node, request: Request) -> tuple[str, Binding]:
    """Return the name and the binding of a marker's site."""
    given = named(Marker, marker.args)
    owner = request.namer.owner(marker)
    name = site_name(owner, given.name)
    tensors: Any = given.parameters
    parameters = Parameters(*tensors)
    _check_dtypes(parameters, name)
    title = request.known_as(parameters.phi) or name
    return name, Binding(owner=owner, parameters=parameters, entry=given.entry, title=title)


def _check_dtypes(parameters: Parameters, site: str) -> None:
    """Refuse parameters of fewer than 32 bits."""
    dtypes = [tensor.dtype for node in vars(parameters).values() if (tensor := value(node)) is not None]
    narrow = next((dtype for dtype in dtypes if dtype.itemsize < torch.float32.itemsize), None)
    if narrow is not None:
        raise NarrowParametersError(
            f"the parameters of site {site!r} reach this graph as {narrow}, but coefficients in 16 bits would not sum"
            " to 1. Under FSDP2 with a MixedPrecisionPolicy call mhc_compile.shard_sites(model) before fully_shard: it"
            " keeps them in fp32. Elsewhere cast the model by model.to(dtype), which leaves them in fp32"
        )
