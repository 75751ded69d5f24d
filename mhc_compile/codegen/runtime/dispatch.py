"""Generated kernels as the ops' implementation on a device: importing this module changes nothing, `register` does."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mhc_compile.codegen.runtime import build, cache, spec_of_call, tune
from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.triton.generate import generate
from mhc_compile.ops.connections import by_token
from mhc_compile.ops.fused import with_tail
from mhc_compile.ops.registration import MEANINGS
from mhc_compile.ops.signatures import (
    OPS,
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
    Tail,
    Written,
    WrittenGradients,
    flat,
    named,
)

_REGISTERED: dict[str, torch.library.Library] = {}


def register(key: str = "CUDA") -> None:
    """Let generated kernels run the ops on tensors of a dispatch key, once per process.

    What no kernel is generated for (`limits.why_not`) still runs as the reference. On "CPU" kernels run only in
    Triton's interpreter.

    Raises:
        MissingDependencyError: Triton is missing or too old.
        CacheError: there is no directory to keep generated files in.
    """
    if key in _REGISTERED:
        return
    build.require_triton()
    cache.directory()
    lib = torch.library.Library("mhc", "IMPL")
    for name, function in _KERNELS.items():
        lib.impl(name, _or_reference(name, function), key)
    _REGISTERED[key] = lib


def is_registered(key: str) -> bool:
    """Tell whether kernels in Triton run the ops on tensors of a dispatch key."""
    return key in _REGISTERED


def _or_reference(name: str, kernel: Callable[[Any], Any]) -> Callable[..., Any]:
    """Return an op as torch calls it: the kernel where there is one for its arguments, else what it means."""
    arguments, meaning = OPS[name].arguments, MEANINGS[name]

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        made = kernel(named(arguments, args))
        if made is None:
            return meaning(*args)
        return made if isinstance(made, Tensor) else flat(made)

    return run


@functools.cache
def _module(**fields: Any) -> ModuleType:
    spec = Spec(**fields)
    return build.load(generate(spec), spec.name)


def _launch(direction: str, tokens: int, given: Sequence[Tensor | None], fields: dict[str, Any]) -> list[Tensor]:
    """Run a generated function on the tensors that are there, contiguous; `given` is in its order."""
    module = _module(**fields)
    tensors = [t.contiguous() for t in given if t is not None]
    device = tensors[0].device
    tiles = tune.tiles(module, direction, tensors, tokens)
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        made: list[Tensor] = getattr(module, direction)(*tensors, tiles=tiles)
    return made


# -- tensors as a generated function takes and returns them -----------------------------------------------------------


def _tensors(written: Written) -> list[Tensor | None]:
    return [written.f, written.h_post, written.h_res, written.tail.offset, written.tail.scale]


def _steps(past: History) -> list[Tensor | None]:
    """Return the tensors of a history, write by write."""
    return [t for write in past.writes() for t in _tensors(write)]


def _saved(site: SavedSite, o: Options) -> list[Tensor | None]:
    """Return what a backward takes of a site; the norm's statistics where it has them."""
    kept = site.kept
    statistics = [kept.mean if o.norm == "layer" else None, kept.rstd if o.norm != "none" else None]
    return [site.phi, site.alpha, site.bias, site.weight, kept.h_pre, kept.y, kept.r, *statistics]


def _arrival(made: list[Tensor], norm: str) -> EnterResult:
    """Name what a forward returns of a site; `[0]` for the statistics that its norm has not."""
    u, post, res, pre, y, r, *statistics = made
    none = r.new_empty(0)
    mean, rstd = {"layer": statistics, "none": [none, none]}.get(norm, [none, *statistics])
    return EnterResult(u, post, res, Kept(pre, y, r, mean, rstd))


def _typed(dbias: Tensor, sums: Iterable[Tensor], *like: Tensor | None) -> list[Tensor]:
    """Give sums over tokens the dtypes of what they are gradients of, `[0]` for what is not there."""
    found = iter(sums)
    return [dbias.new_empty(0) if t is None else next(found).to(t.dtype) for t in like]


def _rows(f: Tensor) -> int:
    """Return the number of tokens of a branch's output."""
    return f.numel() // max(f.shape[-1], 1)


def _tokens(x: Tensor, streams: int) -> int:
    return x.numel() // (x.shape[-1] * streams) if x.numel() else 0


def _streams(o: Options) -> int:
    """Return how many streams x holds."""
    return 1 if o.equal_streams else o.n


# -- the ops ----------------------------------------------------------------------------------------------------------


def _enter(given: Enter) -> EnterResult | None:
    fields, o = spec_of_call.enter_fields(given), given.options
    if fields is None:
        return None
    made = _launch("forward", _tokens(given.x, _streams(o)), [given.x, *flat(given.site)], fields)
    return _arrival(made, o.norm)


def _seam(given: Seam) -> SeamResult | None:
    fields = spec_of_call.mixing_fields(given)
    if fields is None:
        return None
    tensors = [given.x, *_tensors(given.written), *flat(given.site)]
    new, *made = _launch("forward", _tokens(given.x, _streams(given.options)), tensors, fields)
    return SeamResult(new, _arrival(made, given.options.norm))


def _enter_backward(given: EnterBackward) -> EnterGradients | None:
    fields, site, o = spec_of_call.enter_fields(given), given.site, given.options
    if fields is None:
        return None
    tensors = [*given.upstream, given.x, *_saved(site, o)]
    dx, dphi, dalpha, dbias, *sums = _launch("backward", _tokens(given.x, _streams(o)), tensors, fields)
    return EnterGradients(dx, SiteGradients(dphi, dalpha, dbias, *_typed(dbias, sums, site.weight, site.shift)))


def _seam_backward(given: SeamBackward) -> SeamGradients | None:
    fields, since = spec_of_call.mixing_fields(given), spec_of_call.replayed(given.history)
    if fields is None or since is None:
        return None
    site, tail = given.site, given.written.tail
    write = [given.x, *_tensors(given.written), *_steps(given.history)]
    tensors = [given.g_x, *given.upstream, *write, *_saved(site, given.options)]
    dx, df, dpost, dres, dphi, dalpha, dbias, *sums = _launch(
        "backward", _rows(given.written.f), tensors, fields | since
    )
    doffset, dscale, dweight, dshift = _typed(dbias, sums, tail.offset, tail.scale, site.weight, site.shift)
    return SeamGradients(
        WrittenGradients(dx, df, dpost, dres, doffset, dscale), SiteGradients(dphi, dalpha, dbias, dweight, dshift)
    )


def _with_vectors(f: Tensor, tail: Tail) -> Tensor:
    """Return f with the tail's vectors, in fp32; as it is where there are none."""
    if tail.offset is None and tail.scale is None:
        return f
    return with_tail(f, tail._replace(multiplier=1.0), f.new_empty(0, dtype=torch.float32))


def _leave(given: Leave) -> Tensor | None:
    fields, (f, post, res, tail) = spec_of_call.mixing_fields(given), given.written
    if fields is None:
        return None
    (out,) = _launch("forward", _rows(f), [given.x, _with_vectors(f, tail), post, res], fields)
    return out


def _leave_backward(given: LeaveBackward) -> WrittenGradients | None:
    fields, since, (f, post, res, tail) = (
        spec_of_call.mixing_fields(given.leave),
        spec_of_call.replayed(given.history),
        given.leave.written,
    )
    if fields is None or since is None:
        return None
    tensors = [given.g, given.leave.x, _with_vectors(f, tail), post, res, *_steps(given.history)]
    dx, df, dpost, dres = _launch("backward", _rows(f), tensors, fields | since)
    doffset, dscale = dpost.new_empty(0), dpost.new_empty(0)
    if tail.scale is not None:
        bare = f.float() if tail.offset is None else f.float() + tail.offset
        dscale, df = by_token(df * bare).sum(0).to(tail.scale.dtype), df * tail.scale
    if tail.offset is not None:
        doffset = by_token(df).sum(0).to(tail.offset.dtype)
    return WrittenGradients(dx, df.to(f.dtype), dpost, dres, doffset, dscale)


def _replay(given: Replay) -> Tensor | None:
    head, past = given.head, given.history
    fields = spec_of_call.replay_fields(given)
    if fields is None:
        return None
    first, *_ = past.fs
    (streams,) = _launch("forward", _rows(first), [head, *_steps(past)], fields)
    return streams


def _coefficients(given: Coefficients) -> CoefficientsResult | None:
    fields = spec_of_call.coefficient_fields("coefficients", given.x, given.maps)
    if fields is None:
        return None
    tensors = [given.x, *given.parameters]
    post, res, pre, y, r = _launch("forward", _tokens(given.x, given.maps.n), tensors, fields)
    return CoefficientsResult(pre, post, res, y, r)


def _coefficients_backward(given: CoefficientsBackward) -> CoefficientsGradients | None:
    fields, n = spec_of_call.coefficient_fields("coefficients", given.x, given.maps), given.maps.n
    if fields is None:
        return None
    pre = torch.sigmoid(given.y[..., :n] * given.alpha[0] + given.bias[:n])  # which the op did not keep
    site = [given.phi, given.alpha, given.bias, pre, given.y, given.r]
    tensors = [given.g_pre, given.g_post, given.g_res, given.x, *site]
    return CoefficientsGradients(*_launch("backward", _tokens(given.x, n), tensors, fields))


_KERNELS: dict[str, Callable[[Any], Any]] = {
    "enter": _enter,
    "seam": _seam,
    "leave": _leave,
    "coefficients": _coefficients,
    "enter_backward": _enter_backward,
    "seam_backward": _seam_backward,
    "leave_backward": _leave_backward,
    "coefficients_backward": _coefficients_backward,
    "replay": _replay,
}
