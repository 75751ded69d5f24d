from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mhc_compile.config import Config
from mhc_compile.errors import NotCompiledError
from mhc_compile.model import start_values
from mhc_compile.model.sites import OwnerSites, RootSites, SiteModule
from mhc_compile.model.start_values import Place


def site(label: str = "mlp", head: bool = False, **options: Any) -> SiteModule:
    config = Config(**({"streams": 3, "readout": "learned" if head else "mean"} | options))
    return SiteModule(f"layer.{label}", label, Place(1, 7), 5, config, entry=True, head=head)


def sites(*labels: str) -> OwnerSites:
    made = OwnerSites()
    for label in labels:
        made.add(site(label))
    return made


def perturb(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))


def values(module: nn.Module) -> dict[str, Tensor]:
    return {name: t for name, t in module.state_dict().items() if isinstance(t, Tensor)}


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = values(a), values(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize(
    ("options", "shape", "bias"),
    [
        ({"streams": 3}, (15, 15), 15),
        ({"streams": 4}, (20, 24), 24),
        ({"streams": 3, "projection": "identity"}, (15, 6), 6),
        ({"streams": 3, "connection": "hc"}, (5, 5), 15),
    ],
    ids=["mhc 3", "mhc 4", "identity", "hc"],
)
def test_parameters(options: dict[str, Any], shape: tuple[int, int], bias: int) -> None:
    made = site(**options)
    shapes = {name: tuple(t.shape) for name, t in made.named_parameters()}
    assert shapes == {"phi": shape, "alpha": (3,), "bias": (bias,)}
    assert {name: tuple(t.shape) for name, t in made.named_buffers()} == {"base": (bias,)}
    assert {t.dtype for t in values(made).values()} == {torch.float32}
    assert all(p.requires_grad for p in made.parameters())


def test_parameters_of_a_head() -> None:
    made = site(head=True, alpha=0.3)
    shapes = {name: tuple(t.shape) for name, t in values(made).items() if name.startswith("head_")}
    assert shapes == {"head_phi": (15, 3), "head_alpha": (1,), "head_bias": (3,), "head_base": (3,)}
    assert {name for name, _ in made.named_buffers()} == {"base", "head_base"}
    assert not values(made)["head_phi"].any()
    assert not values(made)["head_bias"].any()
    assert values(made)["head_alpha"].tolist() == made.alpha[:1].tolist()
    assert torch.equal(made.head_base, start_values.head_bias(Config(streams=3)))
    assert {t.dtype for t in values(made.half()).values()} == {torch.float32}
    assert {t.dtype for t in values(made.double()).values()} == {torch.float64}
    assert not made.has_moved()


def test_starting_values() -> None:
    made = site(alpha="auto")
    assert not made.phi.any()
    assert not made.bias.any()
    assert torch.equal(made.alpha, torch.full((3,), start_values.alpha(Config(streams=3, alpha="auto"), 5)))
    assert torch.equal(made.base, start_values.bias(Place(1, 7), Config(streams=3)))


def test_state_dict_names() -> None:
    owner = nn.Linear(5, 5)
    owner.add_module("mhc", sites("self_attn"))
    parts = ("alpha", "base", "bias", "phi")
    assert sorted(owner.state_dict()) == ["bias", *(f"mhc.self_attn.{part}" for part in parts), "weight"]


TAKEN = ["add", "sites", "mark", "disabled", "text", "forward", "training", "state_dict", "to", "mlp"]


@pytest.mark.parametrize("label", TAKEN)
@pytest.mark.parametrize("made", [OwnerSites, lambda: RootSites("{}")], ids=["OwnerSites", "RootSites"])
def test_a_branch_may_be_called_what_the_class_needs_itself(label: str, made: Any) -> None:
    sites = made()
    before = {name: getattr(sites, name) for name in dir(sites) if name in TAKEN}
    sites.add(site(label))
    assert {name: getattr(sites, name) for name in before} == before
    assert [child.label for child in sites.sites()] == [label]
    assert {name.split(".")[0].rstrip("_") for name in values(sites) if name != "_extra_state"} == {label}


# -- dtypes and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
def test_no_cast_narrows_below_fp32(dtype: torch.dtype, wide: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(5, 5), site().to(wide))
    perturb(model[1])
    before = {name: t.float() for name, t in values(model[1]).items()}
    casts: list[Callable[[nn.Module], Any]] = [
        lambda m: m.to(dtype),
        lambda m: m.type(dtype),
        lambda m: m.to("cpu", dtype),
    ]
    for cast in casts:
        moved = copy.deepcopy(model)
        phi = moved[1].get_parameter("phi")
        phi.grad = torch.randn_like(phi)
        cast(moved)
        assert moved[0].get_parameter("weight").dtype == dtype
        for name, tensor in values(moved[1]).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, before[name]), name
        assert phi.grad.dtype == torch.float32


def test_half_and_bfloat16_methods() -> None:
    for method in ("half", "bfloat16"):
        model: nn.Sequential = getattr(nn.Sequential(nn.Linear(5, 5), site()), method)()
        assert {t.dtype for t in values(model[1]).values()} == {torch.float32}
        assert model[0].weight.dtype.itemsize == 2


def test_double_widens_and_float_comes_back() -> None:
    made = site().double()
    assert {t.dtype for t in values(made).values()} == {torch.float64}
    assert not made.has_moved()
    made.reset_parameters()
    assert {t.dtype for t in values(made.float()).values()} == {torch.float32}
    assert same(made, site())


def test_parameters_stay_the_same_objects_through_casts() -> None:
    """An optimizer holds them."""
    made = site()
    before = list(made.parameters())
    assert [id(p) for p in made.half().parameters()] == [id(p) for p in before]


def test_meta_then_materialised() -> None:
    with torch.device("meta"):
        made = site()
    assert {t.device.type for t in values(made).values()} == {"meta"}
    made.to_empty(device="cpu").reset_parameters()
    assert same(made, site())
    moved = site().to("meta")
    assert moved.phi.is_meta
    moved.to_empty(device="cpu").reset_parameters()
    assert same(moved, site())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        made = site()
    finally:
        torch.set_default_dtype(before)
    assert same(made, site())


def test_copies_and_pickles() -> None:
    made = site()
    perturb(made)
    for again in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert same(again, made)
        assert (again.path, again.label, again.place, again.config) == (made.path, made.label, made.place, made.config)


# -- moved and reset --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["phi", "alpha", "bias", "head_phi", "head_alpha", "head_bias"])
def test_has_moved(name: str) -> None:
    made = site(head=True, alpha=0.3)
    assert not made.has_moved()
    with torch.no_grad():
        made.get_parameter(name).view(-1)[-1] += 1e-6
    assert made.has_moved()
    made.reset_parameters()
    assert not made.has_moved()
    assert same(made, site(head=True, alpha=0.3))


# -- the marker -------------------------------------------------------------------------------------------------------


def test_marking_eagerly_is_refused() -> None:
    with pytest.raises(NotCompiledError, match=r"site 'layer\.mlp' ran outside"):
        site().mark()
    with pytest.raises(NotCompiledError, match=r"site 'layer\.attn' ran outside"):
        sites("attn", "mlp").mark()


def captured_markers(held: OwnerSites) -> list[tuple[Any, ...]]:
    """The arguments of the markers in the graph of a function that marks, and then adds 1."""
    torch._dynamo.reset()
    markers, ran = [], []

    def forward(x: Tensor) -> Tensor:
        held.mark()
        return x + 1

    def backend(captured: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        for node in captured.graph.find_nodes(op="call_function", target=torch.ops.mhc.site.default):
            markers.append(node.args)
            captured.graph.erase_node(node)
        captured.recompile()
        ran.append(True)
        return captured.forward

    assert torch.equal(torch.compile(forward, backend=backend)(torch.ones(2)), torch.full((2,), 2.0))
    assert ran == [True]
    return markers


def test_marking_under_capture_puts_one_marker_per_site_in_the_graph() -> None:
    markers = captured_markers(sites("attn", "mlp"))
    assert [(m[1], m[3], len(m[0])) for m in markers] == [("attn", True, 4), ("mlp", True, 4)]
    assert json.loads(markers[0][2]) == Config(streams=3).function()


def test_a_head_comes_with_its_site() -> None:
    held = OwnerSites()
    for made in (site("attn"), site("mlp", head=True)):
        held.add(made)
    assert [len(m[0]) for m in captured_markers(held)] == [4, 8]


def test_disabled_sites_mark_nothing() -> None:
    held = sites("attn")
    held.disabled = True
    held.mark()  # nor do they refuse to run eagerly
    assert captured_markers(held) == []


def test_sites_pass_their_input_on() -> None:
    x = torch.randn(2)
    assert sites("attn")(x) is x


def test_repr_shows_the_place() -> None:
    assert "k=1, L=7, streams=3, channels=5" in repr(site())
