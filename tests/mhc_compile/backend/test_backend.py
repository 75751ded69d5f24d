"""The backend as torch.compile sees it: by name, with options and mode, across shapes, dtypes and modes of running."""

from __future__ import annotations

import copy
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.backends.registry import list_backends
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache

import mhc_compile as mhc
from mhc_compile import backend
from mhc_compile.backend import compilers
from mhc_compile.config import Config
from mhc_compile.errors import ConfigError
from tests.nets.small import (
    Net,
    PostBlock,
    Shared,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    own_parameters,
    perturb,
    relative,
    snapshot,
    unchanged,
    upgraded,
)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt": ({"stream": 4}, "unknown option 'stream'; did you mean 'streams'"),
    "unknown": ({"banana": 4}, "unknown option 'banana'; the options are"),
    "no streams": ({"streams": 0}, "streams must be an integer >= 1, not 0"),
    "half a stream": ({"streams": 2.5}, "streams must be an integer >= 1, not 2.5"),
    "text": ({"streams": "4"}, "streams must be an integer >= 1, not '4'"),
    "true": ({"streams": True}, "streams must be an integer >= 1, not True"),
    "connection": ({"connection": "mhcc"}, "connection must be one of 'mhc', 'deepseek-v4', 'hc', 'residual'"),
    "projection": ({"projection": "qr"}, "sinkhorn"),
    "compiler": ({"compiler": "nvcc"}, "compiler must be one of 'inductor', 'aot_eager', 'eager'"),
    "alpha": ({"alpha": 2}, "alpha must be 'auto' or a number"),
    "inductor": ({"inductor": ["max_autotune"]}, "inductor must be a mapping"),
}


def test_found_by_name() -> None:
    assert "mhc" in list_backends()
    (point,) = entry_points(group="torch_dynamo_backends", name="mhc")
    assert point.load() is backend.mhc


@pytest.mark.core
@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD.keys())
@pytest.mark.parametrize("when", ["before", "after"])
def test_bad_options(options: dict[str, Any], message: str, when: str) -> None:
    """The error itself, not one of Dynamo's around it; the model is left as it was."""
    model = made() if when == "before" else upgraded()
    before = snapshot(model)
    with pytest.raises(ConfigError, match=message) as caught:
        torch.compile(model, backend="mhc", options=options)(inputs())
    assert type(caught.value) is ConfigError
    assert unchanged(model, before)


def test_a_bad_option_leaves_nothing_behind() -> None:
    """The next compilation works."""
    model = upgraded()
    with pytest.raises(ConfigError):
        torch.compile(model, backend="mhc", options={"streams": 0})(inputs())
    assert compiled(model)(inputs()).shape == (3, 5, 4)


@pytest.mark.core(1)
@pytest.mark.parametrize("make", [Net, Shared, lambda: Net(2, PostBlock)], ids=["net", "shared", "post-norm"])
@pytest.mark.parametrize("connection", ["mhc", "hc"])
def test_compilers_agree(make: Any, connection: str, moved: bool) -> None:
    """The graph run op by op and the one that AOTAutograd traced: the same values and gradients."""
    model = upgraded(make, config=mhc.Config(connection=connection), moved=moved)
    out, expected = compiled(model, compiler="aot_eager")(inputs()), compiled(model)(inputs())
    assert relative(out, expected) < 1e-5
    found, wanted = (gradients(o, model.parameters()) for o in (out, expected))
    assert gradient_error(found, wanted) < 1e-5
    if not moved:
        plain = made(make)
        assert relative(out, plain(inputs())) < 1e-5
        own = gradients(compiled(model, compiler="aot_eager")(inputs()), own_parameters(model).values())
        assert gradient_error(own, gradients(plain(inputs()), plain.parameters())) < 1e-5


def test_inductor(moved: bool) -> None:
    """The default compiler."""
    model = upgraded(Net, 1, moved=moved)
    out, expected = torch.compile(model, backend="mhc")(inputs()), compiled(model)(inputs())
    assert relative(out, expected) < 1e-5
    found, wanted = (gradients(o, model.parameters()) for o in (out, expected))
    assert gradient_error(found, wanted) < 1e-5


def test_new_shapes(moved: bool) -> None:
    """A second shape makes sizes symbolic; from then on nothing is compiled, and the function is the same."""
    model = upgraded(moved=moved)
    run = compiled(model, compiler="aot_eager")
    run(inputs(2, 3))
    run(inputs(4, 6))
    shapes = [(5, 7), (3, 2), (2, 3)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        outs = [run(inputs(*shape)) for shape in shapes]
    for shape, out in zip(shapes, outs, strict=True):
        torch._dynamo.reset()
        assert relative(out, compiled(model)(inputs(*shape))) < 1e-5


@pytest.mark.core(1)
@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4)], ids=str)
def test_ranks(shape: tuple[int, ...], moved: bool) -> None:
    model = upgraded(moved=moved)
    out = compiled(model)(inputs(*shape))
    assert out.shape == (*shape, 4)
    wide = upgraded(moved=moved)
    assert relative(compiled(wide)(inputs(*shape).reshape(1, -1, 8)).reshape(out.shape), out) < 1e-5


def test_no_tokens(moved: bool) -> None:
    model = upgraded(moved=moved)
    assert compiled(model)(inputs(0, 5)).shape == (0, 5, 4)


def test_train_and_eval_switch(moved: bool) -> None:
    """Dropout with the same seed, then none, then again."""
    model, plain = upgraded(Net, dropout=0.3, moved=moved), made(Net, dropout=0.3)
    run = compiled(model, compiler="aot_eager")
    whole = compiled(copy.deepcopy(model))
    for training in (True, False, True):
        out = []
        for each in (run, whole, plain):
            each.train(training)
            torch.manual_seed(5)
            out.append(each(inputs()))
        assert relative(out[0], out[1]) < 1e-5
        assert (relative(out[0], out[2]) < 1e-5) is not moved


@pytest.mark.core(1)
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
def test_without_gradients(mode: str, moved: bool) -> None:
    model = upgraded(moved=moved)
    run = compiled(model, compiler="aot_eager")
    expected = run(inputs())
    with getattr(torch, mode)():
        assert relative(run(inputs()), expected) < 1e-6
    assert torch.equal(run(inputs()), expected)


def test_autocast(moved: bool) -> None:
    """As near to the plain model under autocast as that is to fp32."""
    model, plain = upgraded(moved=moved), made()
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = compiled(model)(inputs()), plain(inputs())
    assert out.dtype == expected.dtype == torch.bfloat16
    reference = compiled(model)(inputs())
    own_error = relative(expected, plain(inputs()))
    assert relative(out, reference) <= 2 * own_error
    if not moved:
        assert relative(out, expected) <= 2 * own_error


@pytest.mark.parametrize("config", [{"streams": 1}, {"connection": "residual"}], ids=str)
def test_options_that_rewrite_nothing(config: dict[str, Any]) -> None:
    model = made()
    before, expected = snapshot(model), model(inputs())
    assert torch.equal(compiled(model, **config)(inputs()), expected)
    assert unchanged(model, before)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Config, str | None]]:
    """What is asked of the compiler behind."""
    found: list[tuple[Config, str | None]] = []

    def compile_with(gm: Any, example_inputs: Any, config: Config, mode: str | None = None) -> Any:
        found.append((config, mode))
        return gm.forward

    monkeypatch.setattr(backend, "compile_with", compile_with)
    return found


def test_mode_is_handed_on(asked: list[tuple[Config, str | None]]) -> None:
    torch.compile(upgraded(), backend="mhc", mode="max-autotune-no-cudagraphs")(inputs())
    assert [mode for _, mode in asked][-1] == "max-autotune-no-cudagraphs"


def test_function_comes_from_the_model_and_the_rest_from_the_options(asked: list[tuple[Config, str | None]]) -> None:
    model = upgraded(config=mhc.Config(streams=2, sinkhorn_iters=7))
    asked.clear()
    compiled(model, inductor={"max_autotune": True})(inputs())
    ((config, _),) = asked
    assert (config.streams, config.sinkhorn_iters) == (2, 7)
    assert (config.compiler, config.inductor) == ("eager", {"max_autotune": True})


def test_a_second_model_is_no_new_compilation() -> None:
    """Equal models share code, each with its own parameters."""
    models: list[nn.Module] = [upgraded(), upgraded()]
    perturb(models[1])
    outs = []
    run = compiled(models[0])
    outs.append(run(inputs()))
    with torch._dynamo.config.patch(error_on_recompile=True):
        outs.append(compiled(models[1])(inputs()))
    assert not torch.equal(*outs)
    torch._dynamo.reset()
    assert torch.equal(compiled(models[1])(inputs()), outs[1])


class WrittenOutNorm(nn.Module):
    """A norm in primitives, as Hugging Face writes it: methods are called on what a site reads."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.to(torch.float32)
        return wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = WrittenOutNorm(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mlp(self.norm(x))
        return x + self.mlp(self.norm(x))


def test_caches_hold_rewritten_graphs_until_the_source_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """AOTAutograd bypasses its cache for graphs it cannot read; and an edited op must not hit old code."""
    x = torch.randn(2, 3, 4)
    hashes = iter(("a", "a", "b"))
    monkeypatch.setattr(compilers, "source_hash", lambda: next(hashes))
    with fresh_cache():
        for expected in ("autograd_cache_miss", "autograd_cache_hit", "autograd_cache_miss"):
            torch._dynamo.reset()
            torch.manual_seed(0)
            model = Plain()
            mhc.upgrade(model, (x,), verify=False)
            counters.clear()
            compiled(model, compiler="inductor")(x).backward(torch.ones_like(x))
            assert counters["aot_autograd"][expected] == 1
            assert counters["aot_autograd"]["autograd_cache_bypass"] == 0
