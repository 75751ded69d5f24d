"""What the fused ops of the mhc IR mean, and their gradients, in plain torch, composed of the others (see `seams`)."""

from __future__ import annotations

from torch import Tensor

from mhc_compile.ops import norms, reference
from mhc_compile.ops.connections import by_token
from mhc_compile.ops.functions import accumulator, read_backward, write_backward
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import (
    Coefficients,
    CoefficientsBackward,
    CoefficientsGradients,
    CoefficientsResult,
    Enter,
    EnterBackward,
    EnterGradients,
    EnterResult,
    History,
    Kept,
    Leave,
    LeaveBackward,
    Options,
    Replay,
    SavedSite,
    Seam,
    SeamBackward,
    SeamGradients,
    SeamResult,
    SiteGradients,
    SiteInputs,
    SiteUpstream,
    Tail,
    Written,
    WrittenGradients,
)


def _streams(x: Tensor, n: int, equal: bool) -> Tensor:
    """Return the streams: x, or n copies of it where all are equal."""
    return reference.expand(x, n) if equal else x


def with_tail(f: Tensor, tail: Tail, like: Tensor) -> Tensor:
    """Return a branch's output with its tail, in the dtype of `like`."""
    f = f.type_as(like)
    f = f if tail.offset is None else f + tail.offset
    f = f if tail.multiplier == 1 else f * tail.multiplier
    return f if tail.scale is None else f * tail.scale


def _write(x: Tensor, written: Written, n: int) -> Tensor:
    branch = with_tail(written.f, written.tail, written.h_post)
    return reference.write(x, branch, written.h_post, written.h_res, n)


def _arrive(x: Tensor, site: SiteInputs, o: Options) -> EnterResult:
    """Return u, H_post, H_res, and what the backward needs, of a site at streams x."""
    made: CoefficientsResult = call("coefficients", Coefficients(x, site.parameters, o.maps))
    read = reference.read(x, made.h_pre, o.n)
    u, mean, rstd = norms.apply(read, o.norm, site.weight, site.shift, o.norm_eps, made.h_pre.dtype)
    return EnterResult(u, made.h_post, made.h_res, Kept(made.h_pre, made.y, made.r, mean, rstd))


def replay(given: Replay) -> Tensor:
    """Return the streams that a block's writes make of its head, rounded as each write rounded them."""
    return _replayed(given.head, given.history, given.n)


def _replayed(head: Tensor, history: History, n: int) -> Tensor:
    x = _streams(head, n, history.equal_head)
    for written in history.writes():
        x = _write(x, written, n)
    return x


def enter(given: Enter) -> EnterResult:
    """Return what a site and its branch need of streams x."""
    o = given.options
    return _arrive(_streams(given.x, o.n, o.equal_streams), given.site, o)


def seam(given: Seam) -> SeamResult:
    """Return the new streams, and what `enter` returns for them."""
    o = given.options
    new = _write(_streams(given.x, o.n, o.equal_streams), given.written, o.n)
    return SeamResult(new, _arrive(new, given.site, o))


def leave(given: Leave) -> Tensor:
    """Return the readout of the new streams, which are not rounded before it."""
    wide = _streams(given.x, given.n, given.equal_streams).type_as(given.written.h_post)
    new = _write(wide, given.written, given.n)
    return reference.readout(new, given.n, accumulator(new.dtype)).type_as(given.x)


# -- gradients: streams are widened before they come to a formula, so that it rounds nothing --------------------------


def _arrive_backward(upstream: SiteUpstream, x: Tensor, site: SavedSite, o: Options) -> tuple[Tensor, SiteGradients]:
    """Return the gradients of streams x, not rounded, and of the site."""
    kept = site.kept
    read = upstream.g_u if o.norm == "none" else reference.read(x, kept.h_pre, o.n)
    du, dweight, dshift = norms.backward(upstream.g_u, read, o.norm, site.weight, site.shift, kept.mean, kept.rstd)
    wide = x.type_as(kept.h_pre)
    dx, dpre = read_backward(du, wide, kept.h_pre)
    more: CoefficientsGradients = call(
        "coefficients_backward",
        CoefficientsBackward(
            dpre, upstream.g_post, upstream.g_res, wide, site.phi, site.alpha, site.bias, kept.y, kept.r, o.maps
        ),
    )
    return dx.add_(more.x), SiteGradients(more.phi, more.alpha, more.bias, dweight, dshift)


def _write_backward(g: Tensor, x: Tensor, written: Written, n: int, equal: bool) -> WrittenGradients:
    """Return the gradients of x and of what was written to it for that of the new streams."""
    f, h_post, h_res, tail = written
    wide = _streams(x, n, equal).type_as(h_post)
    dx, df, dpost, dres = write_backward(g, wide, with_tail(f, tail, h_post), h_post, h_res, n)
    dx, df = dx.sum(-2) if equal else dx, df * tail.multiplier
    doffset, dscale = h_post.new_empty(0), h_post.new_empty(0)
    if tail.scale is not None:
        bare = f if tail.offset is None else f.type_as(h_post) + tail.offset
        dscale, df = by_token(df * bare).sum(0).type_as(tail.scale), df * tail.scale
    if tail.offset is not None:
        doffset = by_token(df).sum(0).type_as(tail.offset)
    return WrittenGradients(dx.type_as(x), df.type_as(f), dpost, dres, doffset, dscale)


def enter_backward(given: EnterBackward) -> EnterGradients:
    """Return the gradients of x and of the site."""
    x, o = given.x, given.options
    dx, site = _arrive_backward(given.upstream, _streams(x, o.n, o.equal_streams), given.site, o)
    return EnterGradients((dx.sum(-2) if o.equal_streams else dx).type_as(x), site)


def seam_backward(given: SeamBackward) -> SeamGradients:
    """Make the new streams again; their gradient comes from their readers and from the site."""
    o, equal = given.options, given.options.equal_streams
    x = _replayed(given.x, given.history, o.n) if given.history.fs else given.x
    new = _write(_streams(x, o.n, equal), given.written, o.n)
    dx, site = _arrive_backward(given.upstream, new, given.site, o)
    return SeamGradients(_write_backward(dx.add_(given.g_x), x, given.written, o.n, equal), site)


def leave_backward(given: LeaveBackward) -> WrittenGradients:
    """Return the gradients of x and of what was written: each new stream has a share of the readout's."""
    leave, n = given.leave, given.leave.n
    x = _replayed(leave.x, given.history, n) if given.history.fs else leave.x
    share = (given.g.type_as(leave.written.h_post) / n).unsqueeze(-2)
    share = share.expand(*share.shape[:-2], n, share.shape[-1])
    return _write_backward(share, x, leave.written, n, leave.equal_streams)
