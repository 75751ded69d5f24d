"""Blocks that keep the streams at their head only: what the backward of a write behind it reads is replayed.

    replay          the streams that a block's writes make of its head, bit for bit as `seam` made them
    seam_in_block   `seam`, whose backward takes the head and the writes since in place of x
    leave_in_block  `leave`, likewise

The two last trace to `seam` and `leave` themselves: the graph of the forward holds neither head nor history, which are
only saved, and x is not. All gradients go through x; head and history get none here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mhc_compile.ops import fused, seams
from mhc_compile.ops.fused import History
from mhc_compile.ops.library import _LIB, _impl
from mhc_compile.ops.seams import HISTORY, OPTIONS, SITE, TAKEN, WRITE

_LIB.define(f"replay(Tensor head, {HISTORY}, int n) -> Tensor")
_LIB.define(f"seam_in_block({WRITE}, {SITE}, {OPTIONS}, Tensor head, {HISTORY}) -> Tensor[]")
_LIB.define(f"leave_in_block({WRITE}, int n, bool plain, Tensor head, {HISTORY}) -> Tensor")


# -- replay -----------------------------------------------------------------------------------------------------------


def _fake_replay(head: Tensor, fs: Sequence[Tensor], *rest: Any) -> Tensor:
    return seams.written(head, fs[0], rest[-1])


def _save_replay(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    # torch takes a list for its tensors, but one with a None in it for a single input
    ctx.lists = [[None] * len(given) if all(t is not None for t in given) else None for given in inputs[1:6]]


def _no_gradient(ctx: Any, g: Tensor | None) -> tuple[Any, ...]:
    """Pass on that there is none: `seam_in_block` gives its head none."""
    if g is not None:
        raise NotImplementedError(
            "mhc::replay makes streams again for a backward and has no gradient: that goes through the streams which"
            " the forward made"
        )
    return None, *ctx.lists, None, None, None


seams.register("replay", fused.replay, _fake_replay, _no_gradient, _save_replay)


# -- in a block -------------------------------------------------------------------------------------------------------


def _flat(head: Tensor, *history: Any) -> list[Any]:
    """Return head and history without lists, so that autograd sees every tensor."""
    return [head, *chain(*history[:6]), history[6]]


def _history(flat: Sequence[Any]) -> History:
    """Return the history that `_flat` laid flat behind its head."""
    k = len(flat) // 6
    lists: list[Any] = [flat[i * k : (i + 1) * k] for i in range(6)]
    return History._make([*lists, flat[-1]])


class _InBlock(Function):
    """An op whose backward gets the block's head for x, and its history; `taken` is how much the op takes itself."""

    taken: int

    @classmethod
    def keep(cls, ctx: Any, inputs: tuple[Any, ...], saved: Sequence[Tensor | None]) -> None:
        """Save the head, in place of x, then these tensors and those of the history."""
        ctx.set_materialize_grads(False)
        head, *past = inputs[cls.taken :]
        ctx.tensors, ctx.constants = len(saved) + 1, past[5 * (len(past) // 6) :]
        ctx.save_for_backward(head, *saved, *past[: -len(ctx.constants)])

    @staticmethod
    def kept(ctx: Any) -> tuple[Sequence[Any], History, list[None]]:
        """Return what was saved: the op's tensors, the history, and no gradient for any part of it."""
        saved = ctx.saved_tensors
        past = [*saved[ctx.tensors :], *ctx.constants]
        return saved[: ctx.tensors], _history(past), [None] * (1 + len(past))


class _Seam(_InBlock):
    taken = TAKEN["seam_in_block"]

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return tuple(torch.ops.mhc.seam(*inputs[: _Seam.taken]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _Seam.keep(ctx, inputs, (*inputs[1:6], *inputs[7:13], *output[4:]))
        ctx.multiplier, ctx.options = inputs[6], inputs[13 : _Seam.taken]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        tensors, history, none = _InBlock.kept(ctx)
        found = seams.seam_gradients(grads, tensors[:6], ctx.multiplier, tensors[6:], ctx.options, history)
        return *found, *none


class _Leave(_InBlock):
    taken = TAKEN["leave_in_block"]

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        made: Tensor = torch.ops.mhc.leave(*inputs[: _Leave.taken])
        return made

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _Leave.keep(ctx, inputs, inputs[1:6])
        ctx.rest = inputs[6 : _Leave.taken]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        tensors, history, none = _InBlock.kept(ctx)
        return *seams.leave_gradients(g, tensors, ctx.rest, history), *none


def _seam_in_block(*args: Any) -> list[Tensor]:
    return list(_Seam.apply(*args[: _Seam.taken], *_flat(*args[_Seam.taken :])))  # type: ignore[no-untyped-call]  # torch leaves it so


def _leave_in_block(*args: Any) -> Tensor:
    made: Tensor = _Leave.apply(*args[: _Leave.taken], *_flat(*args[_Leave.taken :]))  # type: ignore[no-untyped-call]  # torch leaves it so
    return made


_impl("seam_in_block", _seam_in_block, "CompositeImplicitAutograd")
_impl("leave_in_block", _leave_in_block, "CompositeImplicitAutograd")
