"""The ops of the mhc IR by name: what each takes and returns. Only this folder knows in which order.

An op's arguments are a NamedTuple, which may hold others that several ops share (`parts`). Laid flat, its fields are
the op's arguments as torch knows them (`fields`). So the schema follows from the annotations, and kernels, passes and
tests read the arguments of a call or of a node by name:

    seam = named(Seam, node.args)              # seam.written.tail.offset, seam.options.n
    node.args = tuple(flat(seam._replace(x=streams)))

Results that torch returns as a list have names as well: `position(SeamResult, "u")` is the index of u.
Shapes: `...` are token axes, n streams, C features, K and m the rows and columns of phi.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mhc_compile.ops.signatures.fields import filled, flat, named, names, position, schema, take
from mhc_compile.ops.signatures.parts import (
    NO_HISTORY,
    History,
    Kept,
    MapOptions,
    Options,
    Parameters,
    SavedSite,
    SiteInputs,
    SiteUpstream,
    Tail,
    Written,
)

__all__ = [
    "NO_HISTORY", "OPS", "Coefficients", "CoefficientsBackward", "CoefficientsGradients", "CoefficientsResult",
    "Enter", "EnterBackward", "EnterGradients", "EnterResult", "Expand", "History", "Kept", "Leave", "LeaveBackward",
    "LeaveInBlock", "MapOptions", "Marker", "Op", "Options", "Parameters", "Read", "Readout", "Replay", "SavedSite",
    "Seam", "SeamBackward", "SeamGradients", "SeamInBlock", "SeamResult", "SiteGradients", "SiteInputs",
    "SiteUpstream", "Tail", "Write", "Written", "WrittenGradients", "filled", "flat", "named", "names", "position",
    "schema", "take",
]  # fmt: skip


class Expand(NamedTuple):
    """x `[..., C]` becomes n equal streams `[..., n, C]`."""

    x: Tensor
    n: int


class Read(NamedTuple):
    """Streams `[..., n, C]` and weights `[..., n]` become a branch's input `[..., C]`."""

    x: Tensor
    h_pre: Tensor
    n: int


class Write(NamedTuple):
    """Streams take in a branch's output; `block` says in whose backward the result is made again, 0 for none."""

    x: Tensor
    f: Tensor
    h_post: Tensor
    h_res: Tensor
    n: int
    block: int = 0


class Readout(NamedTuple):
    """Streams `[..., n, C]` become their mean `[..., C]`."""

    x: Tensor
    n: int


class Coefficients(NamedTuple):
    """Streams become the three maps of a site."""

    x: Tensor
    parameters: Parameters
    maps: MapOptions


class CoefficientsBackward(NamedTuple):
    """The gradients of the three maps become those of what made them; `bias` is base + delta."""

    g_pre: Tensor
    g_post: Tensor
    g_res: Tensor
    x: Tensor
    phi: Tensor
    alpha: Tensor
    bias: Tensor
    y: Tensor
    r: Tensor
    maps: MapOptions


class Marker(NamedTuple):
    """A site's parameters, name and record become known to the graph: the op `site`, which never runs."""

    parameters: Sequence[Tensor]
    name: str
    spec: str
    entry: bool
    spot: str


class Enter(NamedTuple):
    """Streams come to a site: coefficients, read and the branch's norm."""

    x: Tensor
    site: SiteInputs
    options: Options


class EnterBackward(NamedTuple):
    """The gradient of `enter`."""

    upstream: SiteUpstream
    x: Tensor
    site: SavedSite
    options: Options


class Seam(NamedTuple):
    """What one site writes, and `enter` of the next; the options are of the next, but for `equal_streams`."""

    x: Tensor
    written: Written
    site: SiteInputs
    options: Options


class SeamBackward(NamedTuple):
    """The gradient of `seam`; with a history, x is a block's head."""

    g_x: Tensor
    upstream: SiteUpstream
    x: Tensor
    written: Written
    site: SavedSite
    options: Options
    history: History


class Leave(NamedTuple):
    """What the last site writes, and the readout."""

    x: Tensor
    written: Written
    n: int
    equal_streams: bool


class LeaveBackward(NamedTuple):
    """The gradient of `leave`; with a history, x is a block's head."""

    g: Tensor
    leave: Leave
    history: History


class Replay(NamedTuple):
    """A block's head becomes the streams that its writes make of it."""

    head: Tensor
    history: History
    n: int


class SeamInBlock(NamedTuple):
    """`seam`, whose backward replays x from the head of its block."""

    seam: Seam
    head: Tensor
    history: History


class LeaveInBlock(NamedTuple):
    """`leave`, whose backward replays x from the head of its block."""

    leave: Leave
    head: Tensor
    history: History


# -- what ops return --------------------------------------------------------------------------------------------------


class CoefficientsResult(NamedTuple):
    """H_pre `[..., n]`, H_post `[..., n]`, H_res `[..., n, n]`, and for the backward logits y and inverse norm r."""

    h_pre: Tensor
    h_post: Tensor
    h_res: Tensor
    y: Tensor
    r: Tensor


class CoefficientsGradients(NamedTuple):
    """Gradients of what made the coefficients."""

    x: Tensor
    phi: Tensor
    alpha: Tensor
    bias: Tensor


class EnterResult(NamedTuple):
    """The branch's input u `[..., C]`, the maps that its output is written with, and what the backward needs."""

    u: Tensor
    h_post: Tensor
    h_res: Tensor
    kept: Kept


class SeamResult(NamedTuple):
    """The new streams `[..., n, C]`, and what `enter` returns for them."""

    x: Tensor
    arrival: EnterResult


class SiteGradients(NamedTuple):
    """Gradients of a site's inputs; `[0]` for what was not given."""

    phi: Tensor
    alpha: Tensor
    bias: Tensor
    weight: Tensor
    shift: Tensor


class EnterGradients(NamedTuple):
    """Gradients of the streams that came to a site, and of the site."""

    x: Tensor
    site: SiteGradients


class WrittenGradients(NamedTuple):
    """Gradients of streams and of what was written to them; `[0]` for what was not given."""

    x: Tensor
    f: Tensor
    h_post: Tensor
    h_res: Tensor
    offset: Tensor
    scale: Tensor


class SeamGradients(NamedTuple):
    """Gradients of what was written, and of the site that it came to."""

    written: WrittenGradients
    site: SiteGradients


# -- the table --------------------------------------------------------------------------------------------------------


class Op(NamedTuple):
    """What an op of `torch.ops.mhc` takes, and returns: named results, one Tensor, or None for nothing."""

    arguments: type[tuple[Any, ...]]
    results: Any


OPS: dict[str, Op] = {
    "expand": Op(Expand, Tensor),
    "read": Op(Read, Tensor),
    "write": Op(Write, Tensor),
    "readout": Op(Readout, Tensor),
    "coefficients": Op(Coefficients, CoefficientsResult),
    "coefficients_backward": Op(CoefficientsBackward, CoefficientsGradients),
    "site": Op(Marker, None),
    "enter": Op(Enter, EnterResult),
    "seam": Op(Seam, SeamResult),
    "leave": Op(Leave, Tensor),
    "enter_backward": Op(EnterBackward, EnterGradients),
    "seam_backward": Op(SeamBackward, SeamGradients),
    "leave_backward": Op(LeaveBackward, WrittenGradients),
    "replay": Op(Replay, Tensor),
    "seam_in_block": Op(SeamInBlock, SeamResult),
    "leave_in_block": Op(LeaveInBlock, Tensor),
}
