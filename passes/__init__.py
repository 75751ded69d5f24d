"""The passes. The pipeline is this one tuple; each file holds the pass of its name."""

from __future__ import annotations

if __name__ != "mhc_compile.passes":
    raise ImportError("import mhc_compile.passes, not passes: the folder is the package's, under its own name only")

from mhc_compile.passes.base import Context, Findings, Pass, Plan, Rejection, Residual
from mhc_compile.passes.canonicalize import Canonicalize
from mhc_compile.passes.find_residuals import FindResiduals
from mhc_compile.passes.fuse_seams import FuseSeams
from mhc_compile.passes.inline import Lower
from mhc_compile.passes.plan_recompute import PlanRecompute
from mhc_compile.passes.plan_streams import PlanStreams
from mhc_compile.passes.widen import Widen

ANALYSIS: tuple[Pass, ...] = (
    Canonicalize(),  # one spelling of each op
    FindResiduals(),  # sites, and reasons "no"
    PlanStreams(),  # regions, lifts
)
PIPELINE: tuple[Pass, ...] = (
    *ANALYSIS,
    Widen(),  # the mhc IR
    FuseSeams(),  # site ops become seam ops, which kernels are generated for
    PlanRecompute(),  # what a training step keeps, and what it makes again
    Lower(),  # generated kernels, or the reference
)

__all__ = ["ANALYSIS", "PIPELINE", "Context", "Findings", "Pass", "Plan", "Rejection", "Residual"]
