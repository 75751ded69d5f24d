"""A learned readout in whole models: exact at the start, the same however it runs, and kept by what saves models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api.checkpoints import EXTRA_STATE
from mhc_compile.model.plan_text import decode, encode
from tests.nets.small import (
    Net,
    PostBlock,
    Results,
    Shared,
    afresh,
    agree,
    compile_blocks,
    compiled,
    gradient_error,
    gradients,
    inputs,
    made,
    own_parameters,
    perturb,
    relative,
    results,
    upgraded,
)

LEARNED = mhc.Config(readout="learned")
PARTS = ["head_phi", "head_alpha", "head_bias"]


class Normed(Net):
    """A norm stands behind the last sum, as in language models."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.norm = nn.RMSNorm(16, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.norm(x))
        return out


def learned(make: Any = Normed, **options: Any) -> nn.Module:
    """Perturbed, so that every stream and every weight of the head matters."""
    return upgraded(make, moved=True, config=mhc.Config(**{"readout": "learned", "compiler": "eager", **options}))


def heads(model: nn.Module) -> list[str]:
    return [name for name, _ in mhc.named_parameters(model) if ".head_" in name]


@pytest.mark.core(1)
@pytest.mark.parametrize("make", [Normed, Shared, lambda: Net(2, PostBlock)], ids=["net", "shared", "post-norm"])
def test_exact_at_the_start(make: Any) -> None:
    plain, model = made(make), made(make)
    report = mhc.upgrade(model, (inputs(),), config=LEARNED)
    assert report.max_error is not None
    assert report.max_error < 1e-6
    assert report.parameters == sum(p.numel() for _, p in mhc.named_parameters(model))
    assert [name.rpartition(".")[2] for name in heads(model)] == PARTS
    out, expected = compiled(model)(inputs()), plain(inputs())
    assert relative(out, expected) < 1e-6
    own = own_parameters(model).values()
    assert gradient_error(gradients(out, own), gradients(expected, plain.parameters())) < 1e-5


def test_every_region_has_a_head() -> None:
    model = upgraded(Net, config=mhc.Config(readout="learned", split=("blocks.1.*",)))
    assert heads(model) == [f"blocks.{i}.mhc.mlp.{part}" for i in range(2) for part in PARTS]


def test_a_model_that_was_not_upgraded() -> None:
    model = made(Normed)
    run = compiled(model, readout="learned")
    with pytest.warns(mhc.MHCWarning):
        expected = run(inputs())
    assert len(heads(model)) == 3
    assert relative(run(inputs()), expected) < 1e-6


def expected_of(model: nn.Module) -> Results:
    """In fp64 and plain torch; `by_hand.test_streams` compares that with the equations."""
    wide = learned().double()
    wide.load_state_dict(model.state_dict())
    return results(compiled(wide, kernels="reference", recompute="off"), wide, inputs().double())


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["cpp", "reference"])
@pytest.mark.parametrize("recompute", ["off", "auto", 2])
@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_kernels_and_recompute_change_nothing(kernels: str, recompute: str | int, compiler: str) -> None:
    model = learned(kernels=kernels, recompute=recompute, compiler=compiler)
    expected = expected_of(model)
    torch._dynamo.reset()
    # the gradient of a head's bias, a thousandth of the largest, is a sum over tokens that cancels: 1.2e-5 under AVX2
    assert agree(results(torch.compile(model, backend="mhc"), model, inputs()), expected, 3e-5)


def test_blocks_one_by_one() -> None:
    """Equal blocks share code, the last one has a head: also where that was compiled first."""
    ends, model = learned(lambda: Net(1)), learned(lambda: Net(4))
    expected = [afresh(each, inputs()) for each in (ends, model)]
    torch._dynamo.reset()
    for each in (ends, model):
        compile_blocks(each)
    for _ in range(2):
        for each, wanted in zip((ends, model), expected, strict=True):
            assert agree(results(each, each, inputs()), wanted)


def test_what_saves_models_keeps_heads(tmp_path: Path) -> None:
    model = learned()
    expected = compiled(model)(inputs())
    mhc.save_adapter(model, tmp_path / "adapter")
    adapted, restored = made(Normed), made(Normed, seed=3)
    mhc.load_adapter(adapted, tmp_path / "adapter")
    mhc.restore(restored, model.state_dict())
    for twin in (adapted, restored):
        assert torch.equal(compiled(twin)(inputs()), expected)
    lost = {name: value for name, value in model.state_dict().items() if not name.endswith("head_alpha")}
    with pytest.raises(RuntimeError, match=r"blocks\.1\.mhc\.mlp\.head_alpha"):
        mhc.restore(made(Normed), lost)
    mhc.reset_parameters(restored)
    mhc.remove(restored)


@pytest.mark.parametrize("function", [{}, {"readout": "mean"}], ids=["nothing", "mean"])
def test_checkpoints_from_before_there_was_a_choice(function: dict[str, str]) -> None:
    model = upgraded(moved=True)
    plan = json.loads(decode(model.state_dict()[EXTRA_STATE]))
    del plan["function"]["readout"]
    plan["function"] |= function
    for site in plan["details"]:
        del site["head"]
    earlier = model.state_dict() | {EXTRA_STATE: encode(json.dumps(plan))}
    model.load_state_dict(earlier)
    twin = made(seed=3)
    mhc.restore(twin, earlier)
    assert torch.equal(compiled(twin)(inputs()), compiled(model)(inputs()))
    with pytest.raises(mhc.errors.PlanMismatchError, match="its function differ"):
        upgraded(config=LEARNED).load_state_dict(earlier)


def test_layers_that_were_pruned_take_the_head_along() -> None:
    state = learned().state_dict()
    pruned = made(lambda: Normed(layers=1))
    mhc.restore(pruned, {name: value for name, value in state.items() if not name.startswith("blocks.1.")})
    assert heads(pruned) == []


@pytest.mark.slow
def test_gains_and_export() -> None:
    model = learned()
    out = compiled(model)(inputs())
    found = mhc.gains(model, (inputs(),))
    assert len(found.sites) == 4
    plain = learned()
    graph = mhc.export(plain, (inputs(),))
    assert relative(graph(inputs()), out) < 1e-5
    assert graph.state_dict().keys() >= {f"blocks.1.mhc.mlp.{part}" for part in (*PARTS, "head_base")}


def test_inference_of_a_model_in_16_bits_starts_exactly() -> None:
    plain, model = made(Normed).bfloat16(), made(Normed)
    mhc.upgrade(model, (inputs(),), config=LEARNED)
    model.bfloat16()
    with torch.no_grad():
        out = compiled(model)(inputs().bfloat16())
        perturb(model)
        moved = compiled(model)(inputs().bfloat16())
    assert torch.equal(out, plain(inputs().bfloat16()))
    assert not torch.equal(out, moved)
