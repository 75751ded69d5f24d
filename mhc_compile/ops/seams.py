"""The fused ops of the mhc IR: all that lies between two branches as one op, for generated kernels to take over.

    enter = coefficients, read and the branch's norm, where streams come to a site
    seam  = the write of one site, then `enter` of the next on what that made
    leave = the write of the last site and the readout: no new streams are made

Each has its meaning in plain torch (`fused`), so that it runs on any device; a kernel registered for a device key goes
before it. Sums are in the coefficients' dtype, and each result is rounded once: x_new, u in front of the norm, the
norm's result ("rms_cast" also in front of its weight), the readout. What is written is `(f + offset) multiplier scale`,
the tail of the branch f with vectors `[C]`, not rounded at all.

With `plain` all streams are the same: x is one of them, `[..., C]`, and its gradient the sum of theirs. The branch's
output f may be of another dtype than x, and neither needs to be contiguous; all results are. `enter` and `seam` return
last what their backward needs, h_pre, y, r and the norm's mean and rstd; those have no gradients of their own. What is
not there (a norm's mean, the gradient of a scale that was not given) is of shape `[0]`.

The backward of `seam` and `leave` also takes a history: where it holds writes, x is the head of a block, and the
streams that `seam` and `leave` had are replayed from it (see `replay`); the first gradient is that of those streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_compile.ops import connections, fused
from mhc_compile.ops.fused import Options
from mhc_compile.ops.library import _LIB, MEANINGS, _impl, _refuse

SITE = "Tensor phi, Tensor alpha, Tensor delta, Tensor base, Tensor? weight, Tensor? shift"
_SAVED = (
    "Tensor phi, Tensor alpha, Tensor bias, Tensor? weight, Tensor? shift,"
    " Tensor h_pre, Tensor y, Tensor r, Tensor mean, Tensor rstd"
)
WRITE = "Tensor x, Tensor f, Tensor h_post, Tensor h_res, Tensor? offset, Tensor? scale, float multiplier"
OPTIONS = "int n, str connection, str projection, int iters, float eps, str norm, float norm_eps, bool plain"
_GRADS = "Tensor g_u, Tensor g_post, Tensor g_res"

HISTORY = (
    "Tensor[] fs, Tensor[] posts, Tensor[] ress, Tensor?[] offsets, Tensor?[] scales, float[] multipliers,"
    " bool plain_head"
)
NO_HISTORY = fused.History([], [], [], [], [], [], False)

TAKEN = {"seam_in_block": 21, "leave_in_block": 9}  # how many arguments stand in front of the head

_LIB.define(f"enter(Tensor x, {SITE}, {OPTIONS}) -> Tensor[]")
_LIB.define(f"seam({WRITE}, {SITE}, {OPTIONS}) -> Tensor[]")
_LIB.define(f"leave({WRITE}, int n, bool plain) -> Tensor")
_LIB.define(f"enter_backward({_GRADS}, Tensor x, {_SAVED}, {OPTIONS}) -> Tensor[]")
_LIB.define(f"seam_backward(Tensor g_x, {_GRADS}, {WRITE}, {_SAVED}, {OPTIONS}, {HISTORY}) -> Tensor[]")
_LIB.define(f"leave_backward(Tensor g, {WRITE}, int n, bool plain, {HISTORY}) -> Tensor[]")

MOST_STREAMS = 16
MOST_WRITES = 8  # that a kernel replays
_FMA_PER_SECOND = 67e12 / 2 / 2  # an H200's fp32 units, half of whose slots a kernel fills
_BYTES_PER_SECOND = 4.3e12  # what copying reaches there


def replay_limit(n: int, itemsize: int) -> int:
    """Return the most writes that a kernel replays: so many that arithmetic stays behind its memory traffic.

    Per feature a replayed write takes n^2 + n multiply-adds wherever a backward needs streams: for the coefficients,
    for the streams, and for each group of columns of phi's gradient. All else takes about 70 at n = 4. It reads an
    output once more in each of two launches, which move 4 n + 5 elements per feature without it.
    """
    write, wide = n * n + n, -(-(n * n + 2 * n) // 16) * 16
    groups = -(-n // max(1, 160 // wide))  # as many of phi's columns as registers hold
    spare = (4 * n + 5) * itemsize / _BYTES_PER_SECOND - 3.5 * write / _FMA_PER_SECOND
    each = write * (2 + groups) / _FMA_PER_SECOND - 2 * itemsize / _BYTES_PER_SECOND
    return MOST_WRITES if each <= 0 else min(MOST_WRITES, max(1, int(spare / each)))


def why_not(n: int, connection: str, projection: str, dtype: torch.dtype) -> str | None:
    """Return why no kernel is generated for such a site, in a few words, or None where one is."""
    if connection != "mhc":
        return f"there are kernels for the connection 'mhc', not for {connection!r}"
    if projection not in ("sinkhorn", "identity"):
        return f"there are kernels for the projections 'sinkhorn' and 'identity', not for {projection!r}"
    if n > MOST_STREAMS:
        return f"there are kernels for up to {MOST_STREAMS} streams, not for {n}"
    if dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return f"there are kernels for bf16, fp16 and fp32, not for {dtype}"
    return None


# -- shapes -----------------------------------------------------------------------------------------------------------


def _fake_arrive(x: Tensor, phi: Tensor, o: Options) -> list[Tensor]:
    """Return results for streams, or one of them, of x's dtype."""
    tokens, c = (x.shape[:-1] if o.plain else x.shape[:-2]), x.shape[-1]
    rows = connections.get(o.connection).rows(x.new_empty((*tokens, o.n, c))).shape[:-1]
    mean, rstd = ((*tokens, 1) if o.norm in kinds else (0,) for kinds in (("layer",), ("rms", "rms_cast", "layer")))
    shapes = [(*tokens, o.n), (*tokens, o.n, o.n), (*tokens, o.n), (*rows, phi.shape[1]), (*rows, 1), mean, rstd]
    return [x.new_empty((*tokens, c)), *(phi.new_empty(shape) for shape in shapes)]


def _fake_enter(x: Tensor, phi: Tensor, *rest: Any) -> list[Tensor]:
    return _fake_arrive(x, phi, Options(*rest[5:]))


def _fake_seam(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> list[Tensor]:
    o = Options(*rest[9:])
    new = x.new_empty((*x.shape[:-1], o.n, x.shape[-1]) if o.plain else x.shape)
    return [new, *_fake_arrive(x, rest[3], o)]


def _fake_leave(x: Tensor, f: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(f.shape)


def _like(wide: Tensor, *given: Tensor | None) -> list[Tensor]:
    """Return new tensors like those given, `[0]` for None."""
    return [wide.new_empty(0) if t is None else t.new_empty(t.shape) for t in given]


def _fake_enter_backward(g_u: Tensor, g_post: Tensor, g_res: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    return _like(g_post, x, *rest[:5])


def _fake_seam_backward(g_x: Tensor, g_u: Tensor, g_post: Tensor, g_res: Tensor, *rest: Any) -> list[Tensor]:
    made = _like(g_post, *rest[:6], *rest[7:12])
    return [_read(rest[0], rest[1], rest[17], rest[25]), *made[1:]]


def _fake_leave_backward(g: Tensor, *rest: Any) -> list[Tensor]:
    made = _like(rest[2], *rest[:6])
    return [_read(rest[0], rest[1], rest[7], rest[9]), *made[1:]]


def _read(x: Tensor, f: Tensor, n: int, fs: Sequence[Tensor]) -> Tensor:
    """Return a new tensor like the streams of which a backward returns the gradient: x, or those replayed from it."""
    return written(x, f, n) if fs else x.new_empty(x.shape)


def written(x: Tensor, f: Tensor, n: int) -> Tensor:
    """Return a new tensor like the streams that a write of f makes."""
    return x.new_empty((*f.shape[:-1], n, f.shape[-1]))


# -- autograd ---------------------------------------------------------------------------------------------------------


def _given(g: Tensor | None, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a result, zeros where nobody used it."""
    return like.new_zeros(shape) if g is None else g


def _upstream(grads: Sequence[Tensor | None], x: Tensor, h_pre: Tensor) -> list[Tensor]:
    """Return the gradients of u, H_post and H_res."""
    n, u = h_pre.shape[-1], (*h_pre.shape[:-1], x.shape[-1])
    return [_given(grads[0], x, u), _given(grads[1], h_pre, h_pre.shape), _given(grads[2], h_pre, (*h_pre.shape, n))]


def _held(phi: Tensor, alpha: Tensor, delta: Tensor, base: Tensor, *rest: Tensor | None) -> tuple[Any, ...]:
    """Return the saved tensors of a site as its backward takes them."""
    return phi, alpha, base + delta, *rest


def _to_inputs(found: Sequence[Tensor], weight: Tensor | None, shift: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of a site's inputs; base is a buffer."""
    phi, alpha, bias, dweight, dshift = found
    return phi, alpha, bias, None, (None if weight is None else dweight), (None if shift is None else dshift)


def _save_enter(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:7], *output[3:])
    ctx.options = inputs[7:]


def _autograd_enter(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    x, *site = ctx.saved_tensors
    upstream = _upstream(grads, x, h_pre=site[6])
    dx, *found = torch.ops.mhc.enter_backward(*upstream, x, *_held(*site), *ctx.options)
    return dx, *_to_inputs(found, *site[4:6]), *(None for _ in ctx.options)


def _save_seam(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:6], *inputs[7:13], *output[4:])
    ctx.multiplier, ctx.options = inputs[6], inputs[13:]


def _autograd_seam(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    return seam_gradients(grads, saved[:6], ctx.multiplier, saved[6:], ctx.options, NO_HISTORY)


def seam_gradients(
    grads: Sequence[Tensor | None], write: Sequence[Any], multiplier: float, site: Sequence[Any],
    options: Sequence[Any], history: fused.History,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Return the gradients of what `seam` takes, from what was saved for them."""
    x, h_pre = write[0], site[6]
    upstream = _given(grads[0], x, (*h_pre.shape, x.shape[-1])), *_upstream(grads[1:], x, h_pre)
    found = torch.ops.mhc.seam_backward(*upstream, *write, multiplier, *_held(*site), *options, *history)
    return *_to_write(found, *write[4:]), *_to_inputs(found[6:], *site[4:6]), *(None for _ in options)


def _to_write(found: Sequence[Tensor], offset: Tensor | None, scale: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of what is written: x, f, h_post, h_res, offset, scale and the multiplier."""
    return *found[:4], (None if offset is None else found[4]), (None if scale is None else found[5]), None


def _save_leave(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.rest = inputs[6:]


def _autograd_leave(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return leave_gradients(g, ctx.saved_tensors, ctx.rest, NO_HISTORY)


def leave_gradients(
    g: Tensor, write: Sequence[Any], rest: Sequence[Any], history: fused.History
) -> tuple[Tensor | None, ...]:
    """Return the gradients of what `leave` takes, from what was saved for them."""
    found = torch.ops.mhc.leave_backward(g, *write, *rest, *history)
    return *_to_write(found, *write[4:]), None, None


# -- registration -----------------------------------------------------------------------------------------------------


def _op(meaning: Callable[..., Any]) -> Callable[..., Any]:
    """Return the meaning as ops run it: without autocast, with contiguous results."""

    def run(*args: Any) -> Any:
        with torch.autocast(args[0].device.type, enabled=False):
            made = meaning(*args)
            return made.contiguous() if isinstance(made, Tensor) else [t.contiguous() for t in made]

    return run


def register(
    name: str,
    meaning: Callable[..., Any],
    fake: Callable[..., Any],
    gradient: Callable[..., Any],
    save: Callable[..., Any] | None = None,
) -> None:
    """Give an op its meaning, which runs where there is no kernel, its fake, its gradient and what is saved for it."""
    MEANINGS[name] = _op(meaning)
    _impl(name, MEANINGS[name], "CompositeExplicitAutograd")
    torch.library.register_fake(f"mhc::{name}", fake, lib=_LIB)
    torch.library.register_autograd(f"mhc::{name}", gradient, setup_context=save, lib=_LIB)


register("enter", fused.enter, _fake_enter, _autograd_enter, _save_enter)
register("seam", fused.seam, _fake_seam, _autograd_seam, _save_seam)
register("leave", fused.leave, _fake_leave, _autograd_leave, _save_leave)
register("enter_backward", fused.enter_backward, _fake_enter_backward, _refuse)
register("seam_backward", fused.seam_backward, _fake_seam_backward, _refuse)
register("leave_backward", fused.leave_backward, _fake_leave_backward, _refuse)
