"""A checkpoint of an upgraded model: where its plan is, and what its names are called in the model at hand."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from mhc_compile.errors import NotUpgradedError
from mhc_compile.model.plan_text import decode, encode
from mhc_compile.model.sites import ATTRIBUTE
from mhc_compile.passes.base import site_name
from mhc_compile.plan.model_plan import ModelPlan, SitePlan

EXTRA_STATE = f"{ATTRIBUTE}._extra_state"
# what torch's own wrappers put into names: torch.compile, DistributedDataParallel, checkpoint_wrapper, FSDP
_WRAPPERS = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A state_dict whose names fit a model.

    Attributes:
        state: the state_dict.
        prefix: path of what was upgraded, with a dot behind it; empty where that is the whole model.
        plan: its plan.
    """

    state: Mapping[str, Any]
    prefix: str
    plan: ModelPlan

    @classmethod
    def of(cls, state_dict: Mapping[str, Any], model: nn.Module) -> Checkpoint:
        """Fit the names of a state_dict to those of a model, as far as wrappers tell them apart.

        Raises:
            NotUpgradedError: it is no state_dict of an upgraded model.
            PlanMismatchError: its plan is of another format.
        """
        _check(state_dict)
        ours = set(model.state_dict(keep_vars=True))
        best = max(_spellings(state_dict), key=lambda state: len(ours & state.keys()))
        (prefix, *_) = (name.removesuffix(EXTRA_STATE) for name in best if _is_plan(name))
        plan = ModelPlan.from_json(decode(best[prefix + EXTRA_STATE]))
        lost = [site.name for site in plan.sites if not _holds(best, prefix, site)]
        if lost:  # of layers that were pruned
            plan = plan.without(lost)
            best[prefix + EXTRA_STATE] = encode(plan.to_json())
        return cls(best, prefix, plan)

    def upgraded(self, model: nn.Module) -> nn.Module:
        """Return the part of a model that the plan is of."""
        return model.get_submodule(self.prefix.rstrip("."))


def _holds(state: Mapping[str, Any], prefix: str, site: SitePlan) -> bool:
    path = site_name(f"{prefix}{site.owner}".rstrip("."), f"{ATTRIBUTE}.{site.label}")
    return any(f"{path}{end}.phi" in state for end in ("", "_"))


def _check(state_dict: Any) -> None:
    """Refuse what is no state_dict of an upgraded model, and say what it is instead."""
    if isinstance(state_dict, (str, os.PathLike)):
        raise NotUpgradedError(
            f"restore takes a state_dict, not a path: load {str(state_dict)!r} first, by torch.load(path,"
            " weights_only=True) or safetensors.torch.load_file(path)"
        )
    if any(map(_is_plan, state_dict)):
        return
    inner = [key for key, held in state_dict.items() if isinstance(held, Mapping) and any(map(_is_plan, held))]
    if inner:
        raise NotUpgradedError(f"this is no state_dict, but holds one: pass checkpoint[{inner[0]!r}]")
    if any(f".{ATTRIBUTE}." in f".{key}" for key in state_dict):
        raise NotUpgradedError(
            f"the checkpoint holds mHC parameters, but not the plan ({EXTRA_STATE}): it is of a part of the model that"
            " was upgraded. Save the state_dict of the very model that upgrade was called with"
        )
    raise NotUpgradedError(
        f"the checkpoint holds no {EXTRA_STATE}, so it is not one of an upgraded model: load it by load_state_dict, and"
        " upgrade the model then"
    )


def _is_plan(name: Any) -> bool:
    return f".{name}".endswith(f".{EXTRA_STATE}")


def _spellings(state_dict: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Iterate over what the names may be called: as they are, without wrappers, without what stands before the plan."""
    yield dict(state_dict)
    for steps in ((_WRAPPERS[0],), _WRAPPERS[:2], _WRAPPERS):
        yield {
            ".".join(step for step in name.split(".") if step not in steps): held for name, held in state_dict.items()
        }
    (prefix, *_) = (name.removesuffix(EXTRA_STATE) for name in state_dict if _is_plan(name))
    yield {name.removeprefix(prefix): held for name, held in state_dict.items() if name.startswith(prefix)}
