"""What we know of torch's internals: frames, owners of nodes, and running a model to see its graphs.

Facts used here, each with a test: a node's `nn_module_stack` maps `id(module)` to (source expression, class), innermost
last, and has no entry for the module that is compiled itself; `InstructionTranslator.current_tx()` is the frame whose
graph a backend is given; an error that is a ShortenTraceback leaves Dynamo as what its `remove_dynamo_frames` returns.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.source import AttrSource, LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator

from mhc_compile.errors import CaptureError, MHCError
from mhc_compile.passes.base import value

_ROOT = re.compile(r"^[LG]\['[^']*'\]\.?")


class Stack:
    """Names nodes by the modules whose forward made them (a `passes.base.Namer`)."""

    def __init__(self, paths: Mapping[int, str] | None = None, root: str = "") -> None:
        """Take the paths of modules by id, else names from the sources; `root` names the compiled module itself."""
        self.paths = dict(paths or {})
        self.root = root

    @classmethod
    def of(cls, model: nn.Module | None, root: nn.Module | None = None) -> Stack:
        """Name nodes by the paths that modules have in this model; without one, as the frame's sources call them.

        `root` is the module that the graph is the forward of, if it is a part of the model.
        """
        paths = {id(module): path for path, module in model.named_modules()} if model is not None else {}
        return cls(paths, paths.get(id(root), ""))

    def owner(self, node: fx.Node) -> str:
        """Return the path of the innermost module, `root` where there is none."""
        entries = self._entries(node)
        return entries[-1] if entries else self.root

    def child(self, node: fx.Node, owner: str) -> str | None:
        """Return the first step from the owner towards the node's module, as one name."""
        prefix = f"{owner}." if owner else ""
        for path in self._entries(node):
            if path != owner and path.startswith(prefix):
                head, _, rest = path.removeprefix(prefix).partition(".")
                index = rest.partition(".")[0]
                return f"{head}_{index}" if index.isdigit() else head
        return None

    def _entries(self, node: fx.Node) -> list[str]:
        stack = node.meta.get("nn_module_stack") or {}
        return [self._path(str(key), str(entry[0])) for key, entry in stack.items()]

    def _path(self, key: str, source: str) -> str:
        """Name a module the same at every call, also one that its parents hold under several names."""
        identity, path = key.partition("@")[0], _ROOT.sub("", source)
        return self.paths.setdefault(int(identity), path) if identity.isdigit() else path


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


def original(model: nn.Module) -> nn.Module:
    """Return the module itself for what torch.compile made of it."""
    return model._orig_mod if isinstance(model, torch._dynamo.OptimizedModule) else model


@dataclasses.dataclass
class CapturedGraph:
    """One graph of a captured run, with the tensors that went in and out (to see where graphs meet).

    `root` is the module whose forward it is: a part of the model where Dynamo left the frames around it eager.
    """

    gm: fx.GraphModule
    root: nn.Module | None = None
    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()
    calls: int = 0


@dataclasses.dataclass
class Captured:
    """What running a model once showed: its graphs in the order of their first call, its output, why graphs broke."""

    graphs: list[CapturedGraph]
    output: Any
    breaks: list[str]


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
    graphs: list[CapturedGraph] = []

    def record(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        root = frame_root()
        if root is not None and root is not model:
            keep_to(root)
        graph = CapturedGraph(without_markers(gm), root)
        graphs.append(graph)

        def run(*inputs: Any) -> Any:
            outputs = graph.gm.forward(*inputs)
            graph.calls += 1
            if graph.calls == 1:
                graph.inputs, graph.outputs = inputs, outputs
            return outputs

        return run

    breaks: list[str] = []
    with _undisturbed(model), _fresh_dynamo(model), _collect_breaks(breaks):
        compiled = _compile_apart(model, backend or record)
        try:
            output = compiled(*_copied(args), **_copied(dict(kwargs))) if copied else compiled(*args, **kwargs)
        except MHCError:
            raise
        except Exception as error:
            raise CaptureError(
                f"the model did not run with the arguments given to mhc_compile ({type(error).__name__}: {error});"
                " pass args as a tuple and kwargs as a dict, as you would call the model"
            ) from error
    return Captured(graphs, output, breaks)


def without_markers(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph without the markers of sites; nodes keep their metadata."""
    copied = copy_graph(gm)
    for node in copied.graph.find_nodes(op="call_function", target=torch.ops.mhc.site.default):
        copied.graph.erase_node(node)
    copied.recompile()
    return copied


def copy_graph(gm: fx.GraphModule) -> fx.GraphModule:
    """Copy the graph, not the tensors; Dynamo still needs its own."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    returned = graph.graph_copy(gm.graph, copies)
    graph.output(returned)
    graph.find_nodes(op="output")[0].meta = dict(gm.graph.find_nodes(op="output")[0].meta)
    for old, new in copies.items():
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    made = fx.GraphModule(gm, graph)
    made.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks"):
        if hasattr(gm, name):
            setattr(made, name, getattr(gm, name))
    return made


def describe_streams(streams: fx.Node, plain: fx.Node, n: int, axis: int) -> Tensor:
    """Make a new graph input known to AOTAutograd: the streams `[..., n, C]` that belong to a plain input.

    Returns:
        A fake tensor that shares the plain input's symbolic sizes.
    """
    given = value(plain)
    if given is None:
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
                if name in saved and buffer.shape == saved[name].shape:
                    buffer.copy_(saved[name])


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
def _collect_breaks(breaks: list[str]) -> Iterator[None]:
    """Collect the reasons that Dynamo counts for its graph breaks."""
    counters = torch._dynamo.utils.counters["graph_break"]
    before = dict(counters)
    yield
    breaks += [str(reason).strip() for reason, count in counters.items() if count > before.get(reason, 0)]


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
