"""What lies between two branches becomes one op, for generated kernels to take over."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import fx

from mhc_compile.passes.base import Request, Results
from mhc_compile.passes.fuse_seams.fuser import Fuser, LeftOut
from mhc_compile.passes.graph.facts import GraphFacts
from mhc_compile.passes.widen import Widened

__all__ = ["FuseSeams", "Fused", "LeftOut"]


@dataclasses.dataclass(frozen=True)
class Fused:
    """What fused ops could do and leave to the compiler: norms and ends of branches, each with its reason."""

    left_out: tuple[LeftOut, ...] = ()


@dataclasses.dataclass(frozen=True)
class FuseSeams:
    """The ops between two branches become `enter`, `seam` or `leave` (see `ops.seams`).

    Before:                                    After:
        X = expand(x)
        pre, post, res = coefficients(X)       u, post, res = enter(x, equal)
        f = branch(norm(read(X, pre)))         f = branch(u)
        Y = write(X, f * gamma, post, res)     Y, u, post, res = seam(x, f, post, res, gamma, equal)
        pre, post, res = coefficients(Y)
        g = branch(norm(read(Y, pre)))         g = branch(u)
        Z = write(Y, g, post, res)             z = leave(Y, g, post, res)
        z = readout(Z)

    A norm of the read goes in where it alone consumes the read (see `branch_norm`), and what a branch ends with where
    the write alone does (see `branch_tail`); `Fused` says what stays outside. In 16 bits the plain graph rounds between
    the parts of a branch's end, and the op does not, as little as Inductor's kernels do. In front of a norm's weight
    the op rounds where the plain graph does.

    Other readers of the new streams, such as a readout or a second tower, read the seam's: its backward adds their
    gradients. Some sites are left alone: those whose coefficients and read are of different streams, writes in front of
    an op on the streams, and whatever a boundary cuts. A boundary is a checkpoint, a graph, a change of the gradient
    mode, or an operand that is made later than the op and cannot be made earlier. Only sites that have kernels are
    fused, and none in a graph that is inlined.
    """

    name: ClassVar[str] = "fuse-seams"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Fused:
        """Rewrite the sites for which generated kernels exist."""
        sites = {site.name for site in results[Widened].sites if site.generated}
        if not sites or request.inline:
            return Fused()
        return Fused(Fuser(gm, sites, request.config.streams, results[GraphFacts]).run())
