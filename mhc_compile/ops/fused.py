"""What the fused ops of the mhc IR mean, and their gradients, in plain torch, composed of the others (see `seams`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc_compile.ops import norms, reference
from mhc_compile.ops.connections import by_token
from mhc_compile.ops.functions import accumulator, read_backward, write_backward


class Options(NamedTuple):
    """What follows the tensors of `enter` and `seam`: the site's maps, the norm behind it, where x comes from."""

    n: int
    connection: str
    projection: str
    iters: int
    eps: float
    norm: str
    norm_eps: float
    plain: bool


class Saved(NamedTuple):
    """What the backward of `enter` and `seam` is given of a site; `bias` is base + delta."""

    phi: Tensor
    alpha: Tensor
    bias: Tensor
    weight: Tensor | None
    shift: Tensor | None
    h_pre: Tensor
    y: Tensor
    r: Tensor
    mean: Tensor
    rstd: Tensor


def _streams(x: Tensor, n: int, plain: bool) -> Tensor:
    return reference.expand(x, n) if plain else x


class Tail(NamedTuple):
    """What ends a branch: (f + offset) multiplier scale, with vectors `[C]`."""

    offset: Tensor | None
    scale: Tensor | None
    multiplier: float

    def apply(self, f: Tensor, like: Tensor) -> Tensor:
        """Return the branch's output with its tail, in the coefficients' dtype."""
        f = f.type_as(like)
        f = f if self.offset is None else f + self.offset
        f = f if self.multiplier == 1 else f * self.multiplier
        return f if self.scale is None else f * self.scale


class History(NamedTuple):
    """The writes between a block's head and the streams that a backward reads; entry i of each list is of write i.

    With `plain_head` the head is one tensor `[..., C]` of which all streams are copies.
    """

    fs: Sequence[Tensor]
    posts: Sequence[Tensor]
    ress: Sequence[Tensor]
    offsets: Sequence[Tensor | None]
    scales: Sequence[Tensor | None]
    multipliers: Sequence[float]
    plain_head: bool


def replay(head: Tensor, *rest: Any) -> Tensor:
    """Return the streams that a block's writes make of its head, rounded as each write rounded them."""
    past, n = History(*rest[:7]), rest[7]
    x = _streams(head, n, past.plain_head)
    for f, post, res, *tail in zip(*past[:6], strict=True):
        x = reference.write(x, Tail(*tail).apply(f, post), post, res, n)
    return x


def _arrive(x: Tensor, site: Sequence[Any], o: Options) -> list[Tensor]:
    """Return u, H_post, H_res, and what the backward needs, of a site at streams x."""
    *parameters, weight, shift = site
    pre, post, res, y, r = torch.ops.mhc.coefficients(x, *parameters, *o[:5])
    u, mean, rstd = norms.apply(reference.read(x, pre, o.n), o.norm, weight, shift, o.norm_eps, pre.dtype)
    return [u, post, res, pre, y, r, mean, rstd]


def enter(x: Tensor, *rest: Any) -> list[Tensor]:
    """Return what a site and its branch need of streams x: u, H_post, H_res, and h_pre, y, r, mean, rstd."""
    o = Options(*rest[6:])
    return _arrive(_streams(x, o.n, o.plain), rest[:6], o)


def seam(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> list[Tensor]:
    """Return the new streams, and what `enter` returns for them."""
    o = Options(*rest[9:])
    branch = Tail(*rest[:3]).apply(f, h_post)
    new = reference.write(_streams(x, o.n, o.plain), branch, h_post, h_res, o.n)
    return [new, *_arrive(new, rest[3:9], o)]


def leave(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> Tensor:
    """Return the readout of the new streams, which are not rounded before it."""
    n, plain = rest[3:]
    wide = _streams(x, n, plain).type_as(h_post)
    new = reference.write(wide, Tail(*rest[:3]).apply(f, h_post), h_post, h_res, n)
    return reference.readout(new, n, accumulator(new.dtype)).type_as(x)


# -- gradients: streams are widened before they come to a formula, so that it rounds nothing --------------------------


def _arrive_backward(grads: Sequence[Tensor], x: Tensor, site: Saved, o: Options) -> list[Tensor]:
    """Return the gradients of streams x (not rounded), phi, alpha, bias, weight and shift."""
    g_u, g_post, g_res = grads
    read = g_u if o.norm == "none" else reference.read(x, site.h_pre, o.n)
    du, dweight, dshift = norms.backward(g_u, read, o.norm, site.weight, site.shift, site.mean, site.rstd)
    wide = x.type_as(site.h_pre)
    dx, dpre = read_backward(du, wide, site.h_pre)
    more, *parameters = torch.ops.mhc.coefficients_backward(
        dpre, g_post, g_res, wide, *site[:3], site.y, site.r, *o[:5]
    )
    return [dx.add_(more), *parameters, dweight, dshift]


def _write_backward(
    g: Tensor, x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, tail: Tail, n: int, plain: bool
) -> list[Tensor]:
    """Return the gradients of x, f, h_post, h_res, offset and scale for that of the new streams."""
    streams = _streams(x, n, plain).type_as(h_post)
    dx, df, dpost, dres = write_backward(g, streams, tail.apply(f, h_post), h_post, h_res, n)
    dx, df = dx.sum(-2) if plain else dx, df * tail.multiplier
    doffset, dscale = h_post.new_empty(0), h_post.new_empty(0)
    if tail.scale is not None:
        bare = f if tail.offset is None else f.type_as(h_post) + tail.offset
        dscale, df = by_token(df * bare).sum(0).type_as(tail.scale), df * tail.scale
    if tail.offset is not None:
        doffset = by_token(df).sum(0).type_as(tail.offset)
    return [dx.type_as(x), df.type_as(f), dpost, dres, doffset, dscale]


def enter_backward(g_u: Tensor, g_post: Tensor, g_res: Tensor, x: Tensor, *rest: Any) -> list[Tensor]:
    """Return the gradients of x, phi, alpha, bias, weight and shift."""
    site, o = Saved(*rest[:10]), Options(*rest[10:])
    dx, *parameters = _arrive_backward((g_u, g_post, g_res), _streams(x, o.n, o.plain), site, o)
    return [(dx.sum(-2) if o.plain else dx).type_as(x), *parameters]


def seam_backward(g_x: Tensor, g_u: Tensor, g_post: Tensor, g_res: Tensor, *rest: Any) -> list[Tensor]:
    """Make the new streams again; their gradient is that of who reads them and that of the site.

    Returns:
        The gradients of x, f, h_post, h_res, offset, scale, phi, alpha, bias, weight and shift.
    """
    x, f, h_post, h_res, *more = rest[:7]
    tail, site, o, past = Tail(*more), Saved(*rest[7:17]), Options(*rest[17:25]), History(*rest[25:])
    x = replay(x, *past, o.n) if past.fs else x
    new = reference.write(_streams(x, o.n, o.plain), tail.apply(f, h_post), h_post, h_res, o.n)
    dx, *parameters = _arrive_backward((g_u, g_post, g_res), new, site, o)
    return [*_write_backward(dx.add_(g_x), x, f, h_post, h_res, tail, o.n, o.plain), *parameters]


def leave_backward(g: Tensor, x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> list[Tensor]:
    """Return the gradients of x, f, h_post, h_res, offset and scale: each new stream has a share of the readout's."""
    n, plain = rest[3:5]
    past = History(*rest[5:])
    x = replay(x, *past, n) if past.fs else x
    share = (g.type_as(h_post) / n).unsqueeze(-2)
    share = share.expand(*share.shape[:-2], n, share.shape[-1])
    return _write_backward(share, x, f, h_post, h_res, Tail(*rest[:3]), n, plain)
