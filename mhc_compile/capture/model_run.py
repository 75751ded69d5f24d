"""What we know of torch's internals: frames, graphs, and running a model to see its graphs.

Facts used here, each with a test: `InstructionTranslator.current_tx()` is the frame whose graph a backend is given; an
error that is a ShortenTraceback leaves Dynamo as what its `remove_dynamo_frames` returns.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from mhc_compile.capture.frames import Break, break_of, frame_break, frame_root, is_in_parts, keep_to
from mhc_compile.capture.graphs import without_markers
from mhc_compile.errors import CaptureError, MHCError
from mhc_compile.passes.graph import checkpoints


@dataclasses.dataclass
class CapturedGraph:
    """One graph of a captured run, with the tensors that went in and out (to see where graphs meet).

    `root` is the module whose forward it is: a part of the model where Dynamo left the frames around it eager. `ended`
    tells what broke the graph off, and `in_parts` whether a break cuts that forward, here or before.
    """

    gm: fx.GraphModule
    root: nn.Module | None = None
    ended: Break | None = None
    in_parts: bool = False
    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()


@dataclasses.dataclass
class Captured:
    """What running a model once showed: its graphs as they were compiled, their calls, and why graphs broke."""

    graphs: list[CapturedGraph]
    output: Any
    breaks: list[Break]
    calls: list[tuple[CapturedGraph, Sequence[Any], Sequence[Any]]]  # a graph, its inputs, its outputs


def run_captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    backend: Callable[..., Any] | None = None,
    *,
    copied: bool = True,
) -> Captured:
    """Run the model once under Dynamo and keep its graphs; random state, buffers and arguments end as they were.

    `copied=False` hands the arguments themselves to the model, for a backend that must know them again.

    Raises:
        CaptureError: the model does not run with these arguments.
    """
    held = [Captured([], None, [], [])]  # emptied: what Dynamo keeps would hold all activations

    def record(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        root, graphs = frame_root(), held[0].graphs
        if root is not None and root is not model:
            keep_to(root)
        number, flat = len(graphs), checkpoints.run_eagerly(without_markers(gm))
        graphs.append(CapturedGraph(flat, root, frame_break(gm), is_in_parts(gm)))

        def run(*inputs: Any) -> Any:
            graph, outputs = held[0].graphs[number], flat.forward(*inputs)
            graph.inputs, graph.outputs = graph.inputs or inputs, graph.outputs or outputs
            held[0].calls.append((graph, inputs, outputs))
            return outputs

        return run

    captured = held[0]
    with _undisturbed(model), _fresh_dynamo(model), _collect_breaks(captured.breaks):
        compiled = _compile_apart(model, backend or record)
        try:
            args, kwargs = (_copied(args), _copied(dict(kwargs))) if copied else (args, kwargs)
            captured.output = compiled(*args, **kwargs)
        except MHCError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model did not run with the arguments given to mhc_compile ({type(error).__name__}: {error});"
                " pass args as a tuple and kwargs as a dict, as you would call the model"
            ) from error
        finally:
            held.clear()
    return captured


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Put buffers and random state back afterwards (batch norm counts, dropout draws)."""
    saved = {name: buffer.clone() for name, buffer in model.named_buffers() if not buffer.is_meta}
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                kept = saved.get(name, buffer)  # a write would count as a change, so only where there was one
                if kept is not buffer and kept.shape == buffer.shape and (kept.is_sparse or not kept.equal(buffer)):
                    buffer.copy_(kept)


@contextlib.contextmanager
def _fresh_dynamo(model: nn.Module) -> Iterator[None]:
    """Compile anew, past the limits meant for training loops, and look through model.compile()."""
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl is not None}
    limits: dict[str, Any] = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 10**6)
    try:
        for module in compiled:
            module._compiled_call_impl = None
        with torch._dynamo.config.patch(suppress_errors=False, **limits):
            yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


@contextlib.contextmanager
def _collect_breaks(breaks: list[Break]) -> Iterator[None]:
    """Collect what broke graphs: what Dynamo has a place in the code for, and what it only counts."""
    counters, told = torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.graph_break_reasons
    before, start = dict(counters), len(told)
    yield
    breaks += dict.fromkeys(map(break_of, told[start:]))
    known = {each.reason for each in breaks}
    reasons = (str(reason).strip().splitlines()[0] for reason, n in counters.items() if n > before.get(reason, 0))
    breaks += [Break(reason) for reason in reasons if reason not in known]


def _compile_apart(model: nn.Module, backend: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without spending the recompilation limit of the user's own compilation of the same code."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        isolated: dict[str, Any] = {"isolate_recompiles": True}  # newer than torch's own overloads
        return torch.compile(model, backend=backend, **isolated)

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name="captured")  # older torch: a frame of its own, with its own cache
    return torch.compile(call, backend=backend)


def _copied(values: Any) -> Any:
    """Copy arguments that a run may change (caches); what cannot be copied is passed as it is."""
    try:
        return copy.deepcopy(values)
    except Exception:  # a tensor inside an autograd graph, a lock, ...: run on the original
        return values
