"""Residual sums become sites: the graph in terms of the mhc IR."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import fx

from mhc_compile.passes.base import Plan, Request, Results
from mhc_compile.passes.widen.widened import Crossing, Widened
from mhc_compile.passes.widen.widener import Widener

__all__ = ["Crossing", "Widen", "Widened"]


@dataclasses.dataclass(frozen=True)
class Widen:
    """`s = x + f(x)` becomes `S = write(X, f(read(X)))`.

    Before:                          After:
        f = branch(x)                    X = expand(x)            (or the streams of the sum that x comes from)
        s = x + f                        pre, post, res = coefficients(X)
        y = head(s)                      f = branch(read(X, pre))
                                         S = write(X, f, post, res)
                                         y = head(readout(S))

    What feeds the branch reads H_pre x, what lies between two sums is applied to every stream, and every other reader
    of a sum gets the readout, also where it is the same op that the streams went through. That is the mean, or what the
    head reads where the site has one (see `head`).
    """

    name: ClassVar[str] = "widen"
    rewrites: ClassVar[bool] = True

    def __call__(self, gm: fx.GraphModule, request: Request, results: Results) -> Widened:
        """Rewrite the planned sites; each needs its binding."""
        if not results[Plan].sites:
            return Widened()
        return Widener(gm, request, results).run()
