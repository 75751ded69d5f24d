"""The layout in which DeepSeek-V4 holds hyper-connections: what was trained here runs there, and the other way round.

Theirs, per connection and with n streams of C features: `fn [n^2 + 2n, nC]`, `base [n^2 + 2n]`, `scale [3]`; at the end
a head, `hc_fn [n, nC]`, `hc_base [n]`, `hc_scale [1]`. That is phi transposed, the bias and alpha, in the order pre,
post, and their `comb` row by row, which is H_res transposed. GLM-5-Next has the same without a head, the mean in its
place. HY-V4 has no `comb`, as projection "identity": `fn [2n, nC]`, `base [2n]`, `scale [2]`.

Names are those of transformers' DeepseekV4ForCausalLM: `model.layers.0.attn_hc.fn` and `.ffn_hc.fn` in a layer of two
connections, `model.hc_head.hc_fn`. Read are also those of DeepSeek's own checkpoints (`layers.0.hc_attn_fn`, ...).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhc_compile.api.wrappers import gathered, planned, shown_sites
from mhc_compile.config import Config
from mhc_compile.errors import NotUpgradedError, PlanMismatchError, UnsupportedModelError
from mhc_compile.ops.projections import SMOOTH
from mhc_compile.passes.base import site_name
from mhc_compile.plan.model_plan import ModelPlan, SitePlan

_GATES = {"sinkhorn": 3, "identity": 2}  # how many scales theirs have; without `comb` nothing scales it
_PAIR = ("attn_hc", "ffn_hc")  # of a layer with two connections, as all of theirs are
_THEIRS = (
    (re.compile(r"(^|\.)hc_(attn|ffn)_(fn|base|scale)$"), r"\1\2_hc.\3"),
    (re.compile(r"(^|\.)hc_head_(fn|base|scale)$"), r"\1hc_head.hc_\2"),
)


class _Names(NamedTuple):
    """What a connection's, or a head's, three tensors are called."""

    fn: str
    base: str
    scale: str

    @classmethod
    def under(cls, path: str, prefix: str = "") -> _Names:
        return cls(*(f"{path}.{prefix}{part}" for part in cls._fields))


def to_deepseek_v4(model: nn.Module) -> dict[str, Tensor]:
    """Return the hyper-connections of an upgraded model in the layout of DeepSeek-V4, in fp32 (fp64 in such a model).

    With `Config(connection="deepseek-v4")` their code computes the same; with "mhc" up to the 1e-6 which that adds to
    H_pre and in Sinkhorn's sums, about 5e-5 at 48 connections. Their config must say `hc_mult`, `hc_sinkhorn_iters` and
    `rms_norm_eps` as ours says `streams`, `sinkhorn_iters` and `eps`. A mean at the end becomes a head that does the
    same; GLM-5-Next has none, so leave it out there. With projection "identity" the layout is HY-V4's, whose code also
    adds 1e-6 to H_post.

    Args:
        model: an upgraded model, or a wrapper around one.

    Returns:
        Copies, by name; save them beside the model's own weights.

    Raises:
        NotUpgradedError: the model holds no plan, or no values.
        UnsupportedModelError: its connections have no such layout: connection "hc", or a projection that is neither
            "sinkhorn" nor "identity"; or several regions would share a head.
    """
    root, plan = planned(model)
    sites = list(_sites(root, plan))
    order, gates = _order(plan.config), _GATES[plan.config.projection]
    made: dict[str, Tensor] = {}
    for _, site, names in sites:
        fn, base = gathered(site.phi).T[order], gathered(site.base)[order] + gathered(site.bias)[order]
        made |= zip(names, (fn.contiguous(), base, gathered(site.alpha)[:gates]), strict=True)
    for names, site in _heads(plan, sites):
        made |= zip(names, _head(site, plan.config.streams), strict=True)
    return made


@torch.no_grad()
def from_deepseek_v4(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an upgraded model hyper-connections that are in the layout of DeepSeek-V4.

    Upgrade it with `Config(connection="deepseek-v4", readout="learned")`, so that it computes what their code does.

    Args:
        model: an upgraded model, or a wrapper around one; nothing else of it changes.
        tensors: by name, such as a state_dict of theirs; what is no part of hyper-connections is left alone. Without a
            head they end with the mean.

    Raises:
        NotUpgradedError: the model holds no plan.
        PlanMismatchError: a tensor is missing, or has another shape; or the head is no mean, and the model's is. The
            model is as it was.
        UnsupportedModelError: the model's connections have no such layout.
    """
    root, plan = planned(model)
    n, sites = plan.config.streams, list(_sites(root, plan))
    found = {_named(name): tensor for name, tensor in tensors.items()}
    order, gates = _order(plan.config), _GATES[plan.config.projection]
    back = torch.argsort(order)
    fill: list[tuple[Tensor, Tensor]] = []
    for _, site, names in sites:
        width = len(order)
        fn, base, scale = _taken(found, names, ((width, site.phi.shape[0]), (width,), (gates,)))
        fill += [(site.phi, fn[back].T), (site.alpha[:gates], scale)]
        fill += [(site.bias, base[back].to(site.base) - site.base)]
    for names, site in _heads(plan, sites):
        if not site.has_head and all(_given(found, name) is None for name in names):
            continue  # the mean, as GLM-5-Next has it
        fn, base, scale = _taken(found, names, ((n, site.phi.shape[0]), (n,), (1,)))
        if site.has_head:
            fill += [(site.head_phi, fn.T), (site.head_alpha, scale)]
            fill += [(site.head_bias, base.to(site.head_base) - site.head_base)]
        elif fn.any() or not torch.allclose(torch.sigmoid(base.double()) + SMOOTH, _even(n), rtol=0, atol=1e-6):
            raise PlanMismatchError(
                f"{names.fn} is a learned head, and this model ends with the mean of its streams; upgrade it with"
                ' Config(readout="learned")'
            )
    for held, value in fill:
        held.copy_(value)


def _sites(root: nn.Module, plan: ModelPlan) -> Iterator[tuple[SitePlan, Any, _Names]]:
    """Iterate over the sites, what runs for each, and their names; refuse what has no such layout."""
    config = plan.config
    if config.connection not in ("mhc", "deepseek-v4") or config.projection not in _GATES:
        raise UnsupportedModelError(
            f"connection={config.connection!r} with projection={config.projection!r} has no layout in DeepSeek-V4;"
            ' upgrade with Config(connection="deepseek-v4")'
        )
    within: dict[str, list[str]] = {}
    for site in plan.sites:
        within.setdefault(site.owner, []).append(site.label)
    for site, shown in shown_sites(root, plan):
        if shown.phi.is_meta:
            raise NotUpgradedError("the model is on the meta device, so its hyper-connections have no values")
        labels = within[site.owner]
        name = _PAIR[labels.index(site.label)] if len(labels) == len(_PAIR) else f"{site.label}_hc"
        yield site, shown, _Names.under(site_name(site.owner, name))


def _heads(plan: ModelPlan, sites: list[tuple[SitePlan, Any, _Names]]) -> Iterator[tuple[_Names, Any]]:
    """Iterate over the names of heads, each with the site that it follows: the head stands beside the layers."""
    continued = plan.successors
    taken: set[str] = set()
    for last, shown, _ in sites:
        if last.name in continued or shown.flow.successors:  # these may be in another stage of a pipeline
            continue
        owners = [site.owner for site, *_ in sites if site.region == last.region]
        path = site_name(_beside(owners), "hc_head")
        if path in taken:
            raise UnsupportedModelError(
                f"several ends of streams would be {path!r}, and DeepSeek-V4 has one; upgrade its parts each by itself"
            )
        taken.add(path)
        yield _Names.under(path, "hc_"), shown


def _beside(owners: list[str]) -> str:
    """Return the path of the module that holds the layers: "model" for model.layers.0 and model.layers.1."""
    steps = [owner.split(".") for owner in owners]
    common = [step for step, *rest in zip(*steps, strict=False) if all(other == step for other in rest)]
    while common and common[-1].isdigit():
        common.pop()
    return ".".join(common[:-1])


def _head(site: Any, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a head's tensors, those of the mean where the site has none."""
    if site.has_head:
        base = gathered(site.head_base) + gathered(site.head_bias)
        return gathered(site.head_phi).T.contiguous(), base, gathered(site.head_alpha)
    phi = gathered(site.phi)
    return phi.new_zeros(n, phi.shape[0]), torch.logit(_even(n) - SMOOTH).to(phi), phi.new_ones(1)


def _even(n: int) -> Tensor:
    return torch.full((n,), 1 / n, dtype=torch.float64, device="cpu")


def _order(config: Config) -> Tensor:
    """Return which of our logits each of theirs is: mixing weights are transposed."""
    n = config.streams
    reads_and_writes = torch.arange(2 * n, device="cpu")
    if config.projection == "identity":
        return reads_and_writes
    return torch.cat([reads_and_writes, 2 * n + torch.arange(n * n, device="cpu").view(n, n).T.flatten()])


def _named(theirs: str) -> str:
    for pattern, ours in _THEIRS:
        theirs = pattern.sub(ours, theirs)
    return theirs


def _taken(found: Mapping[str, Tensor], names: _Names, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """Return a connection's tensors, or raise."""
    taken = []
    for name, shape in zip(names, shapes, strict=True):
        tensor = _given(found, name)
        if tensor is None:
            raise PlanMismatchError(f"there is no {name!r}; the tensors are of another model, or not DeepSeek-V4's")
        if tensor.shape != shape:
            raise PlanMismatchError(f"{name} is {list(tensor.shape)}, and this model needs {list(shape)}")
        taken.append(tensor.detach())
    return taken


def _given(found: Mapping[str, Tensor], name: str) -> Tensor | None:
    """Return a tensor, also where its name lacks the first step, as in DeepSeek's own checkpoints."""
    return found.get(name, found.get(name.partition(".")[2]))
