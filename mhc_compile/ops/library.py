"""The mhc IR as torch ops: `torch.ops.mhc.*`, each with the meaning of its reference function.

`expand`, `read`, `write` and `readout` decompose into the reference wherever a graph is traced to ATen, so the compiler
behind (Inductor on a CPU) fuses them with their neighbours. `coefficients` stays one op with a backward op of its own:
its Sinkhorn would otherwise be unrolled, and compiled, once per site.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mhc_compile.errors import NotCompiledError
from mhc_compile.ops import connections, functions
from mhc_compile.ops.connections import Maps, by_token

_LIB = torch.library.Library("mhc", "DEF")
_MAPS = "int n, str connection, str projection, int iters, float eps"

_LIB.define("expand(Tensor x, int n) -> Tensor")
_LIB.define("read(Tensor x, Tensor h_pre, int n) -> Tensor")
_LIB.define("write(Tensor x, Tensor f, Tensor h_post, Tensor h_res, int n, int block=0) -> Tensor")
_LIB.define("readout(Tensor x, int n) -> Tensor")
_LIB.define(f"coefficients(Tensor x, Tensor phi, Tensor alpha, Tensor delta, Tensor base, {_MAPS}) -> Tensor[]")
_LIB.define(
    "coefficients_backward(Tensor g_pre, Tensor g_post, Tensor g_res, Tensor x, Tensor phi, Tensor alpha, Tensor bias,"
    f" Tensor y, Tensor r, {_MAPS}) -> Tensor[]"
)
# the marker: makes a site's parameters inputs of the graph; the backend removes it, so running it is an error
_LIB.define("site(Tensor[] parameters, str name, str spec, bool entry) -> ()")


def _write(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, n: int, block: int = 0) -> Tensor:
    """Write; the block, in whose backward the result is made again, is for those to see who read the graph."""
    made: Tensor = functions.Write.apply(x, f, h_post, h_res, n)  # type: ignore[no-untyped-call]  # torch leaves it so
    return made


_impl: Callable[..., None] = _LIB.impl  # torch leaves it untyped
_impl("expand", functions.Expand.apply, "CompositeImplicitAutograd")
_impl("read", functions.Read.apply, "CompositeImplicitAutograd")
_impl("write", _write, "CompositeImplicitAutograd")
_impl("readout", functions.Readout.apply, "CompositeImplicitAutograd")


def _coefficients(
    x: Tensor, phi: Tensor, alpha: Tensor, delta: Tensor, base: Tensor,
    n: int, connection: str, projection: str, iters: int, eps: float,
) -> list[Tensor]:  # fmt: skip
    """Return H_pre, H_post, H_res and, for the backward, the logits y and the inverse norm r."""
    kind = connections.get(connection)
    with torch.autocast(x.device.type, enabled=False):
        rows = kind.rows(x).type_as(phi)
        r = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
        y = torch.matmul(rows, phi).mul_(r)
        maps = kind.activate(y, alpha, base + delta, Maps(n, projection, iters, fast=True))
        return [*(t.contiguous() for t in maps), y, r]


def _fake_coefficients(
    x: Tensor, phi: Tensor, alpha: Tensor, delta: Tensor, base: Tensor, n: int, connection: str, *_: Any
) -> list[Tensor]:
    tokens = x.shape[:-2]
    rows = connections.get(connection).rows(x).shape[:-1]
    shapes = [(*tokens, n), (*tokens, n), (*tokens, n, n), (*rows, phi.shape[1]), (*rows, 1)]
    return [phi.new_empty(shape) for shape in shapes]


def _backward(
    g_pre: Tensor, g_post: Tensor, g_res: Tensor,
    x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, y: Tensor, r: Tensor,
    n: int, connection: str, projection: str, iters: int, eps: float,
) -> list[Tensor]:  # fmt: skip
    """Y = (x phi) r, so dx = r (dy phi^T) - r^2 mean_K(sum(dy y)) x and dphi = x^T (dy r)."""
    kind = connections.get(connection)
    with torch.autocast(x.device.type, enabled=False):
        dy, dalpha, dbias = kind.vjp(y, alpha, bias, Maps(n, projection, iters), (g_pre, g_post, g_res))
        rows = by_token(kind.rows(x)).type_as(phi)
        dyr = by_token(dy * r)
        shrink = by_token((dy * y).sum(-1, keepdim=True) * (r * r) / -rows.shape[-1])
        dx = torch.mul(rows, shrink).addmm_(dyr, phi.t())
        return [dx.view(x.shape).type_as(x), torch.mm(rows.t(), dyr), dalpha, dbias]


def _fake_backward(
    g_pre: Tensor, g_post: Tensor, g_res: Tensor, x: Tensor, phi: Tensor, alpha: Tensor, bias: Tensor, *_: Any
) -> list[Tensor]:
    return [x.new_empty(x.shape), phi.new_empty(phi.shape), alpha.new_empty(alpha.shape), bias.new_empty(bias.shape)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], *output[3:])
    ctx.maps = inputs[5:]


def _autograd(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, phi, alpha, delta, base, y, r = ctx.saved_tensors
    n, tokens = ctx.maps[0], x.shape[:-2]
    shapes = [(*tokens, n), (*tokens, n), (*tokens, n, n)]
    full = [phi.new_zeros(shape) if g is None else g for g, shape in zip(grads[:3], shapes, strict=True)]
    out = torch.ops.mhc.coefficients_backward(*full, x, phi, alpha, base + delta, y, r, *ctx.maps)
    return (*out, None, None, None, None, None, None)


def _refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise NotImplementedError(
        "second derivatives of hyper-connections are not implemented (as under torch.compile in general); take them"
        " of the original function, `with mhc_compile.plain(model):`"
    )


# how ops that do not decompose run where no kernel is registered for the device
MEANINGS: dict[str, Callable[..., Any]] = {"coefficients": _coefficients, "coefficients_backward": _backward}
for _name, _meaning in MEANINGS.items():
    _impl(_name, _meaning, "CompositeExplicitAutograd")
torch.library.register_fake("mhc::coefficients", _fake_coefficients, lib=_LIB)
torch.library.register_fake("mhc::coefficients_backward", _fake_backward, lib=_LIB)
torch.library.register_autograd("mhc::coefficients", _autograd, setup_context=_save, lib=_LIB)
torch.library.register_autograd("mhc::coefficients_backward", _refuse, lib=_LIB)


def _marker(parameters: list[Tensor], name: str, spec: str, entry: bool) -> None:
    raise NotCompiledError(name)


def _fake_marker(parameters: list[Tensor], name: str, spec: str, entry: bool) -> None:
    if torch.compiler.is_exporting():
        raise NotCompiledError(name)


_impl("site", _marker, "CompositeExplicitAutograd")
torch.library.register_fake("mhc::site", _fake_marker, lib=_LIB)
MARKER = torch.ops.mhc.site.default
torch.fx.node.has_side_effect(MARKER)
