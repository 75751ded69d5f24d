"""What programs do with a model: other sizes, dtypes and modes, several models, threads.

mHC parameters are away from their start in every test, and upstream gradients are random.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import mhc_compile as mhc
from mhc_compile.ops.signatures import SeamResult, named
from tests.nets.small import (
    Block,
    Net,
    PostBlock,
    Results,
    Shared,
    afresh,
    agree,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    mhc_state,
    own_parameters,
    perturb,
    relative,
    results,
    same,
    upgraded,
)

Setting = Callable[[], AbstractContextManager[Any]]

# -- sizes ------------------------------------------------------------------------------------------------------------

SIZES = ((2, 3), (4, 6), (5, 7), (3, 2), (6, 4))


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda: Shared(2), lambda: Net(1, PostBlock)], ids=["shared", "post-norm"])
@pytest.mark.parametrize(("marked", "compilations"), [(True, 1), (False, 2)], ids=["marked", "automatic"])
def test_sizes(make: Any, marked: bool, compilations: int) -> None:
    """Batch and sequence are symbolic from the first size on, or from the second."""
    model = upgraded(make, moved=True)
    torch._dynamo.reset()
    counters.clear()
    run = compiled(model, compiler="aot_eager")
    found = []
    for size in SIZES:
        x = inputs(*size).requires_grad_()
        if marked:
            torch._dynamo.mark_dynamic(x, (0, 1))
        out = run(x)
        found.append((out, gradients(out, [x, *model.parameters()])))
    assert counters["stats"]["unique_graphs"] == compilations
    for size, each in zip(SIZES, found, strict=True):
        assert agree(each, afresh(model, inputs(*size)))


# -- dtypes -----------------------------------------------------------------------------------------------------------


def coefficient_dtypes(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """What dtypes coefficients have from here on, when the compiled graph runs."""
    found: set[torch.dtype] = set()

    class Recorder(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            made = super().run_node(node)
            if node.target is torch.ops.mhc.coefficients.default:
                found.update(tensor.dtype for tensor in made)
            elif node.target is torch.ops.mhc.seam.default:
                arrival = named(SeamResult, made).arrival
                found.update(tensor.dtype for tensor in (arrival.h_post, arrival.h_res, *arrival.kept))
            return made

    def compile_with(gm: Any, *_: Any) -> Any:
        return Recorder(gm).run

    monkeypatch.setattr("mhc_compile.backend.compile_with", compile_with)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_training_under_autocast(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As near to fp32 as the plain model under autocast; fp16 with its gradients scaled, as one trains with it."""
    plain, model = made(), upgraded(moved=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=dtype == torch.float16)

    def step(run: Any, of: nn.Module) -> Results:
        of.zero_grad()
        with torch.autocast("cpu", dtype):
            out = run(inputs())
        assert out.dtype == dtype
        optimizer = torch.optim.SGD(of.parameters(), lr=0.0)
        upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(11))
        scaler.scale((out.float() * upstream).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        return out, [p.grad for p in of.parameters()]

    def errors(run: Any, of: nn.Module) -> tuple[float, float]:
        out = run(inputs())
        exact = out, gradients(out, of.parameters())
        found = step(run, of)
        return relative(found[0], exact[0]), gradient_error(found[1], exact[1])

    wanted = errors(plain, plain)
    for ours, theirs in zip(errors(compiled(model, compiler="aot_eager"), model), wanted, strict=True):
        assert ours <= 3 * theirs
    assert {p.grad.dtype for _, p in mhc.named_parameters(model) if p.grad is not None} == {torch.float32}
    torch._dynamo.reset()
    dtypes = coefficient_dtypes(monkeypatch)
    step(compiled(model), model)
    assert dtypes == {torch.float32}


class WideBlock(nn.Module):
    """A residual in fp32 around branches in bf16."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm(x.bfloat16()))
        return x + self.mlp(self.norm(x.to(torch.bfloat16))).float()


@pytest.mark.slow
def test_wide_residual_in_a_narrow_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model = made(Net, 2, WideBlock)
    assert len(mhc.upgrade(model, (inputs(),)).sites) == 4
    perturb(model)
    found = results(compiled(model, compiler="aot_eager"), model, inputs())
    assert found[0].dtype == torch.float32
    assert agree(found, afresh(model, inputs()), 2e-2)
    dtypes = coefficient_dtypes(monkeypatch)
    afresh(model, inputs())
    assert dtypes == {torch.float32}


# -- one plan, many captures ------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[bool, Setting, tuple[int, ...]]] = {
    "train": (True, nullcontext, (3, 5)),
    "eval": (False, nullcontext, (3, 5)),
    "no_grad": (True, torch.no_grad, (3, 5)),
    "inference_mode": (False, torch.inference_mode, (3, 5)),
    "autocast": (True, lambda: torch.autocast("cpu", torch.bfloat16), (3, 5)),
    "shape": (True, nullcontext, (4, 2)),
    "rank": (False, nullcontext, (2, 3, 4)),
}


@pytest.mark.slow
def test_one_plan_many_captures() -> None:
    """Each setting is captured anew; when it comes back, too, it is what it is alone."""
    model = upgraded(Net, 1, dropout=0.3, moved=True)
    state = {name: value.clone() for name, value in model.state_dict().items()}

    def run(subject: nn.Module, name: str) -> Results:
        training, setting, shape = SETTINGS[name]
        subject.train(training)
        torch.manual_seed(5)
        with setting():
            return results(subject, subject, inputs(*shape))

    subject = compiled(model, compiler="aot_eager")
    found = [(name, run(subject, name)) for _ in range(2) for name in SETTINGS]
    assert same(list(model.state_dict().values()), list(state.values()))  # the plan, which is extra state, included
    alone = {}
    for name in SETTINGS:
        torch._dynamo.reset()
        alone[name] = run(compiled(copy.deepcopy(model), compiler="aot_eager"), name)
    for name, each in found:
        assert agree(each, alone[name]), name


# -- several models ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_copies_train_apart() -> None:
    """Each ends where it ends when it is trained alone."""
    model = upgraded(moved=True)

    def train(subjects: list[nn.Module]) -> None:
        runs = [compiled(each, compiler="aot_eager") for each in subjects]
        optimizers = [torch.optim.AdamW(mhc.param_groups(each, lr=1e-2)) for each in subjects]
        for _ in range(3):
            for i, (run, optimizer) in enumerate(zip(runs, optimizers, strict=True)):
                optimizer.zero_grad()
                (run(inputs(seed=seeds[i])) * inputs(3, 5, seed=3)[..., :4]).sum().backward()
                optimizer.step()

    seeds = [1, 2]
    together = [copy.deepcopy(model) for _ in seeds]
    train(together)
    for twin, seed in zip(together, list(seeds), strict=True):
        torch._dynamo.reset()
        alone = copy.deepcopy(model)
        seeds[0] = seed
        train([alone])
        assert same(list(mhc_state(twin).values()), list(mhc_state(alone).values()))
        assert same(list(own_parameters(twin).values()), list(own_parameters(alone).values()))
    assert not same(list(mhc_state(together[0]).values()), list(mhc_state(together[1]).values()))


CONFIGS = [mhc.Config(streams=n, connection=kind) for n in (2, 4) for kind in ("hc", "mhc")]


@pytest.mark.slow
def test_gradients_of_several_configs_in_one_process() -> None:
    """All forwards, then all backwards: whatever models of one class share, it is not their configs."""
    models = [upgraded(config=config, moved=True) for config in CONFIGS]
    runs = [compiled(model, compiler="aot_eager") for model in models]
    outs = [run(inputs()) for run in runs]
    found = [gradients(out, model.parameters()) for out, model in zip(outs, models, strict=True)]
    for model, out, grads in zip(models, outs, found, strict=True):
        expected, (_, *wanted) = afresh(model, inputs())
        assert agree((out, grads), (expected, wanted))


@pytest.mark.slow
def test_threads() -> None:
    """Several compile at once, of equal classes and other ones."""
    models = [upgraded(moved=True), upgraded(Shared, moved=True), upgraded(Net, 3, PostBlock, moved=True)]
    perturb(models[0], seed=8)
    found: dict[int, Any] = {}
    start = threading.Barrier(len(models))

    def work(i: int) -> None:
        start.wait()
        try:
            found[i] = results(compiled(models[i], compiler="aot_eager"), models[i], inputs())
        except BaseException as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, model in enumerate(models):
        assert not isinstance(found[i], BaseException), found[i]
        assert agree(found[i], afresh(model, inputs()))


# -- layers that are left out ----------------------------------------------------------------------------------------


class Dropping(Net):
    """LayerDrop: chance decides by a tensor, where the graph breaks, or what was drawn is known."""

    dropped: Sequence[bool] | Tensor = (False, False, False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, dropped in zip(self.blocks, self.dropped, strict=True):
            if dropped:
                continue
            x = block(x)
        out: Tensor = self.head(x)
        return out


@pytest.mark.core(1)
@pytest.mark.parametrize("block", [Block, PostBlock])
@pytest.mark.parametrize("dropped", [(1, 0, 0), (1, 1, 0), (0, 1, 0), (1, 0, 1), (1, 1, 1)], ids=str)
def test_layers_that_are_left_out(block: type[nn.Module], dropped: tuple[int, ...]) -> None:
    """What comes first starts the streams, as it does in the graph of a model that leaves out the same layers."""
    model: Any = made(Dropping, 3, block)
    mhc.upgrade(model, (inputs(),))
    perturb(model)
    given = list(model.parameters())
    found = []
    for draw in (tuple(map(bool, dropped)), torch.tensor(dropped, dtype=torch.bool)):
        torch._dynamo.reset()
        model.dropped = draw
        out = compiled(model)(inputs())
        found.append([out, *gradients(out, given)])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or relative(a, b) < 1e-5
