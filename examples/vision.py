"""Train a residual convolutional network with hyper-connections, without a change to its source.

The network is a pre-activation ResNet as one would write it by hand. Its pictures are made up: stripes in one of four
directions under noise. Takes about half a minute on two cores:

    python examples/vision.py
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

import mhc_compile as mhc

STEPS, BATCH, SIDE, NOISE = 50, 32, 16, 2.0


class Block(nn.Module):
    """A pre-activation block, `shortcut(x) + conv(relu(norm(conv(relu(norm(x))))))`; a wider one halves the side."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        stride = 1 if narrow == wide else 2
        self.norm1, self.norm2 = nn.BatchNorm2d(narrow), nn.BatchNorm2d(wide)
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if narrow == wide else nn.Conv2d(narrow, wide, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, narrow, side, side]` to `[batch, wide, side / stride, side / stride]`."""
        branch = self.conv1(functional.relu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(functional.relu(self.norm2(branch)))


class ResNet(nn.Module):
    """Two stages, with a block between them that halves the side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.stages = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 32), Block(32, 32), Block(32, 32))
        self.head = nn.Linear(32, 4)

    def forward(self, pictures: Tensor) -> Tensor:
        """Map `[batch, 1, side, side]` to logits `[batch, 4]`."""
        return self.head(functional.relu(self.stages(self.stem(pictures))).mean((-2, -1)))


def stripes(count: int) -> tuple[Tensor, Tensor]:
    """Return noisy pictures `[count, 1, side, side]` and the directions of their stripes, int64 `[count]`."""
    directions = torch.randint(4, (count,))
    angles = (directions * math.pi / 4)[:, None, None]
    across, down = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="xy")
    phases = 2 * math.pi * torch.rand(count, 1, 1)
    waves = torch.sin(1.2 * (across * angles.cos() + down * angles.sin()) + phases)
    return (waves + NOISE * torch.randn_like(waves)).unsqueeze(1), directions


def require(holds: bool, what: str) -> None:
    """Stop with an error where something does not hold that should."""
    if not holds:
        sys.exit(f"failed: {what}")


def main() -> None:
    """Run the example."""
    torch.manual_seed(0)
    model = ResNet()
    pictures, _ = stripes(BATCH)
    report = mhc.upgrade(model, (pictures,))
    print(report)
    owners = [site.owner for site in report.sites]
    require(owners == ["stages.0", "stages.1", "stages.3", "stages.4"], f"connections were found in {owners}")
    kept = [(rejection.owner, rejection.reason) for rejection in report.rejections if rejection.residual]
    require(kept == [("stages.2", "projection-shortcut")], f"left alone are {kept}")

    model.compile(backend="mhc")
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=2e-3, weight_decay=0.05))
    losses, shares = [], []
    for _ in range(STEPS):
        pictures, directions = stripes(BATCH)  # new ones in every step
        optimizer.zero_grad()
        logits = model(pictures)
        loss = functional.cross_entropy(logits, directions)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        shares.append((logits.argmax(-1) == directions).float().mean().item())
    right = sum(shares[-10:]) / 10
    print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {STEPS} steps")
    print(f"right about {right:.0%} of the pictures in the last ten steps; guessing would give 25%")
    require(right > 0.8, "the network did not learn")


if __name__ == "__main__":
    main()
