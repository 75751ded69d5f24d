"""torch.compile(model, backend="mhc"): capture -> pipeline -> AOTAutograd and Inductor."""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx, nn
from torch._dynamo.backends.registry import lookup_backend

from mhc_compile import carry, lazy
from mhc_compile.capture import clean_errors, frame_root, without_markers
from mhc_compile.config import Config
from mhc_compile.errors import MHCWarning
from mhc_compile.ops import connections, projections
from mhc_compile.passes import checkpoints
from mhc_compile.rewriting import read_markers, rewrite_graph
from mhc_compile.site import ATTRIBUTE, RootSites

Compiled = Callable[..., Any]


def mhc(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile one graph of Dynamo's; found by torch.compile under the name "mhc".

    Args:
        gm: the graph, left as it is.
        example_inputs: its inputs.
        options: fields of `mhc_compile.Config`.
        mode: torch.compile's mode, handed on to Inductor.

    Raises:
        MHCError: options, plan and graph do not fit together; the text says what to do.
    """
    with clean_errors():
        config = Config.from_options(options)
        projections.get(config.projection)
        markers = read_markers(gm, options)
        root = frame_root()
        if markers is not None:
            lazy.settle(root)
            rewritten = rewrite_graph(markers, whole=_is_whole(root, len(markers.bindings)))
            inner = compile_with(rewritten.gm, [*example_inputs, *rewritten.examples], markers.config, mode)
            return carry.connect(inner, rewritten.takes, rewritten.gives, rewritten.starts, markers.config.streams)
        if config.connection != "residual" and config.streams > 1 and not lazy.is_settled(root):
            draft = lazy.draft_frame(gm, root, config)
            if root is not None and draft.plan.sites:
                return lazy.first_call(gm, root, draft.plan)  # exact at the start; the next call has its sites
            if not isinstance(getattr(root, ATTRIBUTE, None), RootSites) and lazy.says_all(gm, root, draft):
                _warn_nothing(root, len(draft.rejections))
        return compile_with(without_markers(gm), example_inputs, config, mode)


def _is_whole(root: nn.Module | None, sites: int) -> bool:
    """Tell whether the frame is the model that holds the plan, with all of its sites in this graph."""
    held = getattr(root, ATTRIBUTE, None)
    return isinstance(held, RootSites) and len(held.sites_of_plan()) == sites


def compile_with(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: Config, mode: str | None = None
) -> Compiled:
    """Hand a graph to the compiler that the config names."""
    if config.compiler == "eager":
        return gm.forward
    if config.compiler == "aot_eager":
        compiled: Compiled = lookup_backend("aot_eager")(gm, list(example_inputs))
        return compiled
    from torch._inductor import compile_fx, list_mode_options
    from torch._inductor import config as inductor_config

    patches = {**(list_mode_options(mode) if mode and mode != "default" else {}), **config.inductor}
    # Inductor hashes its config into the key of every cache: an edited op must not hit code made from the old one
    label = {**inductor_config.aot_inductor.metadata, "mhc_compile": source_hash()}
    # nor must a graph hit one that is equal but for what is to be recomputed, which AOTAutograd's key leaves out
    label["mhc_recompute"] = str({node.name: tagged for node in gm.graph.nodes if (tagged := checkpoints.tags(node))})
    patches.setdefault("aot_inductor.metadata", label)
    return cast("Compiled", compile_fx.compile_fx(gm, list(example_inputs), config_patches=patches))


@functools.cache
def source_hash() -> str:
    """Return a hash of everything here that decides what code a graph becomes, registered classes included."""
    digest = hashlib.sha256(torch.__version__.encode())
    here = Path(__file__).parent
    for file in sorted([*here.rglob("*.py"), *(here / "passes").glob("*.py")]):
        digest.update(file.read_bytes())
    for registered in (*projections.PROJECTIONS.values(), *connections.CONNECTIONS.values()):
        digest.update(inspect.getsource(type(registered)).encode())
    return digest.hexdigest()[:16]


def _warn_nothing(root: nn.Module | None, rejections: int) -> None:
    name = type(root).__name__ if root is not None else "the function"
    warnings.warn(
        f"mhc found nothing to rewrite in this graph of {name} ({rejections} adds looked at;"
        " mhc_compile.explain says why); it is compiled as it is",
        MHCWarning,
        stacklevel=2,
    )
