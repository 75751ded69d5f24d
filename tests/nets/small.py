"""Tiny models with residual connections, and what tests do with them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import mhc_compile as mhc

WIDTH = 16
SITES = ("attn", "mlp")  # of every block below
Results = tuple[Tensor, list[Tensor | None]]  # an output and gradients


class Block(nn.Module):
    """Pre-norm: `x + f(norm(x))`, twice."""

    def __init__(self, width: int = WIDTH, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attn(self.norm1(x)))
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class PostBlock(Block):
    """Post-norm: `norm(x + f(x))`, twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attn(x)))
        out: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return out


class Net(nn.Module):
    """A stem, blocks and a head."""

    def __init__(self, layers: int = 2, block: Callable[..., nn.Module] = Block, dropout: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(8, WIDTH)
        self.blocks = nn.ModuleList(block(dropout=dropout) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Separate(Net):
    """Blocks that lie in graphs of their own, so that streams are carried."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            torch._dynamo.graph_break()
            x = block(x)
        out: Tensor = self.head(x)
        return out


class Shared(nn.Module):
    """One block called several times."""

    def __init__(self, calls: int = 3) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(8, WIDTH), Block(), nn.Linear(WIDTH, 4)
        self.calls = calls

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(self.calls):
            x = self.block(x)
        out: Tensor = self.head(x)
        return out


class Wrapper(nn.Module):
    """A module around a net, as libraries for training have one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class Plain(nn.Module):
    """No residual connection at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 4))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def inputs(*shape: int, seed: int = 7) -> Tensor:
    """What the nets above take, the same numbers every time."""
    return torch.randn(*(shape or (3, 5)), 8, generator=torch.Generator().manual_seed(seed))


def made(make: Callable[..., nn.Module] = Net, *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """A net with the same weights every time."""
    torch.manual_seed(seed)
    return make(*args, **kwargs)


def upgraded(
    make: Callable[..., nn.Module] = Net,
    *args: Any,
    moved: bool = False,
    config: mhc.Config | None = None,
    **kwargs: Any,
) -> nn.Module:
    """The same, upgraded but not verified: tests judge. With `moved`, its mHC parameters are away from their start."""
    model = made(make, *args, **kwargs)
    mhc.upgrade(model, (inputs(),), config=config, verify=False)
    if moved:
        perturb(model)
    return model


@torch.no_grad()
def perturb(model: nn.Module, scale: float = 0.5, seed: int = 5) -> None:
    """Move phi, alpha and bias of every site to random values, the same every time."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in mhc.named_parameters(model):
        size = scale * (0.05 if name.endswith("phi") else 1.0)
        parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.device) * size)


def compiled(model: Callable[..., Any], **options: Any) -> Any:
    """The model under the backend, by its entry point; the rewritten graph runs eagerly, which is fastest here."""
    return torch.compile(model, backend="mhc", options={"compiler": "eager", **options})


def compile_blocks(model: nn.Module, backend: Any = "mhc", compiler: str = "eager", **options: Any) -> None:
    """Compile the blocks of a net one by one."""
    for block in model.get_submodule("blocks").children():
        block.compile(backend=backend, options={"compiler": compiler, **options})


def floats(output: Any) -> list[Tensor]:
    """The float tensors of an output, those of Hugging Face's output classes included."""
    leaves = tree_leaves(output.to_tuple() if hasattr(output, "to_tuple") else output)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def gradients(output: Any, parameters: Iterable[Tensor]) -> list[Tensor | None]:
    """Pull random gradients, the same every time and not constant, back to the parameters."""
    live = [tensor for tensor in floats(output) if tensor.requires_grad]
    generator = torch.Generator().manual_seed(11)
    upstream = [torch.randn(tensor.shape, generator=generator).to(tensor) for tensor in live]
    asked = list(parameters)
    found = iter(torch.autograd.grad(live, [p for p in asked if p.requires_grad], upstream, allow_unused=True))
    return [next(found) if p.requires_grad else None for p in asked]


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the model had before it was upgraded."""
    held = {id(parameter) for _, parameter in mhc.named_parameters(model)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in held}


def mhc_state(model: nn.Module) -> dict[str, Tensor]:
    """What the upgrade adds to the state."""
    return {name: value for name, value in model.state_dict().items() if "mhc." in name}


def relative(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest entry."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def gradient_error(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> float:
    """The worst max|d| / max(max|g|, 1e-3 of the largest gradient); infinite where one is missing."""
    assert [grad is None for grad in actual] == [grad is None for grad in expected]
    pairs = [(a, b) for a, b in zip(actual, expected, strict=True) if a is not None and b is not None]
    assert pairs
    top = max(float(b.abs().max()) for _, b in pairs)
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), 1e-3 * top) for a, b in pairs)


def same(actual: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> bool:
    """Whether all tensors are equal bit for bit, with at least one to compare."""
    assert any(tensor is not None for tensor in expected)
    pairs = zip(actual, expected, strict=True)
    return all(torch.equal(a, b) if a is not None and b is not None else a is b for a, b in pairs)


def results(run: Any, model: nn.Module, x: Tensor) -> Results:
    """The output, and the gradients of the input and of every parameter where there are any."""
    x = x.detach().requires_grad_()
    out = run(x)
    return out, gradients(out, [x, *model.parameters()]) if out.requires_grad else []


def afresh(model: nn.Module, x: Tensor) -> Results:
    """The same of a copy, compiled for this setting alone and run op by op."""
    torch._dynamo.reset()
    twin = copy.deepcopy(model)
    return results(compiled(twin), twin, x)


def agree(found: Results, expected: Results, tolerance: float = 1e-5) -> bool:
    """Whether outputs and all gradients are the same up to rounding."""
    assert len(found[1]) == len(expected[1])
    close = relative(found[0], expected[0]) < tolerance
    return close and (not expected[1] or gradient_error(found[1], expected[1]) < tolerance)


def snapshot(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]:
    """State, classes and training flags, to see that nothing has changed."""
    state = {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
    modules = dict(model.named_modules())
    return state, {n: type(m) for n, m in modules.items()}, {n: m.training for n, m in modules.items()}


def unchanged(model: nn.Module, before: tuple[dict[str, Tensor], dict[str, type], dict[str, bool]]) -> bool:
    """Whether a model is what `snapshot` saw."""
    state, classes, training = snapshot(model)
    same_state = list(state) == list(before[0]) and all(torch.equal(state[name], before[0][name]) for name in state)
    return same_state and (classes, training) == before[1:]
