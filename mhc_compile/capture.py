"""What we know of torch's internals: frames, graphs, and running a model to see its graphs.

Facts used here, each with a test: `InstructionTranslator.current_tx()` is the frame whose graph a backend is given; an
error that is a ShortenTraceback leaves Dynamo as what its `remove_dynamo_frames` returns.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.resume_execution import TORCH_DYNAMO_RESUME_IN_PREFIX
from torch._dynamo.source import AttrSource, LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator

from mhc_compile.errors import CaptureError, MHCError
from mhc_compile.passes import checkpoints
from mhc_compile.passes.base import value


def frame_root() -> nn.Module | None:
    """Return the module whose forward is being compiled: the frame's first argument, or the one module it holds.

    The latter is the frame that Dynamo puts around modules of torch's own, such as Sequential.
    """
    tx = InstructionTranslator.current_tx().output.root_tx
    names = [*tx.f_code.co_varnames[: min(tx.f_code.co_argcount, 1)], "self"]
    modules = [m for m in map(tx.f_locals.get, names) if isinstance(m, nn.Module)]
    if not modules:
        held = {id(m): m for m in tx.f_locals.values() if isinstance(m, nn.Module)}
        modules = list(held.values()) if len(held) == 1 else []
    return modules[0] if modules else None


def keep_to(root: nn.Module) -> None:
    """Let the code that is being compiled serve this module only, not others of its class that pass the same guards."""
    held = InstructionTranslator.current_tx().output.root_tx.f_locals
    name = next(name for name, module in held.items() if module is root)
    install_guard(LocalSource(name, is_input=True).make_guard(GuardBuilder.ID_MATCH))


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Let an MHCError reach the user as itself, without Dynamo's frames and BackendCompilerFailed around it."""
    try:
        yield
    except MHCError as error:
        raise _Raised(error) from None


class _Raised(ShortenTraceback):
    def __init__(self, error: MHCError) -> None:
        super().__init__(str(error), first_useful_frame=None)
        self.error = error

    def remove_dynamo_frames(self) -> Exception:  # type: ignore[override]  # ours leaves Dynamo
        return self.error


def given(node: fx.Node) -> Any:
    """Return what Dynamo traced a graph input with: the very tensor."""
    return getattr(node.meta.get("grapharg"), "example", None)


def is_split(gm: fx.GraphModule) -> bool:
    """Tell whether the graph is but a part of Dynamo's, as DDPOptimizer hands them over."""
    if torch.nn.parallel.DistributedDataParallel._get_active_ddp_module() is None:
        return False
    part, whole = (
        Counter(node.op for node in graph.nodes)
        for graph in (gm.graph, InstructionTranslator.current_tx().output.graph)
    )
    return part["call_function"] < whole["call_function"]


def saving_is_hooked() -> bool:
    """Tell whether someone else than autograd keeps what is saved for backward, as non-reentrant checkpoints do."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def original(model: nn.Module) -> nn.Module:
    """Return the module itself for what torch.compile made of it."""
    return model._orig_mod if isinstance(model, torch._dynamo.OptimizedModule) else model


@dataclasses.dataclass(frozen=True)
class Break:
    """What ended a graph before its frame did, and "file.py:line" of the code that did."""

    reason: str
    source: str = ""


def frame_break(gm: fx.GraphModule) -> Break | None:
    """Return why Dynamo ended the graph that a backend is given, None where the frame itself ends."""
    told = getattr(gm, "compile_subgraph_reason", None)
    return _break(told) if told is not None and told.graph_break else None


def is_in_parts(gm: fx.GraphModule) -> bool:
    """Tell whether the forward of the frame's module is cut by a graph break, here or before."""
    name = InstructionTranslator.current_tx().output.root_tx.f_code.co_name
    return name.startswith(TORCH_DYNAMO_RESUME_IN_PREFIX) or frame_break(gm) is not None


def _break(told: Any) -> Break:
    source = [f"{frame.filename}:{frame.lineno}" for frame in told.user_stack]
    return Break(str(told.reason).strip().splitlines()[0], source[-1] if source else "")


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


def without_markers(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph without the markers of sites; nodes keep their metadata."""
    copied = copy_graph(gm)
    for module in (each for each in copied.modules() if isinstance(each, fx.GraphModule)):
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.mhc.site.default):
            module.graph.erase_node(node)
        module.recompile()
    return copied


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """Copy the graph and those that its ops run, not the tensors; Dynamo still needs its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    graph.find_nodes(op="output")[0].meta = dict(gm.graph.find_nodes(op="output")[0].meta)
    for old, new in copies.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    made = fx.GraphModule(gm, graph)
    made.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks", "compile_subgraph_reason"):
        if hasattr(gm, name):
            setattr(made, name, getattr(gm, name))
    for name, body in checkpoints.bodies(made):
        made.set_submodule(name, copy_graph(body))
    return made


def describe_streams(streams: fx.Node, plain: fx.Node, n: int, axis: int) -> Tensor:
    """Make a new graph input known to AOTAutograd: the streams `[..., n, C]` that belong to a plain input.

    Returns:
        A fake tensor that shares the plain input's symbolic sizes.
    """
    if (given := value(plain)) is None:
        raise CaptureError(f"graph input {plain.name} has no example value")
    if hasattr(plain, "_dynamo_source"):
        streams._dynamo_source = AttrSource(plain._dynamo_source, "_mhc_streams")
    last = given.movedim(axis, -1)
    made = last.unsqueeze(-2).expand(*last.shape[:-1], n, last.shape[-1]).contiguous().detach()
    return made.requires_grad_(given.requires_grad)


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
    breaks += dict.fromkeys(map(_break, told[start:]))
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
