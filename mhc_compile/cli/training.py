"""A byte-level model in training, step by step, as the demo and `bench.stability` train it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

CLIP = 1.0  # of the gradient's norm
BETAS = (0.9, 0.95)  # AdamW's


def rate(step: int, steps: int, warmup: int) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return 0.1 + 0.45 * (1 + math.cos(math.pi * progress))


@dataclass
class Run:
    """A model with its optimizer, and what was measured at every step."""

    name: str
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list, kw_only=True)  # nats per byte
    norms: list[float] = field(default_factory=list, kw_only=True)  # of the gradient before clipping
    seconds: list[float] = field(default_factory=list, kw_only=True)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Mean next-byte loss, in nats per byte."""
        loss: torch.Tensor = self.model(input_ids=batch, labels=batch).loss
        return loss

    def step(self, batch: torch.Tensor) -> None:
        """One optimizer step, timed."""
        start = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.losses.append(loss.item())
        self.norms.append(norm.item())
        self.seconds.append(time.perf_counter() - start)
        self.schedule.step()
