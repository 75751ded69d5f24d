"""The passes: the pipeline is one tuple, and each pass is the file or folder of its name.

    canonicalize     one spelling of each op; activation checkpoints become part of the graph
    bind_sites       the markers of an upgraded model become bindings                          -> Bindings
    find_residuals   which adds are residual connections, and why the others are not           -> Findings
    plan_streams     which of them share streams, and what is lifted in between                -> Plan
    widen            residual sums become sites: the mhc IR                                    -> Widened
    fuse_seams       what lies between two branches becomes one op, for generated kernels           -> Fused
    plan_recompute   what a training step keeps of the streams, and what it makes again        -> Recompute
    inline           the IR becomes plain torch, for graphs that run without this package

What passes share lies in `base` (their contract), `graph` (what is known of a graph), `reasons` (every "no") and
`runner` (numbers, times, checks and dumps).
"""

from __future__ import annotations

if __name__ != "mhc_compile.passes":
    raise ImportError("import mhc_compile.passes, not passes: the folder is the package's, under its own name only")

from mhc_compile.passes.base import Findings, Pass, Plan, Rejection, Request, Residual, Results
from mhc_compile.passes.bind_sites import BindSites
from mhc_compile.passes.canonicalize import Canonicalize
from mhc_compile.passes.find_residuals import FindResiduals
from mhc_compile.passes.fuse_seams import FuseSeams
from mhc_compile.passes.inline import Inline
from mhc_compile.passes.plan_recompute import PlanRecompute
from mhc_compile.passes.plan_streams import PlanStreams
from mhc_compile.passes.widen import Widen

ANALYSIS: tuple[Pass, ...] = (
    Canonicalize(),
    BindSites(),
    FindResiduals(),
    PlanStreams(),
)
PIPELINE: tuple[Pass, ...] = (
    *ANALYSIS,
    Widen(),
    FuseSeams(),
    PlanRecompute(),
    Inline(),
)

__all__ = [
    "ANALYSIS",
    "PIPELINE",
    "Findings",
    "Pass",
    "Plan",
    "Rejection",
    "Request",
    "Residual",
    "Results",
]
