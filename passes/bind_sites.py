"""Markers of an upgraded model become bindings: which sites the graph must realise, and where their parameters are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import fx

from mhc_compile.errors import NarrowParametersError, SiteNotFoundError
from mhc_compile.ops.signatures import Marker, named
from mhc_compile.passes.base import Binding, Parameters, Request, Results, Spot
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.walk import value

MARKER = torch.ops.mhc.site.default


@dataclasses.dataclass(frozen=True)
class Bindings:
    """The sites that a graph's markers name, by the call of their owner; none where the graph holds no marker."""

    by_call: Mapping[tuple[Any, ...], Sequence[Binding]]

    def __iter__(self) -> Iterator[Binding]:
        """Iterate over all of them, in program order of the calls."""
        for bindings in self.by_call.values():
            yield from bindings


@dataclasses.dataclass(frozen=True)
class BindSites:
    """Read the markers, in program order, and take them away.

    Before:                                               After:
        site([phi, alpha, bias, base], "mlp", ...)
        f = linear(x, w)                                      f = linear(x, w)
        y = x + f                                             y = x + f

    with a Binding(owner="layers.0", label="mlp", parameters=(phi, alpha, bias, base), ...) under the call of layers.0.
    Where a learned readout follows a site, four more tensors are its head's parameters. A module that is called twice
    marks its sites twice: each call has bindings of its own.

    This comes after the splice of activation checkpoints, since their bodies hold markers, too.

    Raises:
        SiteNotFoundError: a marker stands in a graph that an op of this graph runs.
        NarrowParametersError: a site's parameters come in 16 bits.
    """

    name: ClassVar[str] = "bind-sites"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Bindings:
        """Return the bindings."""
        found: dict[tuple[Any, ...], dict[str, Binding]] = {}
        for marker in markers(gm):
            binding = _bind(marker, request)
            found.setdefault(binding.call.key, {})[binding.label] = binding
        for body in dict(checkpoints.bodies(gm)).values():
            for marker in markers(body):
                site, owner = named(Marker, marker.args).name, request.namer.owner(marker)
                raise SiteNotFoundError(
                    f"site {site!r} of {owner!r} runs inside an op with a graph of its own, such as torch.cond, where"
                    " it did not when the model was upgraded: remove(model) and upgrade it as it runs now"
                )
        for marker in list(markers(gm)):
            gm.graph.erase_node(marker)
        return Bindings({call: tuple(bindings.values()) for call, bindings in found.items()})


def markers(module: Any) -> Iterator[fx.Node]:
    """Iterate over the markers in a module's own graph, if it has one."""
    if isinstance(module, fx.GraphModule):
        yield from module.graph.find_nodes(op="call_function", target=MARKER)


def _bind(marker: fx.Node, request: Request) -> Binding:
    """Return the binding of a marker's site."""
    given = named(Marker, marker.args)
    tensors: Any = given.parameters
    size = len(dataclasses.fields(Parameters))
    parameters, head = Parameters(*tensors[:size]), tensors[size:]
    made = Binding(
        owner=request.namer.owner(marker),
        label=given.name,
        spot=Spot.parse(given.spot),
        call=request.namer.call(marker),
        parameters=parameters,
        entry=given.entry,
        known=request.known(parameters.phi),
        head=Parameters(*head) if head else None,
    )
    _check_dtypes(tensors, made.title)
    return made


def _check_dtypes(parameters: Sequence[fx.Node], site: str) -> None:
    """Refuse parameters of fewer than 32 bits."""
    dtypes = [tensor.dtype for node in parameters if (tensor := value(node)) is not None]
    narrow = next((dtype for dtype in dtypes if dtype.itemsize < torch.float32.itemsize), None)
    if narrow is not None:
        raise NarrowParametersError(
            f"the parameters of site {site!r} reach this graph as {narrow}, but coefficients in 16 bits would not sum"
            " to 1. Under FSDP2 with a MixedPrecisionPolicy call mhc_compile.shard_sites(model) before fully_shard: it"
            " keeps them in fp32. Elsewhere cast the model by model.to(dtype), which leaves them in fp32"
        )
