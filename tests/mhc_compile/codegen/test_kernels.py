"""Generated kernels in Triton's interpreter against the equations in fp64: values and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mhc_compile.codegen.inspect import subprocess_call
from tests.equations.block import Block
from tests.equations.fused import Fused, exists
from tests.mhc_compile.codegen import interpreted
from tests.mhc_compile.codegen.table import EQUAL, OPS, REPLAYS, SPACE, case_of, sound
from tests.pairwise import pairwise, sampled

ops = pytest.mark.parametrize("op", OPS)
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
pytestmark = pytest.mark.xdist_group("interpreter")  # one process that interprets, kept


def compare(case: Fused, op: str, **options: object) -> None:
    subprocess_call.call(True, interpreted.compare, case, op, **options)  # type: ignore[arg-type]  # see there


# -- values and gradients ---------------------------------------------------------------------------------------------


def compare_one(op: str, strided: bool, cancelling: tuple[str, ...] = ("enter",), **row: Any) -> None:
    case, equal = case_of(row), row["equal"]
    # behind equal streams a norm takes back what H_pre does to them: gradients are small differences
    compare(case, op, strided=strided, tolerance=5e-5 if op in cancelling and equal and case.norm != "none" else None)


@pytest.mark.core(3)
@pairwise(sound, into="row", **SPACE)
def test_values_and_every_gradient(row: dict[str, Any]) -> None:
    compare_one(**row)


@pytest.mark.slow
@sampled(150, sound, into="row", **{**SPACE, "n": [2, 3, 4]})  # alpha's gradient is of 8^2 terms that cancel
def test_any_combination(row: dict[str, Any]) -> None:
    compare_one(**row, cancelling=("enter", "seam"))  # new streams differ by one branch's output alone


@pytest.mark.slow
@pytest.mark.parametrize("op", ["enter", "seam"])
def test_sixteen_streams(op: str) -> None:
    compare(Fused(16, 16, (5,), dtype=FP32, iters=2), op)


# -- how the work is shared -------------------------------------------------------------------------------------------

SPLIT = {"project": {"BT": 16, "BC": 16, "SPLITS": 3}, "coefs": {"BT": 2, "BC": 16, "BM": 4}}
SMALL = {"streams": {"BT": 16, "BC": 16, "BP": 16, "SPLITS": 3}, "reduce": {"BR": 2, "BC": 32}}


@pytest.mark.slow
@pairwise(exists, op=["enter", "seam", "coefficients"], equal=EQUAL)
def test_programs_that_share_the_work(op: str, equal: bool) -> None:
    """Several splits of features and of tokens, the last of them partly or wholly empty."""
    case = Fused(4, 90, (37,), dtype=FP32, norm="layer weight shift", equal_streams=equal)
    compare(case, op, tiles={**SPLIT, "read": {"BT": 2, "BM": 4}, **SMALL})


@pytest.mark.slow
@pairwise(op=["enter", "seam"], lag=[1, 3], equal=EQUAL)
def test_one_launch(op: str, lag: int, equal: bool) -> None:
    """The interpreter runs tickets in order, as a GPU draws them: no wait is longer than one look at the counter."""
    both = {"BT": 16, "BC": 16, "BR": 4, "BCR": 32, "SPLITS": 3, "LAG": lag}
    back = {"BT": 2, "BC": 32, "BM": 4, "BS": 16, "BCS": 16, "BP": 16, "SPLITS": 3, "LAG": lag}
    case = Fused(4, 20, (60,), dtype=FP32, norm="layer weight shift", equal_streams=equal)
    compare(case, op, tiles={"both": both, "back": back}, tolerance=5e-5 if equal else None)


@pytest.mark.core(1)
@pytest.mark.parametrize("tokens", [1, 17])
def test_one_launch_for_few_tokens(tokens: int) -> None:
    """Shares of the tokens that are empty."""
    both = {"BT": 16, "BC": 16, "BR": 16, "BCR": 32, "SPLITS": 2, "LAG": 1}
    back = {"BT": 16, "BC": 16, "BM": 8, "BS": 16, "BCS": 32, "BP": 32, "SPLITS": 5, "LAG": 1}
    compare(Fused(2, 24, (tokens,), dtype=FP32), "seam", tiles={"both": both, "back": back})


@pytest.mark.slow
@pairwise(exists, op=OPS, dtype=[BF16, FP16], equal=EQUAL)
def test_narrow_results_are_rounded_once(op: str, dtype: torch.dtype, equal: bool) -> None:
    case = Fused(4, 65, (120,), dtype=dtype, norm="rms_cast weight", equal_streams=equal)
    subprocess_call.call(True, interpreted.rounded_once, case, op)


@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize(("dtype", "branch"), [(FP32, BF16), (BF16, FP32)], ids=["narrower", "wider"])
def test_a_branch_of_another_dtype(op: str, dtype: torch.dtype, branch: torch.dtype) -> None:
    case = Fused(2, 24, (9,), dtype=dtype, branch_dtype=branch)
    subprocess_call.call(True, interpreted.mixed_types, case, op)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["seam", "enter", "leave", "coefficients"])
def test_two_runs_agree_to_the_bit(op: str) -> None:
    subprocess_call.call(True, interpreted.repeatable, Fused(4, 40, (70,), dtype=BF16), op)


@pytest.mark.core(1)
@pytest.mark.parametrize("n", [2, 4, 8])
def test_rows_sum_to_one(n: int) -> None:
    rows, columns = subprocess_call.call(True, interpreted.doubly_stochastic, n, 1.0)
    assert rows <= 1e-6
    assert columns < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("span", [120.0, 95.0, 1000.0])
@pytest.mark.parametrize("n", [4, 2, 3, 5, 8])
def test_far_logits(n: int, span: float) -> None:
    """Padding has neither a row nor a column; what underflows in 50 iterations comes back at n = 4."""
    subprocess_call.call(True, interpreted.far_logits, n, 50 if n == 4 and span < 1000 else 20, span)


@pytest.mark.core(2)
@pairwise(op=["enter", "seam"], norm=["none", "rms weight"], size=[1e18, 1e20, 1e30], dtype=[BF16, FP32])
def test_streams_whose_square_overflows(op: str, norm: str, size: float, dtype: torch.dtype) -> None:
    """They get the coefficients of no dynamic part, as behind an RMSNorm in fp32, and all gradients are finite."""
    case = Fused(3, 24, (5,), dtype=dtype, norm=norm)
    found = subprocess_call.call(True, interpreted.large_streams, case, op, size)
    interpreted.as_the_reference(found, case, op, size)


@ops
@pytest.mark.parametrize("case", [Fused(3, 5, (4,)), Fused(3, 5, (4,), "hc", dtype=FP32)], ids=["fp64", "hc"])
def test_what_has_no_kernel_runs_as_the_reference(op: str, case: Fused) -> None:
    if op == "leave" and case.connection == "hc":
        pytest.skip("a write is the same whatever the connection")
    subprocess_call.call(True, interpreted.reference_runs, case, op)


@pytest.mark.slow
@pairwise(
    lambda row: row["tokens"] != (0,) or not row["equal"],  # of which torch's check wants an impossible view
    op=["enter", "seam", "leave"],
    tokens=[(3, 2), (0,)],
    equal=EQUAL,
)
def test_opcheck(op: str, tokens: tuple[int, ...], equal: bool) -> None:
    case = Fused(3, 20, tokens, dtype=BF16, branch_dtype=FP32, norm="layer weight shift", equal_streams=equal)
    subprocess_call.call(True, interpreted.opcheck, case, op)


# -- replay -----------------------------------------------------------------------------------------------------------


@pytest.mark.core(1)
@pairwise(replays=list(REPLAYS), op=["seam", "leave"], equal=EQUAL)
def test_replayed_streams_are_those_of_the_forward(replays: str, op: str, equal: bool) -> None:
    """Rounded step by step as they were written: every gradient is the same to the bit."""
    n, writes, dtype = REPLAYS[replays]
    case = Fused(n, 21, (18,), dtype=dtype, norm="rms_cast weight", equal_streams=equal)
    subprocess_call.call(True, interpreted.replayed, Block(case, writes), op)


@pytest.mark.core(1)
@pytest.mark.parametrize("n", [1, 8])
def test_replays_of_few_and_many_streams(n: int) -> None:
    subprocess_call.call(
        True, interpreted.replayed, Block(Fused(n, 16, (7,), dtype=FP32, norm="none", iters=3), 1), "seam"
    )


SIZES = [
    Fused(3, 20, (), dtype=FP32),
    Fused(3, 20, (0,), dtype=FP32),
    Fused(2, 97, (33,), projection="identity", dtype=BF16, branch_dtype=FP32),
]


@pytest.mark.core(1)
@pytest.mark.parametrize("case", SIZES, ids=["no-axis", "no-token", "odd"])
def test_replays_of_any_size(case: Fused) -> None:
    subprocess_call.call(True, interpreted.replayed, Block(case, 2), "seam")
