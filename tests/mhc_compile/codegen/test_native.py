"""Generated kernels on a GPU, if there is one: `bench/gpu.sh` runs these first."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.equations.fused import Fused, only_given
from tests.equations.helpers import near, values_and_gradients
from tests.pairwise import pairwise

pytestmark = pytest.mark.gpu
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1.6e-2}


@pytest.mark.slow  # Triton takes more than a minute
@pytest.mark.parametrize("op", ["enter", "seam"])
def test_eight_streams(op: str) -> None:
    compare(op, 8, False, torch.bfloat16)


@pairwise(op=["enter", "seam", "leave"], n=[2, 3, 4], equal=[False, True], dtype=[torch.float32, torch.bfloat16])
def test_values_and_every_gradient(op: str, n: int, equal: bool, dtype: torch.dtype) -> None:
    compare(op, n, equal, dtype)


def compare(op: str, n: int, equal: bool, dtype: torch.dtype) -> None:
    """With the equations in fp64; and twice the same to the bit."""
    from mhc_compile.codegen.runtime import dispatch

    dispatch.register("CUDA")
    case = Fused(n, 264, (300,), dtype=dtype, norm="rms_cast weight", equal_streams=equal)
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    on_gpu = [t.cuda() for t in given]
    found = values_and_gradients(by_op, on_gpu, wide=False)
    again = values_and_gradients(by_op, on_gpu, wide=False)
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*found), itertools.chain(*again), strict=True))
    exact = values_and_gradients(only_given(case.by_equation(op), case.tensors(op))[0], given, wide=True)
    for actual, wanted in zip(itertools.chain(*found), itertools.chain(*exact), strict=True):
        near(actual.cpu(), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("splits", [4, 8])
def test_one_launch_of_programs_that_wait(splits: int, lag: int) -> None:
    """With more groups than fit on the device at once, and the same as several launches, forward and backward."""
    from mhc_compile.codegen import Spec, generate
    from mhc_compile.codegen.inspect.record import arguments
    from mhc_compile.codegen.runtime import build

    spec = Spec("seam", 4, 512, norm="rms", weight=True)
    module = build.load(generate(spec), spec.name)
    both = {"BT": 64, "BC": 32, "BR": 2, "BCR": 512, "SPLITS": splits, "LAG": lag, "num_warps": 8, "num_stages": 2}
    slices = {"BS": 16, "BCS": 64, "BP": 32, "SPLITS": 32, "LAG": lag}
    back = {"BT": 4, "BC": 256, "BM": 8, **slices, "num_warps": 4, "num_stages": 1}
    given, upstream = (
        list(arguments(function, spec, 64 * 1000 + 5, device="cuda").values())
        for function in (module.forward, module.backward)
    )
    two = {**module.TILES, "project": {**module.TILES["project"], "SPLITS": splits}}
    for a, b in zip(module.forward(*given, tiles=two), module.forward(*given, tiles={"both": both}), strict=True):
        near(a, b, 1e-2 if a.dtype == torch.bfloat16 else 1e-4)
    tiles = {**module.TILES, "back": back}
    for a, b in zip(module.backward(*upstream), module.backward(*upstream, tiles=tiles), strict=True):
        near(a, b, 1e-2 if a.dtype == torch.bfloat16 else 1e-4)
