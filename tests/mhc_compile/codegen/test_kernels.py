"""Generated kernels in Triton's interpreter against the equations in fp64: values and every gradient."""

from __future__ import annotations

import pytest
import torch

from mhc_compile.codegen.inspect import subprocess_call
from tests.mhc_compile.codegen import interpreted
from tests.mhc_compile.equations.block import Block
from tests.mhc_compile.equations.fused import Fused

OPS = ["enter", "seam", "leave", "coefficients"]
ops = pytest.mark.parametrize("op", OPS)
plains = pytest.mark.parametrize("plain", [False, True], ids=["streams", "plain"])
FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
pytestmark = pytest.mark.xdist_group("interpreter")  # one process that interprets, kept


def compare(case: Fused, op: str, **options: object) -> None:
    subprocess_call.call(True, interpreted.compare, case, op, **options)  # type: ignore[arg-type]  # see there


@ops
@plains
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
def test_any_number_of_streams(op: str, n: int, plain: bool) -> None:
    compare(Fused(n, 24, (19,), dtype=FP32, norm="rms weight", plain=plain and op != "coefficients"), op)


@pytest.mark.parametrize("op", ["enter", "seam"])
def test_sixteen_streams(op: str) -> None:
    compare(Fused(16, 16, (5,), dtype=FP32, iters=2), op)


@plains
@pytest.mark.parametrize("op", ["enter", "seam"])
@pytest.mark.parametrize("norm", ["none", "rms", "rms_cast weight", "layer", "layer weight shift"])
def test_every_norm(op: str, norm: str, plain: bool) -> None:
    """Behind equal streams a norm takes back what H_pre does to them: gradients that are small differences."""
    tolerance = 5e-5 if op == "enter" and plain else None
    compare(Fused(3, 40, (21,), dtype=FP32, norm=norm, plain=plain), op, tolerance=tolerance)


@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("scale", "multiplier"), [(False, 1.0), (False, 0.5), (True, 1.0), (True, -2.0)])
def test_every_tail(op: str, offset: bool, scale: bool, multiplier: float) -> None:
    tail = {"offset_given": offset, "scale_given": scale, "multiplier": multiplier}
    compare(Fused(2, 20, (11,), dtype=FP32, **tail), op)  # type: ignore[arg-type]  # of three types


@ops
def test_streams_that_do_not_mix(op: str) -> None:
    compare(Fused(4, 20, (9,), projection="identity", dtype=FP32), op)


@ops
@pytest.mark.parametrize("tokens", [(), (0,), (1,), (2, 0, 3), (3, 7), (130,)], ids=str)
def test_any_number_of_tokens(op: str, tokens: tuple[int, ...]) -> None:
    compare(Fused(4, 16, tokens, dtype=FP32), op)


@ops
@pytest.mark.parametrize("c", [1, 17, 97, 131, 320])
def test_any_number_of_features(op: str, c: int) -> None:
    compare(Fused(2, c, (7,), dtype=FP32), op)


@ops
def test_non_contiguous_inputs(op: str) -> None:
    compare(Fused(3, 12, (4, 2), dtype=FP32), op, strided=True)


@pytest.mark.parametrize("iters", [1, 4, 5, 6, 20])
def test_any_number_of_iterations(iters: int) -> None:
    """The way back goes in segments of five."""
    compare(Fused(4, 8, (3,), dtype=FP32, iters=iters), "coefficients")


SPLIT = {"project": {"BT": 16, "BC": 16, "SPLITS": 3}, "coefs": {"BT": 2, "BC": 16, "BM": 4}}
SMALL = {"streams": {"BT": 16, "BC": 16, "BP": 16, "SPLITS": 3}, "reduce": {"BR": 2, "BC": 32}}


@plains
@pytest.mark.parametrize("op", ["enter", "seam", "coefficients"])
def test_programs_that_share_the_work(op: str, plain: bool) -> None:
    """Several splits of features and of tokens, the last of them partly or wholly empty."""
    case = Fused(4, 90, (37,), dtype=FP32, norm="layer weight shift", plain=plain and op != "coefficients")
    compare(case, op, tiles={**SPLIT, "read": {"BT": 2, "BM": 4}, **SMALL})


@plains
@pytest.mark.parametrize("op", ["enter", "seam"])
@pytest.mark.parametrize("lag", [1, 3])
def test_one_launch(op: str, lag: int, plain: bool) -> None:
    """The interpreter runs tickets in order, as a GPU draws them: no wait is longer than one look at the counter."""
    both = {"BT": 16, "BC": 16, "BR": 4, "BCR": 32, "SPLITS": 3, "LAG": lag}
    back = {"BT": 2, "BC": 32, "BM": 4, "BS": 16, "BCS": 16, "BP": 16, "SPLITS": 3, "LAG": lag}
    case = Fused(4, 20, (60,), dtype=FP32, norm="layer weight shift", plain=plain)
    compare(case, op, tiles={"both": both, "back": back}, tolerance=5e-5 if plain else None)


@pytest.mark.parametrize("tokens", [1, 17])
def test_one_launch_for_few_tokens(tokens: int) -> None:
    """Shares of the tokens that are empty."""
    both = {"BT": 16, "BC": 16, "BR": 16, "BCR": 32, "SPLITS": 2, "LAG": 1}
    back = {"BT": 16, "BC": 16, "BM": 8, "BS": 16, "BCS": 32, "BP": 32, "SPLITS": 5, "LAG": 1}
    compare(Fused(2, 24, (tokens,), dtype=FP32), "seam", tiles={"both": both, "back": back})


@ops
@plains
@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
def test_narrow_results_are_rounded_once(op: str, plain: bool, dtype: torch.dtype) -> None:
    plain = plain and op != "coefficients"
    case = Fused(4, 65, (120,), dtype=dtype, norm="rms_cast weight", plain=plain)
    subprocess_call.call(True, interpreted.rounded_once, case, op)


@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize(("dtype", "branch"), [(FP32, BF16), (BF16, FP32)], ids=str)
def test_a_branch_of_another_dtype(op: str, dtype: torch.dtype, branch: torch.dtype) -> None:
    case = Fused(2, 24, (9,), dtype=dtype, branch_dtype=branch)
    subprocess_call.call(True, interpreted.mixed_types, case, op)


@ops
def test_two_runs_agree_to_the_bit(op: str) -> None:
    subprocess_call.call(True, interpreted.repeatable, Fused(4, 40, (70,), dtype=BF16), op)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rows_sum_to_one(n: int) -> None:
    rows, columns = subprocess_call.call(True, interpreted.doubly_stochastic, n, 1.0)
    assert rows <= 1e-6
    assert columns < 0.1


@ops
@pytest.mark.parametrize("case", [Fused(3, 5, (4,)), Fused(3, 5, (4,), "hc", dtype=FP32)], ids=["fp64", "hc"])
def test_what_has_no_kernel_runs_as_the_reference(op: str, case: Fused) -> None:
    if op == "leave" and case.connection == "hc":
        pytest.skip("a write is the same whatever the connection")
    subprocess_call.call(True, interpreted.reference_runs, case, op)


@pytest.mark.parametrize("op", ["enter", "seam", "leave"])
@pytest.mark.parametrize(("tokens", "plain"), [((3, 2), False), ((3, 2), True), ((0,), False)], ids=str)
def test_opcheck(op: str, tokens: tuple[int, ...], plain: bool) -> None:
    case = Fused(3, 20, tokens, dtype=BF16, branch_dtype=FP32, norm="layer weight shift", plain=plain)
    subprocess_call.call(True, interpreted.opcheck, case, op)


# -- replay -----------------------------------------------------------------------------------------------------------


@plains
@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize(("n", "writes", "dtype"), [(2, 3, BF16), (3, 2, FP32), (4, 1, FP16), (4, 2, BF16)], ids=str)
def test_replayed_streams_are_those_of_the_forward(
    op: str, plain: bool, n: int, writes: int, dtype: torch.dtype
) -> None:
    """Rounded step by step as they were written: every gradient is the same to the bit."""
    case = Fused(n, 21, (18,), dtype=dtype, norm="rms_cast weight", plain=plain)
    subprocess_call.call(True, interpreted.replayed, Block(case, writes), op)


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


@pytest.mark.parametrize("case", SIZES, ids=["no-axis", "no-token", "odd"])
def test_replays_of_any_size(case: Fused) -> None:
    subprocess_call.call(True, interpreted.replayed, Block(case, 2), "seam")
