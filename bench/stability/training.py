"""One trial, trained: losses, gradient norms, gains and how far the streams are apart."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import mhc_compile as mhc
from bench.stability import projections, starts
from bench.stability.trial import EVERY, Trial
from mhc_compile.api.gains import Observer
from mhc_compile.api.gains.result import DEAD
from mhc_compile.backend import mhc as mhc_backend
from mhc_compile.cli import language
from mhc_compile.cli.training import BETAS, Run, rate

Record = dict[str, Any]
Told = Callable[[int, float], object]
LOOKS = 5  # at validation and gains
DECAY = 0.1


def train(trial: Trial, told: Told = lambda step, loss: None, compiler: str = "inductor") -> Record:
    """Run a trial.

    Args:
        trial: what is trained.
        told: hears of every step and its loss.
        compiler: torch.compile's backend of the layers, also behind mhc.

    Returns:
        Plain JSON: `loss` and `norm` (of the gradient, before it is clipped) of every `EVERY` steps, the mean of the
        one and the largest of the other; `looks`, each with its step, validation loss and gains; `step_seconds`, the
        median; `parameters`; `steps` that were done; `diverged` where the loss was no number, at which a run ends.
    """
    projections.register()
    training, validation = language.batches(trial.before + trial.steps, trial.batch, trial.length, trial.seed)
    model = language.llama(trial.hidden, trial.layers, trial.length, inner=trial.inner, seed=trial.seed)
    if trial.before:
        plain = Phase(model, trial, trial.before, "residual", compiler)
        for _ in plain.run(training[: trial.before], told):
            pass
        training = training[trial.before :]
    phase = Phase(model, trial, trial.steps, trial.connection, compiler)
    at = looking(trial.steps)
    looks = [phase.look(step, validation) for step in phase.run(training, told) if step in at]
    return {
        "loss": chunked(phase.losses, statistics.fmean),
        "norm": chunked(phase.norms, max),
        "looks": looks,
        "steps": len(phase.losses),
        "step_seconds": statistics.median(phase.seconds),
        "parameters": sum(p.numel() for p in model.parameters()),
        "diverged": not math.isfinite(phase.losses[-1]),
    }


def looking(steps: int) -> set[int]:
    """Return the steps, counted from 1, behind which a run is looked at; 0 and the last are among them."""
    return {round(look * steps / LOOKS) for look in range(LOOKS + 1)}


def chunked(values: Sequence[float], together: Callable[[Sequence[float]], float]) -> list[float]:
    """Return one number for every `EVERY` steps."""
    return [round(together(values[at : at + EVERY]), 5) for at in range(0, len(values), EVERY)]


class Phase(Run):
    """A model in training, with an optimizer and a schedule of its own."""

    def __init__(self, model: nn.Module, trial: Trial, steps: int, connection: str, compiler: str) -> None:
        """Upgrade the model where it is no residual one, and compile its layers one by one."""
        self.observer: Observer | None = None
        upgraded = connection != "residual" and trial.streams > 1
        groups: Any = [{"params": list(model.parameters()), "weight_decay": DECAY}]
        if upgraded:
            self._upgrade(model, trial, connection)
            groups = mhc.param_groups(model, trial.lr, DECAY, phi_lr_scale=trial.phi_lr_scale)
        how: Any = {"backend": compiler}
        if upgraded:
            how = {"backend": mhc_backend, "options": {"compiler": compiler}}
        for layer in model.get_submodule("model.layers").children():
            layer.compile(**how)
        optimizer = torch.optim.AdamW(groups, lr=trial.lr, betas=BETAS)
        factor = functools.partial(rate, steps=steps, warmup=min(trial.warmup, steps // 5))
        super().__init__(connection, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor))

    def _upgrade(self, model: nn.Module, trial: Trial, connection: str) -> None:
        config = mhc.Config(
            streams=trial.streams,
            connection=connection,
            projection=trial.projection,
            sinkhorn_iters=trial.iters,
            alpha=trial.alpha,
        )
        ids = torch.zeros(trial.batch, trial.length, dtype=torch.long)
        mhc.upgrade(model, (), {"input_ids": ids, "labels": ids}, config=config, verify=False)
        starts.begin(model, trial.start)
        starts.freeze(model, trial.frozen)
        self.observer = Observer(model)

    def run(self, batches: Sequence[Tensor], told: Told) -> Iterator[int]:
        """Train on the batches; yield the number of steps done, from 0, until all are or the loss is no number."""
        yield 0
        for done, batch in enumerate(batches, start=1):
            self.step(batch)
            told(done, self.losses[-1])
            yield done
            if not math.isfinite(self.losses[-1]):
                return

    def look(self, step: int, validation: Sequence[Tensor]) -> Record:
        """Measure validation loss and gains; the graph of training is used, since the model has no dropout."""
        found: Record = {"step": step, "validation": statistics.fmean(self.loss(batch).item() for batch in validation)}
        if self.observer is None:
            return found
        gains = self.observer((), {"input_ids": validation[0]})
        composites = [site.composite for site in gains.sites]
        return found | {
            "forward": max(one.forward.mean for one in composites),
            "backward": max(one.backward.mean for one in composites),
            "largest": gains.composite.max,
            "alive": sum(site.spread > DEAD for site in gains.sites) / len(gains.sites),
            "spread": statistics.fmean(site.spread for site in gains.sites),
            "from_identity": statistics.fmean(site.from_identity for site in gains.sites),
        }
