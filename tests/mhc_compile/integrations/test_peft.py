"""LoRA around an upgraded model, and an upgrade of a model with LoRA: trained, saved, loaded, merged."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import MHCWarning
from tests.nets.small import Net, inputs, made, perturb

peft = pytest.importorskip("peft")

CONFIG = mhc.Config(compiler="eager")


def lora(**options: Any) -> Any:
    return peft.LoraConfig(**{"r": 2, "target_modules": ["mlp.0", "mlp.2"], **options})


def upgraded_first(**options: Any) -> Any:
    model = made(Net, 1)
    mhc.upgrade(model, (inputs(),), config=CONFIG)
    return peft.get_peft_model(model, lora(**options))


def adapted_first() -> Any:
    model = peft.get_peft_model(made(Net, 1), lora())
    with pytest.warns(MHCWarning, match=r"save them by mhc_compile\.save_adapter"):
        report = mhc.upgrade(model, (inputs(),), config=CONFIG)
    assert [site.name for site in report.sites] == ["blocks.0.attn", "blocks.0.mlp"]
    return model


WAYS: dict[str, Callable[[], Any]] = {
    "upgraded first": lambda: upgraded_first(modules_to_save=["mhc"]),
    "adapted first": adapted_first,
}


def run(model: nn.Module) -> Tensor:
    """Call the model inside: PEFT's own call is that."""
    torch._dynamo.reset()
    inside: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    inside.eval().compile(backend="mhc")
    out: Tensor = model(inputs())
    return out.detach()


def trained(model: Any) -> Any:
    model.get_base_model().compile(backend="mhc")
    perturb(model)
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=1e-2, mhc_lr=1e-1))
    assert all(group["params"] for group in optimizer.param_groups)
    before = {name: p.detach().clone() for name, p in mhc.named_parameters(model) if p.requires_grad}
    assert before
    for _ in range(2):
        model(inputs()).square().mean().backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in mhc.named_parameters(model) if name in before)
    return model


@pytest.mark.core(1)
@pytest.mark.parametrize("way", WAYS)
def test_both_orders(way: str, tmp_path: Path) -> None:
    model = trained(WAYS[way]())
    want = run(model)
    model.save_pretrained(tmp_path / "lora")
    mhc.save_adapter(model, tmp_path / "mhc")

    twin = made(Net, 1)
    mhc.load_adapter(twin, tmp_path / "mhc")
    assert torch.equal(run(peft.PeftModel.from_pretrained(twin, tmp_path / "lora")), want)
    twin = peft.get_peft_model(made(Net, 1), lora())
    twin.load_adapter(tmp_path / "lora", "default")
    mhc.load_adapter(twin, tmp_path / "mhc")
    assert torch.allclose(run(twin), want, atol=1e-6)

    merged = model.merge_and_unload()
    assert isinstance(merged, Net)
    assert torch.allclose(run(merged), want, atol=1e-5)
    again = made(Net, 1)
    mhc.restore(again, merged.state_dict())
    assert torch.allclose(run(again), want, atol=1e-5)


@pytest.mark.slow
def test_what_peft_saves_of_its_own(tmp_path: Path) -> None:
    model = trained(upgraded_first(modules_to_save=["mhc"]))
    want = run(model)
    model.save_pretrained(tmp_path)
    base = made(Net, 1)
    mhc.upgrade(base, (inputs(),), config=CONFIG)
    assert torch.equal(run(peft.PeftModel.from_pretrained(base, tmp_path)), want)


SPARED: dict[str, dict[str, Any]] = {
    "saved": {"modules_to_save": ["mhc"]},
    "excluded": {"exclude_modules": r".*\bmhc\b.*"},
}


@pytest.mark.parametrize("how", SPARED)
def test_targets_that_are_called_as_sites_are(how: str) -> None:
    model = upgraded_first(target_modules=["attn"], **SPARED[how])
    names = {name for name, _ in model.named_parameters() if "lora" in name}
    assert {name.partition(".lora_")[0] for name in names} == {"base_model.model.blocks.0.attn"}


def test_frozen_hyper_connections_are_told_of() -> None:
    model = upgraded_first()
    with pytest.warns(
        MHCWarning, match=r"all mHC parameters of 2 hyper-connections are frozen.*modules_to_save=\['mhc'\]"
    ):
        groups = mhc.param_groups(model, lr=0.1)
    assert [len(group["params"]) for group in groups][1:] == [0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mhc.param_groups(model, lr=0.1)  # once is enough
        for _, parameter in mhc.named_parameters(model):
            parameter.requires_grad_()
    assert all(group["params"] for group in mhc.param_groups(model, lr=0.1))
