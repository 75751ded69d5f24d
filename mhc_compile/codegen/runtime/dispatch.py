"""Generated kernels as the ops' implementation on a device: importing this module changes nothing, `register` does."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mhc_compile.codegen.runtime import build, cache, tune
from mhc_compile.codegen.runtime.dtypes import TORCH
from mhc_compile.codegen.spec import Spec, Step
from mhc_compile.codegen.triton.generate import generate
from mhc_compile.ops import seams
from mhc_compile.ops.connections import by_token
from mhc_compile.ops.fused import History, Options, Saved, Tail
from mhc_compile.ops.library import MEANINGS

NAMES = {dtype: name for name, dtype in TORCH.items()}
_REGISTERED: dict[str, torch.library.Library] = {}


def register(key: str = "CUDA") -> None:
    """Let generated kernels run the ops on tensors of a dispatch key, once per process.

    What no kernel is generated for (`seams.why_not`) still runs as the reference. On "CPU" kernels run only in
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
        lib.impl(name, _or_reference(function, MEANINGS[name]), key)
    _REGISTERED[key] = lib


def _or_reference(kernel: Callable[..., Any], meaning: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that runs the kernel where there is one for its arguments."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        made = kernel(*args)
        return meaning(*args) if made is None else made

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


def _site(op: str, x: Tensor, o: Options, weight: Tensor | None, shift: Tensor | None) -> dict[str, Any] | None:
    """Return the fields of a Spec that `enter` and `seam` share; None where no kernel is generated."""
    if seams.why_not(o.n, o.connection, o.projection, x.dtype) is not None:
        return None
    rest = {name: value for name, value in o._asdict().items() if name != "connection"}
    return {
        **rest,
        "op": op,
        "channels": x.shape[-1],
        "dtype": NAMES[x.dtype],
        "weight": weight is not None,
        "shift": shift is not None,
    }


def _write(f: Tensor, tail: Tail) -> dict[str, Any]:
    given = {"offset": tail.offset is not None, "scale": tail.scale is not None}
    return {"branch": NAMES[f.dtype], "multiplier": tail.multiplier, **given}


def _replayed(past: History) -> dict[str, Any] | None:
    """Return the fields of a Spec that a history has; None where no kernel replays it."""
    if len(past.fs) > seams.MOST_WRITES or any(f.dtype not in NAMES for f in past.fs):
        return None
    tails = map(Tail, past.offsets, past.scales, past.multipliers)
    steps = [Step(**_write(f, tail)) for f, tail in zip(past.fs, tails, strict=True)]
    return {"history": tuple(steps), "plain_head": past.plain_head} if steps else {}


def _steps(past: History) -> list[Tensor | None]:
    """Return the tensors of a history as a generated function takes them: write by write."""
    return [t for step in zip(*past[:5], strict=True) for t in step]


def _padded(made: list[Tensor], norm: str) -> list[Tensor]:
    """Give the norm's mean and inverse deviation their places, `[0]` where there is none."""
    none = made[-1].new_empty
    if norm == "layer":
        return made
    return [*made[:-1], none(0), made[-1]] if norm != "none" else [*made, none(0), none(0)]


def _norm(site: Saved, o: Options) -> list[Tensor | None]:
    """Return what a backward takes of the norm's statistics."""
    return [site.mean if o.norm == "layer" else None, site.rstd if o.norm != "none" else None]


def _typed(dbias: Tensor, sums: Iterable[Tensor], *like: Tensor | None) -> list[Tensor]:
    """Give sums over tokens the dtypes of what they are gradients of, `[0]` for what is not there."""
    found = iter(sums)
    return [dbias.new_empty(0) if t is None else next(found).to(t.dtype) for t in like]


def specs(op: str, *args: Any) -> list[Spec]:
    """Return what is generated for a call of `enter`, `seam` or `leave`; nothing where no kernel is or C is symbolic.

    In a block, that is a file for the forward and one for the backward, which replays.
    """
    taken = seams.TAKEN.get(op)
    spec = _spec(op.removesuffix("_in_block"), *args[:taken])
    if taken is None or spec is None:
        return [] if spec is None else [spec]
    since = _replayed(History(*args[taken + 1 :]))
    return [spec, dataclasses.replace(spec, **since)] if since else [spec]


def _spec(op: str, x: Tensor, *rest: Any) -> Spec | None:
    write = op != "enter"
    if not isinstance(x.shape[-1], int) or x.dtype not in NAMES or (write and rest[0].dtype not in NAMES):
        return None
    if op == "leave":
        fields = _leave_fields(x, rest[0], Tail(*rest[3:6]), *rest[6:])
    else:
        site = rest[6:] if write else rest
        fields = _site(op, x, Options(*site[6:]), *site[4:6])
    if fields is None:
        return None
    return Spec(**fields, **(_write(rest[0], Tail(*rest[3:6])) if op == "seam" else {}))


def _enter(x: Tensor, *rest: Any) -> list[Tensor] | None:
    o = Options(*rest[6:])
    fields = _site("enter", x, o, *rest[4:6])
    if fields is None:
        return None
    return _padded(_launch("forward", _tokens(x, o), [x, *rest[:6]], fields), o.norm)


def _seam(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> list[Tensor] | None:
    tail, o = Tail(*rest[:3]), Options(*rest[9:])
    fields = _site("seam", x, o, *rest[7:9])
    if fields is None or f.dtype not in NAMES:
        return None
    given = [x, f, h_post, h_res, tail.offset, tail.scale, *rest[3:9]]
    return _padded(_launch("forward", _tokens(x, o), given, fields | _write(f, tail)), o.norm)


def _enter_backward(g_u: Tensor, g_post: Tensor, g_res: Tensor, x: Tensor, *rest: Any) -> list[Tensor] | None:
    site, o = Saved(*rest[:10]), Options(*rest[10:])
    fields = _site("enter", x, o, site.weight, site.shift)
    if fields is None:
        return None
    given = [g_u, g_post, g_res, x, *site[:4], site.h_pre, site.y, site.r, *_norm(site, o)]
    dx, dphi, dalpha, dbias, *sums = _launch("backward", _tokens(x, o), given, fields)
    return [dx, dphi, dalpha, dbias, *_typed(dbias, sums, site.weight, site.shift)]


def _seam_backward(g_x: Tensor, g_u: Tensor, g_post: Tensor, g_res: Tensor, *rest: Any) -> list[Tensor] | None:
    x, f, h_post, h_res, *more = rest[:7]
    tail, site, o, past = Tail(*more), Saved(*rest[7:17]), Options(*rest[17:25]), History(*rest[25:])
    fields, since = _site("seam", x, o, site.weight, site.shift), _replayed(past)
    if fields is None or since is None or f.dtype not in NAMES:
        return None
    write = [x, f, h_post, h_res, tail.offset, tail.scale, *_steps(past)]
    given = [g_x, g_u, g_post, g_res, *write, *site[:4], site.h_pre, site.y, site.r, *_norm(site, o)]
    dx, df, dpost, dres, dphi, dalpha, dbias, *sums = _launch(
        "backward", _rows(f), given, fields | _write(f, tail) | since
    )
    vectors = _typed(dbias, sums, tail.offset, tail.scale, site.weight, site.shift)
    return [dx, df, dpost, dres, *vectors[:2], dphi, dalpha, dbias, *vectors[2:]]


def _rows(f: Tensor) -> int:
    """Return the number of tokens of a branch's output."""
    return f.numel() // max(f.shape[-1], 1)


def _tokens(x: Tensor, o: Options) -> int:
    return x.numel() // (x.shape[-1] * (1 if o.plain else o.n)) if x.numel() else 0


def _leave_fields(x: Tensor, f: Tensor, tail: Tail, n: int, plain: bool) -> dict[str, Any] | None:
    """Return the fields of a Spec. A kernel takes in the multiplier; vectors are applied around it, once per region."""
    if seams.why_not(n, "mhc", "identity", x.dtype) is not None or f.dtype not in NAMES:
        return None
    wide = tail.offset is not None or tail.scale is not None
    dtypes = {"dtype": NAMES[x.dtype], "branch": "fp32" if wide else NAMES[f.dtype]}
    return {"op": "leave", "n": n, "channels": x.shape[-1], "plain": plain, "multiplier": tail.multiplier, **dtypes}


def _with_vectors(f: Tensor, tail: Tail) -> Tensor:
    """Return f with the tail's vectors, in fp32; as it is where there are none."""
    if tail.offset is None and tail.scale is None:
        return f
    return tail._replace(multiplier=1.0).apply(f, f.new_empty(0, dtype=torch.float32))


def _leave(x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> Tensor | None:
    tail, (n, plain) = Tail(*rest[:3]), rest[3:]
    fields = _leave_fields(x, f, tail, n, plain)
    if fields is None:
        return None
    given = [x, _with_vectors(f, tail), h_post, h_res]
    return _launch("forward", _rows(f), given, fields)[0]


def _leave_backward(g: Tensor, x: Tensor, f: Tensor, h_post: Tensor, h_res: Tensor, *rest: Any) -> list[Tensor] | None:
    tail, (n, plain), past = Tail(*rest[:3]), rest[3:5], History(*rest[5:])
    fields, since = _leave_fields(x, f, tail, n, plain), _replayed(past)
    if fields is None or since is None:
        return None
    given = [g, x, _with_vectors(f, tail), h_post, h_res, *_steps(past)]
    dx, df, dpost, dres = _launch("backward", _rows(f), given, fields | since)
    doffset, dscale = dpost.new_empty(0), dpost.new_empty(0)
    if tail.scale is not None:
        bare = f.float() if tail.offset is None else f.float() + tail.offset
        dscale, df = by_token(df * bare).sum(0).to(tail.scale.dtype), df * tail.scale
    if tail.offset is not None:
        doffset = by_token(df).sum(0).to(tail.offset.dtype)
    return [dx, df.to(f.dtype), dpost, dres, doffset, dscale]


def _replay(head: Tensor, *rest: Any) -> Tensor | None:
    past, n = History(*rest[:7]), rest[7]
    since = _replayed(past)
    if since is None or seams.why_not(n, "mhc", "identity", head.dtype) is not None:
        return None
    fields = {"op": "replay", "n": n, "channels": head.shape[-1], "dtype": NAMES[head.dtype], **since}
    return _launch("forward", _rows(past.fs[0]), [head, *_steps(past)], fields)[0]


def _coefficients(x: Tensor, *rest: Any) -> list[Tensor] | None:
    n, connection, projection, iters, eps = rest[4:]
    o = Options(n, connection, projection, iters, eps, "none", 1e-6, False)
    fields = _site("coefficients", x, o, None, None)
    if fields is None:
        return None
    post, res, pre, y, r = _launch("forward", _tokens(x, o), [x, *rest[:4]], fields)
    return [pre, post, res, y, r]


def _coefficients_backward(g_pre: Tensor, g_post: Tensor, g_res: Tensor, x: Tensor, *rest: Any) -> list[Tensor] | None:
    phi, alpha, bias, y, r, n, connection, projection, iters, eps = rest
    o = Options(n, connection, projection, iters, eps, "none", 1e-6, False)
    fields = _site("coefficients", x, o, None, None)
    if fields is None:
        return None
    maps = [phi, alpha, bias, _pre(y, alpha, bias, n), y, r]
    return _launch("backward", _tokens(x, o), [g_pre, g_post, g_res, x, *maps], fields)


def _pre(y: Tensor, alpha: Tensor, bias: Tensor, n: int) -> Tensor:
    """Make H_pre again, which the op did not keep."""
    return torch.sigmoid(y[..., :n] * alpha[0] + bias[:n])


_KERNELS: dict[str, Callable[..., Any]] = {
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
