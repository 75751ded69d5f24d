"""What save_pretrained wrote of upgraded models, loaded by one call."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import NotUpgradedError, PlanMismatchError
from mhc_compile.model.sites import sites_in
from mhc_compile.model.subclasses import base_of
from tests.nets.small import compiled, perturb

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("pretrained")  # what is made once is made by one worker

IDS = torch.arange(16).reshape(2, 8)
CONFIG = mhc.Config(streams=3, compiler="eager", recompute="off")
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def built(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_hidden_layers=1)).eval()
    config = transformers.MixtralConfig(**SIZES, num_hidden_layers=1, num_key_value_heads=2, num_local_experts=2)
    return transformers.MixtralForCausalLM(config).eval()


def saved(kind: str, folder: Path) -> tuple[Path, Any]:
    model = built(kind)
    mhc.upgrade(model, (), {"input_ids": IDS, "use_cache": False}, config=CONFIG)
    perturb(model)
    model.save_pretrained(folder, max_shard_size="5KB" if kind == "llama" else "1GB")
    return folder, model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    return saved("llama", tmp_path_factory.mktemp("llama"))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = compiled(model)(IDS, use_cache=False).logits
    return found


def state(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


@pytest.mark.core(1)
@pytest.mark.parametrize("auto", [True, False], ids=["auto class", "its class"])
def test_one_call_loads_it_upgraded(
    llama: tuple[Path, Any], auto: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = llama
    assert len(list(folder.glob("*.safetensors"))) > 1
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    caplog.set_level(logging.WARNING, "transformers")
    cls: Any = transformers.AutoModelForCausalLM if auto else transformers.LlamaForCausalLM
    twin = mhc.from_pretrained(cls, folder)
    assert base_of(type(twin)) is transformers.LlamaForCausalLM
    assert not [each for each in caplog.records if each.name.startswith("transformers")]
    assert all(torch.equal(value, state(model)[name]) for name, value in state(twin).items())
    assert {site.config for _, site in sites_in(twin)} == {CONFIG}
    assert not twin.training
    assert all(parameter.requires_grad for parameter in twin.parameters())
    torch.save(twin.state_dict(), folder / "again")  # nothing of the loading is left on it
    twin.load_state_dict(torch.load(folder / "again"))
    if auto:
        assert torch.equal(logits(twin), logits(model))


def test_the_config_says_so(llama: tuple[Path, Any]) -> None:
    note = json.loads((llama[0] / "config.json").read_text())["mhc_compile"]
    assert (note["sites"], note["streams"]) == (2, 3)


def test_sites_stay_fp32(llama: tuple[Path, Any]) -> None:
    twin, info = mhc.from_pretrained(
        transformers.AutoModelForCausalLM, llama[0], dtype=torch.bfloat16, output_loading_info=True
    )
    assert twin.dtype == torch.bfloat16
    assert not info["missing_keys"]
    for name, parameter in mhc.named_parameters(twin):
        assert parameter.dtype == torch.float32
        assert torch.equal(parameter, state(llama[1])[name])


def test_a_body_and_a_head(llama: tuple[Path, Any], tmp_path: Path) -> None:
    body = mhc.from_pretrained(transformers.AutoModel, llama[0])
    want = dict(mhc.named_parameters(llama[1]))
    for name, parameter in mhc.named_parameters(body):
        assert torch.equal(parameter, want[f"model.{name}"])
    body.save_pretrained(tmp_path)
    whole = mhc.from_pretrained(transformers.AutoModelForCausalLM, tmp_path)
    assert all(torch.equal(parameter, want[name]) for name, parameter in mhc.named_parameters(whole))
    whole.lm_head.weight = llama[1].lm_head.weight
    assert torch.equal(logits(whole), logits(llama[1]))


@pytest.mark.slow
def test_names_that_the_library_changes_on_disk(tmp_path: Path) -> None:
    folder, model = saved("mixtral", tmp_path)
    assert any("mhc.block_sparse_moe" in name for name in load_file(folder / "model.safetensors"))
    twin = mhc.from_pretrained(transformers.AutoModelForCausalLM, folder)
    assert all(torch.equal(value, state(model)[name]) for name, value in state(twin).items())


def test_a_repository_of_the_hub(llama: tuple[Path, Any], tmp_path: Path) -> None:
    cache = tmp_path / "models--me--tiny"
    shutil.copytree(llama[0], cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)
    cls: Any = transformers.AutoModelForCausalLM
    twin = mhc.from_pretrained(cls, "me/tiny", cache_dir=tmp_path, local_files_only=True)
    assert all(torch.equal(p, state(llama[1])[name]) for name, p in mhc.named_parameters(twin))


def test_what_cannot_be_loaded(llama: tuple[Path, Any], tmp_path: Path) -> None:
    built("llama").save_pretrained(tmp_path / "plain")
    cls: Any = transformers.AutoModelForCausalLM
    with pytest.raises(NotUpgradedError, match=r"hold no plan of hyper-connections \(mhc\._extra_state\)"):
        mhc.from_pretrained(cls, tmp_path / "plain")
    llama[1].save_pretrained(tmp_path / "whole")
    file = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.0.mhc.mlp.phi"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(PlanMismatchError, match=r"lack 1 parameters .* such as model\.layers\.0\.mhc\.mlp\.phi"):
        mhc.from_pretrained(cls, tmp_path / "whole")
    with pytest.raises(PlanMismatchError, match=r"sites in 'model\.layers\.0', which GPT2Model does not have"):
        mhc.from_pretrained(transformers.GPT2Model, tmp_path / "whole")


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_numbers(llama: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = llama
    program = (
        "import sys, torch, mhc_compile as mhc; from transformers import AutoModelForCausalLM;"
        "m = mhc.from_pretrained(AutoModelForCausalLM, sys.argv[1]); m.compile(backend='mhc');"
        "torch.save(m(torch.arange(16).reshape(2, 8), use_cache=False).logits.detach(), sys.argv[2])"
    )
    done = subprocess.run([sys.executable, "-c", program, folder, tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "UNEXPECTED" not in done.stdout + done.stderr
    assert torch.equal(torch.load(tmp_path / "x"), logits(model))
