"""The shape of the code base: which file may import which, and how long anything may get.

Every rule is a function from a parsed file to complaints. The tests apply it to the whole tree;
`test_rule_bites` applies it to a planted offence, so that no rule can go quiet unnoticed.
"""

from __future__ import annotations

import ast
import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mhc_compile"
CODE = (PACKAGE, "passes", "tests", "bench")

# From the bottom up. A unit (a file of mhc_compile, or one of its packages) imports from lower
# rows and from its own; `__init__` is the public face. A new file needs a place here.
LAYERS: tuple[frozenset[str], ...] = tuple(
    frozenset(row.split())
    for row in (
        "errors",
        "config",
        "ops",
        "codegen passes",
        "capture carry init kernels memory naming owner site",
        "cuts optimizers plan register report rewriting sharding",
        "backend explain export lazy lifecycle upgrade",
        "__init__",
        "compare demo demo_report measure",
        "cli",
        "__main__",
    )
)
LEVEL = {unit: level for level, row in enumerate(LAYERS) for unit in row}

# The graph side and the kernel side meet only in the ops.
FORBIDDEN = {
    "passes": ("triton", f"{PACKAGE}.codegen"),
    "codegen": ("torch.fx", f"{PACKAGE}.passes"),
}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 50

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

    @property
    def unit(self) -> str | None:
        """The row entry of LAYERS this file belongs to; None outside the package."""
        top, *rest = self.path.removesuffix(".py").split("/")
        if top == "passes":
            return top
        return rest[0] if top == PACKAGE else None

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


def sources() -> list[Source]:
    paths = [path.relative_to(ROOT) for path in files() if path.suffix == ".py"]
    paths = [path for path in paths if path.parts[0] in CODE]
    return [Source(path.as_posix(), (ROOT / path).read_text("utf-8")) for path in paths]


def imported(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Each import anywhere in the file, as a dotted name: `from a import b` is `a.b`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


def imported_units(source: Source) -> Iterator[tuple[ast.stmt, str]]:
    """Each import of this package, as the unit it reaches."""
    for node, name in imported(source):
        top, *rest = name.split(".")
        if top == PACKAGE:
            yield node, rest[0] if rest and rest[0] in LEVEL else "__init__"


def check_placed(source: Source) -> Iterator[str]:
    unit = source.unit
    if unit is not None and unit not in LEVEL:
        yield f"{source.path}: `{unit}` has no place in LAYERS ({Path(__file__).name})"


def check_layers(source: Source) -> Iterator[str]:
    unit = source.unit
    if unit not in LEVEL:
        return
    for node, other in imported_units(source):
        if LEVEL[other] > LEVEL[unit]:
            yield f"{source.at(node)}: {unit} imports {other}, which stands above it"


def check_sides(source: Source) -> Iterator[str]:
    forbidden = FORBIDDEN.get(source.unit or "", ())
    for node, name in imported(source):
        yield from (
            f"{source.at(node)}: {source.unit} imports {name}, of the other side"
            for module in forbidden
            if f"{name}.".startswith(f"{module}.")
        )
    for attribute in ast.walk(source.tree):
        if isinstance(attribute, ast.Attribute) and ast.unparse(attribute) in forbidden:
            yield f"{source.at(attribute)}: {source.unit} reaches {ast.unparse(attribute)}"


def check_absolute(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"{source.at(node)}: a relative import"


def check_file_length(source: Source) -> Iterator[str]:
    length = len(source.text.splitlines())
    if length > MAX_FILE_LINES:
        yield f"{source.path}: {length} lines, {MAX_FILE_LINES} are allowed: it wants to be two"


def check_function_length(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{source.at(node)}: {node.name} has {length} lines of {MAX_FUNCTION_LINES}"


def check_no_notes(name: str, text: str) -> Iterator[str]:
    for number, line in enumerate(text.splitlines(), start=1):
        yield from (f"{name}:{number}: mentions {words}" for words in NOT_TO_MENTION if words in line)


def check_docstring(name: str, value: object) -> Iterator[str]:
    """A class or function needs a text of its own, not its type's or its dataclass's."""
    text = value.__doc__ or ""
    if not text.strip() or text == type(value).__doc__ or text.startswith(f"{name}("):
        yield f"{PACKAGE}.{name} has no docstring"


Rule = Callable[[Source], Iterator[str]]
RULES: tuple[Rule, ...] = (
    check_placed,
    check_layers,
    check_sides,
    check_absolute,
    check_file_length,
    check_function_length,
)


def assert_none(complaints: list[str]) -> None:
    assert not complaints, "\n".join(["", *complaints])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    assert_none([complaint for source in sources() for complaint in rule(source)])


def test_the_tables_are_sound() -> None:
    found = {source.path.split("/")[0] for source in sources()}
    assert found == set(CODE)
    assert sum(len(row) for row in LAYERS) == len(LEVEL)  # no unit stands there twice


def test_units_of_one_layer_do_not_import_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for source in sources():
        if source.unit is not None:
            reached = {other for _, other in imported_units(source)}
            graph.setdefault(source.unit, set()).update(reached - {source.unit})
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("units import in a circle: " + " <- ".join(error.args[1]))


def test_no_file_mentions_the_working_notes() -> None:
    texts = {path: path.read_text("utf-8", errors="ignore") for path in files()}
    assert_none([line for path, text in texts.items() for line in check_no_notes(str(path), text)])


def test_every_public_name_has_a_docstring() -> None:
    package = importlib.import_module(PACKAGE)
    assert len(set(package.__all__)) == len(package.__all__)
    public = [name for name in package.__all__ if name != "__version__"]
    assert public
    assert_none([line for name in public for line in check_docstring(name, getattr(package, name))])


LONG_FUNCTION = "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES
LONG_METHOD = "class C:\n    def f(self):\n" + "        x = 1\n" * MAX_FUNCTION_LINES


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (check_placed, "mhc_compile/brand_new.py", ""),
        (check_layers, "mhc_compile/ops/library.py", "import mhc_compile.passes.base"),
        (check_layers, "mhc_compile/config.py", "from mhc_compile import backend"),
        (check_layers, "mhc_compile/site.py", "from mhc_compile import upgrade as u"),
        (check_layers, "passes/widen.py", "from mhc_compile import __version__"),
        (check_layers, "passes/deep/er.py", "def f():\n    from mhc_compile.site import Site"),
        (check_sides, "passes/lower.py", "from mhc_compile.codegen import seam"),
        (check_sides, "passes/lower.py", "import triton.language as tl"),
        (check_sides, "mhc_compile/codegen/seam.py", "from mhc_compile import passes"),
        (check_sides, "mhc_compile/codegen/seam.py", "from torch import fx"),
        (check_sides, "mhc_compile/codegen/seam.py", "import torch\ntorch.fx.Node"),
        (check_absolute, "passes/widen.py", "from ..ops import library"),
        (check_file_length, "tests/test_x.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (check_function_length, "bench/run.py", LONG_FUNCTION),
        (check_function_length, "bench/run.py", LONG_METHOD),
    ],
)
def test_rule_bites(rule: Rule, path: str, text: str) -> None:
    assert len(list(rule(Source(path, text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mhc_compile/backend.py", "from mhc_compile import config, passes\nimport torch.fx"),
        ("mhc_compile/demo.py", "import mhc_compile as mhc"),
        ("mhc_compile/codegen/seam.py", "import triton, torch\nfrom torch.fxx import y"),
        ("passes/widen.py", "from mhc_compile.passes.base import Pass\nimport torch.fx"),
        ("tests/test_x.py", "from mhc_compile import cli"),
        ("bench/run.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
        ("bench/run.py", "x = 1\n" * MAX_FILE_LINES),
    ],
)
def test_rules_let_good_code_pass(path: str, text: str) -> None:
    source = Source(path, text)
    assert [complaint for rule in RULES for complaint in rule(source)] == []


@pytest.mark.parametrize("words", NOT_TO_MENTION)
def test_rule_on_working_notes_bites(words: str) -> None:
    assert len(list(check_no_notes("a.md", f"fine\nsee {words}/x"))) == 1


def test_rule_on_docstrings_bites() -> None:
    @dataclass
    class Bare:
        size: int

    def bare() -> None:
        pass

    bad: dict[str, object] = {"Bare": Bare, "bare": bare, "number": 3}
    assert all(list(check_docstring(name, value)) for name, value in bad.items())
    assert not list(check_docstring("Source", Source))
