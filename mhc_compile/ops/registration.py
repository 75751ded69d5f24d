"""How torch gets to know an op of the mhc IR: its schema, what it means, its shapes, its gradient.

What `register` is given takes an op's signature and returns its named results. Torch's flat arguments and lists are
seen here, and by functions that `decompose` is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from mhc_compile.ops import signatures
from mhc_compile.ops.signatures import OPS, flat, named, names

MEANINGS: dict[str, Callable[..., Any]] = {}  # how ops that do not decompose run where no kernel is registered

_LIBRARY = torch.library.Library("mhc", "DEF")
_IMPLEMENT: Callable[..., None] = _LIBRARY.impl  # torch leaves it untyped
_SAVED = object()  # stands for a tensor among what is saved

for _name, _op in OPS.items():
    _LIBRARY.define(signatures.schema(_name, *_op))


def decompose(name: str, function: Callable[..., Any]) -> None:
    """Let an op be a function of its flat arguments that disappears wherever a graph is traced to ATen."""
    _IMPLEMENT(name, function, "CompositeImplicitAutograd")


def mark(name: str, meaning: Callable[[Any], None], fake: Callable[[Any], None]) -> None:
    """Register an op that returns nothing and must not be removed as dead code."""
    arguments = OPS[name].arguments
    _IMPLEMENT(name, lambda *args: meaning(named(arguments, args)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"mhc::{name}", lambda *args: fake(named(arguments, args)), lib=_LIBRARY)
    torch.library.register_vmap(f"mhc::{name}", lambda *_: (None, None), lib=_LIBRARY)  # of parameters in a batch
    torch.fx.node.has_side_effect(getattr(torch.ops.mhc, name).default)


def register(
    name: str,
    meaning: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    gradient: Callable[..., Any] | None = None,
    save: Callable[..., None] | None = None,
) -> None:
    """Register an op that stays one op however it is traced.

    Args:
        name: of the op, one of OPS.
        meaning: its results for its signature, which runs where there is no kernel: without autocast, and results are
            made contiguous.
        fake: new tensors like its results, for its signature.
        gradient: takes torch's context and the gradients of its results; without one, a derivative is refused.
        save: takes torch's context, the signature and the named results.
    """
    arguments, results = OPS[name]

    def run(first: Tensor, *rest: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            made = meaning(named(arguments, (first, *rest)))
            return made.contiguous() if results is Tensor else [t.contiguous() for t in flat(made)]

    def shapes(*args: Any) -> Any:
        made = fake(named(arguments, args))
        return made if results is Tensor else flat(made)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        if save is not None:
            save(ctx, named(arguments, inputs), output if results is Tensor else named(results, output))

    MEANINGS[name] = run
    _IMPLEMENT(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mhc::{name}", shapes, lib=_LIBRARY)
    torch.library.register_autograd(f"mhc::{name}", gradient or _refuse, setup_context=keep, lib=_LIBRARY)
    if {"x", "phi"} <= {*names(arguments)}:
        _count_flops(name)


def _count_flops(name: str) -> None:
    """Let FlopCounterMode count the products of the streams with phi: like torch's formulas, no elementwise ops."""
    arguments, products = names(OPS[name].arguments), 2 if "backward" in name else 1

    def count(*shapes: Any, out_shape: Any = None) -> int:
        given = dict(zip(arguments, shapes, strict=False))  # torch leaves out those at the end that have their default
        is_one = "f" in given or given.get("equal_streams", False)
        streams = math.prod(given.get("f", given["x"])) * (given["n"] if is_one else 1)
        return int(2 * products * streams * given["phi"][1])

    register_flop_formula(getattr(torch.ops.mhc, name))(count)


def call(name: str, given: tuple[Any, ...]) -> Any:
    """Run an op on its signature; return its results by name, or its one tensor."""
    made, results = getattr(torch.ops.mhc, name)(*flat(given)), OPS[name].results
    return made if results is Tensor else named(results, made)


def save(ctx: Any, *values: Any, kept: Sequence[Tensor] = ()) -> None:
    """Keep values for the backward: tensors as autograd wants them, all else as it is.

    Args:
        ctx: torch's context.
        values: what the op took.
        kept: of its results, those that only the backward reads; they come behind the values. They have no gradient,
            and torch is told so: else it makes them anew at each look at what is saved, and compiled autograd, where
            a graph of the backward is asked for, fails with an error of its own.
    """
    ctx.mark_non_differentiable(*kept)
    values = *values, *kept
    ctx.save_for_backward(*(value for value in values if isinstance(value, Tensor)))
    ctx.values = [_SAVED if isinstance(value, Tensor) else value for value in values]


def saved(ctx: Any) -> Iterator[Any]:
    """Return what was kept, in its order."""
    tensors = iter(ctx.saved_tensors)
    return (next(tensors) if value is _SAVED else value for value in ctx.values)


def upstream(gradient: Tensor | None, like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the gradient of a result, zeros where nobody used it."""
    return like.new_zeros(shape) if gradient is None else gradient


def _refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise NotImplementedError(
        "second derivatives of hyper-connections are not implemented (as under torch.compile in general); take them"
        " of the original function, `with mhc_compile.plain(model):`"
    )
