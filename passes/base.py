"""The vocabulary of the passes: what is found, what is planned, and what a pass is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import fx

from mhc_compile.config import Config

if TYPE_CHECKING:
    from mhc_compile.passes.plan_recompute.site_run import Run


@dataclasses.dataclass(frozen=True)
class Residual:
    """A residual connection in a graph: `total = carrier + sum(branches)`.

    Attributes:
        total: the add node that completes the sum.
        carrier: the operand that is carried on (the skip).
        root: what the branch reads: the carrier, or what the carrier is a cast or a constant multiple of.
        branches: the other terms, each doing real work on the carrier.
        adds: the add nodes on the carrier's way into the sum.
        kind: "pre-norm", "post-norm", "sandwich", "plain"; with "parallel" or "scaled" in front where it applies.
        owner: path of the module whose forward contains the add ("" is the root).
        label: name of the site within its owner.
        source: "file.py:line" of the add.
        axis: the feature axis, negative.
        learned: True where a parameter scales the carrier, which alone does not make a connection.
    """

    total: fx.Node
    carrier: fx.Node
    root: fx.Node
    branches: tuple[fx.Node, ...]
    adds: tuple[fx.Node, ...]
    kind: str
    owner: str
    label: str
    source: str
    axis: int
    learned: bool = False

    @property
    def name(self) -> str:
        """Return the name of the site, `owner.label`."""
        return f"{self.owner}.{self.label}" if self.owner else self.label


@dataclasses.dataclass(frozen=True)
class Rejection:
    """An add of two float tensors of one shape that does not become (or is no) site.

    Attributes:
        reason: a short stable word, such as "no-skip" or "pointwise-branch".
        residual: True where it is a residual connection that policy leaves alone, False where it is none.
        message: one sentence for the user.
        owner: path of the module whose forward contains the add.
        source: "file.py:line" of the add.
        node: name of the add node in the graph.
    """

    reason: str
    residual: bool
    message: str
    owner: str
    source: str
    node: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """What find_residuals saw, in program order."""

    residuals: tuple[Residual, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclasses.dataclass(frozen=True)
class PlannedSite:
    """A residual that becomes a site, and how its streams reach it.

    Attributes:
        residual: the connection.
        source: the node at which streams start or continue: the predecessor's total, or where the region enters.
        predecessor: index of the site whose streams continue here, or None where they enter this graph.
        lifts: nodes between source and carrier, in order, applied to every stream.
        carried: True where the streams come from another graph.
        inflow: the graph input that the carrier is a token-wise function of, if any.
        region: index of the region within the graph.
    """

    residual: Residual
    source: fx.Node
    predecessor: int | None
    lifts: tuple[fx.Node, ...]
    carried: bool
    inflow: fx.Node | None
    region: int


@dataclasses.dataclass(frozen=True)
class Exit:
    """A graph output that is a token-wise function of a site's sum: where streams can leave the graph."""

    output: int
    site: int
    lifts: tuple[fx.Node, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which residuals become sites of this graph, in program order, and why others do not."""

    sites: tuple[PlannedSite, ...] = ()
    exits: tuple[Exit, ...] = ()
    rejections: tuple[Rejection, ...] = ()


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Nodes that hold a site's parameters: phi, alpha, the learned delta of the bias and its fixed start."""

    phi: fx.Node
    alpha: fx.Node
    delta: fx.Node
    base: fx.Node


@dataclasses.dataclass(frozen=True)
class Binding:
    """A site as a graph's markers name it: its parameters, and whether its region starts there."""

    parameters: Parameters
    entry: bool


class Namer(Protocol):
    """Tells where nodes come from; the default reads Dynamo's metadata."""

    def owner(self, node: fx.Node) -> str:
        """Return the path of the module whose forward contains the node."""

    def child(self, node: fx.Node, owner: str) -> str | None:
        """Return the name of the owner's submodule that made the node, if any."""


@dataclasses.dataclass
class Context:
    """What flows through the pipeline beside the graph.

    `bindings` is None where a graph is planned for the first time, else the sites that it must realise by name;
    `carry_out` lets streams leave with the tensors that the graph returns. widen reports what it did to the graph's
    face: `takes` holds the inputs whose streams became new inputs at the end, `gives` the indices of the outputs whose
    streams became new outputs at the end. `devices` are the types of device that kernels are generated for;
    fuse_seams reports in `unfused`, by the site's name, why a site on one of them has no kernel. plan_recompute reports
    in `runs` how sites share blocks.
    """

    config: Config
    namer: Namer
    bindings: dict[str, Binding] | None = None
    carry_out: bool = False
    inline: bool = False
    devices: frozenset[str] = frozenset()
    findings: Findings = dataclasses.field(default_factory=Findings)
    plan: Plan = dataclasses.field(default_factory=Plan)
    takes: list[fx.Node] = dataclasses.field(default_factory=list)
    gives: list[int] = dataclasses.field(default_factory=list)
    unfused: dict[str, str] = dataclasses.field(default_factory=dict)
    runs: tuple[Run, ...] = ()


class Pass(Protocol):
    """A value with a name. Analysis fills the context and leaves the graph alone; rewriting follows the context."""

    name: ClassVar[str]
    rewrites: ClassVar[bool]

    def __call__(self, gm: fx.GraphModule, context: Context) -> None:
        """Run on the graph in place."""
