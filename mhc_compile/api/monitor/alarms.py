"""Warnings: streams that do not part, and composite gains over a bound; each once, with what to do."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.optim import Optimizer

from mhc_compile.api.gains.result import DEAD, Gains
from mhc_compile.model.optimizers import named_parameters
from mhc_compile.model.sites import sites_in

PATIENCE = 50  # steps after which streams should have parted: the first one parts them, however short it is


class Alarms:
    """Listens to gains, and rings once for each kind of trouble."""

    def __init__(self, model: nn.Module, bound: float) -> None:
        """Listen to a model.

        Args:
            model: an upgraded model.
            bound: of composite gains.
        """
        self._model, self._bound = model, bound
        self._first: int | None = None
        self._rung: set[str] = set()

    def heard(self, step: int, gains: Gains, optimizer: Optimizer | None) -> Iterator[tuple[str, str]]:
        """Return the kind and text of each alarm that rings now."""
        self._first = step if self._first is None else self._first
        if gains.dead and step - self._first >= PATIENCE:
            yield from self._once("dead-streams", self._dead(step, gains, optimizer))
        if not gains.composite.mean <= self._bound:  # NaN is over every bound
            yield from self._once("runaway", self._runaway(step, gains))

    def _once(self, kind: str, text: str) -> Iterator[tuple[str, str]]:
        if kind not in self._rung:
            self._rung.add(kind)
            yield kind, text

    def _dead(self, step: int, gains: Gains, optimizer: Optimizer | None) -> str:
        where = ", ".join(map(str, gains.dead))
        spread = max(gains.spread[region] for region in gains.dead)
        return (
            f"dead streams at step {step}: in region {where} all {gains.streams} streams are the same (spread"
            f" {spread:.1e}, alive above {DEAD:.0e}), so they do the work of one. {self._remedy(optimizer)}"
        )

    def _remedy(self, optimizer: Optimizer | None) -> str:
        mine = dict(named_parameters(self._model))
        frozen = [name for name, parameter in mine.items() if not parameter.requires_grad]
        if len(frozen) == len(mine):
            return f"All mHC parameters are frozen (such as {frozen[0]}): let them have gradients."
        held = {id(p) for group in optimizer.param_groups for p in group["params"]} if optimizer is not None else set()
        missing = [name for name, parameter in mine.items() if id(parameter) not in held]
        if optimizer is not None and len(missing) == len(mine):
            return (
                f"The optimizer holds no mHC parameter (such as {missing[0]}): build it from"
                " mhc_compile.param_groups(model, lr, weight_decay), after upgrade."
            )
        if not any(site.has_moved() for _, site in sites_in(self._model)):
            return (
                "The mHC parameters have not moved at all since upgrade: does optimizer.step() run, on the parameters"
                " of this very model, and is their learning rate above 0?"
            )
        return (
            "The mHC parameters move, but too little: raise their learning rate (param_groups(mhc_lr=...)) or that"
            " of phi alone (phi_lr_scale=...), and leave alphas and biases without decay, as param_groups does."
        )

    def _runaway(self, step: int, gains: Gains) -> str:
        site = max(gains.sites, key=lambda each: _worst(each.composite.forward.mean, each.composite.backward.mean))
        remedy = (
            "Unconstrained hyper-connections are free to grow; connection='mhc' bounds every gain. Otherwise lower the"
            " learning rate of phi (param_groups(phi_lr_scale=1))."
            if gains.connection == "hc"
            else "Rows of H_res sum to 1, so it is columns that Sinkhorn's iteration leaves off: build the model with"
            " more (Config(sinkhorn_iters=50)), or lower the learning rate of phi (param_groups(phi_lr_scale=1))."
        )
        return (
            f"runaway gain at step {step}: from site {site.name!r} to the end of its region signals grow by"
            f" {site.composite.forward.mean:.3g} and gradients by {site.composite.backward.mean:.3g}, over the bound of"
            f" {self._bound:g}. {remedy}"
        )


def _worst(*values: float) -> float:
    return max(float("inf") if value != value else value for value in values)
