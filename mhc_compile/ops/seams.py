"""The fused ops of the mhc IR: all that lies between two branches as one op, for generated kernels to take over.

    enter = coefficients, read and the branch's norm, where streams come to a site
    seam  = the write of one site, then `enter` of the next on what that made
    leave = the write of the last site and the readout: no new streams are made

Each has its meaning in plain torch (`fused`), so that it runs on any device; a kernel registered for a device key goes
before it. Sums are in the coefficients' dtype, and each result is rounded once: the new streams, u in front of the
norm, the norm's result ("rms_cast" also in front of its weight), the readout. What is written, the branch's output with
its tail `(f + offset) multiplier scale`, is not rounded at all.

With `equal_streams` all streams are the same: x is one of them, `[..., C]`, and its gradient the sum of theirs. The
branch's output f may be of another dtype than x, and neither needs to be contiguous; all results are. `enter` and
`seam` also return what their backward needs (`signatures.Kept`), which has no gradients of its own. What is not there
(a norm's mean, the gradient of a scale that was not given) is of shape `[0]`.

The backward of `seam` and `leave` also takes a history: where it holds writes, x is the head of a block, and the
streams that `seam` and `leave` had are replayed from it (see `replay`); the first gradient is that of those streams.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mhc_compile.ops import connections, fused
from mhc_compile.ops.registration import call, register, save, saved, upstream
from mhc_compile.ops.signatures import (
    NO_HISTORY,
    Enter,
    EnterBackward,
    EnterGradients,
    EnterResult,
    History,
    Kept,
    Leave,
    LeaveBackward,
    Options,
    SavedSite,
    Seam,
    SeamBackward,
    SeamGradients,
    SeamResult,
    SiteGradients,
    SiteInputs,
    SiteUpstream,
    Written,
    WrittenGradients,
    filled,
    flat,
    named,
    take,
)

# -- shapes -----------------------------------------------------------------------------------------------------------


def _fake_arrive(x: Tensor, phi: Tensor, o: Options) -> EnterResult:
    """Return results for streams, or one of them, of x's dtype."""
    tokens, c = (x.shape[:-1] if o.equal_streams else x.shape[:-2]), x.shape[-1]
    rows = connections.get(o.maps.connection).rows(x.new_empty((*tokens, o.n, c))).shape[:-1]
    mean, rstd = ((*tokens, 1) if o.norm in kinds else (0,) for kinds in (("layer",), ("rms", "rms_cast", "layer")))
    kept = [(*tokens, o.n), (*rows, phi.shape[1]), (*rows, 1), mean, rstd]
    post, res = (phi.new_empty(shape) for shape in ((*tokens, o.n), (*tokens, o.n, o.n)))
    return EnterResult(x.new_empty((*tokens, c)), post, res, Kept(*(phi.new_empty(shape) for shape in kept)))


def _fake_enter(given: Enter) -> EnterResult:
    return _fake_arrive(given.x, given.site.parameters.phi, given.options)


def _fake_seam(given: Seam) -> SeamResult:
    x, o = given.x, given.options
    new = x.new_empty((*x.shape[:-1], o.n, x.shape[-1]) if o.equal_streams else x.shape)
    return SeamResult(new, _fake_arrive(x, given.site.parameters.phi, o))


def _fake_leave(given: Leave) -> Tensor:
    return given.x.new_empty(given.written.f.shape)


def _like(wide: Tensor, t: Tensor | None) -> Tensor:
    """Return a new tensor like the one given, `[0]` for None."""
    return wide.new_empty(0) if t is None else t.new_empty(t.shape)


def _fake_site_gradients(site: SavedSite) -> SiteGradients:
    return SiteGradients(*(_like(site.phi, t) for t in (site.phi, site.alpha, site.bias, site.weight, site.shift)))


def _fake_written_gradients(x: Tensor, written: Written, n: int, history: History) -> WrittenGradients:
    """Return new tensors like x, or the streams that are replayed from it, and what was written."""
    f, h_post, h_res, tail = written
    streams = written_to(x, f, n) if history.fs else _like(h_post, x)
    return WrittenGradients(streams, *(_like(h_post, t) for t in (f, h_post, h_res, tail.offset, tail.scale)))


def _fake_enter_backward(given: EnterBackward) -> EnterGradients:
    return EnterGradients(_like(given.x, given.x), _fake_site_gradients(given.site))


def _fake_seam_backward(given: SeamBackward) -> SeamGradients:
    written = _fake_written_gradients(given.x, given.written, given.options.n, given.history)
    return SeamGradients(written, _fake_site_gradients(given.site))


def _fake_leave_backward(given: LeaveBackward) -> WrittenGradients:
    leave = given.leave
    return _fake_written_gradients(leave.x, leave.written, leave.n, given.history)


def written_to(x: Tensor, f: Tensor, n: int) -> Tensor:
    """Return a new tensor like the streams that a write of f makes."""
    return x.new_empty((*f.shape[:-1], n, f.shape[-1]))


# -- autograd ---------------------------------------------------------------------------------------------------------


def _of_arrival(grad: EnterResult, x: Tensor, h_pre: Tensor) -> SiteUpstream:
    """Return the gradients of u, H_post and H_res."""
    shape = h_pre.shape
    return SiteUpstream(
        upstream(grad.u, x, (*shape[:-1], x.shape[-1])),
        upstream(grad.h_post, h_pre, shape),
        upstream(grad.h_res, h_pre, (*shape, shape[-1])),
    )


def _saved_site(site: SiteInputs, kept: Kept) -> SavedSite:
    phi, alpha, delta, base = site.parameters
    return SavedSite(phi, alpha, base + delta, site.weight, site.shift, kept)


def _to_site(made: SiteGradients, site: SiteInputs) -> dict[str, Tensor | None]:
    """Name the gradients of a site's inputs; base is a buffer."""
    return {
        "phi": made.phi,
        "alpha": made.alpha,
        "delta": made.bias,
        "weight": None if site.weight is None else made.weight,
        "shift": None if site.shift is None else made.shift,
    }


def _to_written(made: WrittenGradients, written: Written) -> dict[str, Tensor | None]:
    """Name the gradients of streams and of what was written to them."""
    offset, scale, _ = written.tail
    absent: dict[str, None] = {"offset": None} if offset is None else {}
    absent |= {"scale": None} if scale is None else {}
    return made._asdict() | absent


def _save_enter(ctx: Any, given: Enter, made: EnterResult) -> None:
    ctx.set_materialize_grads(False)
    save(ctx, *flat(given), kept=made.kept)


def _autograd_enter(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    rest = saved(ctx)
    given, kept = take(Enter, rest), take(Kept, rest)
    made: EnterGradients = call(
        "enter_backward",
        EnterBackward(
            _of_arrival(named(EnterResult, grads), given.x, kept.h_pre),
            given.x,
            _saved_site(given.site, kept),
            given.options,
        ),
    )
    return filled(Enter, x=made.x, **_to_site(made.site, given.site))


def save_seam(ctx: Any, given: Seam, made: SeamResult) -> None:
    """Keep what a seam takes and what its backward needs of its results."""
    ctx.set_materialize_grads(False)
    save(ctx, *flat(given), kept=made.arrival.kept)


def _autograd_seam(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    rest = saved(ctx)
    return seam_gradients(named(SeamResult, grads), take(Seam, rest), take(Kept, rest), NO_HISTORY)


def seam_gradients(grad: SeamResult, given: Seam, kept: Kept, history: History) -> tuple[Any, ...]:
    """Return the gradients of what `seam` takes; with a history, its x is the head of a block."""
    x, h_pre = given.x, kept.h_pre
    made: SeamGradients = call(
        "seam_backward",
        SeamBackward(
            upstream(grad.x, x, (*h_pre.shape, x.shape[-1])),
            _of_arrival(grad.arrival, x, h_pre),
            x,
            given.written,
            _saved_site(given.site, kept),
            given.options,
            history,
        ),
    )
    return filled(Seam, **_to_written(made.written, given.written), **_to_site(made.site, given.site))


def _save_leave(ctx: Any, given: Leave, made: Tensor) -> None:
    save(ctx, *flat(given))


def _autograd_leave(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    return leave_gradients(g, take(Leave, saved(ctx)), NO_HISTORY)


def leave_gradients(g: Tensor, given: Leave, history: History) -> tuple[Any, ...]:
    """Return the gradients of what `leave` takes; with a history, its x is the head of a block."""
    made: WrittenGradients = call("leave_backward", LeaveBackward(g, given, history))
    return filled(Leave, **_to_written(made, given.written))


register("enter", fused.enter, _fake_enter, _autograd_enter, _save_enter)
register("seam", fused.seam, _fake_seam, _autograd_seam, save_seam)
register("leave", fused.leave, _fake_leave, _autograd_leave, _save_leave)
register("enter_backward", fused.enter_backward, _fake_enter_backward)
register("seam_backward", fused.seam_backward, _fake_seam_backward)
register("leave_backward", fused.leave_backward, _fake_leave_backward)
