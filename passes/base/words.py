"""The words that passes share: what is found, what is planned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.base.names import site_name
from mhc_compile.passes.graph.statements import Forward

# -- where something stands -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a module in a graph.

    Attributes:
        key: tells it from the other calls; the forward that is compiled itself has ().
        model: tells the call of the planned model around it from other calls of that model; () in all other frames.
        forward: the code that it runs, None where that is not known.
    """

    key: tuple[Any, ...] = ()
    model: tuple[Any, ...] = ()
    forward: Forward | None = None


# -- what is found ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spot:
    """Where in its owner a connection stands, told by nothing but its own place.

    Attributes:
        call: which call of the owner, counted within one call of the model.
        statement: the statements that lead to the add, see `graph.statements`.
        child: the owner's submodule that does the branch's last work, "" where the owner itself does it.
        occurrence: how often a connection of this child has stood there before, in the same call.
    """

    call: int
    statement: str
    child: str
    occurrence: int

    def __str__(self) -> str:
        """Return it as text, for markers and checkpoints."""
        return f"{self.call} {self.statement} {self.child or '-'} {self.occurrence}"

    @classmethod
    def parse(cls, text: str) -> Spot | None:
        """Read what `str` wrote; None of an empty text, which plans of older releases have."""
        if not text:
            return None
        call, statement, child, occurrence = text.split(" ")
        return cls(int(call), statement, "" if child == "-" else child, int(occurrence))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Residual:
    """A residual connection in a graph: `total = carrier + sum(branches)`.

    Attributes:
        total: the add node that completes the sum.
        carrier: the operand that is carried on (the skip).
        reads: what the branch reads: the carrier, or what the carrier is a cast or a constant multiple of.
        branches: the other terms, each doing real work on the carrier.
        adds: the add nodes on the carrier's way into the sum.
        kind: "pre-norm", "post-norm", "sandwich", "plain"; with "parallel" or "scaled" in front where it applies.
        owner: path of the module whose forward contains the add ("" is the root).
        label: name of the site within its owner.
        spot: where in its owner it stands.
        call: the call of its owner.
        source: "file.py:line" of the add.
        axis: the feature axis, negative.
        learned: True where a parameter scales the carrier, which alone does not make a connection.
    """

    total: fx.Node
    carrier: fx.Node
    reads: fx.Node
    branches: tuple[fx.Node, ...]
    adds: tuple[fx.Node, ...]
    kind: str
    owner: str
    label: str
    spot: Spot
    call: Call
    source: str
    axis: int
    learned: bool = False

    @property
    def name(self) -> str:
        """Return the name of the site, `owner.label`."""
        return site_name(self.owner, self.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejection:
    """An add of two float tensors of one shape that does not become (or is no) site; see `reasons`.

    Attributes:
        reason: a short stable word, such as "no-skip" or "pointwise-branch".
        residual: True where it is a residual connection that policy leaves alone, False where it is none.
        message: one sentence for the user.
        owner: path of the module whose forward contains the add.
        source: "file.py:line" of the add.
        node: name of the add node in the graph.
        spot: where in its owner it stands, of those that another run may take for a connection.
        site: what its site would be called, of connections that the config leaves out.
    """

    reason: str
    residual: bool
    message: str
    owner: str
    source: str
    node: str = ""
    spot: Spot | None = None
    site: str = ""


@dataclasses.dataclass(frozen=True)
class Findings:
    """What find-residuals saw, in program order."""

    residuals: tuple[Residual, ...] = ()
    rejections: tuple[Rejection, ...] = ()


# -- what is planned --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Known:
    """What a model knows of a site, beyond what its markers say.

    Attributes:
        name: in the model; the graph's may be shorter, where a part of the model is compiled alone.
        region: index of its region.
        k: position in the region.
        summed: True where something else sums its gradients over processes that have other tokens.
    """

    name: str
    region: int
    k: int
    summed: bool = False


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Graph inputs that hold a site's parameters: phi, alpha, the learned delta of the bias and its fixed start."""

    phi: fx.Node
    alpha: fx.Node
    delta: fx.Node
    base: fx.Node


@dataclasses.dataclass(frozen=True, kw_only=True)
class Binding:
    """A site as a marker names it.

    Attributes:
        owner: path of the module that owns the site.
        label: name of the site within its owner.
        spot: where in its owner it stands; None of a plan of an older release.
        call: the call of its owner that has marked it.
        parameters: the inputs that hold the site's parameters.
        entry: True where the region starts at the site.
        known: what its model knows of it.
        head: the inputs that hold the parameters of a learned readout, where one ends the streams behind the site.
    """

    owner: str
    label: str
    spot: Spot | None
    call: Call
    parameters: Parameters
    entry: bool
    known: Known | None
    head: Parameters | None = None

    @property
    def title(self) -> str:
        """The site's name in its model, for texts."""
        return self.known.name if self.known is not None else site_name(self.owner, self.label)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiteFacts:
    """What is known of a planned site without its nodes, for the passes that come after these nodes are gone.

    Attributes:
        name: of the site.
        region: index of the region within the graph.
        predecessor: index of the site whose streams continue here, or None where they enter this graph.
        starts: True where the streams start here, so that they are copies of one tensor.
        channels: number C of features.
        tokens: number of tokens; of symbolic sizes that of the traced run.
        dtype: of the streams.
        checkpoint: tags of the user's activation checkpoint around the sum, empty outside of one.
        generated: True where a generated kernel runs the site.
        unfit: why none does although its device runs generated kernels, else "".
    """

    name: str
    region: int
    predecessor: int | None
    starts: bool
    channels: int
    tokens: int
    dtype: torch.dtype
    checkpoint: tuple[tuple[str, Any], ...]
    generated: bool
    unfit: str


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a site's coefficients are made and its branch reads.

    Attributes:
        behind: the node behind which they stand.
        moved: nodes that move there, in order: what the streams of a carrier that is made behind its branch are
            computed with. Each is a function of what stands in front, so nobody notices.
    """

    behind: fx.Node
    moved: tuple[fx.Node, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedSite:
    """A residual that becomes a site, and how its streams reach it.

    Attributes:
        residual: the connection.
        binding: the marker's word on it, None where the graph is planned for the first time.
        start: the node at which streams start or continue: the predecessor's total, or where the region enters.
        predecessor: index of the site whose streams continue here, or None where they enter this graph.
        lifts: nodes between start and carrier, in order, applied to every stream.
        carried: True where the streams come from another graph.
        shared: True where it shows at each run whether they come or start: equal layers share the graph.
        inflow: the graph input that the carrier is a token-wise function of, if any.
        region: index of the region within the graph.
        readers: for the start and each lift, who reads it for the branch.
        place: where its coefficients are made and its branch reads.
        facts: what stays known of it after widen.
    """

    residual: Residual
    binding: Binding | None
    start: fx.Node
    predecessor: int | None
    lifts: tuple[fx.Node, ...]
    carried: bool
    shared: bool
    inflow: fx.Node | None
    region: int
    readers: Mapping[fx.Node, list[fx.Node]]
    place: Place
    facts: SiteFacts


@dataclasses.dataclass(frozen=True)
class Exit:
    """A graph output that is a token-wise function of a site's sum: where streams can leave the graph."""

    output: int
    site: int
    lifts: tuple[fx.Node, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which residuals become sites of this graph, in program order, and why others do not."""

    sites: tuple[PlacedSite, ...] = ()
    exits: tuple[Exit, ...] = ()
    rejections: tuple[Rejection, ...] = ()
