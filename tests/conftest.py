"""Every test starts with an empty Dynamo and the same random state; of dear products some cases are slow."""

from __future__ import annotations

import gc
import logging
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._inductor import compile_fx

import mhc_compile as mhc
from mhc_compile import backend
from mhc_compile.backend import compilers
from tests.cases import MOVED, START, compiles, core, is_repeated


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


@pytest.fixture(params=[True, False], ids=[MOVED, START])
def moved(request: pytest.FixtureRequest) -> bool:
    """Whether phi, alpha and biases have left their start, where a lost connection looks right; so that comes last."""
    return bool(request.param)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whatever the backend compiles, named by who compiles it."""
    found: list[str] = []
    compile_with = compilers.compile_with

    def compile_and_tell(gm: Any, example_inputs: Any, config: mhc.Config, mode: str | None = None) -> Any:
        found.append(config.compiler)
        return compile_with(gm, example_inputs, config, mode)

    monkeypatch.setattr(backend, "compile_with", compile_and_tell)
    return found


@pytest.fixture(params=[False, True], ids=["AOTAutograd", "Inductor"])
def by_inductor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether Inductor compiles what it is asked to, in seconds a graph; otherwise AOTAutograd does, alone."""
    if not request.param:
        run = torch._dynamo.lookup_backend("aot_eager")
        monkeypatch.setattr(compile_fx, "compile_fx", lambda gm, inputs, *_, **__: run(gm, inputs))
    return bool(request.param)


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark what `make quick` leaves out, what `make test` does (see `tests.cases`), and what lacks a GPU.

    Of tests with `@pytest.mark.core(...)` some cases run in `make test`; the others are slow. So are cases at the start
    where there is the same one with parameters that have moved.
    """
    tests: dict[str, list[pytest.Function]] = defaultdict(list)
    known = {item.nodeid for item in items}
    for item in items:
        if compiles(item.nodeid):
            item.add_marker(pytest.mark.compiles)
        if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if is_repeated(item.nodeid, known):
            item.add_marker(pytest.mark.slow)
        elif item.get_closest_marker("core") is not None:
            tests[item.nodeid.partition("[")[0]].append(item)
    for cases in tests.values():
        mark = cases[0].get_closest_marker("core")
        kept = core([case.callspec.params for case in cases], *(mark.args if mark is not None else ()))
        for number, case in enumerate(cases):
            if number not in kept:
                case.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Look for garbage seldom, and not among what the imports made: that alone is a seventh of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call() -> Iterator[None]:
    """Keep pytest's log handlers off torch's structured trace, or every record of a compilation is formatted."""
    trace = logging.getLogger("torch.__trace")
    kept, trace.handlers = trace.handlers, []
    try:
        return (yield)
    finally:
        trace.handlers = kept
