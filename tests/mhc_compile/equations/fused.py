"""The fused ops and their equations, as functions of the same tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops.signatures import NO_HISTORY
from tests.mhc_compile.equations import helpers
from tests.mhc_compile.equations.helpers import Case, Function, normal


@dataclasses.dataclass(frozen=True)
class Fused(Case):
    """A site with what the fused ops take in; `norm` also says which of its parameters there are."""

    norm: str = "layer weight shift"
    offset_given: bool = True
    scale_given: bool = True
    multiplier: float = 0.7
    plain: bool = False
    branch_dtype: torch.dtype | None = None

    def x(self) -> Tensor:
        return (self.streams()[..., 0, :] if self.plain else self.streams()).contiguous()

    def written(self) -> list[Tensor | None]:
        """What `seam` and `leave` take before the multiplier."""
        f = self.branch().to(self.branch_dtype or self.dtype)
        h_post = normal(*self.tokens, self.n, seed=7, dtype=self.wide)
        h_res = normal(*self.tokens, self.n, self.n, seed=8, dtype=self.wide)
        offset, scale = (normal(self.c, seed=seed, dtype=self.dtype) for seed in (13, 9))
        tail = [offset if self.offset_given else None, scale if self.scale_given else None]
        return [self.x(), f, h_post, h_res, *tail]

    def site(self) -> list[Tensor | None]:
        weight, shift = (normal(self.c, seed=seed, dtype=self.dtype) for seed in (10, 11))
        given = self.norm.split()
        return [*self.parameters(), weight if "weight" in given else None, shift if "shift" in given else None]

    def tensors(self, op: str) -> list[Tensor | None]:
        return [
            *([self.x()] if op == "enter" else self.written()),
            *(self.site() if op != "leave" else []),
        ]

    @property
    def options(self) -> tuple[int, str, str, int, float, str, float, bool]:
        return *self.arguments, self.norm.split()[0], 1e-3, self.plain

    def by_op(self, op: str) -> Function:
        """The op's results that have gradients."""

        def run(*tensors: Tensor | None) -> Tensor | Sequence[Tensor]:
            function = getattr(torch.ops.mhc, op)
            if op == "enter":
                return tuple(function(*tensors, *self.options)[:3])
            written = *tensors[:6], self.multiplier
            if op == "seam":
                return tuple(function(*written, *tensors[6:], *self.options)[:4])
            return function(*written, self.n, self.plain)

        return run

    def by_equation(self, op: str) -> Function:
        """The same by the equations, with the roundings between them."""

        def run(x: Tensor, *rest: Tensor | None) -> Tensor | Sequence[Tensor]:
            x = helpers.expand(x, self.n) if self.plain else x
            if op == "enter":
                return self._arrive(x, rest)
            f, h_post, h_res, offset, scale, *site = rest
            assert f is not None
            assert h_post is not None
            assert h_res is not None
            f = (f if offset is None else f + offset) * self.multiplier
            f = f if scale is None else f * scale
            new = helpers.write(x, f, h_post, h_res, self.n)
            if op == "leave":
                return helpers.readout(new, self.n)
            new = rounded(new, self.dtype)
            return new, *self._arrive(new, site)

        return run

    def _arrive(self, x: Tensor, site: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
        *parameters, weight, shift = site
        pre, post, res = self.reference(x, *parameters)  # type: ignore[arg-type]  # only the norm's may be missing
        u = rounded(helpers.read(x, pre, self.n), self.dtype)
        if self.norm.startswith("layer"):
            u = u - u.mean(-1, keepdim=True)
        if self.norm != "none":
            u = u / torch.sqrt((u**2).mean(-1, keepdim=True) + 1e-3)
        if self.norm.startswith("rms_cast"):
            u = rounded(u, self.dtype)
        u = u if weight is None else u * weight
        return u if shift is None else u + shift, post, res


def rounded(t: Tensor, dtype: torch.dtype) -> Tensor:
    """Round values, not gradients."""
    return t + (t.detach().to(dtype).double() - t.detach())


def only_given(function: Function, tensors: Sequence[Tensor | None]) -> tuple[Function, list[Tensor]]:
    """A function of the tensors that are there, and those."""
    at = [i for i, t in enumerate(tensors) if t is not None]

    def run(*given: Tensor) -> Tensor | Sequence[Tensor]:
        full: list[Tensor | None] = [None] * len(tensors)
        for i, t in zip(at, given, strict=True):
            full[i] = t
        return function(*full)

    return run, [t for t in tensors if t is not None]


def arguments(case: Fused, op: str) -> list[Any]:
    """Everything that the op takes."""
    tensors = case.tensors(op)
    if op == "enter":
        return [*tensors, *case.options]
    rest = case.options if op == "seam" else (case.n, case.plain)
    return [*tensors[:6], case.multiplier, *tensors[6:], *rest]


def backward_arguments(case: Fused, op: str) -> list[Any]:
    """Everything that the op's backward takes, with random gradients."""
    given = arguments(case, op)
    made = helpers.tensors(getattr(torch.ops.mhc, op)(*given))
    count = {"enter": 3, "seam": 4, "leave": 1}[op]
    grads = [normal(*t.shape, seed=20 + i).to(t.dtype) for i, t in enumerate(made[:count])]
    if op == "leave":
        return [*grads, *given, *NO_HISTORY]
    at = 1 if op == "enter" else 7
    phi, alpha, delta, base, weight, shift = given[at : at + 6]
    history = NO_HISTORY if op == "seam" else ()
    return [*grads, *given[:at], phi, alpha, base + delta, weight, shift, *made[count:], *case.options, *history]
