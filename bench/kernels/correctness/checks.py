"""Correctness: forward, then backward on what it saved, against fp64; outputs poisoned, twice the same to the bit."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bench.kernels.correctness import truth
from bench.kernels.correctness.errors import Errors
from bench.kernels.support.cases import Case
from bench.kernels.support.context import Context
from bench.kernels.support.generated import Generated, Named
from bench.kernels.support.reasons import reason
from bench.kernels.support.work import each

# relative error: one rounding of random numbers is 1.7e-3 in bf16, 2.1e-4 in fp16; fp32 sums of two bf16 products
LIMITS = {torch.bfloat16: 2.5e-3, torch.float16: 4e-4, torch.float32: 1e-4}
BEYOND = 1e-3  # share of 16-bit entries that may be more than one step off
ROW_SUM = 1e-5


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Let new tensors hold NaN until they are written."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # its way to find out who reads what nobody wrote
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def check(case: Case, device: str, text: str | None = None) -> dict[str, Any]:
    """Run a case, or a text in its place; return what is reported of it. Nothing is raised."""
    start = time.perf_counter()
    row: dict[str, Any] = {"case": case.name, "tokens": case.tokens, **dataclasses.asdict(case.spec)}
    try:
        row |= _compared(case, device, text)
        row["why"] = "; ".join(complaints(row))
    except Exception as error:
        row["why"] = reason(error)
    row["verdict"] = "wrong" if row["why"] else "right"
    return row | {"seconds": time.perf_counter() - start}


def _compared(case: Case, device: str, text: str | None) -> dict[str, Any]:
    kernels = Generated(case.spec, text)
    given, upstream = kernels.given(case.tokens, device), kernels.upstream(case.tokens, device)
    made, found = _run(kernels, given, upstream)
    again = _run(kernels, given, upstream)
    identical = all(_same(a, b) for one, two in zip((made, found), again, strict=True) for a, b in _pairs(one, two))
    del again
    errors = {name: Errors(t.dtype) for name, t in (made | found).items()}
    totals = {name: torch.zeros_like(t, dtype=torch.float64) for name, t in found.items() if _summed(name)}
    for part, results, gradients in truth.chunks(case.spec, given, upstream, made):
        for name, expected in {**results, **gradients}.items():
            if name in totals:
                totals[name] += expected
            elif name in errors:
                actual = made[name] if name in made else found[name]
                errors[name].add(actual[part], expected)
    for name, total in totals.items():
        errors[name].add(found[name], total)
    return {
        "identical": identical,
        "tensors": {name: error.summary() for name, error in errors.items()},
        **_sums(made.get("res_out")),
    }


def _run(kernels: Generated, given: Named, upstream: Named) -> tuple[Named, Named]:
    with poisoned():
        made = kernels.forward(given)
        return made, kernels.backward(given, made, upstream)


def _summed(name: str) -> bool:
    return truth.OF[name] in truth.PARAMETERS


def _pairs(one: Named, two: Named) -> list[tuple[Tensor, Tensor]]:
    return [(one[name], two[name]) for name in one]


def _same(a: Tensor, b: Tensor) -> bool:
    """Compare bits, so that NaN equals itself."""
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _sums(res: Tensor | None) -> dict[str, float]:
    """Return how far rows and columns of the mixing matrices are from summing to 1."""
    if res is None:
        return {}
    return {
        name: float((res.double().sum(axis) - 1).abs().max()) for name, axis in (("row_sum", -1), ("column_sum", -2))
    }


def complaints(row: dict[str, Any]) -> list[str]:
    """Say what is wrong with what was found."""
    found = [] if row["identical"] else ["two runs differ"]
    for name, error in row["tensors"].items():
        limit = LIMITS[getattr(torch, error["dtype"])]
        if error["missing"]:
            found.append(f"{name}: {error['missing']} entries not written or not finite")
        elif not error["relative"] <= limit:
            found.append(f"{name}: relative error {error['relative']:.1e} over {limit:.0e}")
        elif (error["beyond_one_ulp"] or 0) > BEYOND:
            found.append(f"{name}: {error['beyond_one_ulp']:.1%} of entries more than one step off")
    if not row.get("row_sum", 0.0) <= ROW_SUM:
        found.append(f"rows of H_res sum to 1 but for {row['row_sum']:.1e}")
    return found


def checked(item: tuple[Case, str, str | None]) -> dict[str, Any]:
    """Check a case, a device and a text or None."""
    return check(*item)


def run(context: Context) -> list[dict[str, Any]]:
    """Check every case of the context's sizes; those that time does not allow are rows too."""
    cases = context.sizes.correctness()
    rows = list(each(checked, [(case, context.device, None) for case in cases], context, fresh=True))
    done = {row["case"] for row in rows}
    late = [{"case": case.name, "verdict": "not run", "why": "out of time"} for case in cases if case.name not in done]
    order = [case.name for case in cases]
    return sorted([*rows, *late], key=lambda row: order.index(row["case"]))


HEADS = (
    "correctness", "verdict", "forward", "> 1 ulp", "row ulps", "dx, df", "> 1 ulp", "sums", "coefficients", "row sums",
    "same",
)  # fmt: skip
FORWARD, COEFFICIENTS = ("new", "u_out", "out"), ("pre", "post_out", "res_out")


def line(row: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table: the worst of each group of tensors."""
    if "tensors" not in row:
        return (row["case"], row["verdict"], row["why"][:60], *[""] * 8)
    tensors = row["tensors"]
    wide = [tensors[name] for name in FORWARD if name in tensors]
    back = [tensors[name] for name in ("dx", "df") if name in tensors]
    sums = [error for name, error in tensors.items() if name in truth.OF and name not in ("dx", "df")]
    coefficients = [tensors[name] for name in COEFFICIENTS if name in tensors]

    def worst(errors: list[dict[str, Any]], field: str, form: str) -> str:
        values = [error[field] for error in errors if error[field] is not None]
        return format(max(values), form) if values else ""

    return (
        row["case"],
        row["verdict"],
        worst(wide, "relative", ".1e"),
        worst(wide, "beyond_one_ulp", ".1e"),
        worst(wide, "row_ulps", ".2f"),
        worst(back, "relative", ".1e"),
        worst(back, "beyond_one_ulp", ".1e"),
        worst(sums, "relative", ".1e"),
        worst(coefficients, "relative", ".1e"),
        f"{row['row_sum']:.0e}" if "row_sum" in row else "",
        "yes" if row["identical"] else "no",
    )
