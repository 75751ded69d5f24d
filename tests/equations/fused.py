"""The fused ops and their equations, as functions of the same tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import (
    NO_HISTORY,
    OPS,
    Enter,
    EnterBackward,
    Leave,
    LeaveBackward,
    Options,
    Parameters,
    SavedSite,
    Seam,
    SeamBackward,
    SiteInputs,
    SiteUpstream,
    Tail,
    Written,
    flat,
    named,
    names,
)
from tests.equations import helpers
from tests.equations.helpers import TENSORS, Case, Function, normal, of_tensors

FUSED = ("enter", "seam", "leave")
# what an op does not take is always the same, or pairs would meet where they do nothing
UNUSED: dict[str, dict[str, Any]] = {
    "enter": {"offset": False, "scale": False, "multiplier": 1.0},
    "seam": {},
    "leave": {"norm": "none", "kind": ("mhc", "sinkhorn"), "v4": False, "projection": "sinkhorn", "iters": 20},
    "coefficients": {"norm": "none", "equal": False, "offset": False, "scale": False, "multiplier": 1.0},
}


def exists(row: Mapping[str, Any]) -> bool:
    """Tell whether a combination says nothing that its op does not take."""
    return all(row.get(name, value) == value for name, value in UNUSED[row["op"]].items())


@dataclasses.dataclass(frozen=True)
class Fused(Case):
    """A site with what the fused ops take in; `norm` also says which of its parameters there are."""

    norm: str = "layer weight shift"
    offset_given: bool = True
    scale_given: bool = True
    multiplier: float = 0.7
    equal_streams: bool = False
    branch_dtype: torch.dtype | None = None

    def x(self) -> Tensor:
        return (self.streams()[..., 0, :] if self.equal_streams else self.streams()).contiguous()

    def written(self) -> Written:
        f = self.branch().to(self.branch_dtype or self.dtype)
        h_post = normal(*self.tokens, self.n, seed=7, dtype=self.wide)
        h_res = normal(*self.tokens, self.n, self.n, seed=8, dtype=self.wide)
        offset, scale = (normal(self.c, seed=seed, dtype=self.dtype) for seed in (13, 9))
        tail = Tail(offset if self.offset_given else None, scale if self.scale_given else None, self.multiplier)
        return Written(f, h_post, h_res, tail)

    def site(self) -> SiteInputs:
        weight, shift = (normal(self.c, seed=seed, dtype=self.dtype) for seed in (10, 11))
        given = self.norm.split()
        parameters = Parameters(*self.parameters())
        return SiteInputs(parameters, weight if "weight" in given else None, shift if "shift" in given else None)

    @property
    def options(self) -> Options:
        return Options(self.options_of_maps, self.norm.split()[0], 1e-3, self.equal_streams)

    def signature(self, op: str) -> Any:
        """Everything that the op takes."""
        if op == "enter":
            return Enter(self.x(), self.site(), self.options)
        if op == "seam":
            return Seam(self.x(), self.written(), self.site(), self.options)
        return Leave(self.x(), self.written(), self.n, self.equal_streams)

    def backward_signature(self, op: str) -> Any:
        """Everything that the op's backward takes, with random gradients."""
        given = self.signature(op)
        made = call(op, given)
        if op == "leave":
            return LeaveBackward(upstream(made, 0), given, NO_HISTORY)
        new, arrival = (made, made) if op == "enter" else made
        site, kept, (phi, alpha, delta, base) = given.site, arrival.kept, given.site.parameters
        saved = SavedSite(phi, alpha, base + delta, site.weight, site.shift, kept)
        grads = SiteUpstream(upstream(arrival.u, 1), upstream(arrival.h_post, 2), upstream(arrival.h_res, 3))
        if op == "enter":
            return EnterBackward(grads, given.x, saved, given.options)
        return SeamBackward(upstream(new, 0), grads, given.x, given.written, saved, given.options, NO_HISTORY)

    def tensors(self, op: str) -> list[Tensor | None]:
        """The tensors that the op takes, None for those that are not there."""
        return [value for name, value in self._named(op).items() if name in TENSORS]

    def _named(self, op: str) -> dict[str, Any]:
        return dict(zip(names(OPS[op].arguments), flat(self.signature(op)), strict=True))

    def filled(self, op: str, tensors: Sequence[Tensor | None]) -> Any:
        """The op's signature with other tensors."""
        given = self._named(op)
        places = [name for name in given if name in TENSORS]
        return named(OPS[op].arguments, (given | dict(zip(places, tensors, strict=True))).values())

    def by_op(self, op: str) -> Function:
        """The op's results that have gradients."""
        return of_tensors(op, self.signature(op))

    def by_equation(self, op: str) -> Function:
        """The same by the equations, with the roundings between them."""

        def run(*tensors: Tensor | None) -> Tensor | Sequence[Tensor]:
            given = self.filled(op, tensors)
            x = helpers.expand(given.x, self.n) if self.equal_streams else given.x
            if op == "enter":
                return self._arrive(x, given.site)
            f, h_post, h_res, tail = given.written
            f = (f if tail.offset is None else f + tail.offset) * self.multiplier
            f = f if tail.scale is None else f * tail.scale
            new = helpers.write(x, f, h_post, h_res, self.n)
            if op == "leave":
                return helpers.readout(new, self.n)
            new = rounded(new, self.dtype)
            return new, *self._arrive(new, given.site)

        return run

    def _arrive(self, x: Tensor, site: SiteInputs) -> tuple[Tensor, ...]:
        pre, post, res = self.reference(x, *site.parameters)
        u = rounded(helpers.read(x, pre, self.n), self.dtype)
        if self.norm.startswith("layer"):
            u = u - u.mean(-1, keepdim=True)
        if self.norm != "none":
            u = u / torch.sqrt((u**2).mean(-1, keepdim=True) + 1e-3)
        if self.norm.startswith("rms_cast"):
            u = rounded(u, self.dtype)
        u = u if site.weight is None else u * site.weight
        return u if site.shift is None else u + site.shift, post, res


def with_gradients(made: Any) -> Tensor | tuple[Tensor, ...]:
    """The results of `seam` or `leave` that have gradients."""
    if isinstance(made, Tensor):
        return made
    return made.x, made.arrival.u, made.arrival.h_post, made.arrival.h_res


def upstream(result: Tensor, seed: int) -> Tensor:
    """A random gradient of a result."""
    return normal(*result.shape, seed=20 + seed).to(result.dtype)


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


def trainable(given: tuple[Any, ...]) -> list[Any]:
    """An op's flat arguments, the tensors with gradients but for the buffer `base`."""
    values = dict(zip(names(type(given)), flat(given), strict=True))
    for name, value in values.items():
        if isinstance(value, Tensor) and name != "base":
            value.requires_grad_()
    return list(values.values())
