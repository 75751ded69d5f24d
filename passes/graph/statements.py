"""Statements: where in the user's source a node was made, told by nothing that a comment or a blank line changes."""

from __future__ import annotations

import ast
import functools
import hashlib
import linecache
import os
from collections import Counter
from typing import NamedTuple

import torch
from torch import fx

from mhc_compile import errors
from mhc_compile.passes.graph.walk import Frame, frames

_TORCH = os.path.dirname(torch.__file__)
# frames that stand between a module and the forward that is called: they differ from call to call
_BETWEEN = (
    os.path.join(_TORCH, "nn", "modules", "module.py"),
    os.path.join(_TORCH, "_dynamo", ""),
    os.path.join(os.path.dirname(errors.__file__), "model", ""),
)
_BODIES = frozenset({"body", "orelse", "finalbody", "handlers", "cases", "decorator_list"})


class Forward(NamedTuple):
    """The code of a module's forward: where a stack enters it. `last` is its last line."""

    file: str
    first: int
    last: int

    def holds(self, frame: Frame) -> bool:
        """Tell whether a frame runs this code."""
        return frame.file == self.file and self.first <= frame.line <= self.last


def place(node: fx.Node, forward: Forward | None) -> str:
    """Return the statements that lead from a module's forward to the node: "forward:1c0f9a32>residual:8be04511".

    A statement is named by its function and a hash of its text, as Python itself would write it; one that stands in
    the function several times is numbered. Without source, its line within the file is named.

    Args:
        node: a node that Dynamo made.
        forward: the code of the module's forward; None where the outermost frame runs it.
    """
    way = [frame for frame in frames(node) if not frame.file.startswith(_BETWEEN)]
    starts = [i for i, frame in enumerate(way) if forward is not None and forward.holds(frame)]
    return ">".join(_read(frame.file).at(frame) for frame in way[starts[-1] if starts else 0 :])


def parsed(file: str) -> ast.AST:
    """Return a file's source as Python reads it; an empty module where it cannot be read."""
    return _read(file).tree


def _read(file: str) -> _Source:
    linecache.checkcache(file)
    return _source(tuple(linecache.getlines(file)))


@functools.lru_cache(maxsize=256)
def _source(lines: tuple[str, ...]) -> _Source:
    return _Source("".join(lines))


class _Source:
    """A file's functions, and the text of each statement."""

    def __init__(self, text: str) -> None:
        try:
            self.tree: ast.AST = ast.parse(text)
        except (SyntaxError, ValueError):  # a notebook's magic, a file that is half written
            self.tree = ast.Module([], [])
        self.names: dict[ast.AST, dict[ast.stmt, str]] = {}

    def at(self, frame: Frame) -> str:
        """Return the name of the statement that a frame runs."""
        function, found = self._innermost(frame.line)
        if found is None:
            return f"{frame.function}:{frame.line}"
        if function not in self.names:
            self.names[function] = _named(function)
        # the head of a function runs nothing: the file was edited since it was imported
        named = self.names[function].get(found, str(frame.line))
        return f"{getattr(function, 'name', frame.function)}:{named}"

    def _innermost(self, line: int) -> tuple[ast.AST, ast.stmt | None]:
        """Return the function and the statement on a line."""
        function, found, body = self.tree, None, list(ast.iter_child_nodes(self.tree))
        while body:
            node = body.pop()
            if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)) and _first(node) <= line <= _last(node):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    function = node
                found = node if isinstance(node, ast.stmt) else found
                body = list(ast.iter_child_nodes(node))
        return function, found


def _first(node: ast.AST) -> int:
    """Return the first line; that of a match's case is its pattern's."""
    return int(getattr(node, "lineno", getattr(getattr(node, "pattern", None), "lineno", 0)))


def _last(node: ast.AST) -> int:
    if isinstance(node, ast.match_case):
        return _last(node.body[-1])
    return int(getattr(node, "end_lineno", 0))


def _named(function: ast.AST) -> dict[ast.stmt, str]:
    """Return the name of every statement of a function, those of functions inside of it left out."""
    names: dict[ast.stmt, str] = {}
    seen: Counter[str] = Counter()
    rest = list(reversed(list(ast.iter_child_nodes(function))))
    while rest:
        node = rest.pop()
        if isinstance(node, ast.stmt):
            text = hashlib.sha1(_text(node).encode(), usedforsecurity=False).hexdigest()[:8]
            names[node] = f"{text}.{seen[text]}" if seen[text] else text
            seen[text] += 1
        inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        if isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)) and not inner:
            rest += reversed(list(ast.iter_child_nodes(node)))
    return names


def _text(statement: ast.stmt) -> str:
    """Return a statement as Python writes it: without comments, and of a compound one the head alone."""
    if not _BODIES.intersection(statement._fields):
        return ast.unparse(statement)
    parts = [getattr(statement, field) for field in statement._fields if field not in _BODIES]
    heads = [part for part in parts if isinstance(part, ast.expr)]
    return " ".join([type(statement).__name__, *map(ast.unparse, heads)])
