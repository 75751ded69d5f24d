"""Three dialects, one meaning: the same network as Dynamo, symbolic_trace and torch.export write it."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from tests.nets.small import Block, Net, PostBlock, inputs, made


class Bottleneck(nn.Module):
    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1, bias=False), nn.Conv2d(c, c, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class ConvNet(nn.Module):
    """Two stages of residual blocks, features second, with a strided convolution between them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, stride=2)
        self.first, self.second = (nn.Sequential(*(Bottleneck() for _ in range(n))) for n in (3, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        return self.second(self.down(x)).mean((2, 3))


class RMSBlock(nn.Module):
    """Post-norm, a branch that is subtracted, and a learned scale."""

    def __init__(self, c: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.RMSNorm(c), nn.Linear(c, c), nn.Linear(c, c)
        self.gamma = nn.Parameter(torch.full((c,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x - self.one(torch.tanh(x)))
        return x * self.gamma + self.two(torch.sin(x))


def images() -> Tensor:
    return torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0))


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "pre-norm": (lambda: made(Net, 2, Block), inputs, 4),
    "post-norm": (lambda: made(Net, 2, PostBlock), inputs, 4),
    "convolutions": (lambda: made(ConvNet), images, 5),
    "odd": (lambda: made(Net, 2, RMSBlock), inputs, 4),
}
FORMS: dict[str, Callable[[nn.Module, Tensor], nn.Module]] = {
    "dynamo": lambda model, x: model,
    "symbolic_trace": lambda model, x: fx.symbolic_trace(model),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "aten": lambda model, x: torch.export.export(model, (x,)).run_decompositions().module(),
}


def perturb(graph: nn.Module) -> None:
    """Move what the rewrite added to the graph."""
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in graph.named_parameters():
            if ".mhc." in f".{name}":
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=random))


def meaning(report: mhc.Report) -> list[Any]:
    """What a report says of the sites, names apart."""
    return [(s.kind, s.adds, s.axis, s.region, s.k, s.length, s.shape, bool(s.lifts)) for s in report.sites]


@pytest.mark.core(2)
@pytest.mark.parametrize("form", [form for form in FORMS if form != "dynamo"])
@pytest.mark.parametrize("net", NETS)
def test_the_same_sites(net: str, form: str) -> None:
    make, example, sites = NETS[net]
    model, x = make().eval(), example()
    expected = mhc.explain(model, (x,))
    assert len(expected.sites) == sites
    assert meaning(mhc.explain(FORMS[form](model, x), (x,))) == meaning(expected)


@pytest.mark.slow
@pytest.mark.parametrize("form", [form for form in FORMS if form != "dynamo"])
@pytest.mark.parametrize("net", NETS)
def test_a_rewritten_graph_lives_on(net: str, form: str) -> None:
    """It computes the same, moves when its parameters move, is saved and loaded, and is exported again."""
    make, example, sites = NETS[net]
    model, x = make().eval(), example()
    graph = mhc.rewrite(FORMS[form](model, x), (x,), config=mhc.Config(streams=3))  # type: ignore[arg-type]
    torch.testing.assert_close(graph(x), model(x), rtol=1e-5, atol=1e-5)
    assert sum(name.endswith(".phi") for name, _ in graph.named_parameters()) == sites

    perturb(graph)
    moved = graph(x)
    assert (moved - model(x)).abs().max() > 1e-3
    moved.backward(torch.randn(moved.shape, generator=torch.Generator().manual_seed(1)))
    assert [name for name, p in graph.named_parameters() if ".mhc." in f".{name}" and p.grad is None] == []

    again = mhc.rewrite(FORMS[form](model, x), (x,), config=mhc.Config(streams=3))  # type: ignore[arg-type]
    again.load_state_dict(graph.state_dict())
    assert torch.equal(again(x), moved)
    saved = io.BytesIO()
    torch.save(graph, saved)
    saved.seek(0)
    assert torch.equal(torch.load(saved, weights_only=False)(x), moved)
    assert torch.equal(copy.deepcopy(graph)(x), moved)
    torch.testing.assert_close(torch.export.export(graph, (x,)).module()(x), moved)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["pre-norm", "convolutions"])
def test_onnx(net: str) -> None:
    """ONNX's own evaluator and onnxruntime compute what the rewritten graph computes."""
    evaluator, runtime = (pytest.importorskip(name) for name in ("onnx.reference", "onnxruntime"))
    pytest.importorskip("onnxscript")
    make, example, _ = NETS[net]
    x = example()
    graph = mhc.rewrite(fx.symbolic_trace(make().eval()), (x,))
    perturb(graph)
    program = torch.onnx.export(graph, (x,), dynamo=True, verbose=False)
    assert program is not None
    runs = (evaluator.ReferenceEvaluator(program.model_proto).run,
            runtime.InferenceSession(program.model_proto.SerializeToString()).run)  # fmt: skip
    for run in runs:
        (result,) = run(None, {program.model.graph.inputs[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(result), graph(x).detach(), rtol=1e-4, atol=1e-4)
