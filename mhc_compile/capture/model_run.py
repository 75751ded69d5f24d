"""Run a model once under Dynamo, to see all its graphs, how they are called and what breaks them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import inspect
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from mhc_compile.capture.compiled_forwards import as_written
from mhc_compile.capture.frames import UNLIMITED, Break, break_of, frame_break, frame_root, is_in_parts, serve_only
from mhc_compile.capture.graphs import without_markers
from mhc_compile.capture.progress import progress
from mhc_compile.capture.recorders import trace_recorders
from mhc_compile.capture.skipped import Skipped, Watch
from mhc_compile.capture.undisturbed import undisturbed
from mhc_compile.errors import CaptureError, MHCError
from mhc_compile.passes.graph import checkpoints
from mhc_compile.passes.graph.effects import transforms


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class CapturedGraph:
    """One graph of a captured run.

    Attributes:
        gm: the graph, without markers.
        root: the module whose forward it is: a part of the model where Dynamo left the frames around it eager.
        ended: what broke the graph off, None where its frame ends.
        in_parts: True where a break cuts that forward, at this graph's end or before it.
        apart: what made Dynamo give up the last function before it compiled this graph, if it did.
        inputs: the tensors that went in at the first call, to see where graphs meet.
        outputs: the tensors that came out of it.
    """

    gm: fx.GraphModule
    root: nn.Module | None
    ended: Break | None
    in_parts: bool
    apart: Break | None
    inputs: Sequence[Any]
    outputs: Sequence[Any]


class Call(NamedTuple):
    """One call of a captured graph, with the tensors that went in and came out."""

    graph: CapturedGraph
    inputs: Sequence[Any]
    outputs: Sequence[Any]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Captured:
    """What one run of a model showed.

    Attributes:
        graphs: its graphs, in the order in which they were compiled.
        calls: the calls of these graphs, in the order in which they ended.
        breaks: what broke graphs off.
        skipped: the functions that Dynamo did not compile.
        output: what the model returned.
    """

    graphs: tuple[CapturedGraph, ...]
    calls: tuple[Call, ...]
    breaks: tuple[Break, ...]
    skipped: tuple[Skipped, ...]
    output: Any


class _Recorder:
    """A backend that runs graphs eagerly and remembers them.

    Dynamo keeps every backend until it is reset: so the recorder knows the model weakly, and `forget` lets go of every
    graph and activation.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.watch = weakref.ref(model), Watch()
        self.forget()

    def forget(self) -> None:
        self.graphs: list[dict[str, Any]] = []
        self.calls: list[tuple[int, Sequence[Any], Sequence[Any]]] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        root = frame_root()
        if root is not None and root is not self.model():
            serve_only(root)
        number, flat = len(self.graphs), checkpoints.run_eagerly(without_markers(gm))
        skipped = self.watch.look()
        self.graphs.append(
            {
                "gm": flat,
                "root": root,
                "ended": frame_break(gm),
                "in_parts": is_in_parts(gm) or (root is None and transforms.are_in(gm)),  # a transform's own frame
                "apart": skipped[-1].broken if skipped else None,
            }
        )

        def run(*inputs: Any) -> Any:
            outputs = flat.forward(*inputs)
            self.calls.append((number, inputs, outputs))
            return outputs

        return run

    def captured(self, output: Any, breaks: Sequence[Break]) -> Captured:
        """Return what was seen."""
        first = {number: (inputs, outputs) for number, inputs, outputs in reversed(self.calls)}
        graphs = []
        for number, seen in enumerate(self.graphs):
            inputs, outputs = first.get(number, ((), ()))
            graphs.append(CapturedGraph(**seen, inputs=inputs, outputs=outputs))
        skipped = tuple(self.watch.look())
        breaks = tuple(dict.fromkeys((*breaks, *(skip.broken for skip in skipped))))
        calls = tuple(Call(graphs[number], inputs, outputs) for number, inputs, outputs in self.calls)
        return Captured(graphs=tuple(graphs), calls=calls, breaks=breaks, skipped=skipped, output=output)


def run_captured(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    backend: Callable[..., Any] | None = None,
    *,
    copied: bool = True,
    doing: str = "tracing the model",
) -> Captured:
    """Run the model once under Dynamo; random state, buffers and arguments end as they were.

    Args:
        model: the model, as the user calls it.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.
        backend: compiles the graphs; by default they run eagerly and are kept. With a backend, no graphs are returned.
        copied: hand copies of the arguments to the model; False for a backend that must know them again.
        doing: what a bar says that the model is traced for.

    Raises:
        CaptureError: the model does not run with these arguments.
        MHCError: the backend raised it.
    """
    recorder, breaks = _Recorder(model), list[Break]()
    compiled = CompiledAside(model, backend or recorder)
    args, kwargs = (_copied(args), _copied(dict(kwargs))) if copied else (args, kwargs)
    try:
        with _collect_breaks(breaks), progress(model, doing):
            output = compiled(*args, **kwargs)
        return recorder.captured(output, breaks)
    finally:
        recorder.forget()
        compiled.close()


class CompiledAside:
    """A model under a backend of its own, beside the user's compilation, which it leaves alone.

    Random state, buffers and attributes end as they were at every call.
    """

    def __init__(self, model: nn.Module, backend: Callable[..., Any], *, dynamic: bool = False) -> None:
        """Compile at the first call.

        Args:
            model: the model, as the user calls it.
            backend: compiles the graphs. Dynamo keeps it until it is reset, so it must not hold the model.
            dynamic: let sizes that change between calls become dynamic, in place of compiling for each.
        """
        trace_recorders()
        made: list[Callable[..., Any]] = []
        pgo: Any = torch._dynamo.pgo

        def compiled(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            """Return code that can let go of its graph, since Dynamo keeps the code."""
            made.append(backend(gm, example_inputs))
            return functools.partial(_run, made, len(made) - 1)

        self._model, self._call = model, _compile_isolated(model, compiled)
        self._sizes_seen: Any = defaultdict(pgo.CodeState)
        self._dynamic = dynamic
        self.close = weakref.finalize(self, made.clear)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            CaptureError: the model does not run with these arguments.
            MHCError: the backend raised it.
        """
        aside = _fresh_dynamo(self._model, self._sizes_seen, self._dynamic)
        with undisturbed(self._model), aside, _capture_errors():
            return self._call(*args, **kwargs)


def _run(made: Sequence[Callable[..., Any]], number: int, *inputs: Any) -> Any:
    return made[number](*inputs)


@contextlib.contextmanager
def _capture_errors() -> Iterator[None]:
    """Make a CaptureError of every error of the model's, with the remedy."""
    try:
        yield
    except MHCError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model did not run with the arguments given to mhc_compile ({type(error).__name__}: {_short(error)});"
            " pass args as a tuple and kwargs as a dict, as you would call the model"
        ) from error


def _short(error: Exception, most: int = 300) -> str:
    """Return the beginning of an error's text in one line: Dynamo's goes on for pages, and the error is the cause."""
    text = " ".join(str(error).split())
    return text if len(text) <= most else f"{text[:most]} ..."


@contextlib.contextmanager
def _fresh_dynamo(model: nn.Module, sizes_seen: Any, dynamic: bool) -> Iterator[None]:
    """Compile anew, without the limits that are meant for training loops, and without what the user compiled.

    Sizes are those of this run: those that the model has seen elsewhere make none dynamic, and this run none later.

    Args:
        model: the model.
        sizes_seen: Dynamo's record of sizes, to be used in place of its own.
        dynamic: whether sizes that have changed since they were recorded become dynamic.
    """
    pgo: Any = torch._dynamo.pgo
    seen, pgo._CODE_STATE = pgo._CODE_STATE, sizes_seen
    settings = {"suppress_errors": False, "automatic_dynamic_shapes": dynamic, "assume_static_by_default": True}
    try:
        with torch._dynamo.config.patch({**UNLIMITED, **settings}), _meta_constants(model), as_written(model):
            yield
    finally:
        pgo._CODE_STATE = seen


@contextlib.contextmanager
def _meta_constants(model: nn.Module) -> Iterator[None]:
    """Let Dynamo trace `torch.tensor(..., device="meta")`, as in caches: torch makes no fake tensor of it there."""
    tls, on_meta = torch._subclasses.fake_tensor.fake_tensor_tls, any(p.is_meta for p in model.parameters())
    before = tls.allow_non_fake_inputs_override
    tls.allow_non_fake_inputs_override = on_meta or before
    try:
        yield
    finally:
        tls.allow_non_fake_inputs_override = before


@contextlib.contextmanager
def _collect_breaks(breaks: list[Break]) -> Iterator[None]:
    """Collect what broke graphs: breaks with a place in the code first, then those that Dynamo only counts."""
    counters, told = torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.graph_break_reasons
    before, start = dict(counters), len(told)
    yield
    breaks += dict.fromkeys(map(break_of, told[start:]))
    known = {each.reason for each in breaks}
    reasons = (str(reason).strip().splitlines()[0] for reason, n in counters.items() if n > before.get(reason, 0))
    breaks += [Break(reason) for reason in reasons if reason not in known]


def _compile_isolated(model: nn.Module, backend: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without using up the recompilation limit of the user's own compilation of the same code."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        isolated: dict[str, Any] = {"isolate_recompiles": True}  # newer than torch's own overloads
        return torch.compile(model, backend=backend, **isolated)

    def call(*args: Any, **kwargs: Any) -> Any:
        return model(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name="captured")  # older torch: a frame of its own, with its own cache
    return torch.compile(call, backend=backend)


def _copied(values: Any) -> Any:
    """Copy arguments that a run may change, such as caches; what cannot be copied is passed as it is.

    Nested tensors are cloned: a deep copy of one does not add to what is computed from it.
    """
    nested = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_nested]
    try:
        clones = {id(leaf): leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in nested}
        return copy.deepcopy(values, clones)
    except Exception:  # a tensor inside an autograd graph, a lock, ...: run on the original
        return values
