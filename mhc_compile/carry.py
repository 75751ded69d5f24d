"""Streams across graphs: they travel as an attribute of the plain tensor that one graph returns and the next takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc_compile.errors import CarryError

_ATTRIBUTE = "_mhc_streams"
_REMEDY = (
    "Between blocks that are compiled one by one the tensor must be handed on as it is: no clone, detach, view or"
    " in-place change, no reentrant checkpointing, no hooks that replace it. Compile the whole model instead, or end"
    " the region there: Config(exclude=...)"
)


@dataclasses.dataclass(frozen=True)
class _Carried:
    streams: Tensor
    version: int
    grad_fn: Any


def attach(tensor: Tensor, streams: Tensor) -> None:
    """Let the tensor, which must count its in-place changes, carry its streams; valid as long as nobody changes it."""
    setattr(tensor, _ATTRIBUTE, _Carried(streams, tensor._version, tensor.grad_fn))


def take(tensor: Tensor, site: str, n: int | None = None) -> Tensor:
    """Return the streams that a tensor carries, n of them where n is given.

    Raises:
        CarryError: it carries none, or another number, or was changed since.
    """
    carried = getattr(tensor, _ATTRIBUTE, None)
    if carried is None:
        raise CarryError(f"site {site!r} continues the streams of the site before, but its input has none. {_REMEDY}")
    if carried.version != tensor._version or carried.grad_fn is not tensor.grad_fn:
        raise CarryError(f"the input of site {site!r} was changed in place after its streams were made. {_REMEDY}")
    streams: Tensor = carried.streams
    if n is not None and streams.shape[-2] != n:
        raise CarryError(
            f"site {site!r} mixes {n} streams, but its input carries {streams.shape[-2]}: it comes from a model"
            " that was upgraded with another number; upgrade both alike, or hand over x.clone()"
        )
    return streams


def _counting(tensor: Tensor) -> Tensor:
    """Return a tensor that counts its in-place changes; those made in inference mode do not, so they are copied."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def connect(
    compiled: Callable[..., Any], takes: Sequence[tuple[int, str]], gives: Sequence[int], n: int | None = None
) -> Callable[..., Sequence[Any]]:
    """Wrap compiled code: streams of inputs become further inputs, further outputs become streams of outputs.

    Args:
        compiled: the graph's code, with one more input per entry of `takes` and one more output per entry of `gives`.
        takes: index of an input and the site that needs its streams.
        gives: index of an output whose streams are returned.
        n: number of streams that the code was compiled for.
    """
    if not takes and not gives:
        return compiled

    def run(*inputs: Any) -> Sequence[Any]:
        outputs = compiled(*inputs, *(take(inputs[index], site, n) for index, site in takes))
        plain = [*outputs[: len(outputs) - len(gives)]]
        for index, streams in zip(gives, outputs[len(plain) :], strict=True):
            plain[index] = _counting(plain[index])
            attach(plain[index], streams)
        return plain

    return run
