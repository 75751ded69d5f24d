"""Which trials answer which question.

Contenders are compared each at its own best learning rate, so all that are compared with one another share `RATES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from bench.stability.trial import Trial
from mhc_compile.cli.language import usual_inner

SEEDS = (0, 1, 2)
RATES = (1e-3, 3e-3, 1e-2)
USUAL = 3e-3  # the learning rate of what is only compared with the usual mhc
MORE_STEPS = 3 / 2  # of residual at about equal time: a step of mhc takes 1.6 times as long here
IDENTITY = Trial(projection="identity")
FAST = Trial(phi_lr_scale=100.0)  # the default of param_groups, which it became by these runs
QUICK = Trial(batch=4, length=64, steps=100, warmup=20)

Trials = list[Trial]


def each(trials: Sequence[Trial], rates: Sequence[float] = (USUAL,), seeds: Sequence[int] = SEEDS) -> Trials:
    """Return every trial with every learning rate and seed; seeds go last, so that one seed is complete first."""
    return [dataclasses.replace(t, lr=lr, seed=seed) for seed in seeds for t in trials for lr in rates]


def connections() -> Trials:
    """Residual, hc, mhc, mhc whose phi learns faster, and mhc without mixing."""
    return each([Trial("residual"), Trial("hc"), Trial("mhc"), FAST, IDENTITY], RATES)


def fair() -> Trials:
    """Residual with mhc's time, and with mhc's parameters."""
    plain = Trial("residual")
    longer = dataclasses.replace(plain, steps=round(plain.steps * MORE_STEPS))
    return each([longer, dataclasses.replace(plain, inner=as_large(Trial()))], RATES)


def as_large(trial: Trial) -> int:
    """Return the width of a plain MLP at which the plain model has no fewer parameters than the upgraded one."""
    n, sites = trial.streams, 2 * trial.layers
    added = sites * ((trial.hidden * n + 1) * (n * n + 2 * n) + 3)
    return usual_inner(trial.hidden) + -(-added // (3 * trial.hidden * trial.layers))


def depth() -> Trials:
    """How the gain grows with depth, and what mhc is worth there."""
    return each([Trial(c, layers=layers) for layers in (6, 12, 48) for c in ("residual", "hc", "mhc")])


def learning() -> Trials:
    """What mhc's learning rests on: phi's rate, gates, warm-up and start."""
    usual = Trial()
    slow = dataclasses.replace(usual, phi_lr_scale=1.0)
    alpha = [dataclasses.replace(usual, alpha=alpha) for alpha in ("auto", 1.0)]
    start = [dataclasses.replace(usual, start=start) for start in ("normal", "deepseek", "symmetric")]
    cold = [Trial(connection, warmup=5) for connection in ("residual", "mhc")]
    hc = [Trial("hc", phi_lr_scale=scale) for scale in (1.0, 100.0)]
    return [*each([FAST], RATES), *each([slow, *alpha, *start, *cold, *hc])]


def ablations() -> Trials:
    """Streams, frozen maps (the paper's Table 1), iterations and projections."""
    usual = Trial()
    streams = [dataclasses.replace(usual, streams=n) for n in (2, 8)]
    frozen = [dataclasses.replace(usual, frozen=(part,)) for part in ("pre", "post", "res")]
    iters = [dataclasses.replace(usual, iters=count) for count in (1, 5, 50)]
    others = [dataclasses.replace(usual, projection=name) for name in ("permutations", "kronecker")]
    return each([*streams, *frozen, *iters, *others])


def retrofit() -> Trials:
    """A trained residual model, trained on: plain, and upgraded; with the same steps."""
    further = Trial("residual", before=500, steps=250, warmup=10)
    usual = dataclasses.replace(further, connection="mhc")
    fast = dataclasses.replace(usual, phi_lr_scale=100.0)
    return [*each([further, usual], (3e-4, 1e-3, 3e-3)), *each([fast], (1e-3,))]


def large() -> Trials:
    """The largest that a machine of two cores trains in an hour."""
    big = Trial(hidden=256, layers=24, batch=8, length=128, steps=400)
    return each([dataclasses.replace(big, connection="residual"), big], (1e-3,), SEEDS[:2])


QUESTIONS = {
    "connections": connections,
    "fair": fair,
    "learning": learning,
    "ablations": ablations,
    "depth": depth,
    "retrofit": retrofit,
    "large": large,
}
AGAINST = {"fair": "mhc", "learning": "mhc", "ablations": "mhc"}  # what losses are compared with, if not residual


def quick() -> Trials:
    """What takes two minutes: the connections, small and short, one seed."""
    kinds = [dataclasses.replace(QUICK, connection=connection) for connection in ("residual", "hc", "mhc")]
    return each(kinds, RATES[:2], (0,))


def compared(name: str) -> Trials:
    """Return the trials of a question behind those that it is compared with."""
    usual = [t for t in connections() if t.name in ("residual", "mhc")]
    return list(dict.fromkeys([*(usual if name in AGAINST else ()), *QUESTIONS[name]()]))


def answering(names: Sequence[str]) -> Trials:
    """Return the trials of questions, one seed of all of them before the next."""
    return sorted((trial for name in names for trial in QUESTIONS[name]()), key=lambda trial: trial.seed)
