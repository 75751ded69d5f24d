"""What runs in the process where generated kernels are interpreted (see `mhc_compile.codegen.apart`)."""

from __future__ import annotations

from mhc_compile.codegen import dispatch
from tests.ops.fused import Fused, only_given
from tests.ops.helpers import check


def compare(case: Fused, op: str, tolerance: float | None = None) -> None:
    """Assert that values and every gradient of an op, run by generated kernels, are those of the equations."""
    dispatch.register("CPU")
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    by_equation, _ = only_given(case.by_equation(op), case.tensors(op))
    check(by_op, by_equation, given, tolerance)
