"""The shape of the code base: which file may import which, and how long anything may get.

Every rule is a function from a parsed file to complaints.
"""

from __future__ import annotations

import ast
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "mhc_compile"
CODE = (PACKAGE, "passes", "tests", "bench", "examples")

# From the bottom up, for each package: a unit (a file of it, or one of its packages) imports from lower rows and from
# its own, never in a circle; `__init__` is the package's face. A new file or folder needs a place here.
LAYERS: dict[str, tuple[str, ...]] = {
    PACKAGE: (
        "errors",
        "config",
        "ops",
        "codegen passes",
        "capture",
        "plan",
        "model",
        "backend",
        "distributed",
        "api",
        "integrations",
        "__init__",
        "cli",
        "__main__",
    ),
    f"{PACKAGE}.passes": (
        "graph",
        "base",
        "bind_sites canonicalize find_residuals fuse_seams inline plan_recompute plan_streams reasons widen",
        "runner",
        "__init__",
    ),
    f"{PACKAGE}.ops": (
        "limits reference signatures",
        "projections registration",
        "connections",
        "functions norms",
        "fused library",
        "seams",
        "replay",
        "__init__",
    ),
    f"{PACKAGE}.codegen": (
        "spec text",
        "cpp triton",
        "__init__",
        "runtime",
        "inspect",
    ),
}
LEVELS = {
    package: {unit: level for level, row in enumerate(rows) for unit in row.split()} for package, rows in LAYERS.items()
}

# The graph side and the kernel side meet only in the ops.
FORBIDDEN = {
    f"{PACKAGE}.passes": ("triton", f"{PACKAGE}.codegen"),
    f"{PACKAGE}.codegen": ("torch.fx", f"{PACKAGE}.passes"),
}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50
MAX_ENTRIES = 12
NOT_ENTRIES = {"__init__.py", "__main__.py", "py.typed", "conftest.py", "README.md"}  # they say what a folder is
DATA = "bench/results"  # grows with every device that is measured

# Working notes outside the repository: nobody who clones it has them.
NOTES = "shared"
NOT_TO_MENTION = tuple(text.format(NOTES) for text in ("../{}", "/work/{}", "{}/DESIGN", "{}/reference", "{}/corpus"))
SKIPPED_FOLDERS = {"__pycache__", "build", "dist"}
KEPT_DOT_FOLDERS = {".ci", ".github"}


@dataclass(frozen=True)
class Source:
    """One file of Python, named by its path from the root with forward slashes."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.path)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def module(self) -> str:
        """Its name for `import`; the files of passes/ are the package's."""
        dotted = self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        return f"{PACKAGE}.{dotted}" if dotted.split(".")[0] == "passes" else dotted

    def at(self, node: ast.stmt | ast.expr) -> str:
        return f"{self.path}:{node.lineno}"


def files() -> Iterator[Path]:
    """Every file of the checkout; links are not followed, so passes/ comes once."""
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if (not name.startswith(".") or name in KEPT_DOT_FOLDERS)
            and name not in SKIPPED_FOLDERS
            and not name.endswith(".egg-info")
            and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(names))


@cache
def sources() -> list[Source]:
    """Every file of Python, parsed once."""
    paths = [path.relative_to(ROOT) for path in files() if path.suffix == ".py"]
    paths = [path for path in paths if path.parts[0] in CODE]
    return [Source(path.as_posix(), (ROOT / path).read_text("utf-8")) for path in paths]


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Each import anywhere in the file, as a dotted name: `from a import b` is `a.b`."""
    for node in source.nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def unit_of(package: str, module: str) -> str | None:
    """The unit of a package that a module, or a name in one, belongs to; None outside of the package."""
    if module == package:
        return "__init__"
    first = module.removeprefix(f"{package}.").split(".")[0]
    return None if not module.startswith(f"{package}.") else first if first in LEVELS[package] else "__init__"


def check_placed(source: Source) -> Iterator[str]:
    for package, levels in LEVELS.items():
        first, *_ = source.module.removeprefix(f"{package}.").split(".")
        inside = source.module.startswith(f"{package}.") and f"{package}.{first}" not in LEVELS
        if inside and first not in levels:
            yield f"{source.path}: `{first}` has no place in LAYERS[{package!r}] (tests/project/rules.py)"


def check_layers(source: Source) -> Iterator[str]:
    for package, levels in LEVELS.items():
        unit = unit_of(package, source.module)
        for node, name in imported(source) if unit is not None else ():
            other = unit_of(package, name)
            if other is not None and levels[other] > levels[unit or ""]:
                yield f"{source.at(node)}: {unit} imports {other}, which stands above it in {package}"


def check_sides(source: Source) -> Iterator[str]:
    side = next((side for side in FORBIDDEN if f"{source.module}.".startswith(f"{side}.")), "")
    forbidden = FORBIDDEN.get(side, ())
    for node, name in imported(source) if forbidden else ():
        yield from (
            f"{source.at(node)}: {side} imports {name}, of the other side"
            for module in forbidden
            if f"{name}.".startswith(f"{module}.")
        )
    last = {module.rpartition(".")[2] for module in forbidden}  # most attributes are told by it, and quickly
    for attribute in source.nodes if last else ():
        if isinstance(attribute, ast.Attribute) and attribute.attr in last and ast.unparse(attribute) in forbidden:
            yield f"{source.at(attribute)}: {side} reaches {ast.unparse(attribute)}"


def check_absolute(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{source.at(node)}: a relative import"


def check_no_lending(source: Source) -> Iterator[str]:
    """What tests share stands in modules that hold no tests."""
    for node, name in imported(source) if source.module.startswith("tests.") else ():
        if name.startswith("tests.") and any(part.startswith("test_") for part in name.split(".")):
            yield f"{source.at(node)}: imports {name}, a module of tests; what both need wants a module of its own"


def check_file_length(source: Source) -> Iterator[str]:
    length = len(source.text.splitlines())
    if length > MAX_FILE_LINES:
        yield f"{source.path}: {length} lines, {MAX_FILE_LINES} are allowed: it wants to be two"


def check_function_length(source: Source) -> Iterator[str]:
    for node in source.nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{source.at(node)}: {node.name} has {length} lines of {MAX_FUNCTION_LINES}"


def check_folders(paths: Iterable[str]) -> Iterator[str]:
    """No folder of the code or the documents shows more than a reader takes in at a glance."""
    entries: dict[str, set[str]] = defaultdict(set)
    for path in map(PurePosixPath, paths):
        for child in (path, *path.parents):
            entries[str(child.parent)].add(child.name)
    for folder, names in sorted(entries.items()):
        seen = names - NOT_ENTRIES
        checked = folder.split("/")[0] in (*CODE, "docs") and folder != DATA
        if checked and len(seen) > MAX_ENTRIES:
            yield f"{folder}: {len(seen)} entries, {MAX_ENTRIES} are allowed: some of them want a folder of their own"


def check_no_notes(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        yield from (f"{name}:{number}: mentions {words}" for words in NOT_TO_MENTION if words in line)


def check_docstring(name: str, value: object) -> Iterator[str]:
    """A class or function needs a text of its own, not its type's or its dataclass's."""
    text = value.__doc__ or ""
    if not text.strip() or text == type(value).__doc__ or text.startswith(f"{name}("):
        yield f"{PACKAGE}.{name} has no docstring"


def circle(parsed: list[Source]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    known = {source.module for source in parsed}
    graph: dict[str, set[str]] = {}
    for source in parsed:
        names = {name for _, name in imported(source)}
        reached = {name if name in known else name.rpartition(".")[0] for name in names}
        graph[source.module] = (reached & known) - {source.module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


Rule = Callable[[Source], Iterator[str]]
RULES: tuple[Rule, ...] = (
    check_placed,
    check_layers,
    check_sides,
    check_absolute,
    check_no_lending,
    check_file_length,
    check_function_length,
)
