"""Bytes that generated kernels move, counted address by address on Triton's interpreter.

Three counts, from what the source asks for down to what no cache can save:

    requested      every element of every load and store
    each launch    elements touched at least once by a launch: caches hold everything within a launch, what it stored
                   itself included, and nothing beyond it
    whole call     elements touched at least once by forward or backward: nothing is fetched twice, and what a
                   launch wrote and a later one reads is still there
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mhc_compile.codegen.inspect import subprocess_call
from mhc_compile.codegen.inspect.record import Launch, arguments, recording
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.triton.generate import bytes_per_token, generate


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Bytes between one kernel and one tensor.

    Attributes:
        kernel: its name.
        tensor: the name of the kernel's argument.
        kind: "load" or "store".
        wide: whether the tensor is streams or a row of features per token; else it is coefficients, a parameter or
            a workspace.
        requested: bytes, counting each element as often as it is asked for.
        launch: bytes, counting it once per launch.
        call: bytes, counting it in the first launch only, and not at all if that launch reads what another wrote.
    """

    kernel: str
    tensor: str
    kind: str
    wide: bool
    requested: int
    launch: int
    call: int


@dataclasses.dataclass(frozen=True)
class Sum:
    """Bytes per token: of streams and rows of features, and of all else; and what the design says of the former."""

    requested: float
    launch: float
    call: float
    rest: float  # coefficients, parameters and workspaces, each once per launch
    most: int  # the design's, where every launch fetches anew
    least: int  # the design's, where second reads hit the cache


def total(rows: Sequence[Traffic], spec: Spec, direction: str, tokens: int) -> Sum:
    """Add up what `count` found."""
    wide = [row for row in rows if row.wide]
    least, most = (both[direction == "backward"] for both in bytes_per_token(spec))
    requested, launch, call = (
        sum(getattr(row, field) for row in wide) / tokens for field in ("requested", "launch", "call")
    )
    rest = sum(row.launch for row in rows if not row.wide) / tokens
    return Sum(requested, launch, call, rest, most, least)


HEADS = ("kernel", "tensor", "", "requested", "each launch", "whole call")


def table(rows: Sequence[Traffic], spec: Spec, direction: str, tokens: int) -> list[tuple[str, ...]]:
    """Return the rows of a table in bytes per token, the sums and the design's numbers at its end."""
    lines = [
        (row.kernel, row.tensor, row.kind, *(f"{v / tokens:,.0f}" for v in (row.requested, row.launch, row.call)))
        for row in rows
    ]
    sums = total(rows, spec, direction, tokens)
    found = (f"{v:,.0f}" for v in (sums.requested, sums.launch, sums.call))
    return [
        *lines,
        ("all", "streams and features", "", *found),
        ("design", "streams and features", "", "", f"{sums.most:,}", f"{sums.least:,}"),
    ]


def show(spec: Spec, tokens: int = 32) -> None:
    """Print the table of each direction, with rich where it is installed.

    Parameters, and sums over tokens, weigh more per token the fewer tokens there are; on a GPU there are thousands.
    """
    for direction in spec.directions:
        rows = table(count(generate(spec), spec, direction, tokens), spec, direction, tokens)
        title = f"{spec.name}, {direction}: bytes per token ({tokens} tokens)"
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            widths = [max(map(len, column)) for column in zip(HEADS, *rows, strict=True)]
            print(title, *("  ".join(map(str.ljust, row, widths)).rstrip() for row in (HEADS, *rows)), sep="\n")
            continue
        shown = Table(*HEADS, title=title)
        for row in rows:
            shown.add_row(*row)
        Console().print(shown)


def count(text: str, spec: Spec, direction: str, tokens: int = 32) -> tuple[Traffic, ...]:
    """Interpret a module's `forward` or `backward` on made-up numbers and count what it moves."""
    return subprocess_call.call(True, _counted, text, spec, direction, tokens)


def _counted(text: str, spec: Spec, direction: str, tokens: int) -> tuple[Traffic, ...]:
    module = build.load(text, spec.name)
    function = getattr(module, direction)
    with recording(module, run=True) as launches, _listening(launches) as heard:
        function(**arguments(function, spec, tokens))
    rows = (tokens * spec.channels, tokens * spec.channels * spec.n)
    known: dict[tuple[int, str], Any] = {}  # by address: elements that an earlier launch loaded, or stored
    done = []
    for number, launch in enumerate(launches):
        touched = {}
        for name, tensor in launch.tensors.items():
            size, place = tensor.element_size(), tensor.data_ptr()
            elements, stores = _within(heard.get(number, []), tensor)
            seen, first = np.unique(elements, return_index=True)
            made = seen[stores[first]]  # by this launch, before it read them
            for kind in ("load", "store"):
                every = elements[stores == (kind == "store")]
                if not len(every):
                    continue
                once = np.unique(every) if kind == "store" else np.setdiff1d(every, made)
                before = [known[at] for at in {(place, kind), (place, "store")} if at in known]
                fresh = np.setdiff1d(once, np.concatenate(before)) if before else once
                touched[place, kind] = once
                wide = tensor.shape[0] == tokens and tensor.numel() in rows
                bytes_ = (size * len(found) for found in (every, once, fresh))
                done.append(Traffic(launch.name, name, kind, wide, *bytes_))
        for at, once in touched.items():
            known[at] = np.union1d(known[at], once) if at in known else once
    return tuple(done)


Heard = dict[int, list[tuple[str, Any]]]


def _within(accesses: list[tuple[str, Any]], tensor: Tensor) -> tuple[Any, Any]:
    """Return which elements of the tensor are accessed, in order, and which of these are stores."""
    start, size = tensor.data_ptr(), tensor.element_size()
    every = np.concatenate([np.empty(0, np.uint64), *(addresses for _, addresses in accesses)])
    stores = np.repeat([kind == "store" for kind, _ in accesses], [len(addresses) for _, addresses in accesses])
    here = (every >= start) & (every < start + size * tensor.numel())
    return (every[here] - np.uint64(start)) // np.uint64(size), stores.astype(bool)[here]


@contextlib.contextmanager
def _listening(launches: list[Launch]) -> Iterator[Heard]:
    """Collect ("load" or "store", addresses) of every access, in order, by the number of the launch."""
    from triton.runtime.interpreter import InterpreterBuilder

    # where each takes its mask; the rest of their arguments differs between versions of Triton
    masks = {"load": 1, "store": 2}
    methods = {kind: getattr(InterpreterBuilder, f"create_masked_{kind}") for kind in masks}
    heard: Heard = {}

    def listener(kind: str, access: Callable[..., Any]) -> Callable[..., Any]:
        def run(self: Any, *args: Any, **named: Any) -> Any:
            pointers, mask = args[0], named["mask"] if "mask" in named else args[masks[kind]]
            chosen = pointers.data[np.broadcast_to(mask.data, pointers.data.shape)]
            heard.setdefault(len(launches) - 1, []).append((kind, chosen.astype(np.uint64)))
            return access(self, *args, **named)

        return run

    try:
        for kind, method in methods.items():
            setattr(InterpreterBuilder, f"create_masked_{kind}", listener(kind, method))
        yield heard
    finally:
        for kind, method in methods.items():
            setattr(InterpreterBuilder, f"create_masked_{kind}", method)
