"""Owners of nodes: which module's forward made a node, and what its parts are called.

A fact of torch's used here, with a test: a node's `nn_module_stack` maps `id(module)` to (source expression, class),
innermost last, and has no entry for the module that is compiled itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from torch import fx, nn

from mhc_compile.capture.sources import below_root
from mhc_compile.passes.base import Call, first_step
from mhc_compile.passes.graph.statements import Forward
from mhc_compile.passes.graph.walk import calls, value


class Stack:
    """Names nodes by the modules whose forward made them; it is a `passes.base.Namer`."""

    def __init__(
        self,
        paths: Mapping[int, str] | None = None,
        root: str = "",
        kind: type | None = None,
        models: Collection[int] = (),
    ) -> None:
        """Take the paths of modules by their ids; other modules are named as the sources call them.

        Args:
            paths: path by `id(module)`.
            root: path of the module that is compiled.
            kind: class of that module.
            models: ids of modules that hold a plan.
        """
        self.paths = dict(paths or {})
        self.root = root
        self._forwards: dict[Any, Forward | None] = {}
        self._kind = kind
        self._models = frozenset(map(str, models))

    @classmethod
    def of(cls, model: nn.Module | None, root: nn.Module | None = None, models: Collection[int] = ()) -> Stack:
        """Name nodes by the paths that modules have in a model.

        Args:
            model: the model; without one, nodes are named as the frame's sources call their modules.
            root: the module whose forward the graph is, where that is a part of the model.
            models: ids of modules that hold a plan.
        """
        paths = {id(module): path for path, module in model.named_modules()} if model is not None else {}
        run = model if root is None else root
        return cls(paths, paths.get(id(root), ""), type(run) if run is not None else None, models)

    def owner(self, node: fx.Node) -> str:
        """Return the path of the innermost module, `root` where there is none."""
        entries = self._entries(node)
        return entries[-1] if entries else self.root

    def child(self, node: fx.Node, owner: str) -> str | None:
        """Return the first step from the owner towards the node's module, as one name."""
        prefix = f"{owner}." if owner else ""
        for path in self._entries(node):
            if path != owner and path.startswith(prefix):
                return first_step(path.removeprefix(prefix))
        return None

    def call(self, node: fx.Node) -> Call:
        """Return the call of the innermost module.

        Dynamo numbers the calls of a module by the name that the code has for it, so both together tell them apart.
        """
        keys = calls(node)
        if not keys:
            return Call(forward=self._code(self._kind))
        ends = [i for i, (key, _) in enumerate(keys) if key.partition("@")[0] in self._models]
        *_, (_, kind) = node.meta["nn_module_stack"].values()
        return Call(keys[-1], keys[: ends[-1] + 1] if ends else (), self._code(kind))

    def parameter(self, node: fx.Node, owner: str) -> str | None:
        """Return the path from the owner to the parameter that a graph input is."""
        source = getattr(node, "_dynamo_source", None)
        if source is None or not isinstance(value(node), nn.Parameter):
            return None
        name = below_root(source.name)
        prefix = f"{owner}." if owner else ""
        return name.removeprefix(prefix) if name.startswith(prefix) else None

    def _code(self, kind: Any) -> Forward | None:
        if kind not in self._forwards:
            self._forwards[kind] = forward_of(kind)
        return self._forwards[kind]

    def _entries(self, node: fx.Node) -> list[str]:
        return [self._path(key, source) for key, source in calls(node)]

    def _path(self, key: str, source: str) -> str:
        """Name a module alike at every call, also where the model holds it under several names."""
        identity, path = key.partition("@")[0], below_root(source)
        return self.paths.setdefault(int(identity), path) if identity.isdigit() else path


def forward_of(kind: Any) -> Forward | None:
    """Return where the forward of a class stands; for the class of an owner, that of the class it was before."""
    forward = getattr(getattr(kind, "_mhc_base", kind), "forward", None) if kind is not None else None
    code = getattr(inspect.unwrap(forward), "__code__", None) if callable(forward) else None
    if code is None:
        return None
    return Forward(code.co_filename, code.co_firstlineno, max(line for *_, line in code.co_lines() if line))
