"""DeepSeek-V4's layout, with transformers' own modules as the oracle."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from bench.train.peers import deepseek
from mhc_compile.errors import NotUpgradedError, PlanMismatchError, UnsupportedModelError
from mhc_compile.integrations import from_deepseek_v4, to_deepseek_v4
from tests.equations.helpers import near
from tests.nets.small import perturb

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.xdist_group("deepseek")

IDS = torch.arange(16).reshape(2, 8)
GIVEN = {"input_ids": IDS, "use_cache": False}
SIZES = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}


def llama(layers: int = 2) -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_hidden_layers=layers))


def upgraded(connection: str = "deepseek-v4", **options: Any) -> Any:
    model = llama()
    config = mhc.Config(connection=connection, streams=3, compiler="eager", recompute="off", **options)
    mhc.upgrade(model, (), GIVEN, config=config)
    perturb(model)
    return model


def without_comb(connection: nn.Module) -> nn.Module:
    """HY-V4's connection, called as DeepSeek-V4's is."""

    def with_identity(module: nn.Module, args: Any, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        post, out = made
        return post, torch.eye(3).expand(*post.shape, 3), out

    connection.register_forward_hook(with_identity)
    return connection


def connect(model: Any, family: str) -> None:
    """Exchange DeepSeek-V4's connections for those of another family of transformers."""
    given = {"hidden_size": 16, "hc_mult": 3, "rms_norm_eps": model.config.rms_norm_eps}
    head: nn.Module
    if family == "hy_v4":
        module = transformers.models.hy_v4.modeling_hy_v4
        config = module.HYV4Config(**given)
        made = [without_comb(module.HYV4HyperConnection(config)) for _ in range(4)]
        head = module.HYV4HyperHead(config)
    else:
        module = transformers.models.glm5_next.modeling_glm5_next
        config = module.Glm5NextTextConfig(**given)
        made = [module.Glm5NextTextHyperConnection(config) for _ in range(4)]
        head = module.Glm5NextTextHyperHead()
    for layer in model.model.layers:
        layer.attn_hc, layer.ffn_hc = made.pop(), made.pop()
    model.model.layers[-1].leave = head


def theirs(tensors: dict[str, Tensor], family: str = "deepseek_v4") -> Any:
    """The same Llama with transformers' connections around its layers, which hold these tensors."""
    model = llama()
    deepseek.widen(model, 3)
    if family != "deepseek_v4":
        connect(model, family)
    head = {name.replace("model.hc_head", "model.layers.1.leave"): t for name, t in tensors.items()}
    lost, unknown = model.load_state_dict(head, strict=False)
    assert not unknown
    assert not [name for name in lost if "hc" in name]
    return model


def values(model: Any, compiled: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradients of all parameters for a random gradient of the logits."""
    run = torch.compile(model, backend="mhc") if compiled else model
    logits = run(**GIVEN).logits
    logits.backward(torch.randn(logits.shape, generator=torch.Generator().manual_seed(1)))
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def in_their_layout(grads: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Gradients of hyper-connections by their names: the layout is linear, so they go as the values do."""
    shadow = copy.deepcopy(model)
    for name, parameter in shadow.named_parameters():
        if ".mhc." in name:
            parameter.data.copy_(grads[name])
    for name, buffer in shadow.named_buffers():
        if name.endswith("base"):
            buffer.zero_()
    return to_deepseek_v4(shadow)


@pytest.mark.core(1)
@pytest.mark.parametrize(
    ("connection", "limit", "kernels", "readout"),
    [
        ("deepseek-v4", 1e-6, "auto", "learned"),
        ("deepseek-v4", 1e-6, "reference", "learned"),
        ("mhc", 2e-5, "auto", "mean"),
    ],
)
def test_their_code_computes_the_same(connection: str, limit: float, kernels: str, readout: str) -> None:
    model = upgraded(connection, kernels=kernels, readout=readout)
    tensors = to_deepseek_v4(model)
    logits, grads = values(model, compiled=True)
    expected, wanted = values(theirs(tensors), compiled=False)
    near(logits, expected, limit)
    assert float((logits - llama()(**GIVEN).logits).abs().max()) > 1e-2 * float(logits.abs().max())
    made = {name: g for name, g in grads.items() if ".mhc." not in name} | in_their_layout(grads, model)
    for name, gradient in wanted.items():
        ours = name.replace("model.layers.1.leave", "model.hc_head")
        if ours == name or readout == "learned":
            near(made[ours], gradient, 20 * limit)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "options"),
    [("glm5_next", {}), ("hy_v4", {"projection": "identity", "readout": "learned"})],
    ids=["glm5_next", "hy_v4"],
)
def test_other_families_compute_the_same(family: str, options: dict[str, str]) -> None:
    """GLM-5-Next ends with the mean; HY-V4 has no mixing, and 1e-6 more in H_post."""
    model = upgraded(**options)
    tensors = to_deepseek_v4(model)
    if not options:
        tensors = {name: tensor for name, tensor in tensors.items() if "hc_head" not in name}
    logits, grads = values(model, compiled=True)
    expected, wanted = values(theirs(tensors, family), compiled=False)
    near(logits, expected, 2e-6 if options else 1e-6)
    made = {name: g for name, g in grads.items() if ".mhc." not in name} | in_their_layout(grads, model)
    for name, gradient in wanted.items():
        near(made[name.replace("model.layers.1.leave", "model.hc_head")], gradient, 2e-5)

    other = upgraded(**options)
    with torch.no_grad():
        for _, parameter in mhc.named_parameters(other):
            parameter.add_(1.0)
    from_deepseek_v4(other, tensors)
    near(values(other, compiled=False)[0], logits, 1e-6)


@pytest.mark.slow
def test_a_head_that_is_missing() -> None:
    """The mean is GLM-5-Next's; a learned head has to be given."""
    model = upgraded(readout="learned")
    tensors = {name: tensor for name, tensor in to_deepseek_v4(model).items() if "hc_head" not in name}
    with pytest.raises(PlanMismatchError, match=r"no 'model\.hc_head\.hc_fn'"):
        from_deepseek_v4(model, tensors)


def test_there_and_back() -> None:
    model, other = upgraded(readout="learned"), upgraded(readout="learned")
    tensors = to_deepseek_v4(model)
    paths = [f"model.layers.{i}.{hc}." for i in (0, 1) for hc in ("attn_hc", "ffn_hc")] + ["model.hc_head.hc_"]
    assert set(tensors) == {f"{path}{part}" for path in paths for part in ("fn", "base", "scale")}
    with torch.no_grad():
        for parameter in mhc.named_parameters(other):
            parameter[1].add_(1.0)
    assert not torch.equal(to_deepseek_v4(other)["model.layers.0.ffn_hc.fn"], tensors["model.layers.0.ffn_hc.fn"])
    own = {  # the names in DeepSeek's own checkpoints
        name.removeprefix("model.").replace("hc_head.hc_", "hc_head_").replace("attn_hc.", "hc_attn_").replace(
            "ffn_hc.", "hc_ffn_"
        ): tensor
        for name, tensor in tensors.items()
    }  # fmt: skip
    assert "layers.0.hc_attn_fn" in own
    from_deepseek_v4(other, own | {"layers.0.attn.wq.weight": torch.zeros(1)})
    for name, tensor in to_deepseek_v4(other).items():
        near(tensor, tensors[name], 1e-6)


@pytest.mark.slow
def test_a_stage_that_is_not_the_last_has_no_head() -> None:
    """The tensors of all stages together are those of the model."""
    model = upgraded(readout="learned")
    whole = to_deepseek_v4(model)
    made: dict[str, Tensor] = {}
    for kept, gone in ((0, 1), (1, 0)):
        part = copy.deepcopy(model)
        names = [site["name"] for site in part.mhc.sites_of_plan()]
        part.mhc.kept = frozenset(name for name in names if f"layers.{gone}." not in name)
        tensors = to_deepseek_v4(part)
        assert ("model.hc_head.hc_fn" in tensors) == (kept == 1)
        made |= tensors
    assert made.keys() == whole.keys()
    assert all(torch.equal(made[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_trained_config_of_their_class() -> None:
    """Their class creates parameters of these shapes."""
    module = transformers.models.deepseek_v4.modeling_deepseek_v4
    config = module.DeepseekV4Config(hidden_size=16, hc_mult=3)
    tensors = to_deepseek_v4(upgraded())
    for made, path in ((module.DeepseekV4HyperConnection(config), "model.layers.0.attn_hc"),
                       (module.DeepseekV4HyperHead(config), "model.hc_head")):  # fmt: skip
        assert {name: p.shape for name, p in made.named_parameters()} == {
            name.removeprefix(f"{path}."): t.shape for name, t in tensors.items() if name.startswith(f"{path}.")
        }


@pytest.mark.slow
def test_what_has_no_such_layout() -> None:
    with pytest.raises(NotUpgradedError, match="upgrade"):
        to_deepseek_v4(llama())
    with pytest.raises(UnsupportedModelError, match='connection="deepseek-v4"'):
        to_deepseek_v4(upgraded("hc"))
    with torch.device("meta"):
        empty = llama()
    mhc.upgrade(empty, (), GIVEN, config=mhc.Config(streams=3), verify=False)
    with pytest.raises(NotUpgradedError, match="meta device"):
        to_deepseek_v4(empty)


def test_two_towers_have_no_common_head() -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.down = nn.Linear(8, 8), nn.Linear(6, 6), nn.Linear(8, 6)
            self.c, self.d = nn.Linear(8, 8), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(x)
            y = self.down(x + self.c(x))
            y = y + self.b(y)
            return y + self.d(y)

    model = Towers()
    mhc.upgrade(model, (torch.randn(3, 8),), config=mhc.Config(streams=2, compiler="eager"))
    with pytest.raises(UnsupportedModelError, match="several ends of streams"):
        to_deepseek_v4(model)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["missing", "shape", "head"])
def test_what_does_not_fit_changes_nothing(wrong: str) -> None:
    model = upgraded()
    tensors = to_deepseek_v4(model)
    if wrong == "missing":
        del tensors["model.layers.1.ffn_hc.base"]
    elif wrong == "shape":
        tensors["model.layers.1.ffn_hc.fn"] = torch.zeros(15, 64)
    else:
        tensors["model.hc_head.hc_base"] = torch.tensor([0.1, 0.2, 0.3])
    tensors["model.layers.0.attn_hc.fn"] = torch.ones_like(tensors["model.layers.0.attn_hc.fn"])
    before = {name: p.clone() for name, p in model.named_parameters()}
    told = {"missing": "no 'model.layers.1.ffn_hc.base'", "shape": "is .15, 64., and", "head": 'readout="learned"'}
    with pytest.raises(PlanMismatchError, match=told[wrong]):
        from_deepseek_v4(model, tensors)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
