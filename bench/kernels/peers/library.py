"""What adapters share: whether a library is there, in which version, and random parameters."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch

from bench.kernels.support.reasons import reason
from bench.kernels.timing.sites import Shape, UnavailableError


def imported(distribution: str, module: str, device: str) -> tuple[Any, str]:
    """Return a module of a library and the library's version, where its kernels can run.

    Raises:
        UnavailableError: it is not installed, its import fails, or there is no GPU.
    """
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError("not installed") from error
    try:
        found = importlib.import_module(module)
    except Exception as error:
        raise UnavailableError(f"{distribution} {version}: {module} cannot be imported: {reason(error)}") from error
    if not device.startswith("cuda"):
        raise UnavailableError(f"{distribution} {version} imported; needs a GPU to run")
    return found, f"{distribution} {version}"


def require(condition: bool, what: str) -> None:
    """Refuse a shape.

    Raises:
        UnavailableError: the condition does not hold.
    """
    if not condition:
        raise UnavailableError(what)


def random(shape: tuple[int, ...], device: str, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> torch.Tensor:
    """Return a trained parameter, not zeros."""
    return (scale * torch.randn(shape, device=device)).to(dtype).requires_grad_()


def weight(shape: Shape, device: str, dtype: torch.dtype) -> torch.Tensor | None:
    """Return the weight of the norm that follows the read, if there is one."""
    return None if shape.norm == "none" else (1 + 0.1 * torch.randn(shape.channels, device=device)).to(
        dtype
    ).requires_grad_()  # fmt: skip
