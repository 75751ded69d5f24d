"""Blocks that keep the streams at their head only: what the backward of a write behind it reads is replayed.

    replay          the streams that a block's writes make of its head, bit for bit as `seam` made them
    seam_in_block   `seam`, whose backward takes the head and the writes since in place of x
    leave_in_block  `leave`, likewise

The last two trace to `seam` and `leave` themselves: the graph of the forward holds neither head nor history, which are
only saved, and x is not. All gradients go through x; head and history get none here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mhc_compile.ops import fused, seams
from mhc_compile.ops.registration import call, decompose, register, save, saved
from mhc_compile.ops.signatures import (
    History,
    Kept,
    Leave,
    LeaveInBlock,
    Replay,
    Seam,
    SeamInBlock,
    SeamResult,
    Written,
    filled,
    flat,
    named,
    take,
)

# -- replay -----------------------------------------------------------------------------------------------------------

_TENSORS = ("fs", "posts", "ress", "offsets", "scales")  # what of a history may have gradients


def _fake_replay(given: Replay) -> Tensor:
    first, *_ = given.history.fs
    return seams.written_to(given.head, first, given.n)


def _save_replay(ctx: Any, given: Replay, made: Tensor) -> None:
    ctx.set_materialize_grads(False)
    lists = {name: getattr(given.history, name) for name in _TENSORS}
    # torch takes a list for its tensors, but one with a None in it for a single input
    ctx.none = {name: [None] * len(found) for name, found in lists.items() if all(t is not None for t in found)}


def _no_gradient(ctx: Any, g: Tensor | None) -> tuple[Any, ...]:
    """Pass on that there is none: `seam_in_block` gives its head none."""
    if g is not None:
        raise NotImplementedError(
            "mhc::replay makes streams again for a backward and has no gradient: that goes through the streams which"
            " the forward made"
        )
    return filled(Replay, **ctx.none)


register("replay", fused.replay, _fake_replay, _no_gradient, _save_replay)


# -- in a block -------------------------------------------------------------------------------------------------------


def _laid_out(head: Tensor, history: History) -> list[Any]:
    """Return a block write by write, without lists, so that autograd sees every tensor."""
    writes = history.writes()
    return [head, history.equal_head, len(writes), *(leaf for write in writes for leaf in flat(write))]


def _block(values: Iterator[Any]) -> tuple[Tensor, History]:
    """Return the head and the history that `_laid_out` made."""
    head, equal_head, count = (next(values) for _ in range(3))
    return head, History.of([take(Written, values) for _ in range(count)], equal_head)


class _Seam(Function):
    """A seam whose backward gets the block's head for x, and its history."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(flat(call("seam", take(Seam, iter(inputs)))))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        values = iter(inputs)
        given, kept = take(Seam, values), named(SeamResult, output).arrival.kept
        head, history = _block(values)
        block = _laid_out(head, history)
        save(ctx, *flat(given._replace(x=head)), *block, kept=kept)
        ctx.none = [None] * len(block)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        values = saved(ctx)
        given = take(Seam, values)
        _, history = _block(values)
        kept = take(Kept, values)
        return *seams.seam_gradients(named(SeamResult, grads), given, kept, history), *ctx.none


class _Leave(Function):
    """A leave whose backward gets the block's head for x, and its history."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        made: Tensor = call("leave", take(Leave, iter(inputs)))
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values = iter(inputs)
        given = take(Leave, values)
        head, history = _block(values)
        block = _laid_out(head, history)
        save(ctx, *flat(given._replace(x=head)), *block)
        ctx.none = [None] * len(block)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        values = saved(ctx)
        given = take(Leave, values)
        _, history = _block(values)
        return *seams.leave_gradients(g, given, history), *ctx.none


def _seam_in_block(*args: Any) -> list[Tensor]:
    given = named(SeamInBlock, args)
    if not torch.is_grad_enabled():
        return flat(call("seam", given.seam))
    return list(_Seam.apply(*flat(given.seam), *_laid_out(given.head, given.history)))  # type: ignore[no-untyped-call]  # torch leaves it so


def _leave_in_block(*args: Any) -> Tensor:
    given = named(LeaveInBlock, args)
    made: Tensor
    if torch.is_grad_enabled():
        made = _Leave.apply(*flat(given.leave), *_laid_out(given.head, given.history))  # type: ignore[no-untyped-call]  # torch leaves it so
    else:
        made = call("leave", given.leave)
    return made


decompose("seam_in_block", _seam_in_block)
decompose("leave_in_block", _leave_in_block)
