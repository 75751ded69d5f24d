"""What trials say together: means over seeds with their intervals, each contender at its own best learning rate."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.stability.trial import EVERY, Trial

Record = dict[str, Any]
Records = Mapping[Trial, Record]
# Student's t at 97.5 %, by degrees of freedom; beyond these the normal value is within 3 %
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
NORMAL = 1.96
SMOOTH = 3  # numbers of the record that are averaged where a rise of the loss is looked for
HEADS = ("", "lr", "seeds", "validation loss", "difference", "norm", "rise", "forward", "backward", "alive")


@dataclass(frozen=True)
class Mean:
    """A mean over seeds and half its 95 % confidence interval (Student's t); NaN with one seed."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """Return it of values, one per seed."""
        value, count = statistics.fmean(values), len(values)
        if count < 2 or not math.isfinite(value):
            return cls(value, math.nan)
        return cls(value, QUANTILES.get(count - 1, NORMAL) * statistics.stdev(values) / math.sqrt(count))

    def __str__(self) -> str:
        """Return it with three digits behind the point."""
        return f"{self.value:.3f}" + ("" if math.isnan(self.half) else f" ± {self.half:.3f}")


@dataclass(frozen=True)
class Summary:
    """One contender at one learning rate, over its seeds.

    Attributes:
        name: of the trial.
        lr: learning rate.
        best: whether it is the contender's best one.
        validation: loss at the end, by seed.
        norm: largest norm of the gradient behind the warm-up, of any seed.
        rise: largest rise of the smoothed loss above its lowest before, of any seed.
        forward: largest composite gain forward (mean over tokens) at any look, of any seed; None without streams.
        backward: the same, of the gradient.
        alive: share of the sites whose streams are apart at the end, of the worst seed.
        diverged: seeds whose loss was no number in the end.
    """

    name: str
    lr: float
    best: bool
    validation: dict[int, float]
    norm: float
    rise: float
    forward: float | None
    backward: float | None
    alive: float | None
    diverged: int

    @property
    def connection(self) -> str:
        """Return the name's first word."""
        return self.name.partition(",")[0]


def summaries(records: Records) -> list[Summary]:
    """Return every contender at every learning rate, contenders in the order of their first trial."""
    found: dict[str, dict[float, dict[Trial, Record]]] = defaultdict(lambda: defaultdict(dict))
    for trial, record in records.items():
        found[trial.name][trial.lr][trial] = record
    made = []
    for name, rates in found.items():
        best = min(rates, key=lambda lr: statistics.fmean(map(final, rates[lr].values())))
        made += [_summary(name, lr, lr == best, seeds) for lr, seeds in sorted(rates.items())]
    return made


def _summary(name: str, lr: float, best: bool, records: Records) -> Summary:
    looks = [look for record in records.values() for look in record["looks"]]
    return Summary(
        name=name,
        lr=lr,
        best=best,
        validation={
            trial.seed: final(record) for trial, record in sorted(records.items(), key=lambda one: one[0].seed)
        },
        norm=max(worst_norm(record, trial.warmup) for trial, record in records.items()),
        rise=max(rise(record["loss"]) for record in records.values()),
        forward=max((look["forward"] for look in looks if "forward" in look), default=None),
        backward=max((look["backward"] for look in looks if "backward" in look), default=None),
        alive=min((r["looks"][-1]["alive"] for r in records.values() if "alive" in r["looks"][-1]), default=None),
        diverged=sum(record["diverged"] for record in records.values()),
    )


def final(record: Record) -> float:
    """Return the validation loss at the end; infinite where training diverged."""
    return math.inf if record["diverged"] else float(record["looks"][-1]["validation"])


def worst_norm(record: Record, warmup: int) -> float:
    """Return the largest norm of the gradient behind the warm-up."""
    return max(record["norm"][-(-warmup // EVERY) :], default=math.nan)


def rise(losses: Sequence[float]) -> float:
    """Return how far the loss, smoothed, ever rose above what it had reached; infinite where it was no number."""
    if not all(map(math.isfinite, losses)):
        return math.inf
    smooth = [statistics.fmean(losses[max(0, at - SMOOTH + 1) : at + 1]) for at in range(len(losses))]
    lowest, worst = math.inf, 0.0
    for loss in smooth:
        lowest = min(lowest, loss)
        worst = max(worst, loss - lowest)
    return worst


def paired(one: Summary, other: Summary) -> Mean | None:
    """Return the difference of losses at the end over the seeds that both have: equal seeds see equal batches."""
    seeds = one.validation.keys() & other.validation.keys()
    return Mean.of([one.validation[seed] - other.validation[seed] for seed in sorted(seeds)]) if seeds else None


def rows(found: Iterable[Summary], against: str = "residual") -> list[tuple[str, ...]]:
    """Return the cells of `HEADS` for every summary; the best learning rate has a star.

    Args:
        found: what is told of.
        against: the connection that losses are compared with: of equal settings where it is there, else the usual one,
            with which its own other settings are compared.
    """
    found = list(found)
    best = {one.name: one for one in found if one.best}

    def other(one: Summary) -> Summary | None:
        alike = against + one.name[len(one.connection) :]
        first, second = (against, alike) if alike == one.name else (alike, against)
        return best.get(first, best.get(second))

    return [_cells(one, other(one)) for one in found]


def _cells(one: Summary, other: Summary | None) -> tuple[str, ...]:
    less = paired(one, other) if other is not None and other is not one else None
    diverged = f" ({one.diverged} diverged)" if one.diverged else ""
    return (
        one.name,
        f"{one.lr:g}{'*' * one.best}",
        str(len(one.validation)),
        f"{Mean.of(list(one.validation.values()))}{diverged}",
        "" if less is None else str(less),
        f"{one.norm:.2g}",
        f"{one.rise:.2f}",
        "" if one.forward is None else f"{one.forward:.4g}",
        "" if one.backward is None else f"{one.backward:.4g}",
        "" if one.alive is None else f"{one.alive:.0%}",
    )
