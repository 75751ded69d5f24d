"""Launches of a generated module, noted down: which kernel, on what grid, with which arguments."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mhc_compile.codegen.runtime.dtypes import TORCH
from mhc_compile.codegen.spec import Spec


@dataclasses.dataclass(frozen=True)
class Launch:
    """One launch.

    Attributes:
        kernel: the function under `triton.jit`.
        grid: programs along each axis.
        arguments: by name, constexprs and defaults among them.
        options: what is for the compiler and launcher: num_warps, num_stages, ...
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the kernel's name."""
        return str(self.kernel.__name__)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors among the arguments."""
        return {name: value for name, value in self.arguments.items() if isinstance(value, Tensor)}


@contextlib.contextmanager
def recording(module: ModuleType, *, run: bool = False) -> Iterator[list[Launch]]:
    """Note every launch of the module's kernels, in order, in the list that is yielded.

    Args:
        module: a generated module.
        run: also launch them, each after it was noted; otherwise nothing runs, and tensors may lie on "meta".
    """
    from triton.runtime.jit import KernelInterface

    launches: list[Launch] = []
    kernels = [value for value in vars(module).values() if isinstance(value, KernelInterface)]
    for kernel in kernels:
        kernel.run = _recorder(kernel, kernel.run, launches, run)
    try:
        yield launches
    finally:
        for kernel in kernels:
            del kernel.run  # the method of the class shows again


def _recorder(kernel: Any, launch: Callable[..., Any], launches: list[Launch], run: bool) -> Callable[..., Any]:
    signature = inspect.signature(kernel.fn)

    def record(*args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
        own = {name: value for name, value in kwargs.items() if name in signature.parameters}
        bound = signature.bind(*args, **own)
        bound.apply_defaults()
        size = grid(bound.arguments) if callable(grid) else grid
        options = {name: value for name, value in kwargs.items() if name not in own}
        launches.append(Launch(kernel, tuple(size), dict(bound.arguments), options))
        return launch(*args, grid=grid, warmup=warmup, **kwargs) if run else None

    return record


def record(
    module: ModuleType, spec: Spec, direction: str, tokens: int, tiles: Mapping[str, Any] | None = None
) -> list[Launch]:
    """Return the launches of the module's `forward` or `backward` for so many tokens, without running any."""
    function = getattr(module, direction)
    with recording(module) as launches:
        function(**arguments(function, spec, tokens, device="meta"), **({} if tiles is None else {"tiles": tiles}))
    return launches


def arguments(
    function: Callable[..., Any], spec: Spec, tokens: int, *, device: str = "cpu", seed: int = 0
) -> dict[str, Tensor]:
    """Return arguments for a module's `forward` or `backward`, by the names of its parameters, but for `tiles`.

    Values are normal; inverse norms, layer scales and norm weights are near 1, and phi makes logits of order 1.
    """
    known = layouts(spec, tokens)
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for name in inspect.signature(function).parameters:
        if name == "tiles":
            continue
        shape, dtype = known[name]
        if device == "meta":
            made[name] = torch.empty(shape, dtype=dtype, device=device)
            continue
        value = torch.randn(shape, generator=generator)
        if name.rstrip("0123456789") in ("r", "rstd", "scale", "weight"):
            value = value * 0.1 + 1
        elif name == "phi":
            value /= shape[0] ** 0.5
        made[name] = value.to(device, dtype)
    return made


Layout = tuple[tuple[int, ...], torch.dtype]


def layouts(spec: Spec, tokens: int) -> dict[str, Layout]:
    """Return shape and dtype of every tensor that goes into a generated function, by its name there."""
    n, c, m = spec.n, spec.channels, spec.logits
    dtype, branch, fp32 = TORCH[spec.dtype], TORCH[spec.branch], torch.float32
    wide, narrow = ((tokens, n, c), dtype), ((tokens, c), dtype)
    known: dict[str, Layout] = {
        "x": narrow if spec.equal_streams or spec.equal_head else wide,
        **dict.fromkeys(("new", "g_new"), wide),
        **dict.fromkeys(("u", "g_u", "g_out"), narrow),
        "f": ((tokens, c), branch),
        **dict.fromkeys(("offset", "scale"), ((c,), branch)),
        **dict.fromkeys(("weight", "shift"), ((c,), dtype)),
        "phi": ((n * c, m), fp32),
        "alpha": ((3,), fp32),
        **dict.fromkeys(("delta", "base", "bias"), ((m,), fp32)),
        **dict.fromkeys(("pre", "post", "g_pre", "g_post"), ((tokens, n), fp32)),
        **dict.fromkeys(("res", "g_res"), ((tokens, n, n), fp32)),
        "y": ((tokens, m), fp32),
        **dict.fromkeys(("r", "mean", "rstd"), ((tokens, 1), fp32)),
    }
    for k, step in enumerate(spec.history):
        known |= {f"{name}{k}": known[name] for name in ("post", "res")}
        known |= {f"f{k}": ((tokens, c), TORCH[step.branch])}
        known |= dict.fromkeys((f"offset{k}", f"scale{k}"), ((c,), TORCH[step.branch]))
    return known
