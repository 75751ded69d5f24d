"""How far a tensor is from its fp64 reference, added up over chunks of tokens."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

ORDERED = {torch.bfloat16: torch.int16, torch.float16: torch.int16}  # 16-bit floats sort like integers


@dataclasses.dataclass
class Errors:
    """Sums and maxima of what was compared.

    Attributes:
        dtype: the tensor's.
        count: entries.
        missing: entries that are NaN or infinite, so also those that were never written.
        square: the sum of squared errors.
        reference: the sum of squares of the reference.
        worst: the largest error.
        largest: the largest entry of the reference.
        beyond: entries of 16 bits that are more than one step off the correctly rounded reference.
        row_ulps: the largest error in units of the last place of its row's largest entry.
    """

    dtype: torch.dtype
    count: int = 0
    missing: int = 0
    square: float = 0.0
    reference: float = 0.0
    worst: float = 0.0
    largest: float = 0.0
    beyond: int = 0
    row_ulps: float = 0.0

    def add(self, actual: Tensor, expected: Tensor) -> None:
        """Compare some rows."""
        if not actual.numel():
            return
        error = (actual.double() - expected).abs()
        self.count += actual.numel()
        self.missing += int((~torch.isfinite(actual)).sum())
        self.square += float((error * error).sum())
        self.reference += float((expected * expected).sum())
        self.worst = _larger(self.worst, float(error.max()))
        self.largest = max(self.largest, float(expected.abs().max()))
        if self.dtype in ORDERED:
            self.beyond += int((_place(actual) - _place(expected.to(self.dtype))).abs().gt(1).sum())
        self.row_ulps = _larger(self.row_ulps, float((error / _ulp(expected, self.dtype)).max()))

    @property
    def relative(self) -> float:
        """Return |actual - expected| / |expected|."""
        return math.sqrt(self.square / self.reference) if self.reference else self.worst

    def summary(self) -> dict[str, float | int | str | None]:
        """Return what is reported."""
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "relative": self.relative,
            "worst": self.worst / self.largest if self.largest else self.worst,
            "beyond_one_ulp": self.beyond / self.count if self.dtype in ORDERED and self.count else None,
            "row_ulps": self.row_ulps,
            "missing": self.missing,
        }


def _larger(a: float, b: float) -> float:
    return b if math.isnan(b) else max(a, b)


def _place(t: Tensor) -> Tensor:
    """Return a float's place among all floats of its dtype."""
    bits = t.contiguous().view(ORDERED[t.dtype]).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)


def _ulp(expected: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit in the last place of each row's largest entry."""
    largest = expected.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).tiny)
    return torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(largest)))
