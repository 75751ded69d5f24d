"""Which file a call of an op runs: the Spec of its arguments, or none where no kernel is generated for them."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from mhc_compile.codegen.runtime.dtypes import TORCH
from mhc_compile.codegen.spec import Spec, Step
from mhc_compile.ops import limits
from mhc_compile.ops.projections import SMOOTH
from mhc_compile.ops.signatures import (
    OPS,
    Enter,
    EnterBackward,
    History,
    Leave,
    LeaveInBlock,
    MapOptions,
    Options,
    Replay,
    Seam,
    SeamBackward,
    SeamInBlock,
    Tail,
    named,
)

NAMES = {dtype: name for name, dtype in TORCH.items()}
Fields = dict[str, Any]  # of a Spec


def specs(op: str, *args: Any) -> list[Spec]:
    """Return what is generated for a call of `enter`, `seam` or `leave`; nothing where no kernel is or C is symbolic.

    In a block, that is a file for the forward and one for the backward, which replays.
    """
    given: Any = named(OPS[op].arguments, args)
    if isinstance(given, SeamInBlock):
        return _with_replay(_spec(given.seam), given.history)
    if isinstance(given, LeaveInBlock):
        return _with_replay(_spec(given.leave), given.history)
    spec = _spec(given)
    return [] if spec is None else [spec]


def _with_replay(spec: Spec | None, history: History) -> list[Spec]:
    if spec is None:
        return []
    since = replayed(history)
    return [spec, dataclasses.replace(spec, **since)] if since else [spec]


def _spec(given: Enter | Seam | Leave) -> Spec | None:
    if not isinstance(given.x.shape[-1], int) or given.x.dtype not in NAMES:
        return None
    fields = enter_fields(given) if isinstance(given, Enter) else mixing_fields(given)
    return None if fields is None else Spec(**fields)


def _site(op: str, x: Tensor, o: Options, weight: Tensor | None, shift: Tensor | None) -> Fields | None:
    """Return the fields of a Spec that a site has; None where no kernel is generated."""
    fields = coefficient_fields(op, x, o.maps)
    if fields is None:
        return None
    given = {"weight": weight is not None, "shift": shift is not None}
    return fields | given | {"norm": o.norm, "norm_eps": o.norm_eps, "equal_streams": o.equal_streams}


def coefficient_fields(op: str, x: Tensor, maps: MapOptions) -> Fields | None:
    """Return the fields that coefficients need."""
    if not maps.kernels or limits.why_not(maps.n, maps.connection, maps.projection, x.dtype) is not None:
        return None
    how = {"n": maps.n, "projection": maps.projection, "iters": maps.iters, "eps": maps.eps}
    if maps.connection == "deepseek-v4":
        how["smooth"] = SMOOTH
    return {"op": op, "channels": x.shape[-1], "dtype": NAMES[x.dtype], **how}


def enter_fields(given: Enter | EnterBackward) -> Fields | None:
    """Return the fields for `enter` and its backward."""
    return _site("enter", given.x, given.options, given.site.weight, given.site.shift)


def mixing_fields(given: Seam | SeamBackward | Leave) -> Fields | None:
    """Return the fields for an op that writes."""
    if given.written.f.dtype not in NAMES:
        return None
    if isinstance(given, Leave):
        return _leave_fields(given)
    fields = _site("seam", given.x, given.options, given.site.weight, given.site.shift)
    return None if fields is None else fields | _write(given.written.f, given.written.tail)


def _leave_fields(given: Leave) -> Fields | None:
    """Return the fields of a Spec. A kernel takes in the multiplier; vectors are applied around it, once per region."""
    x, f, tail = given.x, given.written.f, given.written.tail
    if limits.why_not(given.n, "mhc", "identity", x.dtype) is not None:
        return None
    wide = tail.offset is not None or tail.scale is not None
    dtypes = {"dtype": NAMES[x.dtype], "branch": "fp32" if wide else NAMES[f.dtype]}
    how = {"equal_streams": given.equal_streams, "multiplier": tail.multiplier}
    return {"op": "leave", "n": given.n, "channels": x.shape[-1], **how, **dtypes}


def replay_fields(given: Replay) -> Fields | None:
    """Return the fields for `replay`."""
    x, since = given.head, replayed(given.history)
    if since is None or limits.why_not(given.n, "mhc", "identity", x.dtype) is not None:
        return None
    return {"op": "replay", "n": given.n, "channels": x.shape[-1], "dtype": NAMES[x.dtype], **since}


def _write(f: Tensor, tail: Tail) -> Fields:
    given = {"offset": tail.offset is not None, "scale": tail.scale is not None}
    return {"branch": NAMES[f.dtype], "multiplier": tail.multiplier, **given}


def replayed(past: History) -> Fields | None:
    """Return the fields of a Spec that a history has; None where no kernel replays it."""
    if len(past.fs) > limits.MOST_WRITES or any(f.dtype not in NAMES for f in past.fs):
        return None
    steps = tuple(Step(**_write(write.f, write.tail)) for write in past.writes())
    return {"history": steps, "equal_head": past.equal_head} if steps else {}
