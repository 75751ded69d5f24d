"""The project's documents: which there are, and the parts of them that are made from the code.

    python -m tests.project.documents        makes these parts anew

A part stands in a document between `<!-- made: NAME -->` and `<!-- end -->`, where NAME is a key of MAKERS.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import page
from bench.pipeline import page as pipeline_page
from bench.stability import page as evidence
from mhc_compile import errors
from mhc_compile.codegen import Spec
from mhc_compile.codegen.spec import Step
from mhc_compile.codegen.triton.generate import bytes_per_token
from mhc_compile.passes import PIPELINE
from tests.project import file_tree, listings, torch_internals
from tests.project.rules import ROOT, files

REMEDY = "python -m tests.project.documents makes it anew"
WRITTEN_BY_BENCH = ("bench/results/ZOO.md",)
_PART = re.compile(r"(<!-- made: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> list[Path]:
    """Return every Markdown file of the project."""
    return [path for path in files() if path.suffix == ".md"]


def parts(text: str) -> Iterator[tuple[str, str]]:
    """Iterate over the parts of a document: name and text."""
    yield from ((found[2], found[0]) for found in _PART.finditer(text))


def made(text: str) -> str:
    """Return a document with its parts made anew."""
    return _PART.sub(lambda found: f"{found[1]}{MAKERS[found[2]]()}\n{found[3]}", text)


def fenced(lines: Callable[[], list[str]], language: str = "") -> str:
    """Return lines as a block of code."""
    return "\n".join([f"```{language}", *lines(), "```"])


# -- the pipeline -----------------------------------------------------------------------------------------------------


def pipeline() -> list[str]:
    """Return what passes/__init__.py says of each pass, and its tuples."""
    text = (ROOT / "passes" / "__init__.py").read_text("utf-8")
    tree = ast.parse(text)
    told = [line[4:] for line in (ast.get_docstring(tree) or "").splitlines() if line.startswith("    ")]
    tuples = {ast.unparse(node.target): node.value for node in tree.body if isinstance(node, ast.AnnAssign)}
    return [*told, "", *(f"{name} = {ast.unparse(value)}" for name, value in tuples.items() if value is not None)]


def bound() -> list[str]:
    """Return the graph in front of find-residuals: canonical, without markers."""
    names = [step.name for step in PIPELINE]
    return listings.after_pass(names[names.index("find-residuals") - 1])


# -- the ops ----------------------------------------------------------------------------------------------------------


def ops() -> list[str]:
    """Return the names of the ops that are registered."""
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix("mhc::") for name in names if name.startswith("mhc::"))


def arguments(op: str) -> list[str]:
    """Return the names of an op's arguments, in order."""
    return [argument.name for argument in getattr(torch.ops.mhc, op).default._schema.arguments]


def signatures() -> list[str]:
    """Return every op's schema as torch holds it, long ones wrapped."""
    lines: list[str] = []
    for op in ops():
        schema = str(getattr(torch.ops.mhc, op).default._schema).removeprefix("mhc::")
        whole = schema.replace(", ", ",\n").replace(" ", "\N{NO-BREAK SPACE}").replace("\n", " ")
        wrapped = textwrap.wrap(whole, 108, subsequent_indent="    ", break_long_words=False)
        lines += [line.replace("\N{NO-BREAK SPACE}", " ") for line in wrapped]
    return lines


# -- bytes ------------------------------------------------------------------------------------------------------------

CHANNELS = 1024
SPECS: dict[str, tuple[str, dict[str, Any]]] = {
    "seam": ("seam", {}),
    "seam, equal streams": ("seam", {"equal": True}),
    "seam, replaying 2 writes": ("seam", {"history": (Step(),) * 2}),
    "enter, equal streams": ("enter", {"equal": True}),
    "leave": ("leave", {}),
}


def budgets() -> str:
    """Return a table of bytes per token, in units of C bytes, for streams of 16 bits."""
    heads = [f"{way}, n = {n}" for n in (2, 4, 8) for way in ("forward", "backward")]
    rows = [f"| op | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name, (op, options) in SPECS.items():
        cells = []
        for n in (2, 4, 8):
            least, most = bytes_per_token(spec(op, n, **options))
            cells += [_cell(*pair) for pair in zip(least, most, strict=True)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def spec(op: str, n: int, equal: bool = False, history: tuple[Step, ...] = ()) -> Spec:
    """Return a Spec of the table."""
    table = {"op": op, "n": n, "channels": CHANNELS, "plain": equal, "history": [asdict(step) for step in history]}
    return Spec.of(table)


def _cell(least: int, most: int) -> str:
    if not most:
        return ""
    low, high = (f"{value / CHANNELS:g}" for value in (least, most))
    return low if low == high else f"{low} to {high}"


# -- errors -----------------------------------------------------------------------------------------------------------


def every_error() -> str:
    """Return a table of every error class: what it means, and what helps."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.MHCError)]
    rows = ["| error | it means | what helps |", "| --- | --- | --- |"]
    for kind in kinds:
        meaning, remedy = (" ".join(part.split()) for part in (inspect.getdoc(kind) or "").split("\n\n"))
        rows.append(f"| `{kind.__name__}` | {meaning} | {remedy} |")
    return "\n".join(rows)


MAKERS: dict[str, Callable[[], str]] = {
    "captured": partial(fenced, listings.captured),
    "bind-sites": partial(fenced, bound),
    "pipeline": partial(fenced, pipeline),
    "find-residuals": partial(fenced, listings.found_residuals),
    "plan-streams": partial(fenced, listings.planned_sites),
    "widen": partial(fenced, lambda: listings.after_pass("widen")),
    "fuse-seams": partial(fenced, lambda: listings.after_pass("fuse-seams", kernels=True)),
    "plan-recompute": partial(fenced, lambda: listings.after_pass("plan-recompute")),
    "plan-recompute with kernels": partial(fenced, lambda: listings.after_pass("plan-recompute", kernels=True)),
    "folders": partial(fenced, file_tree.folders),
    "files": partial(fenced, file_tree.every_file),
    "signatures": partial(fenced, signatures),
    "budgets": budgets,
    "errors": every_error,
    "torch internals": lambda: "\n".join(torch_internals.table()),
    **page.MAKERS,
    **pipeline_page.MAKERS,
    **evidence.MAKERS,
}


def main() -> None:
    """Make all parts of all documents anew."""
    for path in documents():
        before = path.read_text("utf-8")
        after = made(before)
        if after != before:
            path.write_text(after, "utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
