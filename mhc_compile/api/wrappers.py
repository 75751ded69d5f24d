"""Models inside of what libraries put around them, and the sites that a library has wrapped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from mhc_compile.capture.frames import original
from mhc_compile.errors import NotUpgradedError
from mhc_compile.model.sites import ATTRIBUTE
from mhc_compile.passes.graph.layouts.sharded import whole
from mhc_compile.plan.model_plan import ModelPlan, SitePlan

# steps that wrappers put into the names of parameters: those of torch, and of PEFT around what it adapts
STEPS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_ADAPTED = ("base_layer", "original_module")


def inner(model: nn.Module) -> nn.Module:
    """Return the model that torch.compile or PEFT wraps, where plans belong: PEFT merges, and is gone."""
    model = original(model)
    base = getattr(model, "get_base_model", None)
    return original(base()) if callable(base) and hasattr(model, "peft_config") else model


def planned(model: nn.Module) -> tuple[nn.Module, ModelPlan]:
    """Return the upgraded model, which may be inside of another one or of wrappers, and its plan.

    Raises:
        NotUpgradedError: there is none, or there are several.
    """
    found = [module for module in model.modules() if isinstance(_text(module), str)]
    if len(found) != 1:
        raise NotUpgradedError(
            "the model holds no plan of hyper-connections; call mhc_compile.upgrade(model, args) first"
            if not found
            else f"{len(found)} models in {type(model).__name__} were upgraded, each by itself; pass one of them"
        )
    plan = ModelPlan.from_json(str(_text(found[0])))
    kept = getattr(found[0]._modules[ATTRIBUTE], "kept", None)
    return found[0], plan if kept is None else plan.without({site.name for site in plan.sites} - kept)


def is_planned(model: nn.Module) -> bool:
    """Tell whether `planned` would find one or more."""
    return any(isinstance(_text(module), str) for module in model.modules())


def _text(module: nn.Module) -> Any:
    """Return the plan's text; a wrapper around it, such as PEFT's for what it saves, shows its attributes."""
    held = module._modules.get(ATTRIBUTE)
    return getattr(held, "text", None) if held is not None else None


def shown_sites(model: nn.Module, plan: ModelPlan) -> Iterator[tuple[SitePlan, Any]]:
    """Iterate over the sites of a plan and what runs for each: of a wrapped site, the one that its wrapper shows."""
    for site in plan.sites:
        held: Any = model.get_submodule(site.owner)._modules[ATTRIBUTE]
        names = (site.label, f"{site.label}_")
        yield site, next(s for s in (getattr(held, n, None) for n in names) if isinstance(getattr(s, "phi", 0), Tensor))


def gathered(tensor: Any) -> Tensor:
    """Return a copy of a parameter on the CPU, whole where FSDP2 has it in pieces, as memory that nothing shares."""
    return whole(tensor).detach().to("cpu", copy=True).contiguous()


def shapes(model: nn.Module, plan: ModelPlan) -> dict[str, list[int]]:
    """Return the shapes of the owners' own parameters by name, however the layers are wrapped or adapted.

    Packed weights of quantized layers are left out, and so is what PEFT has added.
    """
    owners = tuple(dict.fromkeys(f"{site.owner}." if site.owner else "" for site in plan.sites))
    named: Mapping[str, nn.Parameter] = dict(model.named_parameters())
    adapted = {name.partition(f".{step}.")[0] for name in named for step in _ADAPTED if f".{step}." in name}
    found: dict[str, list[int]] = {}
    for name, parameter in named.items():
        steps = name.split(".")
        added = any(f"{name}.".startswith(f"{path}.") for path in adapted) and not set(_ADAPTED) & set(steps)
        ours = ATTRIBUTE in steps
        if name.startswith(owners) and parameter.is_floating_point() and not (added or ours):
            found[".".join(step for step in steps if step not in (*STEPS, *_ADAPTED))] = list(parameter.shape)
    return found
