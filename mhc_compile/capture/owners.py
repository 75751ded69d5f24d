"""Owners of nodes: which module's forward made a node, and what its parts are called.

A fact of torch's used here, with a test: a node's `nn_module_stack` maps `id(module)` to (source expression, class),
innermost last, and has no entry for the module that is compiled itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx, nn

_ROOT = re.compile(r"^[LG]\['[^']*'\]\.?")
_GETATTR = re.compile(r"getattr\(([^()]*), '([^']*)'\)")  # how sources name a part under torch.func.functional_call


class Stack:
    """Names nodes by the modules whose forward made them; it is a `passes.base.Namer`."""

    def __init__(self, paths: Mapping[int, str] | None = None, root: str = "") -> None:
        """Take the paths of modules by their ids; other modules are named as the sources call them.

        Args:
            paths: path by `id(module)`.
            root: path of the module that is compiled.
        """
        self.paths = dict(paths or {})
        self.root = root

    @classmethod
    def of(cls, model: nn.Module | None, root: nn.Module | None = None) -> Stack:
        """Name nodes by the paths that modules have in a model.

        Args:
            model: the model; without one, nodes are named as the frame's sources call their modules.
            root: the module whose forward the graph is, where that is a part of the model.
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
        """Name a module alike at every call, also where the model holds it under several names."""
        while (spelt := _GETATTR.sub(r"\1.\2", source)) != source:
            source = spelt
        identity, path = key.partition("@")[0], _ROOT.sub("", source)
        return self.paths.setdefault(int(identity), path) if identity.isdigit() else path
