"""Models of `transformers`: exactly the residual adds are found, and the rewrite keeps values and gradients."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import mhc_compile as mhc
from tests.nets.library import CASES
from tests.nets.small import compiled, floats, gradient_error, gradients, own_parameters, perturb, relative

TOLERANCE = 1e-5


@dataclasses.dataclass
class Subject:
    """A model upgraded once, with what the original computed."""

    name: str
    model: nn.Module
    call: dict[str, Any]
    original: nn.Module
    report: mhc.Report


def run(model: Any, call: dict[str, Any]) -> Any:
    """Call with the same random numbers every time, for dropout and drop path."""
    torch.manual_seed(3)
    return model(**call)


def worst(actual: Any, expected: Any) -> float:
    """The largest relative error of any output."""
    return max(relative(a, b) for a, b in zip(floats(actual), floats(expected), strict=True))


# one worker per model, or each would upgrade it anew
@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in CASES])
def subject(request: pytest.FixtureRequest) -> Subject:
    original, call = CASES[request.param].make()
    model = copy.deepcopy(original)
    report = mhc.upgrade(model, kwargs=call)
    return Subject(request.param, model, call, original, report)


@pytest.mark.core(2)
def test_sites(subject: Subject) -> None:
    """The right number of sites and adds, and each in a layer of the model."""
    case, report = CASES[subject.name], subject.report
    assert (len(report.sites), sum(site.adds for site in report.sites)) == (case.sites, case.adds)
    assert len(report.regions) == case.regions
    assert report.graphs == 1
    assert not report.breaks
    assert not [rejection for rejection in report.rejections if rejection.residual]
    sums = [rejection for rejection in report.rejections if rejection.reason == "branch-sum"]
    assert len(sums) == (case.sites if subject.name in ("neox", "gptj") else 0)  # their (mlp + attn) + x
    assert all("layer" in site.owner or ".h." in site.owner or "block" in site.owner for site in report.sites)
    assert all(site.channels == 32 and site.axis == -1 for site in report.sites)


@pytest.mark.core(4)
def test_verified(subject: Subject) -> None:
    assert subject.report.max_error is not None
    assert subject.report.max_error <= TOLERANCE


@pytest.mark.core(2)
def test_inference(subject: Subject) -> None:
    original, model = subject.original.eval(), subject.model.eval()
    with torch.no_grad():
        assert worst(run(compiled(model), subject.call), run(original, subject.call)) <= TOLERANCE


@pytest.mark.core(1)
def test_training(subject: Subject) -> None:
    """Values and gradients in training mode; then every mHC parameter has a gradient, and still does when moved."""
    original, model = subject.original.train(), subject.model.train()
    step = compiled(model, compiler="aot_eager")
    expected, out = run(original, subject.call), run(step, subject.call)
    assert worst(out, expected) <= TOLERANCE
    own, ours = own_parameters(model), [parameter for _, parameter in mhc.named_parameters(model)]
    assert list(own) == [name for name, _ in original.named_parameters()]
    found = gradients(out, [*own.values(), *ours])
    assert gradient_error(found[: len(own)], gradients(expected, original.parameters())) <= TOLERANCE
    assert all(grad is not None for grad in found[len(own) :])
    start = copy.deepcopy(model.state_dict())
    perturb(model)
    try:
        _check_moved(model, step, subject.call, expected)
    finally:
        model.load_state_dict(start)


def _check_moved(model: nn.Module, step: Any, call: dict[str, Any], original: Any) -> None:
    """Away from the start the compiled graph still computes what the rewritten graph means."""
    out, reference = run(step, call), run(compiled(model), call)
    assert worst(reference, original) > 100 * TOLERANCE
    assert worst(out, reference) <= TOLERANCE
    found, expected = (gradients(output, model.parameters()) for output in (out, reference))
    assert gradient_error(found, expected) <= TOLERANCE
    alive = dict(zip((name for name, _ in model.named_parameters()), found, strict=True))
    for name, _ in mhc.named_parameters(model):
        grad = alive[name]
        assert grad is not None
        assert grad.isfinite().all()
        assert grad.abs().max() > 0, name


@pytest.mark.core(1)
def test_bfloat16(subject: Subject) -> None:
    """Bitwise equal where a site is one add; else as near to the fp32 model as the original in bf16 is."""
    call = {key: value.bfloat16() if value.is_floating_point() else value for key, value in subject.call.items()}
    narrow = copy.deepcopy(subject.original).eval().bfloat16()
    model = copy.deepcopy(subject.model).eval().bfloat16()
    with torch.no_grad():
        expected, out = run(narrow, call), run(compiled(model, compiler="aot_eager"), call)
        if all(site.adds == 1 for site in subject.report.sites):
            assert all(torch.equal(a, b) for a, b in zip(floats(out), floats(expected), strict=True))
        else:
            exact = run(subject.original.eval(), subject.call)
            assert worst(out, exact) <= 1.2 * worst(expected, exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_inductor(name: str, moved: bool) -> None:
    original, call = CASES[name].make()
    model = copy.deepcopy(original)
    mhc.upgrade(model, kwargs=call)
    perturb(model, 0.5 if moved else 0.0)
    out = run(compiled(model.eval(), compiler="inductor"), call)
    reference = run(compiled(model.eval()) if moved else original.eval(), call)
    assert worst(out, reference) <= TOLERANCE
    own = own_parameters(model)
    wanted = own.values() if moved else original.parameters()
    assert gradient_error(gradients(out, own.values()), gradients(reference, wanted)) <= TOLERANCE
