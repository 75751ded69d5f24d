"""Tests stand where the source stands: a folder for each package, and a file for each module that holds logic."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

from tests.project.rules import sources

FACE = ("mhc_compile", "passes")
HERE = "tests"

# Modules whose tests stand under another name. An `__init__` that only hands on names needs none.
ELSEWHERE: dict[str, str] = {
    "passes/base/contract.py": "tests/passes/test_runner.py",
    "passes/base/words.py": "tests/passes/find_residuals/test_naming.py",
    "passes/fuse_seams/fuser.py": "tests/passes/fuse_seams/test_fuse_seams.py",
    "passes/graph/ir.py": "tests/passes/fuse_seams/test_fuse_seams.py",
    "passes/inline.py": "tests/mhc_compile/api/test_export.py",
    "passes/widen/places.py": "tests/passes/widen/test_widen.py",
    "passes/widen/widened.py": "tests/passes/widen/test_widen.py",
    "passes/widen/widener.py": "tests/passes/widen/test_widen.py",
    "mhc_compile/__main__.py": "tests/mhc_compile/cli/test_cli.py",
    "mhc_compile/api/gains/site.py": "tests/mhc_compile/api/gains/test_result.py",
    "mhc_compile/api/gains/tokens.py": "tests/mhc_compile/api/gains/test_mixing.py",
    "mhc_compile/api/gains/watching.py": "tests/mhc_compile/api/gains/test_gains.py",
    "mhc_compile/api/monitor/gradients.py": "tests/mhc_compile/api/monitor/test_monitor.py",
    "mhc_compile/api/monitor/run_header.py": "tests/mhc_compile/api/monitor/test_monitor.py",
    "mhc_compile/api/tables.py": "tests/mhc_compile/api/test_report.py",
    "mhc_compile/capture/frames.py": "tests/mhc_compile/capture/test_model_run.py",
    "mhc_compile/capture/graphs.py": "tests/mhc_compile/capture/test_model_run.py",
    "mhc_compile/cli/bench.py": "tests/mhc_compile/cli/test_cli.py",
    "mhc_compile/cli/demo/summary.py": "tests/mhc_compile/cli/test_demo.py",
    "mhc_compile/cli/training.py": "tests/mhc_compile/cli/test_demo.py",
    "mhc_compile/cli/explain.py": "tests/mhc_compile/cli/test_cli.py",
    "mhc_compile/cli/factory.py": "tests/mhc_compile/cli/test_cli.py",
    "mhc_compile/codegen/inspect/subprocess_call.py": "tests/mhc_compile/codegen/runtime/test_interpreter.py",
    "mhc_compile/codegen/runtime/cache.py": "tests/mhc_compile/codegen/runtime/test_build.py",
    "mhc_compile/codegen/runtime/dispatch.py": "tests/mhc_compile/codegen/test_kernels.py",
    "mhc_compile/codegen/runtime/dtypes.py": "tests/mhc_compile/codegen/test_kernels.py",
    "mhc_compile/codegen/runtime/spec_of_call.py": "tests/mhc_compile/codegen/test_kernels.py",
    "mhc_compile/codegen/spec.py": "tests/mhc_compile/codegen/triton/test_generate.py",
    **{
        f"mhc_compile/codegen/triton/{name}.py": "tests/mhc_compile/codegen/test_kernels.py"
        for name in "forward fragments grad_logits grad_streams grad_sums host leave one_launch replay sinkhorn".split()
    },
    "mhc_compile/distributed/boundary.py": "tests/end_to_end/distributed/test_boundary.py",
    "mhc_compile/distributed/sending.py": "tests/end_to_end/distributed/test_sending.py",
    "mhc_compile/distributed/sharding.py": "tests/end_to_end/distributed/test_sharding.py",
    "mhc_compile/distributed/stages.py": "tests/end_to_end/distributed/test_stages.py",
    "mhc_compile/distributed/tokens.py": "tests/end_to_end/distributed/test_tensor_parallel.py",
    "mhc_compile/model/attach.py": "tests/mhc_compile/api/test_upgrade.py",
    "mhc_compile/model/plan_text.py": "tests/mhc_compile/model/test_root_sites.py",
    "mhc_compile/ops/fused.py": "tests/mhc_compile/ops/test_seams.py",
    "mhc_compile/ops/limits.py": "tests/mhc_compile/ops/test_replay.py",
    "mhc_compile/ops/norms.py": "tests/mhc_compile/ops/test_seams.py",
    "mhc_compile/ops/registration.py": "tests/mhc_compile/ops/test_library_compiler.py",
    "mhc_compile/ops/signatures/fields.py": "tests/mhc_compile/ops/test_library.py",
    "mhc_compile/ops/signatures/parts.py": "tests/mhc_compile/ops/test_library.py",
    "mhc_compile/plan/drafting.py": "tests/mhc_compile/plan/test_model_plan.py",
}


def wanted(module: str) -> list[str]:
    """Where the tests of a module may stand; those of a package in it or beside it."""
    path = PurePosixPath(HERE, module)
    if path.name != "__init__.py":
        return [str(path.with_name(f"test_{path.name}"))]
    name = f"test_{path.parent.name}.py"
    return [str(path.with_name(name)), str(path.parent.with_name(name))]


def untested(modules: Iterable[str], tests: set[str], elsewhere: dict[str, str]) -> Iterator[str]:
    """Modules without a file of tests, and entries of the table that are wrong or not needed any more."""
    known = set(modules)
    for module in sorted(known):
        found = tests.intersection(wanted(module))
        if module in elsewhere:
            if found:
                yield f"{module}: has {min(found)}, so it needs no entry in ELSEWHERE"
            elif elsewhere[module] not in tests:
                yield f"{module}: ELSEWHERE says {elsewhere[module]}, which is not there"
        elif not found and PurePosixPath(module).name != "__init__.py":
            yield f"{module}: wants tests in {wanted(module)[0]}, or an entry in ELSEWHERE"
    yield from (f"{module}: stands in ELSEWHERE, but is gone" for module in sorted(set(elsewhere) - known))


def strange(tests: Iterable[str], modules: Iterable[str]) -> set[str]:
    """Folders of tests that mirror no package."""
    packages = {str(PurePosixPath(module).parent) for module in modules}
    mirrors = {str(PurePosixPath(test).parent.relative_to(HERE)) for test in tests}
    return {folder for folder in mirrors if folder.split("/")[0] in FACE and folder not in packages}


def test_every_module_has_tests_where_it_is_mirrored() -> None:
    paths = {source.path for source in sources()}
    modules = {path for path in paths if path.split("/")[0] in FACE}
    tests = {path for path in paths if path.startswith(f"{HERE}/")}
    found = [*untested(modules, tests, ELSEWHERE), *strange(tests, modules)]
    assert not found, "\n".join(["", *found])


def test_rule_bites() -> None:
    modules = {"passes/__init__.py", "passes/widen/__init__.py", "passes/widen/flow.py", "passes/lone.py"}
    tests = {"tests/passes/widen/test_widen.py", "tests/passes/widen/test_flow.py", "tests/passes/graph/test_x.py"}
    assert list(untested(modules, tests, {})) == [
        "passes/lone.py: wants tests in tests/passes/test_lone.py, or an entry in ELSEWHERE"
    ]
    assert list(untested(modules, tests, {"passes/lone.py": "tests/passes/widen/test_flow.py"})) == []
    wrong = {"passes/lone.py": "tests/gone.py", "passes/widen/flow.py": "tests/gone.py", "passes/old.py": "tests/a.py"}
    assert [line.partition(":")[0] for line in untested(modules, tests, wrong)] == [
        "passes/lone.py", "passes/widen/flow.py", "passes/old.py"
    ]  # fmt: skip
    assert strange(tests, modules) == {"passes/graph"}
