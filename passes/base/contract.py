"""The contract of the passes: what they are asked, and what they return.

A pass is a frozen value. It gets the graph, the `Request`, and the `Results` of the passes before it, and returns a
result of a type of its own (or None): `FindResiduals` returns `Findings`, `PlanStreams` a `Plan`, `Widen` `Widened`.
So a pass states what it needs by what it asks for: `results[Findings]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from torch import fx

from mhc_compile.config import Config
from mhc_compile.errors import PassError
from mhc_compile.passes.base.words import Call, Known, Residual

R = TypeVar("R")


class Namer(Protocol):
    """Tells where nodes come from; the default reads Dynamo's metadata."""

    def owner(self, node: fx.Node) -> str:
        """Return the path of the module whose forward contains the node."""

    def child(self, node: fx.Node, owner: str) -> str | None:
        """Return the name of the owner's submodule that made the node, if any."""

    def call(self, node: fx.Node) -> Call:
        """Return the call of the owner that made the node."""

    def parameter(self, node: fx.Node, owner: str) -> str | None:
        """Return the name that the owner has for a graph input, such as "up.weight", if it holds it."""


def _unknown(phi: fx.Node) -> Known | None:
    return None


def _outside(residual: Residual) -> bool:
    return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What a run of the pipeline is asked for.

    Attributes:
        config: what to build.
        namer: tells where nodes come from.
        barred: paths of modules whose forward a graph break cuts. Their connections are left alone.
        devices: the types of device whose sites run generated kernels.
        carries: True where streams may enter and leave the graph.
        planned: True where the graph belongs to a model with a plan: it realises exactly what its markers name.
        parted: True where a graph break cuts the forward that the graph belongs to.
        whole: True where the graph is all that one call of the planned model runs. Then no streams enter or leave it.
        inline: replace the ops of the IR by plain torch, for graphs that run without this package.
        known: returns what a model knows of the site whose phi is this input, if there is one.
        stays_plain: tells whether a connection without a site is to be left alone: it is outside of the planned model,
            or the plan has left it out.
    """

    config: Config
    namer: Namer
    barred: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    carries: bool = False
    planned: bool = False
    parted: bool = False
    whole: bool = False
    inline: bool = False
    known: Callable[[fx.Node], Known | None] = _unknown
    stays_plain: Callable[[Residual], bool] = _outside


@dataclasses.dataclass(frozen=True)
class PassTime:
    """Seconds that one pass took, and the nodes it left."""

    name: str
    seconds: float
    nodes: int


class Results:
    """What the passes of one run have returned, by type; only the runner adds to it.

    What an analysis returns holds until a pass rewrites the graph: its nodes may be gone then.
    """

    def __init__(self, made: Mapping[type, object] | None = None, times: tuple[PassTime, ...] = ()) -> None:
        """Hold results by their types, and the time that each pass took."""
        self._made = dict(made or {})
        self.times = times

    def __getitem__(self, kind: type[R]) -> R:
        """Return the result of a type.

        Raises:
            PassError: no pass has returned one, or a pass has rewritten the graph since.
        """
        found = self._made.get(kind)
        if not isinstance(found, kind):
            raise PassError(
                f"there is no {kind.__name__}: no pass before this one returned it, or the graph was rewritten since"
            )
        return found


class Pass(Protocol):
    """A value with a name. An analysis leaves the graph alone; a rewrite decides nothing that an analysis could."""

    name: ClassVar[str]
    rewrites: ClassVar[bool]

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Any:
        """Run on the graph, in place, and return a result of a type of the pass's own, or None."""
