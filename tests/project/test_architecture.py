"""The rules of the code base, applied to the whole tree, and each to a planted offence, so that none can go quiet."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import pytest

from tests.project.rules import (
    CODE,
    LAYERS,
    LEVELS,
    MAX_ENTRIES,
    MAX_FILE_LINES,
    MAX_FUNCTION_LINES,
    NOT_TO_MENTION,
    PACKAGE,
    ROOT,
    RULES,
    Rule,
    Source,
    check_absolute,
    check_docstring,
    check_file_length,
    check_folders,
    check_function_length,
    check_layers,
    check_no_lending,
    check_no_notes,
    check_placed,
    check_sides,
    circle,
    files,
    sources,
)

pytestmark = pytest.mark.xdist_group("architecture")  # one process parses the tree


def assert_none(complaints: list[str]) -> None:
    assert not complaints, "\n".join(["", *complaints])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    assert_none([complaint for source in sources() for complaint in rule(source)])


def test_the_tables_are_sound() -> None:
    found = {source.path.split("/")[0] for source in sources()}
    assert found == set(CODE)
    assert all(sum(len(row.split()) for row in LAYERS[package]) == len(LEVELS[package]) for package in LAYERS)


def test_no_modules_import_each_other_in_a_circle() -> None:
    found = circle(sources())
    assert not found, "in a circle: " + " <- ".join(found)


def test_rule_on_circles_bites() -> None:
    one = Source("mhc_compile/a.py", "from mhc_compile.b import c")
    two = Source("mhc_compile/b/__init__.py", "from mhc_compile import a")
    assert len(circle([one, two])) == 3
    assert circle([one]) == []


def test_no_folder_is_crowded() -> None:
    assert_none(list(check_folders(path.relative_to(ROOT).as_posix() for path in files())))


def test_rule_on_folders_bites() -> None:
    few = [f"bench/kernels/{i}.py" for i in range(MAX_ENTRIES)]
    fine = [*few, "bench/kernels/__init__.py", "bench/kernels/README.md", "bench/other/deep/er.py", "bench/common.py"]
    elsewhere = [f"{folder}/{i}" for folder in ("bench/results", ".ci") for i in range(MAX_ENTRIES + 1)]
    assert list(check_folders([*fine, *elsewhere])) == []
    for crowd in (["bench/kernels/one_more.py"], ["bench/kernels/folder/a.py", "bench/kernels/folder/b.py"]):
        (complaint,) = check_folders([*fine, *crowd])
        assert complaint.startswith(f"bench/kernels: {MAX_ENTRIES + 1} entries")
    (complaint,) = check_folders(f"docs/{i}.md" for i in range(MAX_ENTRIES + 1))
    assert complaint.startswith("docs: ")


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


def in_short(value: object) -> str:
    """A rule's name, a path, or the first words of a file."""
    return str(getattr(value, "__name__", " ".join(str(value).split()[:2])))


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [
        (check_placed, "mhc_compile/brand_new.py", ""),
        (check_placed, "passes/brand_new.py", ""),
        (check_placed, "mhc_compile/codegen/brand_new/file.py", ""),
        (check_layers, "mhc_compile/ops/library.py", "import mhc_compile.passes.base"),
        (check_layers, "mhc_compile/config.py", "from mhc_compile import backend"),
        (check_layers, "mhc_compile/model/sites.py", "from mhc_compile import upgrade as u"),
        (check_layers, "mhc_compile/model/sites.py", "from mhc_compile.api.upgrade import upgrade"),
        (check_layers, "passes/widen.py", "from mhc_compile import __version__"),
        (check_layers, "passes/graph/walk.py", "from mhc_compile.passes.base import Pass"),
        (check_layers, "passes/graph/walk.py", "from mhc_compile.passes import PIPELINE"),
        (check_layers, "passes/deep/er.py", "def f():\n    from mhc_compile.model.sites import Site"),
        (check_layers, "mhc_compile/codegen/triton/host.py", "from mhc_compile.codegen.runtime import build"),
        (check_sides, "passes/inline.py", "from mhc_compile.codegen import seam"),
        (check_sides, "passes/graph/walk.py", "import triton.language as tl"),
        (check_sides, "mhc_compile/codegen/seam.py", "from mhc_compile import passes"),
        (check_sides, "mhc_compile/codegen/runtime/seam.py", "from torch import fx"),
        (check_sides, "mhc_compile/codegen/seam.py", "import torch\ntorch.fx.Node"),
        (check_absolute, "passes/widen.py", "from ..ops import library"),
        (check_no_lending, "tests/test_x.py", "from tests.passes.test_y import Net"),
        (check_no_lending, "tests/passes/helpers.py", "def f():\n    from tests.passes import test_y"),
        (check_file_length, "tests/test_x.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (check_function_length, "bench/run.py", LONG_FUNCTION),
        (check_function_length, "bench/run.py", LONG_METHOD),
    ],
    ids=in_short,
)
def test_rule_bites(rule: Rule, path: str, text: str) -> None:
    assert len(list(rule(Source(path, text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mhc_compile/backend/__init__.py", "from mhc_compile import config, passes\nimport torch.fx"),
        ("mhc_compile/cli/demo/__init__.py", "import mhc_compile as mhc"),
        ("mhc_compile/codegen/triton/host.py", "import triton, torch\nfrom torch.fxx import y"),
        ("passes/widen.py", "from mhc_compile.passes.base import Pass\nimport torch.fx"),
        ("tests/test_x.py", "from mhc_compile import cli"),
        ("tests/test_x.py", "from tests.nets.small import Net\nfrom torch.testing import test_y"),
        ("bench/run.py", "def f():\n" + "    x = 1\n" * (MAX_FUNCTION_LINES - 1)),
        ("bench/run.py", "x = 1\n" * MAX_FILE_LINES),
    ],
    ids=in_short,
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
