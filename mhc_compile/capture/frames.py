"""The frame that Dynamo compiles: its module, its breaks, errors on their way out of it."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn
from torch._dynamo.exc import ShortenTraceback
from torch._dynamo.guards import GuardBuilder, install_guard
from torch._dynamo.resume_execution import TORCH_DYNAMO_RESUME_IN_PREFIX
from torch._dynamo.source import AttrSource, GetItemSource, LocalSource
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch._guards import ChainedSource, Source

from mhc_compile.capture.sources import look_up
from mhc_compile.errors import MHCError

UNLIMITED = dict.fromkeys(("recompile_limit", "accumulated_recompile_limit"), 1 << 20)  # settings of Dynamo's
_REMEDIES = {  # by the function of torch's that breaks the graph
    "_detect_is_causal_mask": (
        "torch's transformer reads the mask to see whether it is causal; tell it, by is_causal=True or False"
        " (tgt_is_causal, memory_is_causal) beside the mask"
    )
}
_PARTS = 256  # compilations of one code object, as many as the accumulated limit allows


def frame_root() -> nn.Module | None:
    """Return the module whose forward is being compiled, None where there is no such module.

    It is the frame's first argument or its `self`, else the one module among the frame's locals. The latter is the
    case in the frame that Dynamo puts around modules of torch's own, such as Sequential. A decorator's `*args` begin
    with the first argument.
    """
    found = _root_and_source()
    return found[0] if found is not None else None


def serve_only(root: nn.Module) -> None:
    """Guard the code that is being compiled: it serves this module, not others of its class that pass all guards."""
    found = _root_and_source()
    assert found is not None
    assert found[0] is root  # what frame_root returned
    install_guard(found[1].make_guard(GuardBuilder.ID_MATCH))


def serve_alike(held: fx.Node, attribute: str) -> None:
    """Let the code that is being compiled serve modules that differ in an attribute which the forward has read.

    Args:
        held: a graph input that the module holds.
        attribute: its name.
    """
    guards = InstructionTranslator.current_tx().output.guards
    holders = set(_bases(held.meta["grapharg"].source))
    for guard in list(guards):
        read = guard.originating_source
        if isinstance(read, AttrSource) and read.member == attribute and read.base in holders:
            guards.remove_guards_with_source(read)
            guards.inner.discard(guard)  # torch 2.11 looks at the roots of sources only


def _bases(source: Source) -> Iterator[Source]:
    """Iterate over what a source is reached by, such as the modules on the way to a parameter."""
    while isinstance(source, ChainedSource):
        source = source.base
        yield source


def _root_and_source() -> tuple[nn.Module, Source] | None:
    tx = InstructionTranslator.current_tx().output.root_tx
    code, held = tx.f_code, tx.f_locals
    for name in (*code.co_varnames[: min(code.co_argcount, 1)], "self"):
        if isinstance(held.get(name), nn.Module):
            return held[name], LocalSource(name, is_input=True)
    if code.co_flags & inspect.CO_VARARGS and not code.co_argcount:
        name = code.co_varnames[code.co_kwonlyargcount]
        given = held.get(name)
        if isinstance(given, tuple) and given and isinstance(given[0], nn.Module):
            return given[0], GetItemSource(LocalSource(name, is_input=True), 0)
    modules = {id(module): name for name, module in held.items() if isinstance(module, nn.Module)}
    if len(modules) != 1:
        return None
    (name,) = modules.values()
    return held[name], LocalSource(name, is_input=True)


@contextlib.contextmanager
def clean_errors() -> Iterator[None]:
    """Let an MHCError reach the user as it is: without Dynamo's frames, and not inside a BackendCompilerFailed."""
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


def traced_with(node: fx.Node) -> Any:
    """Return the very tensor that Dynamo traced a graph input with."""
    return getattr(node.meta.get("grapharg"), "example", None)


def saving_is_hooked() -> bool:
    """Tell whether hooks, such as those of non-reentrant checkpoints, take what autograd would save for backward."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def original(model: nn.Module) -> nn.Module:
    """Return the module that torch.compile wrapped, or the module itself where it is not wrapped."""
    return model._orig_mod if isinstance(model, torch._dynamo.OptimizedModule) else model


@dataclasses.dataclass(frozen=True)
class Break:
    """What ended a graph before its frame ended.

    Attributes:
        reason: the first line of what Dynamo says.
        source: "file.py:line" of the user's code that broke the graph; empty where Dynamo does not tell it.
        remedy: what to change in the call of a module of torch's.
    """

    reason: str
    source: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        place = f" ({self.source})" if self.source else ""
        return f"{self.reason}{place}{self.remedy and f': {self.remedy}'}"


def frame_break(gm: fx.GraphModule) -> Break | None:
    """Return why Dynamo ended the graph that a backend is given; None where the graph ends with its frame."""
    told = getattr(gm, "compile_subgraph_reason", None)
    return break_of(told) if told is not None and told.graph_break else None


def is_in_parts(gm: fx.GraphModule) -> bool:
    """Tell whether a graph break cuts the forward of the frame's module, at this graph's end or before it."""
    name = InstructionTranslator.current_tx().output.root_tx.f_code.co_name
    return name.startswith(TORCH_DYNAMO_RESUME_IN_PREFIX) or frame_break(gm) is not None


def allow_parts(gm: fx.GraphModule) -> None:
    """Let Dynamo compile as many parts as there are of a model that graph breaks cut, here and from now on.

    It stops at eight for each code object, and parts share those: decorators of Hugging Face's, resumed functions. What
    it leaves uncompiled then is between parts that it compiles, and those lack their connections.
    """
    if is_in_parts(gm):
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, _PARTS)


def break_of(told: Any) -> Break:
    """Read what Dynamo tells of a graph break."""
    reason = str(told.reason).strip().splitlines()[0]
    if not told.user_stack:
        return Break(reason)
    frame = told.user_stack[-1]
    return Break(reason, f"{frame.filename}:{frame.lineno}", _REMEDIES.get(frame.name, ""))


def module_called(source: str, number: str) -> nn.Module | None:
    """Return the module that a node's stack names, looked up in the frame that is being compiled.

    Args:
        source: how the code names it, such as "L['self'].layers.0".
        number: its id, as text; a module that is another one by now is not returned.
    """
    tx = InstructionTranslator.current_tx().output.root_tx
    found = look_up(source, tx.f_locals, tx.f_globals)
    return found if isinstance(found, nn.Module) and str(id(found)) == number else None
