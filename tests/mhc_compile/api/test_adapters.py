"""Hyper-connections alone: saved, loaded into their base model, and refused by every other one."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.api import adapters
from mhc_compile.errors import AdapterError, MissingDependencyError, NotUpgradedError, PlanMismatchError
from mhc_compile.model.sites import sites_in
from tests.nets.small import Net, PostBlock, compiled, inputs, made, mhc_state, perturb, upgraded

pytestmark = pytest.mark.xdist_group("adapters")  # what is made once is made by one worker

CONFIG = mhc.Config(streams=3, compiler="eager", recompute="off")


@pytest.fixture(scope="module")
def saved() -> nn.Module:
    return upgraded(moved=True, config=CONFIG)


@pytest.fixture
def file(saved: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    mhc.save_adapter(saved, path)
    return path


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in mhc_state(model).items() if not name.endswith("_extra_state")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_file_holds_hyper_connections_alone(saved: nn.Module, file: Path, tmp_path: Path) -> None:
    assert same(load_file(file), values(saved))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    with safe_open(file, "pt") as opened:
        note = json.loads(opened.metadata()["mhc_compile"])
    assert note["format"] == adapters.FORMAT
    assert note["shapes"]["blocks.0.mlp.0.weight"] == [32, 16]


def test_a_base_model_becomes_the_upgraded_one(saved: nn.Module, file: Path) -> None:
    base = made()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    report = mhc.load_adapter(base, file)
    assert [site.name for site in report.sites] == ["blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"]
    assert torch.equal(compiled(base)(inputs()), compiled(saved)(inputs()))
    assert all(torch.equal(base.state_dict()[name], value) for name, value in before.items())


def test_options_come_along(file: Path) -> None:
    base = made()
    mhc.load_adapter(base, file)
    assert {site.config for _, site in sites_in(base)} == {CONFIG}
    twin = made()
    mhc.restore(twin, base.state_dict())
    assert {site.config for _, site in sites_in(twin)} == {CONFIG}


def test_options_that_were_given_later_are_saved(saved: nn.Module, tmp_path: Path) -> None:
    model, later = copy.deepcopy(saved), mhc.Config(streams=3, compiler="aot_eager")
    mhc.upgrade(model, (inputs(),), config=later)
    mhc.save_adapter(model, tmp_path / "a")
    base = made()
    mhc.load_adapter(base, tmp_path / "a")
    assert {site.config for _, site in sites_in(base)} == {later}


def test_a_model_that_is_upgraded_already(saved: nn.Module, file: Path) -> None:
    twin = copy.deepcopy(saved)
    perturb(twin, seed=9)
    mhc.load_adapter(twin, file)
    assert same(values(twin), values(saved))


@pytest.mark.parametrize("first", [True, False], ids=["upgraded first", "not upgraded"])
def test_a_base_on_the_meta_device(saved: nn.Module, file: Path, first: bool) -> None:
    base = (copy.deepcopy(saved) if first else made()).to("meta")
    mhc.load_adapter(base, file)
    assert same(values(base), values(saved))
    base.load_state_dict(made().state_dict(), assign=True, strict=False)
    assert torch.equal(compiled(base)(inputs()), compiled(saved)(inputs()))
    assert all(parameter.requires_grad for _, parameter in mhc.named_parameters(base))


def test_wrappers_are_looked_through(saved: nn.Module, file: Path) -> None:
    again: Any = torch.compile(made(), backend="mhc")
    mhc.load_adapter(again, file)
    assert same(values(again._orig_mod), values(saved))


def test_nothing_to_save(saved: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(NotUpgradedError, match=r"call mhc_compile\.upgrade"):
        mhc.save_adapter(made(), tmp_path / "a")
    with pytest.raises(NotUpgradedError, match=r"'blocks\.0\.attn' is on the meta device"):
        mhc.save_adapter(copy.deepcopy(saved).to("meta"), tmp_path / "a")
    with pytest.raises(NotUpgradedError, match="2 models in ModuleList were upgraded, each by itself"):
        mhc.save_adapter(nn.ModuleList([saved, copy.deepcopy(saved)]), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def rewritten(file: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], Any]) -> None:
    """Write the file anew with other tensors or another note."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        note = json.loads(opened.metadata()["mhc_compile"])
    change(tensors, note)
    save_file(tensors, file, {"mhc_compile": json.dumps(note)} if note else None)


DAMAGES: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no safetensors": (lambda f: f.write_bytes(b"hello"), AdapterError, "no whole file of safetensors"),
    "cut off": (lambda f: f.write_bytes(f.read_bytes()[:-50]), AdapterError, "no whole file of safetensors"),
    "of another library": (
        lambda f: rewritten(f, lambda tensors, note: note.clear()), AdapterError, "is no adapter of mhc_compile",
    ),
    "of a later release": (
        lambda f: rewritten(f, lambda tensors, note: note.update(format=9)), AdapterError,
        r"has format 9 of adapters, this mhc_compile reads 1; install the release",
    ),
    "a tensor less": (
        lambda f: rewritten(f, lambda tensors, note: tensors.pop("blocks.1.mhc.mlp.phi")), AdapterError,
        r"lacks blocks\.1\.mhc\.mlp\.phi, which its plan has",
    ),
    "a plan of a later release": (
        lambda f: rewritten(f, lambda tensors, note: note.update(plan='{"version": 7}')), PlanMismatchError,
        "the plan has format 7",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_no_adapters(file: Path, damage: str) -> None:
    make, error, match = DAMAGES[damage]
    make(file)
    base = made()
    with pytest.raises(error, match=match):
        mhc.load_adapter(base, file)
    assert not any("mhc" in name for name in base.state_dict())


def wide() -> nn.Module:
    model = made()
    block: Any = model.get_submodule("blocks.1")
    block.mlp = nn.Sequential(nn.Linear(16, 48), nn.GELU(), nn.Linear(48, 16))
    return model


def another() -> nn.Module:
    model = made()
    model.blocks = nn.ModuleList(nn.ModuleDict({"f": nn.Linear(16, 16)}) for _ in range(2))
    return model


MODELS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "fewer layers": (lambda: made(Net, 1), r"a hyper-connection in 'blocks\.1', which this Net does not have"),
    "other shapes": (wide, r"blocks\.1\.mlp\.0\.weight is 32x16, and here it is 48x16"),
    "the same paths": (another, r"this Net has none of its parameters, such as blocks\.0\.norm1"),
    "other options": (lambda: upgraded(config=mhc.Config(streams=2)), "upgraded with other values of streams"),
    "other sites": (lambda: upgraded(config=mhc.Config(streams=3, exclude=("blocks.0.mlp",))), "with other sites than"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_models_that_an_adapter_does_not_fit(file: Path, kind: str) -> None:
    make, match = MODELS[kind]
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PlanMismatchError, match=match):
        mhc.load_adapter(model, file)
    assert same(before, model.state_dict())


def test_a_failure_on_the_way_changes_nothing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(adapters, "_fill", fail)
    base = made()
    with pytest.raises(RuntimeError):
        mhc.load_adapter(base, file)
    assert not any("mhc" in name for name in base.state_dict())


def test_a_sites_name_that_a_module_needs(tmp_path: Path) -> None:
    class Odd(PostBlock):
        def __init__(self) -> None:
            super().__init__()
            self.add = self.attn  # OwnerSites has a method of that name
            del self.attn

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(x + self.add(x))
            out: Tensor = self.norm2(x + self.mlp(x))
            return out

    def net() -> nn.Module:
        return made(Net, block=lambda dropout: Odd())

    model = net()
    mhc.upgrade(model, (inputs(),))
    mhc.save_adapter(model, tmp_path / "a")
    twin = net()
    mhc.load_adapter(twin, tmp_path / "a")
    assert same(values(twin), values(model))


def test_without_the_library(file: Path, saved: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for call in (mhc.save_adapter, mhc.load_adapter):
        with pytest.raises(MissingDependencyError, match=r"pip install 'mhc_compile\[adapters\]'"):
            call(saved, file)
