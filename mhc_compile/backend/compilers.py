"""Who compiles a rewritten graph: Inductor, AOTAutograd alone, or nobody."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import fx
from torch._dynamo.backends.registry import lookup_backend

from mhc_compile.config import Config
from mhc_compile.ops import connections, projections
from mhc_compile.passes.graph import checkpoints

Compiled = Callable[..., Any]


def compile_with(
    gm: fx.GraphModule, example_inputs: Sequence[Any], config: Config, mode: str | None = None
) -> Compiled:
    """Hand a graph to the compiler that the config names."""
    if config.compiler == "eager":
        return gm.forward
    checkpoints.untag(gm, example_inputs)
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
    here = Path(__file__).parents[1]
    folders = here, (here / "passes").resolve()  # rglob follows no link
    for file in sorted({file for folder in folders for file in folder.rglob("*.py")}):
        digest.update(file.read_bytes())
    for registered in (*projections.PROJECTIONS.values(), *connections.CONNECTIONS.values()):
        digest.update(inspect.getsource(type(registered)).encode())
    return digest.hexdigest()[:16]
