"""Optimizer groups for mHC parameters, and a warning where an optimizer leaves them out."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from mhc_compile.errors import warn
from mhc_compile.model.phase import sites_of
from mhc_compile.model.sites import SiteModule, sites_in
from mhc_compile.model.start_values import alpha

_NO_DECAY = 0.01  # AdamW's default, at which gates shrink by some percent in a long run, is worth no warning
# torch's hook on steps is one for the whole process and is told the optimizer only: models and steps are kept here
_watched: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_told_frozen: weakref.WeakSet[SiteModule] = weakref.WeakSet()  # of which a warning has told
_steps: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Iterate over the mHC parameters of a model (phi, alpha and bias of every site), named as state_dict names them.

    A site that a learned readout follows also has head_phi, head_alpha and head_bias, which are treated as the others.

    Args:
        model: any module; without an upgrade there are none.
    """
    for path, site in sites_in(model):
        yield from site.named_parameters(path)


def is_phi(name: str) -> bool:
    """Tell whether a parameter of mHC, by its name, is a site's projection or that of its head."""
    return name.endswith((".phi", ".head_phi"))


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    phi_lr_scale: float | None = None,
    *,
    mhc_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Return three optimizer groups: the model's own parameters, every phi, and alphas with biases (never decayed).

    Parameters that need no gradient are left out; where these are all of mHC's, a warning says so. Give all of mHC to
    AdamW, not to Muon: alphas and biases are no matrices, and phi is no layer.

    Args:
        model: an upgraded model.
        lr: learning rate.
        weight_decay: decay of the model's own parameters and of phi.
        phi_lr_scale: factor on phi's learning rate, by default 1 / alpha, with alpha as at the start, so 100; or 1
            where `mhc_lr` is given (see `phi_scale`).
        mhc_lr: learning rate of mHC's parameters, by default `lr`. New connections in a trained model learn faster.

    Returns:
        Groups with the keys params, lr and weight_decay, in that order.

    Raises:
        NotUpgradedError: the model holds no mHC parameters, and is no part of one that does.
    """
    sites_of(model)  # refuses a model that was never upgraded
    mine = dict(named_parameters(model))
    phi = [p for name, p in mine.items() if is_phi(name) and p.requires_grad]
    rest = [p for name, p in mine.items() if not is_phi(name) and p.requires_grad]
    held = {id(p) for p in mine.values()}
    own = [p for p in model.parameters() if id(p) not in held and p.requires_grad]
    if own:
        _tell_of_frozen(model)
    rate = lr if mhc_lr is None else mhc_lr
    return [
        {"params": own, "lr": lr, "weight_decay": weight_decay},
        {"params": phi, "lr": rate * phi_scale(model, phi_lr_scale, mhc_lr), "weight_decay": weight_decay},
        {"params": rest, "lr": rate, "weight_decay": 0.0},
    ]


def phi_scale(model: nn.Module, asked: float | None, mhc_lr: float | None) -> float:
    """Return the factor on phi's learning rate: 1 / alpha, or 1 where `mhc_lr` says how fast mHC learns.

    What the maps see is alpha phi. So with AdamW, whose steps do not depend on the scale of gradients, it moves as fast
    as weights of the model's own do. docs/evidence.md has what other factors do: at 1 mHC gained nothing over residual.
    """
    if asked is not None:
        return asked
    if mhc_lr is not None:
        return 1.0
    return 1.0 / max((alpha(site.config, site.channels) for _, site in sites_in(model)), default=1.0)


def watch_optimizers(model: nn.Module) -> None:
    """Warn once if optimizers step while mHC parameters of this model have gradients and no group."""
    _watched.add(model)
    _install_hook_once()


@functools.cache
def _install_hook_once() -> None:
    register_optimizer_step_pre_hook(_warn_of_missing)


def _warn_of_missing(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Look at an optimizer's second step: by then all optimizers of a training loop have stepped once."""
    if not _watched:
        return
    _steps[optimizer] = _steps.get(optimizer, 0) + 1
    if _steps[optimizer] < 2:
        return
    groups = [group for known in _steps for group in known.param_groups]
    held = {id(p) for group in groups for p in group["params"]}
    decayed = {id(p) for group in groups if group.get("weight_decay", 0) > _NO_DECAY for p in group["params"]}
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for model in list(_watched):
        if any(id(p) in mine for p in model.parameters()):
            _watched.discard(model)
            _tell_of_frozen(model)
            _tell_of_groups(model, held, decayed)


def _tell_of_frozen(model: nn.Module) -> None:
    """Warn once where no parameter of mHC is trained."""
    sites = [site for _, site in sites_in(model)]
    if any(p.requires_grad for site in sites for p in site.parameters()) or _told_frozen.issuperset(sites):
        return
    _told_frozen.update(sites)
    warn(
        f"all mHC parameters of {len(sites)} hyper-connections are frozen, so training leaves them as they are (PEFT"
        " and add_adapter freeze whatever is not their own). If that is not meant: LoraConfig(modules_to_save=['mhc'])"
        " trains and saves them, or afterwards `for _, p in mhc_compile.named_parameters(model): p.requires_grad_()`"
    )


def _tell_of_groups(model: nn.Module, held: set[int], decayed: set[int]) -> None:
    """Warn where optimizers leave parameters of mHC out, or decay what must not decay.

    Args:
        model: an upgraded model.
        held: ids of all parameters of optimizers.
        decayed: ids of those with weight decay that matters.
    """
    named = dict(named_parameters(model))
    missing = [name for name, p in named.items() if p.requires_grad and p.grad is not None and id(p) not in held]
    gates = [name for name, p in named.items() if name.endswith((".alpha", ".head_alpha")) and id(p) in decayed]
    if missing:
        warn(
            f"{len(missing)} mHC parameters have gradients but are in no optimizer's groups (such as {missing[0]});"
            " build the optimizer from mhc_compile.param_groups(model, lr, weight_decay) after upgrade"
        )
    if gates:
        warn(
            f"weight decay pulls {len(gates)} gates of mHC to 0 (such as {gates[0]}), and with them all that depends on"
            " the token; build the optimizer from mhc_compile.param_groups(model, lr, weight_decay), and with Hugging"
            " Face's Trainer use mhc_compile.integrations.MHCTrainer"
        )
