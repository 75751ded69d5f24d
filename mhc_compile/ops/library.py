"""The ops of one site, `torch.ops.mhc.*`, each with the meaning of its reference function.

`expand`, `read`, `write` and `readout` decompose into the reference wherever a graph is traced to ATen, so the compiler
behind (Inductor on a CPU) fuses them with their neighbours. `coefficients` stays one op with a backward op of its own:
its Sinkhorn would otherwise be unrolled, and compiled, once per site.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mhc_compile.errors import NotCompiledError
from mhc_compile.ops import connections, functions
from mhc_compile.ops.connections import Maps, by_token
from mhc_compile.ops.registration import call, decompose, mark, register, save, saved, upstream
from mhc_compile.ops.signatures import (
    Coefficients,
    CoefficientsBackward,
    CoefficientsGradients,
    CoefficientsResult,
    MapOptions,
    Marker,
    Write,
    filled,
    flat,
    named,
    take,
)


def _write(*args: Any) -> Tensor:
    """Write, whose block is for readers of the graph; torch leaves out arguments that have their default."""
    made: Tensor = functions.Write.apply(*flat(named(Write, args)))  # type: ignore[no-untyped-call]  # torch leaves it so
    return made


decompose("expand", functions.Expand.apply)
decompose("read", functions.Read.apply)
decompose("write", _write)
decompose("readout", functions.Readout.apply)


# -- coefficients -----------------------------------------------------------------------------------------------------


def _maps(options: MapOptions, fast: bool = False) -> Maps:
    return Maps(options.n, options.projection, options.iters, fast)


def _coefficients(given: Coefficients) -> CoefficientsResult:
    """Return the maps and, for the backward, the logits y and the inverse norm r."""
    site, maps = given.parameters, given.maps
    kind = connections.get(maps.connection)
    rows = kind.rows(given.x).type_as(site.phi)
    r = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1]).add_(maps.eps).rsqrt_()
    y = torch.matmul(rows, site.phi).mul_(r).masked_fill_(r == 0, 0)  # as `reference.logits`
    pre, post, res = kind.activate(y, site.alpha, site.base + site.delta, _maps(maps, fast=True))
    return CoefficientsResult(pre, post, res, y, r)


def _fake_coefficients(given: Coefficients) -> CoefficientsResult:
    x, n, phi = given.x, given.maps.n, given.parameters.phi
    tokens = x.shape[:-2]
    rows = connections.get(given.maps.connection).rows(x).shape[:-1]
    shapes = [(*tokens, n), (*tokens, n), (*tokens, n, n), (*rows, phi.shape[1]), (*rows, 1)]
    return CoefficientsResult(*(phi.new_empty(shape) for shape in shapes))


def _backward(given: CoefficientsBackward) -> CoefficientsGradients:
    """Y = (x phi) r, so dx = r (dy phi^T) - r^2 mean_K(sum(dy y)) x and dphi = x^T (dy r)."""
    x, phi, y, r = given.x, given.phi, given.y, given.r
    kind = connections.get(given.maps.connection)
    upstream = given.g_pre, given.g_post, given.g_res
    dy, dalpha, dbias = kind.vjp(y, given.alpha, given.bias, _maps(given.maps), upstream)
    rows = by_token(kind.rows(x)).type_as(phi)
    dyr = by_token(dy * r)
    shrink = by_token((dy * y).sum(-1, keepdim=True) * (r * r) / -rows.shape[-1])
    dx = torch.mul(rows, shrink).addmm_(dyr, phi.t())
    return CoefficientsGradients(dx.view(x.shape).type_as(x), torch.mm(rows.t(), dyr), dalpha, dbias)


def _fake_backward(given: CoefficientsBackward) -> CoefficientsGradients:
    return CoefficientsGradients(*(t.new_empty(t.shape) for t in (given.x, given.phi, given.alpha, given.bias)))


def _save(ctx: Any, given: Coefficients, made: CoefficientsResult) -> None:
    save(ctx, *flat(given), kept=(made.y, made.r))


def _autograd(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    rest = saved(ctx)
    given = take(Coefficients, rest)
    y, r = rest
    x, site, n = given.x, given.parameters, given.maps.n
    shape = (*x.shape[:-2], n)
    grad = named(CoefficientsResult, grads)
    made: CoefficientsGradients = call(
        "coefficients_backward",
        CoefficientsBackward(
            g_pre=upstream(grad.h_pre, site.phi, shape),
            g_post=upstream(grad.h_post, site.phi, shape),
            g_res=upstream(grad.h_res, site.phi, (*shape, n)),
            x=x, phi=site.phi, alpha=site.alpha, bias=site.base + site.delta, y=y, r=r, maps=given.maps,
        ),
    )  # fmt: skip
    return filled(Coefficients, x=made.x, phi=made.phi, alpha=made.alpha, delta=made.bias)  # base is a buffer


register("coefficients", _coefficients, _fake_coefficients, _autograd, _save)
register("coefficients_backward", _backward, _fake_backward)


# -- the marker: makes a site's parameters inputs of the graph; the backend removes it, so running it is an error -----


def _marker(given: Marker) -> None:
    raise NotCompiledError(given.name)


def _fake_marker(given: Marker) -> None:
    if torch.compiler.is_exporting():
        raise NotCompiledError(given.name)


mark("site", _marker, _fake_marker)
