"""One training run: everything that its numbers depend on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

PARTS = ("pre", "post", "res")
EVERY = 10  # steps that share one number of a result


@dataclass(frozen=True)
class Trial:
    """What is trained, and how. Equal trials are one and the same; a result is kept under its trial.

    Attributes:
        connection: "residual", "hc" or "mhc".
        lr: peak learning rate.
        seed: of weights and batches.
        layers: of the Llama, two connections each.
        hidden: features C.
        inner: features of the MLP; 0 for Llama's usual 8/3 C.
        batch: sequences of a step.
        length: bytes of a sequence.
        steps: of training.
        warmup: steps in which the learning rate rises.
        streams: number n of streams.
        projection: registered map to H_res, or one of `projections`.
        iters: of Sinkhorn's iteration.
        alpha: gates at the start; "auto" as `mhc_compile.Config` has it.
        phi_lr_scale: factor on phi's learning rate.
        start: where mHC's parameters start, one of `starts.STARTS`.
        frozen: parts of the maps that stay as they start, of "pre", "post" and "res".
        before: steps of training as a plain model, with a schedule of their own, before `steps` begin. The model is
            upgraded in between.
    """

    connection: str = "mhc"
    lr: float = 3e-3
    seed: int = 0
    layers: int = 24
    hidden: int = 64
    inner: int = 0
    batch: int = 8
    length: int = 128
    steps: int = 500
    warmup: int = 50
    streams: int = 4
    projection: str = "sinkhorn"
    iters: int = 20
    alpha: float | str = 0.01
    phi_lr_scale: float = 10.0
    start: str = "home"
    frozen: tuple[str, ...] = ()
    before: int = 0

    @property
    def name(self) -> str:
        """Return what sets the trial apart from the usual one, without its learning rate and seed."""
        default = Trial()
        words = [self.connection]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("connection", "lr", "seed") and value != getattr(default, field.name):
                words.append(f"{field.name} {' '.join(value) if isinstance(value, tuple) else value}")
        return ", ".join(words)

    @property
    def but_seed(self) -> str:
        """Return a text that trials share which differ in their seed only."""
        return f"{self.name}, lr {self.lr:g}"

    @property
    def key(self) -> str:
        """Return a text that no other trial has."""
        return f"{self.but_seed}, seed {self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        return dataclasses.asdict(self) | {"frozen": list(self.frozen)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Trial:
        """Return what `to_dict` wrote."""
        return cls(**fields | {"frozen": tuple(fields["frozen"])})
