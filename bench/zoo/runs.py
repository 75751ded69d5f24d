"""A family's model, and what one call of it gives: outputs, gradients, and how far two calls differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bench.zoo import modes
from bench.zoo.family import Call, Family
from mhc_compile.api.upgrade import difference

SPREAD = 0.05  # least of what is added to the weights: gates that start at 0 would hide a wrong rewrite


def make(family: Family) -> tuple[nn.Module, Call]:
    """Return the model in its mode and the arguments, the same every time."""
    torch.manual_seed(0)
    model = family.build().float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else math.inf
            parameter.add_(max(SPREAD, fan_in**-0.5) * torch.randn(parameter.shape))
    call = family.call()
    calibrate(model, call)
    modes.prepare(model, family.mode)
    return model, call


@torch.no_grad()
def calibrate(model: nn.Module, call: Call) -> None:
    """Let batch norms see the data once: with the statistics they start with, deep signals fade to nothing."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.train().momentum = 1.0
        model(*call[0], **call[1])
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.eval().momentum = momentum


@dataclasses.dataclass
class Run:
    """Outputs of one call and what a backward through them gives."""

    outputs: list[Tensor]
    gradients: list[Tensor | None]

    @classmethod
    def of(cls, model: Any, call: Call, parameters: Iterable[Tensor]) -> Run:
        """Call with the same random numbers every time, and pull random gradients back."""
        torch.manual_seed(3)
        outputs = floats(model(*call[0], **call[1]))
        if not all(tensor.isfinite().all() or _masks(tensor) for tensor in outputs):
            raise ArithmeticError("outputs are not finite")
        return cls([tensor.detach().clone() for tensor in outputs], pulled(outputs, parameters))

    def errors(self, other: Run) -> tuple[float, float]:
        """Return the largest relative differences of outputs and of gradients."""
        return output_error(self.outputs, other.outputs), gradient_error(self.gradients, other.gradients)


def _masks(tensor: Tensor) -> bool:
    """Tell whether what is not finite is minus infinity, as a mask of logits has it."""
    return bool((tensor.isfinite() | (tensor == -math.inf)).all())


def floats(output: Any) -> list[Tensor]:
    """Return the float tensors of any nest of outputs, each storage's tensor once."""
    leaves = tree_leaves(output)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return list({id(tensor): tensor for tensor in tensors}.values())


def pulled(outputs: Sequence[Tensor], parameters: Iterable[Tensor]) -> list[Tensor | None]:
    """Pull random gradients, the same every time, back to the parameters."""
    live = [tensor for tensor in outputs if tensor.requires_grad]
    generator = torch.Generator().manual_seed(11)
    upstream = [torch.randn(tensor.shape, generator=generator).to(tensor.dtype) for tensor in live]
    return list(torch.autograd.grad(live, list(parameters), upstream, allow_unused=True))


def silent(gradient: Tensor | None) -> bool:
    """Tell whether nothing arrives."""
    return gradient is None or not bool(gradient.any())


def output_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return the worst max|d| / max|o|; infinite where the outputs have other shapes."""
    if [tensor.shape for tensor in actual] != [tensor.shape for tensor in expected]:
        return math.inf
    return max(map(difference, actual, expected), default=0.0)


def gradient_error(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """Return the worst max|d| / max(max|g|, 1e-3 of the largest gradient); one that is missing is 0."""
    zero = torch.zeros(1)  # AOTAutograd may say 0 where eager says None
    pairs = [
        ((zero if a is None else a).double(), (zero if b is None else b).double())
        for a, b in zip(actual, expected, strict=True)
    ]
    top = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    errors = [float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3 * top, 1e-30) for a, b in pairs]
    return math.inf if any(map(math.isnan, errors)) else max(errors, default=0.0)


@torch.no_grad()
def perturb(parameters: Iterable[Tensor]) -> None:
    """Move parameters away from their start."""
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        scale = 0.3 / max(1, parameter.shape[-1]) ** 0.5 if parameter.dim() else 0.3
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
