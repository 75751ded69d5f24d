"""What a contender must get right before it is timed, on the compiled code that is then timed.

Its state between layers has n streams, which a doubly stochastic matrix mixes, seen from outside (`mixing`). With
parameters that are moved, logits and gradients are those of its own definition in float64, and so are logits in
inference. Its loss is finite and falls.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bench.train import measures, mixing
from bench.train.contenders import Entry, optimizer_of
from bench.train.double import Twin
from bench.train.setup import Setup

MOVED = 0.05  # how far parameters are moved, in standard deviations
# Relative errors of norms: of logits, and of the gradient of the tensor that is worst.
BOUNDS = {"float32": (1e-5, 1e-3), "bfloat16": (3e-2, 0.1)}
# Of the norm of all gradients: what is smaller is measured by this, since there one sees only rounding elsewhere.
FLOORS = {"float32": 1e-4, "bfloat16": 1e-3}
STEPS = 5  # of AdamW
LONGEST = (
    1024  # tokens in float64, whose attention is no flash attention; longer ones are checked by code of this length
)
RATE = 1e-3


@dataclass
class Checked:
    """What was found; `why` says what is wrong, or is ""."""

    why: str = ""
    sums: float | None = None  # how far from 1 rows and columns of the mixing matrix sum
    errors: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)


def check(one: Entry, setup: Setup) -> Checked:
    """Check a contender, which ends at the parameters that it began with."""
    found = Checked()
    found.sums, found.why = mixing.sums(one, setup)
    if not found.why:
        before = copy.deepcopy(one.model.state_dict())
        try:
            with moved(one):
                found.errors = errors(one, setup)
            found.why = too_far(found.errors, setup.dtype)
            if not found.why:
                found.losses = losses(one)
                found.why = not_falling(found.losses)
        finally:
            one.model.load_state_dict(before)
            one.model.zero_grad()
    return found


# -- values -----------------------------------------------------------------------------------------------------------


@contextmanager
def moved(one: Entry) -> Iterator[None]:
    """Move the parameters of connections, since mixing does nothing where they start."""
    generator = torch.Generator().manual_seed(4)
    before = [parameter.detach().clone() for parameter in one.connections]
    with torch.no_grad():
        for parameter in one.connections:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(noise, alpha=MOVED)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, old in zip(one.connections, before, strict=True):
                parameter.copy_(old)


def errors(one: Entry, setup: Setup) -> dict[str, float]:
    """Return relative errors of logits, of the worst tensor's gradient, and of logits in inference."""
    twin = Twin(one, setup)
    short = dataclasses.replace(setup, length=min(setup.length, LONGEST), prompt=min(setup.prompt, LONGEST))
    inputs = short.inputs()
    one.model.zero_grad()
    out, truth = one.compiled(**inputs), twin(**inputs)
    for loss in (out.loss, truth.loss):
        torch.autograd.backward(loss)
    found = {"logits": relative(out.logits, truth.logits)}
    named = dict(twin.model.named_parameters())
    gradients = {name: (p.grad, named[name].grad) for name, p in one.model.named_parameters()}
    whole = sum(float(right.norm()) ** 2 for _, right in gradients.values() if right is not None) ** 0.5
    floor = FLOORS[setup.dtype] * whole
    found["gradients"] = max(_gradient(mine, right, floor) for mine, right in gradients.values())
    one.model.eval()
    twin.model.eval()
    mine = measures.served(one, setup) if short == setup else measures.Served(one, short)
    right = measures.Served(one, short, twin)
    found["prefill"] = relative(mine.prefill(), right.prefill())
    found["decode"] = relative(mine.decode(), right.decode())
    one.model.train()
    return found


def relative(mine: Tensor, right: Tensor) -> float:
    """Return the norm of the difference, relative."""
    mine, right = mine.detach(), right.detach()
    return float((mine.double() - right).norm() / right.norm())


def _gradient(mine: Tensor | None, right: Tensor | None, floor: float) -> float:
    if mine is None or right is None:
        return 0.0 if mine is right else float("inf")
    return float((mine.double() - right).norm() / max(float(right.norm()), floor))


def too_far(found: dict[str, float], dtype: str) -> str:
    """Say which errors are beyond their bounds."""
    logits, gradients = BOUNDS[dtype]
    bounds = {name: gradients if name == "gradients" else logits for name in found}
    wrong = [f"{name} {error:.1e} off" for name, error in found.items() if not error <= bounds[name]]
    return f"not its own definition in float64: {', '.join(wrong)}" if wrong else ""


# -- training ---------------------------------------------------------------------------------------------------------


def losses(one: Entry) -> list[float]:
    """Return the losses of a few steps on one batch."""
    optimizer, found = optimizer_of(one, RATE), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = one.forward()
        torch.autograd.backward(loss)
        optimizer.step()
        found.append(loss.item())
    return found


def not_falling(found: list[float]) -> str:
    """Say that a loss does not fall, or is not finite."""
    told = ", ".join(f"{loss:.3f}" for loss in found)
    fine = all(torch.isfinite(torch.tensor(found))) and found[-1] < found[0]
    return "" if fine else f"its loss does not fall in {len(found)} steps of AdamW: {told}"
