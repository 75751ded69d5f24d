"""Whole sites: all that lies between two branches, forward and backward, by us, by unfused ops and by torch.compile.

Every contender gets the same streams x `[T, n, C]` and branch output f `[T, C]` and returns new streams and what the
next branch reads. A site cut at its branch (coefficients and read of x, then the write of f into x) does as much work
as a seam (the write, then coefficients and read of the new streams); with it x has three consumers, and the adds of
their gradients are part of the time, as they are of a user's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.kernels.support.generated import Generated, Tiles
from mhc_compile.codegen import Spec
from mhc_compile.codegen.runtime.dtypes import TORCH
from mhc_compile.codegen.runtime.space import candidates
from mhc_compile.ops import reference
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import Coefficients, CoefficientsResult, MapOptions, Parameters, Read, Write

EPS = 1e-6
ITERS = 20


class UnavailableError(Exception):
    """A contender cannot run here; the text says why."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the streams; `norm` is "rms" where RMSNorm follows the read, else "none"."""

    tokens: int
    n: int
    channels: int
    dtype: str = "bf16"
    norm: str = "none"

    @property
    def logits(self) -> int:
        """Return how many coefficients a site computes per token."""
        return self.n * (self.n + 2)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to compute a site.

    Attributes:
        run: from (x, f, H_post, H_res) to results that have gradients, new streams first, then the read; sites cut at
            their branch leave H_post and H_res, which a seam takes from the site before.
        parameters: what is trained.
        detail: version and options.
        seam: whether it is one.
    """

    run: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
    parameters: list[Tensor]
    detail: str = ""
    seam: bool = False


def parameters(shape: Shape, device: str) -> list[Tensor]:
    """Return phi, alpha, delta, base (not trained), and the norm's weight if there is a norm."""
    torch.manual_seed(2)
    k, m = shape.n * shape.channels, shape.logits
    phi = (torch.randn(k, m, device=device) / k**0.5).requires_grad_()
    alpha = (1 + 0.1 * torch.randn(3, device=device)).requires_grad_()
    delta, base = torch.randn(m, device=device, requires_grad=True), torch.randn(m, device=device)
    norm = [(1 + 0.1 * torch.randn(shape.channels, device=device)).to(TORCH[shape.dtype]).requires_grad_()]
    return [phi, alpha, delta, base, *(norm if shape.norm != "none" else [])]


def after_read(u: Tensor, weight: Tensor | None) -> Tensor:
    """Apply the norm that follows the read, if there is one."""
    return u if weight is None else torch.nn.functional.rms_norm(u, u.shape[-1:], weight, EPS)


class _Seam(torch.autograd.Function):
    """The generated kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, kernels: Generated, tiles: Tiles, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the forward."""
        given = dict(zip(kernels.takes, tensors, strict=True))
        made = kernels.forward(given, tiles)
        ctx.kernels, ctx.names = kernels, list(made)
        ctx.save_for_backward(*tensors, *made.values())
        ctx.set_materialize_grads(False)
        return made["new"], made["u_out"], made["post_out"], made["res_out"]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Run the backward."""
        kernels: Generated = ctx.kernels
        count = len(kernels.takes)
        given = dict(zip(kernels.takes, ctx.saved_tensors[:count], strict=True))
        made = dict(zip(ctx.names, ctx.saved_tensors[count:], strict=True))
        found = kernels.backward(given, made, dict(zip(("g_new", "g_u", "g_post", "g_res"), grads, strict=True)))
        found["ddelta"] = found.pop("dbias")
        return None, None, *(found.get(f"d{name}") for name in kernels.takes)


def generated(shape: Shape, device: str, one: bool = False) -> Contender:
    """Return the generated kernels of a seam; with `one`, in one launch forward and one backward."""
    norm = {"norm": "rms", "weight": True} if shape.norm != "none" else {}
    spec = Spec("seam", shape.n, shape.channels, dtype=shape.dtype, branch=shape.dtype, **norm)  # type: ignore[arg-type]
    kernels, own = Generated(spec), parameters(shape, device)
    tiles = dict(kernels.module.TILES)
    if one:
        tiles |= {name: candidates(spec, name, shape.tokens)[0] for name in ("both", "back")}

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        return _Seam.apply(kernels, tiles, x, f, post, res, *own)  # type: ignore[no-any-return, no-untyped-call]

    return Contender(run, own, "generated kernels" + ", in one launch each way" * one, seam=True)


def one_launch(shape: Shape, device: str) -> Contender:
    """Return the same in launches whose programs wait for each other, so that second reads hit the cache."""
    if not device.startswith("cuda"):
        raise UnavailableError("programs that wait for each other need a GPU")
    return generated(shape, device, one=True)


def unfused(shape: Shape, device: str) -> Contender:
    """Return the ops of the mhc IR one by one, eager."""
    phi, alpha, delta, base, *norm = own = parameters(shape, device)
    maps = MapOptions(shape.n, "mhc", "sinkhorn", ITERS, EPS, kernels=True)
    weight = norm[0] if norm else None

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        made: CoefficientsResult = call("coefficients", Coefficients(x, Parameters(phi, alpha, delta, base), maps))
        u = after_read(call("read", Read(x, made.h_pre, shape.n)), weight)
        return call("write", Write(x, f, made.h_post, made.h_res, shape.n)), u

    return Contender(run, own, "torch.ops.mhc, eager")


def compiled(shape: Shape, device: str) -> Contender:
    """Return the reference functions under torch.compile."""
    phi, alpha, delta, base, *norm = own = parameters(shape, device)
    weight, n = (norm[0] if norm else None), shape.n

    def site(
        x: Tensor, f: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        y, _ = reference.logits(x.flatten(-2), phi, EPS)
        pre = torch.sigmoid(y[..., :n] * alpha[0] + bias[:n])
        post = 2 * torch.sigmoid(y[..., n : 2 * n] * alpha[1] + bias[n : 2 * n])
        mix = (y[..., 2 * n :] * alpha[2] + bias[2 * n :]).unflatten(-1, (n, n))
        u = after_read(reference.read(x, pre, n), weight)
        return reference.write(x, f, post, reference.sinkhorn(mix, ITERS), n), u

    fast = torch.compile(site, dynamic=False)

    def run(x: Tensor, f: Tensor, post: Tensor, res: Tensor) -> tuple[Tensor, ...]:
        return fast(x, f, phi, alpha, delta + base, weight)

    return Contender(run, own, "torch.compile of the reference functions")


Maker = Callable[[Shape, str], Contender]
OURS: dict[str, Maker] = {
    "mhc_compile": generated,
    "torch.compile": compiled,
    "eager ops": unfused,
}
