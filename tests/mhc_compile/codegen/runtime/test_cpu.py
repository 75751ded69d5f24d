"""Kernels in C++ against the equations in fp64, from the same table as the generated ones: values, every gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from mhc_compile.codegen.runtime import compiler, cpu, dispatch
from mhc_compile.errors import MissingDependencyError
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import Replay, flat
from tests.equations.block import Block, same
from tests.equations.fused import Fused, exists, trainable
from tests.equations.helpers import check, near, spread_out, values_and_gradients
from tests.mhc_compile.codegen import interpreted
from tests.mhc_compile.codegen.table import EQUAL, OPS, REPLAYS, SPACE, case_of, sound
from tests.pairwise import pairwise, sampled

FP32, BF16 = torch.float32, torch.bfloat16
ops = pytest.mark.parametrize("op", OPS)


@pytest.fixture(autouse=True)
def in_cpp(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Helpers that let Triton's interpreter run the ops leave them to C++; what nobody writes is NaN."""
    monkeypatch.setattr(dispatch, "register", lambda key="CUDA": None)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def kernels(case: Fused) -> Iterator[None]:
    """The kernels for a case; an op that runs as the reference, which sets autocast, is an error."""
    cpu.register(case.n, [case.dtype])
    with mock.patch.object(torch, "autocast", side_effect=AssertionError("runs as the reference")):
        yield


def compare(case: Fused, op: str, strided: bool = False, tolerance: float | None = None) -> None:
    by_op, by_equation, given = interpreted.prepared(case, op)
    with kernels(case):
        check(by_op, by_equation, [spread_out(t) for t in given] if strided else given, tolerance)


def compare_one(op: str, strided: bool, tolerance: float | None = None, **row: Any) -> None:
    case, equal = case_of(row), row["equal"]
    # behind equal streams a norm takes back what H_pre does to them: gradients are small differences
    compare(case, op, strided, tolerance or (5e-5 if op == "enter" and equal and case.norm != "none" else None))


@pairwise(sound, into="row", **SPACE)
def test_values_and_every_gradient(row: dict[str, Any]) -> None:
    compare_one(**row)


@pytest.mark.slow
@sampled(300, sound, into="row", **{**SPACE, "n": [2, 3, 4, 5, 6, 7]})
def test_any_combination(row: dict[str, Any]) -> None:
    """Where the terms of a sum cancel, the reference itself is 3e-5 off in fp32."""
    compare_one(**row, tolerance=1e-4)


@ops
def test_many_tokens(op: str) -> None:
    """Several slices, whose sums are added up, and blocks that are not full."""
    compare(Fused(4, 33, (3, 131), dtype=FP32, norm="layer weight shift"), op)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["enter", "seam"])
def test_sixteen_streams(op: str) -> None:
    compare(Fused(16, 16, (5,), dtype=FP32, iters=2), op)


@pytest.mark.parametrize("op", ["enter", "seam"])
def test_wide_streams(op: str) -> None:
    """A block of eight tokens, since sixteen do not stay in the cache."""
    compare(Fused(4, 1200, (11,), dtype=FP32, norm="rms weight"), op)


@pairwise(exists, op=OPS, equal=EQUAL)
def test_narrow_results_are_rounded_once(op: str, equal: bool) -> None:
    case = Fused(4, 65, (120,), dtype=BF16, norm="rms_cast weight", equal_streams=equal)
    with kernels(case):
        interpreted.rounded_once(case, op)


@pytest.mark.parametrize("op", ["seam", "leave"])
@pytest.mark.parametrize(("dtype", "branch"), [(FP32, BF16), (BF16, FP32)], ids=["narrower", "wider"])
def test_a_branch_of_another_dtype(op: str, dtype: torch.dtype, branch: torch.dtype) -> None:
    case = Fused(2, 24, (9,), dtype=dtype, branch_dtype=branch)
    with kernels(case):
        interpreted.mixed_types(case, op)


@ops
@pytest.mark.parametrize("dtype", [FP32, BF16], ids=["fp32", "bf16"])
def test_threads_change_no_bit(op: str, dtype: torch.dtype) -> None:
    case = Fused(4, 40, (300,), dtype=dtype, norm="rms weight")
    by_op, _, given = interpreted.prepared(case, op)
    found, before = [], torch.get_num_threads()
    with kernels(case):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            values, gradients = values_and_gradients(by_op, given, wide=False)
            found.append([*values, *gradients])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("equal", EQUAL)
def test_a_token_depends_on_no_other(equal: bool) -> None:
    case = Fused(4, 72, (41,), dtype=FP32, norm="layer weight shift", equal_streams=equal)
    seam = case.signature("seam")
    with kernels(case), torch.no_grad():
        whole = call("seam", seam)
        for picked in (slice(0, 1), slice(16, 17), slice(7, 40)):
            w = seam.written
            written = w._replace(f=w.f[picked], h_post=w.h_post[picked], h_res=w.h_res[picked])
            part = call("seam", seam._replace(x=seam.x[picked], written=written))
            for a, b in zip(flat(part), flat(whole), strict=True):
                assert torch.equal(a, b[picked] if b.numel() else b)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rows_sum_to_one(n: int) -> None:
    cpu.register(n, [FP32])
    rows, columns = interpreted.doubly_stochastic(n, 1.0)
    assert rows <= 1e-6
    assert columns < 0.1


@pytest.mark.core(2)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 8])
def test_far_logits(n: int) -> None:
    """Also through more iterations than what underflows lasts."""
    cpu.register(n, [FP32])
    for span in (95.0, 120.0, 1000.0):
        interpreted.far_logits(n, 50 if n == 4 and span < 1000 else 20, span)


@pairwise(op=["enter", "seam"], norm=["none", "rms weight"], size=[1e18, 1e20, 1e30], dtype=[BF16, FP32])
def test_streams_whose_square_overflows(op: str, norm: str, size: float, dtype: torch.dtype) -> None:
    case = Fused(3, 24, (5,), dtype=dtype, norm=norm)
    with kernels(case):
        found = interpreted.large_streams(case, op, size)
    interpreted.as_the_reference(found, case, op, size)


@ops
@pytest.mark.parametrize(
    "case",
    [Fused(3, 5, (4,)), Fused(3, 5, (4,), "hc", dtype=FP32), Fused(17, 3, (2,), dtype=FP32, iters=2)],
    ids=["fp64", "hc", "17"],
)
def test_what_has_no_kernel_runs_as_the_reference(op: str, case: Fused) -> None:
    cpu.register(3, [FP32])
    by_op, by_equation, given = interpreted.prepared(case, op)
    check(by_op, by_equation, given)


@pytest.mark.parametrize("part", ["f", "h_post", "h_res", "phi", "alpha", "delta", "weight"])
def test_tensors_that_do_not_fit_reach_no_kernel(part: str) -> None:
    """The op's meaning says what is wrong; nothing is read beyond a tensor's end."""
    case = Fused(4, 24, (6,), dtype=FP32, norm="rms weight")
    given = case.signature("seam")
    written, parameters = given.written, given.site.parameters
    if part in parameters._fields:
        short = parameters._replace(**{part: getattr(parameters, part)[:2]})
        bad = given._replace(site=given.site._replace(parameters=short))
    elif part == "weight":
        bad = given._replace(site=given.site._replace(weight=given.site.weight[:5]))
    else:
        bad = given._replace(written=written._replace(**{part: getattr(written, part)[:4]}))
    cpu.register(4, [FP32])
    with torch.no_grad(), pytest.raises((RuntimeError, IndexError), match=r"size|shape"):
        call("seam", bad)


@pytest.mark.parametrize("part", ["y", "r", "mean", "rstd"])
def test_what_a_forward_kept_must_be_whole(part: str) -> None:
    given = Fused(4, 24, (6,), dtype=FP32, norm="layer weight").backward_signature("seam")
    kept = given.site.kept
    short = kept._replace(**{part: getattr(kept, part)[:2]})
    cpu.register(4, [FP32])
    with pytest.raises(RuntimeError, match="size"):
        call("seam_backward", given._replace(site=given.site._replace(kept=short)))


@pytest.mark.parametrize("column", range(6))
def test_a_history_of_uneven_lists(column: int) -> None:
    block = Block(Fused(4, 24, (6,), dtype=FP32), 2)
    history: list[Any] = list(block.history())
    history[column] = history[column][:1]
    cpu.register(4, [FP32])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        torch.ops.mhc.replay(block.head(), *history, 4)


def test_axes_in_another_order_reach_no_kernel() -> None:
    """They hold as many numbers."""
    given = Fused(4, 24, (6,), dtype=FP32).signature("seam")
    f, post, res, _ = given.written
    swapped = [
        given._replace(x=given.x.transpose(0, 1)),
        *(given._replace(written=given.written._replace(**part)) for part in (
            {"f": f.view(2, 3, 24)}, {"h_post": post.T}, {"h_res": res.movedim(0, -1)})),
    ]  # fmt: skip
    cpu.register(4, [FP32])
    for bad in swapped:
        with torch.no_grad(), pytest.raises(RuntimeError, match=r"size|shape"):
            call("seam", bad)
    with torch.no_grad(), pytest.raises(IndexError, match="out of range"):
        call("enter", Fused(4, 24, (6,), dtype=FP32).signature("enter")._replace(x=torch.ones(24)))


def test_a_library_that_does_not_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a compiler makes it that is newer than the libraries here; it is an error like that of no compiler."""
    (library := tmp_path / "half.so").write_bytes(b"half a library")
    monkeypatch.setattr(cpu, "_build_kernels", lambda n, dtype: library)
    with pytest.raises(MissingDependencyError, match=r"do not load \(.*half\.so.*another compiler in \$CXX"):
        cpu.register(61, [FP32])
    assert (61, FP32) not in cpu._KERNELS


def test_without_kernels_the_reference_runs() -> None:
    case = Fused(4, 8, (3,), dtype=FP32)
    given, without = case.coefficients(), dataclasses.replace(case, kernels=False).coefficients()
    with kernels(case):
        found = call("coefficients", given)
        with pytest.raises(AssertionError, match="runs as the reference"):
            call("coefficients", without)
    for a, b in zip(found, call("coefficients", without), strict=True):
        near(a, b, 1e-5)


@pytest.mark.core(2)
@pairwise(
    lambda row: row["tokens"] != (0,) or not row["equal"],  # of which torch's check wants an impossible view
    op=["enter", "seam", "leave"],
    tokens=[(3, 2), (0,)],
    equal=EQUAL,
)
def test_opcheck(op: str, tokens: tuple[int, ...], equal: bool) -> None:
    case = Fused(3, 20, tokens, dtype=BF16, branch_dtype=FP32, norm="layer weight shift", equal_streams=equal)
    cpu.register(3, [BF16])
    torch.use_deterministic_algorithms(False)  # what is NaN here is none there
    torch.library.opcheck(getattr(torch.ops.mhc, op).default, tuple(trainable(case.signature(op))))
    back = case.backward_signature(op)
    torch.library.opcheck(getattr(torch.ops.mhc, f"{op}_backward").default, tuple(flat(back)))


def replayed(block: Block, op: str) -> None:
    """Gradients by kernels that replay are, to the bit, those by kernels that read what was written."""
    with kernels(block.case):
        made = call("replay", Replay(block.head(), block.history(), block.case.n))
        assert torch.equal(made, block.streams())
        same(block, op)


CPU_REPLAYS = {name: case for name, case in REPLAYS.items() if case[2] != torch.float16}


@pairwise(replays=list(CPU_REPLAYS), op=["seam", "leave"], equal=EQUAL)
def test_replayed_streams_are_those_of_the_forward(replays: str, op: str, equal: bool) -> None:
    n, writes, dtype = CPU_REPLAYS[replays]
    case = Fused(n, 21, (18,), dtype=dtype, norm="rms_cast weight", equal_streams=equal)
    replayed(Block(case, writes), op)


SIZES = [Fused(3, 20, (), dtype=FP32), Fused(3, 20, (0,), dtype=FP32), Fused(2, 97, (33,), dtype=BF16)]


@pytest.mark.parametrize("case", SIZES, ids=["no-axis", "no-token", "odd"])
def test_replays_of_any_size(case: Fused) -> None:
    replayed(Block(case, 2), "seam")


def test_each_kind_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.register(2, [FP32])
    monkeypatch.setattr(compiler, "build", mock.Mock(side_effect=AssertionError("built again")))
    cpu.register(2, [FP32])
    assert cpu.is_registered()
    assert (2, FP32) in cpu._KERNELS
