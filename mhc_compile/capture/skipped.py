"""Frames that Dynamo gives up and runs as they are, by its own records."""

from __future__ import annotations

import ast
import dataclasses
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mhc_compile.capture.frames import Break
from mhc_compile.capture.owners import forward_of
from mhc_compile.passes.graph.statements import parsed

_LIBRARY = os.path.dirname(torch.__file__) + os.sep


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A function that Dynamo does not compile.

    Attributes:
        function: its name.
        file: where it is written.
        line: its first line there.
        broken: what made Dynamo give up, and the line of it.
    """

    function: str
    file: str
    line: int
    broken: Break

    def owner(self, model: nn.Module) -> str:
        """Return the path of the first module whose forward it is, "" where it is none's."""
        for path, module in model.named_modules():
            code = forward_of(type(module))
            if code is not None and (code.file, code.first) == (self.file, self.line):
                return str(path)
        return ""

    def adds(self) -> bool:
        """Tell whether its source adds anything but numbers and texts; True where there is no source."""
        body = next((node for node in ast.walk(parsed(self.file)) if self._is_defined_by(node)), None)
        return body is None or any(_is_add(node) for node in ast.walk(body))

    def _is_defined_by(self, node: ast.AST) -> bool:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return False
        return self.line in {node.lineno, *(decorator.lineno for decorator in node.decorator_list)}


class Watch:
    """Reads Dynamo's records of frames while a model runs; they are kept for a while only."""

    def __init__(self) -> None:
        """Start behind the records that there are."""
        self._known = list(torch._dynamo.utils.get_compilation_metrics())
        self.skipped: list[Skipped] = []

    def look(self) -> list[Skipped]:
        """Return the frames that were given up so far, in order."""
        known = {id(record) for record in self._known}
        fresh = [record for record in torch._dynamo.utils.get_compilation_metrics() if id(record) not in known]
        self._known += fresh  # held, so that no other record gets an id that is known
        self.skipped += dict.fromkeys(skip for skip in _skips(fresh) if skip not in self.skipped)
        return self.skipped


def _skips(records: Iterable[Any]) -> Iterable[Skipped]:
    """Iterate over the user's functions that failed to compile, but for those without any tensor."""
    for record in records:
        if record.fail_type in (None, "SkipFrame") or record.has_guarded_code or not record.co_filename:
            continue
        if record.co_filename.startswith(_LIBRARY):
            continue
        reason = (record.fail_reason or record.fail_type).strip().splitlines()[0]
        file, line = record.fail_user_frame_filename, record.fail_user_frame_lineno
        source = f"{file}:{line}" if file else f"{record.co_filename}:{record.co_firstlineno}"
        yield Skipped(record.co_name, record.co_filename, record.co_firstlineno, Break(reason, source))


def _is_add(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return not any(isinstance(side, (ast.Constant, ast.JoinedStr)) for side in (node.left, node.right))
    if isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Add):
        return not isinstance(node.value, (ast.Constant, ast.JoinedStr))
    called = node.func if isinstance(node, ast.Call) else None
    if isinstance(called, ast.Attribute):
        return called.attr in ("add", "add_", "addcmul", "addcmul_", "lerp", "lerp_")
    return isinstance(called, ast.Name) and called.id == "sum"
