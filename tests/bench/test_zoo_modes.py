"""The zoo's modes: what training switches on is on, and the judge sees what it does."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bench.zoo import check, modes
from bench.zoo.family import Family, each
from bench.zoo.runs import make
from tests.nets.small import Net, inputs


class Library(Net):
    """A model with the switches that libraries have."""

    supports_gradient_checkpointing = True

    def __init__(self) -> None:
        super().__init__(layers=3)
        self.config, self.checkpointed, self.layerdrop = SimpleNamespace(encoder_layerdrop=0.1), False, 0.0
        block: Any
        for block in self.blocks:
            block.drop_path, block.attention_dropout = nn.Identity(), 0.0

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        self.checkpointed, self.options = True, options

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if self.training and self.layerdrop and torch.rand(()) < self.layerdrop:
                continue
            x = checkpoint(self.run, block, x, **self.options) if self.checkpointed else self.run(block, x)
        out: Tensor = self.head(x)
        return out

    @staticmethod
    def run(block: Any, x: Tensor) -> Tensor:
        x = x + block.drop_path(block.attn(block.norm1(x)))
        out: Tensor = x + block.dropout(block.mlp(block.norm2(x)))
        return out


def family(mode: str, build: Any = Library) -> Family:
    return Family("tests", "net", build, lambda: ((inputs(),), {}), each("attention", "mlp", layers=3), mode=mode)


def prepared(mode: str) -> Any:
    return make(family(mode))[0]


def test_evaluation_is_as_the_library_builds_it() -> None:
    model = prepared("eval")
    assert not model.training
    assert model.blocks[0].dropout.p == 0
    assert model.config.encoder_layerdrop == 0.1


def test_training_drops() -> None:
    model = prepared("train")
    block = model.blocks[0]
    assert all(module.training for module in model.modules())
    assert (block.dropout.p, block.attention_dropout) == (modes.DROPOUT, modes.DROPOUT)
    assert isinstance(block.drop_path, modes.DropPath)
    assert (model.layerdrop, model.config.encoder_layerdrop, model.checkpointed) == (0, 0, False)
    x = inputs()
    assert not torch.equal(model(x), model(x))


def test_drop_path_drops_whole_branches() -> None:
    torch.manual_seed(0)
    kept = modes.DropPath().train()(torch.ones(200, 2, 3)).unique(dim=0)
    assert kept.unique().tolist() == pytest.approx([0, 1 / (1 - modes.DROP_PATH)])
    assert len(kept) == 2
    assert torch.equal(modes.DropPath().eval()(kept), kept)


def test_layers_are_planned_before_they_are_dropped() -> None:
    model = prepared("layerdrop")
    assert model.layerdrop == model.config.encoder_layerdrop == modes.LAYER_DROP
    with modes.planning(model, "layerdrop"):
        assert not model.training
    assert model.training
    assert prepared("checkpoint").options == {"use_reentrant": False}


@pytest.mark.parametrize("mode", ["layerdrop", "checkpoint"])
def test_what_has_no_switch_is_no_row(mode: str) -> None:
    row = check.check(family(mode, lambda: Net(3)))
    assert (row.verdict, row.mode) == ("none", mode)


@pytest.mark.core(1)
@pytest.mark.parametrize("mode", ["train", "checkpoint"])
def test_training_passes(mode: str) -> None:
    torch._dynamo.reset()
    row = check.check(family(mode))
    assert (row.verdict, row.why, row.sites, row.mode) == ("pass", "", 6, mode)


def test_other_random_numbers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge notices a run that draws otherwise."""
    torch._dynamo.reset()
    right = check.first_call

    def shifted(model: Any, *args: Any) -> Any:
        model.register_forward_pre_hook(lambda *_: torch.rand(()) and None)
        return right(model, *args)

    monkeypatch.setattr(check, "first_call", shifted)
    monkeypatch.setattr(check, "plain_error", lambda *_: (0.0, 0.0))
    row = check.check(family("train"))
    assert row.verdict == "value"
    assert "outputs differ" in row.why
    assert dataclasses.replace(row, mode="eval").room == ("tests/net", "eval")
