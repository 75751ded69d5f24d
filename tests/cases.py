"""Which tests `make quick` leaves out, and which cases of a dear test stand for all of them in `make test`."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

MOVED, START = "moved", "start"  # ids of cases: mHC parameters away from where they start, or there

# Tests that spawn processes, or compile with Inductor or Triton, or run many models: what `make quick` leaves out.
COMPILES = (
    "tests/bench/",
    "tests/end_to_end/",
    "tests/mhc_compile/api/",
    "tests/mhc_compile/backend/test_backend.py",
    "tests/mhc_compile/backend/test_compilers.py",
    "tests/mhc_compile/backend/test_first_call.py",
    "tests/mhc_compile/backend/test_kernels.py",
    "tests/mhc_compile/cli/",
    "tests/mhc_compile/codegen/inspect/test_cubin.py",
    "tests/mhc_compile/codegen/inspect/test_traffic.py",
    "tests/mhc_compile/codegen/test_kernels.py",
    "tests/mhc_compile/codegen/test_native.py",
    "tests/mhc_compile/integrations/",
    "tests/mhc_compile/ops/test_library_compiler.py",
    "tests/mhc_compile/ops/test_seams_compiler.py",
    "tests/mhc_compile/plan/test_joints.py",
    "tests/passes/fuse_seams/test_fused_networks.py",
    "tests/project/test_docs_code.py",
    "tests/project/test_examples.py",
    "tests/project/test_packaging.py",
)


def compiles(nodeid: str) -> bool:
    """Tell whether a test is one that `make quick` leaves out."""
    return nodeid.startswith(COMPILES)


def is_repeated(nodeid: str, known: Container[str]) -> bool:
    """Tell whether a case at the start, where a lost connection looks right, has its like with moved parameters."""
    test, _, case = nodeid.partition("[")
    values = re.split(r"([-\]])", case)
    return START in values and "".join([test, "[", *(MOVED if v == START else v for v in values)]) in known


def core(cases: Sequence[Mapping[str, object]], most: int | None = None) -> set[int]:
    """Return the numbers of the cases that run in `make test`.

    Args:
        cases: each as the value of every parameter; a value is the same object in all cases that have it.
        most: so many cases, spread evenly. Without it as few as it takes for every value of every parameter to occur.
    """
    if most is not None:
        step = max(len(cases) / most, 1)
        return {int(i * step) for i in range(min(most, len(cases)))}
    values = [{(name, id(value)) for name, value in case.items()} for case in cases]
    left = set().union(*values)
    kept: set[int] = set()
    while left:
        best = max(range(len(cases)), key=lambda i: len(left & values[i]))
        kept.add(best)
        left -= values[best]
    return kept
