"""What runs in the process where generated kernels are interpreted (see `codegen.inspect.subprocess_call`)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from mhc_compile.codegen.runtime import dispatch, tune
from mhc_compile.ops.registration import call
from mhc_compile.ops.signatures import Replay, flat
from tests.equations import far, helpers
from tests.equations.block import Block, same
from tests.equations.fused import Fused, only_given, trainable
from tests.equations.helpers import Case, Function, check, spread_out, values_and_gradients

Tiles = dict[str, dict[str, int]]


def prepared(case: Fused, op: str) -> tuple[Function, Function, list[Tensor]]:
    """The op by kernels and by the equations, and the tensors that it takes."""
    dispatch.register("CPU")
    if op == "coefficients":
        return helpers.coefficients(case), case.reference, [case.streams(), *case.parameters()]
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    return by_op, only_given(case.by_equation(op), case.tensors(op))[0], given


def compare(
    case: Fused, op: str, tiles: Tiles | None = None, strided: bool = False, tolerance: float | None = None
) -> None:
    """Assert that values and every gradient of an op, run by generated kernels, are those of the equations."""
    by_op, by_equation, given = prepared(case, op)
    with poisoned(), launching(tiles) as launched:
        check(by_op, by_equation, [spread_out(t) for t in given] if strided else given, tolerance)
    assert launched == ["forward", "backward"]


def rounded_once(case: Fused, op: str) -> None:
    """Assert that narrow results are the equations' to rounding, and coefficients as exact as fp32 allows."""
    by_op, by_equation, given = prepared(case, op)
    with poisoned():
        found = values_and_gradients(by_op, given, wide=False)
    exact = values_and_gradients(by_equation, given, wide=True)
    ulp = torch.finfo(case.dtype).eps
    for actual, wanted in zip(itertools.chain(*found), itertools.chain(*exact), strict=True):
        if actual.dtype == case.dtype:
            off = (actual.double() - wanted.to(case.dtype).double()).abs()
            largest = wanted.abs().amax(-1, keepdim=True)
            assert (off <= 2 * ulp * largest).all()
            assert (off > ulp * wanted.abs()).double().mean() <= (1e-3 if actual.dim() > 1 else 0.05)
            assert (off != 0).double().mean() <= (0.01 if actual.dim() > 1 else 0.1)
        else:  # a tie of a stream shows in a seam's coefficients, which are made of the rounded streams
            helpers.near(actual, wanted, ulp / 2 if op == "seam" else 1e-5 if actual.dim() > 2 else 1e-4)


def repeatable(case: Fused, op: str) -> None:
    """Assert that two runs agree to the bit."""
    by_op, _, given = prepared(case, op)
    one, two = (values_and_gradients(by_op, given, wide=False) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(itertools.chain(*one), itertools.chain(*two), strict=True))


def doubly_stochastic(n: int, scale: float) -> tuple[float, float]:
    """Return how far rows and columns of H_res are from sums of 1."""
    case = Fused(n, 16, (64,), dtype=torch.float32, scale=scale)
    by_op, _, given = prepared(case, "coefficients")
    _, _, res = by_op(*given)
    mixing = res.double()
    return float((mixing.sum(-1) - 1).abs().max()), float((mixing.sum(-2) - 1).abs().max())


def far_logits(n: int, iters: int, span: float) -> None:
    """Assert that H_res and its gradient are those of logits that span so much."""
    dispatch.register("CPU")
    for kind in far.KINDS:
        z, grad = far.logits(kind, n, span)[0], helpers.normal(n, n, seed=1).float()
        case = Case(n, 16, (3,), dtype=torch.float32, iters=iters)
        x, (phi, alpha, delta, base) = case.streams(), case.parameters()
        delta[2 * n :] = z.flatten() - base[2 * n :]
        z = (base + delta)[2 * n :].view(n, n)
        delta.requires_grad_()
        with poisoned():
            *_, made = helpers.coefficients(case)(x, torch.zeros_like(phi), alpha, delta, base)
            (found,) = torch.autograd.grad(made, delta, grad.expand(3, n, n))
        assert torch.equal(made, made[:1].expand_as(made))
        far.check(made[0].detach(), found[2 * n :].view(n, n) / 3, z, grad, iters)


def large_streams(case: Fused, op: str, size: float) -> tuple[Tensor, ...]:
    """Return values and gradients of an op at streams and branches that are so large."""
    if case.kernels:
        dispatch.register("CPU")
    by_op, given = only_given(case.by_op(op), case.tensors(op))
    large = [t * size if t.shape[-2:] == (case.n, case.c) or t.shape == (*case.tokens, case.c) else t for t in given]
    with poisoned():
        values, gradients = values_and_gradients(by_op, large, wide=False)
    return *(value.detach() for value in values), *gradients


def as_the_reference(found: tuple[Tensor, ...], case: Fused, op: str, size: float) -> None:
    """Assert that what `large_streams` returned is finite, and what the op's meaning gives."""
    wanted = large_streams(dataclasses.replace(case, kernels=False), op, size)
    for actual, expected in zip(found, wanted, strict=True):
        assert actual.isfinite().all()
        helpers.near(actual, expected, helpers.TOLERANCE[case.dtype])


def reference_runs(case: Fused, op: str) -> None:
    """Assert that what no kernel is generated for runs as the reference, in silence."""
    by_op, by_equation, given = prepared(case, op)
    with launching(None) as launched:
        check(by_op, by_equation, given)
    assert not launched


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Fill whatever is allocated with NaN, so that what is never written shows."""

    def full(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def made(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    patches = (mock.patch.object(torch, name, full(getattr(torch, name))) for name in ("empty", "empty_like"))
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield


@contextlib.contextmanager
def launching(tiles: Tiles | None) -> Iterator[list[str]]:
    """Note the directions that generated modules run in, with these tiles over the default ones."""
    launched: list[str] = []

    def chosen(module: Any, direction: str, *_: Any) -> Tiles:
        launched.append(direction)
        known: Tiles = module.TILES
        changed = {name: {**known.get(name, {}), **values} for name, values in (tiles or {}).items()}
        return {**known, **changed}

    with mock.patch.object(tune, "tiles", chosen):
        yield launched


def mixed_types(case: Fused, op: str) -> None:
    """Assert that every result and gradient is of its tensor's dtype and near the equations."""
    by_op, by_equation, given = prepared(case, op)
    with poisoned():
        outputs, found = values_and_gradients(by_op, given, wide=False)
    values, exact = values_and_gradients(by_equation, given, wide=True)
    assert [g.dtype for g in found] == [t.dtype for t in given]
    for actual, wanted in zip((*outputs, *found), (*values, *exact), strict=True):
        helpers.near(actual, wanted, torch.finfo(torch.bfloat16).eps * 4)


def opcheck(case: Fused, op: str) -> None:
    """Let torch check schema, fakes and autograd of an op, and of its backward, that kernels run."""
    dispatch.register("CPU")
    with launching(None) as launched:
        torch.library.opcheck(getattr(torch.ops.mhc, op).default, tuple(trainable(case.signature(op))))
        back = case.backward_signature(op)
        torch.library.opcheck(getattr(torch.ops.mhc, f"{op}_backward").default, tuple(flat(back)))
    assert {"forward", "backward"} <= set(launched)


def replayed(block: Block, op: str) -> None:
    """Assert that gradients by kernels that replay are, to the bit, those by kernels that read what was written."""
    dispatch.register("CPU")
    with poisoned(), launching(None) as launched:
        made = call("replay", Replay(block.head(), block.history(), block.case.n))
        assert torch.equal(made, block.streams())
        same(block, op)
    assert launched.count("backward") == 2
