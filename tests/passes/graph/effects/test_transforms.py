"""Transforms of torch.func inside compiled code: sites run there as plain torch, and mean what they mean elsewhere."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.utils._pytree import tree_leaves

import mhc_compile as mhc
from mhc_compile.backend import kernels
from mhc_compile.capture.graphs import copy_graph
from mhc_compile.errors import KernelError, NotCompiledError
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.effects import transforms
from mhc_compile.passes.graph.walk import value
from tests.nets.small import compiled, inputs, made, perturb, relative, upgraded

X = inputs(4)
WEIGHTS = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
State = tuple[dict[str, Tensor], dict[str, Tensor]]


class Smooth(nn.Module):
    """Two connections without a norm, of which torch has no forward-mode derivative under Dynamo."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.a(x).tanh()
        out: Tensor = x + self.b(x).tanh()
        return out


def under_mhc(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    run: Callable[..., Any] = torch.compile(function, backend="mhc", options={"compiler": "eager", **options})
    return run


def state(model: nn.Module) -> State:
    return {name: p.detach() for name, p in model.named_parameters()}, dict(model.named_buffers())


def loss(model: nn.Module, given: State, x: Tensor) -> Tensor:
    made: Tensor = (functional_call(model, given, (x,)) * WEIGHTS).sum()
    return made


PROGRAMS: dict[str, Callable[[nn.Module, State], Any]] = {
    "vmap": lambda model, _: vmap(lambda x: model(x))(inputs(3, 4)),
    "grad": lambda model, given: grad(lambda p: loss(model, (p, given[1]), X))(given[0]),
    "per-sample": lambda model, given: vmap(lambda x: grad(lambda p: loss(model, (p, given[1]), x))(given[0]))(
        inputs(3, 4)
    ),
    "jacrev": lambda model, given: jacrev(lambda p: functional_call(model, (p, given[1]), (X,)))(given[0]),
    "jacfwd": lambda model, _: jacfwd(lambda x: model(x))(X),
    "jvp": lambda model, _: jvp(lambda x: model(x), (X,), (inputs(4, seed=3),)),
    "hessian": lambda model, _: hessian(lambda x: (model(x) * WEIGHTS).sum())(X),
}


def same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    assert pairs
    assert max(relative(a, b) for a, b in pairs if b.abs().max() > 1e-5) < tolerance


@pytest.mark.core(1)
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_transform_of_an_upgraded_model(name: str) -> None:
    """What it computes is what the exported graph does under the same transform, which is plain torch."""
    model, program = upgraded(Smooth, moved=True), PROGRAMS[name]
    graph, given = mhc.export(model, (inputs(3, 4) if name == "vmap" else X,)), state(model)
    same(under_mhc(lambda given: program(model, given))(given), program(graph, given))


def test_an_ensemble() -> None:
    """Parameters in a batch, those of sites among them."""
    models = [upgraded(Smooth) for _ in range(3)]
    for seed, model in enumerate(models):
        perturb(model, seed=seed)
    run = under_mhc(lambda given: vmap(lambda *each: functional_call(models[0], each, (X,)))(*given))
    same(run(stack_module_state(models)), torch.stack([mhc.export(model, (X,))(X) for model in models]))


class Vmapped(nn.Module):
    """Its blocks see one example at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Smooth()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = vmap(lambda each: self.net(each))(x)
        return out


class Differentiated(Vmapped):
    """Its output is a gradient of its net's, as in energy models."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = grad(lambda each: self.net(each).square().sum())(x)
        return out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mhc created")
@pytest.mark.parametrize(("make", "compiler"), [(Vmapped, "aot_eager"), (Differentiated, "eager")])
def test_a_model_that_transforms(make: Callable[[], Vmapped], compiler: str) -> None:
    """Upgraded or created by a first call; gradients of parameters go through the transform."""
    model, twin, x = made(make), made(make), inputs()
    assert len(mhc.upgrade(model, (x,)).sites) == 2
    run = compiled(twin, compiler=compiler)
    same(run(x), made(make)(x))
    perturb(model)
    perturb(twin)
    found = run(x)
    same(found, compiled(model, compiler=compiler)(x))
    graph = mhc.export(model, (x,))
    same(found, graph(x))
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(4))
    ours, theirs = dict(twin.named_parameters()), dict(graph.named_parameters())
    expected = torch.autograd.grad(graph(x), list(theirs.values()), upstream)
    same(torch.autograd.grad(found, [ours[name] for name in theirs], upstream), expected, 1e-4)


class Broken(Smooth):
    """Dynamo breaks where vmap gets a method: the forward with the adds lies in a frame of torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = vmap(super().forward)(x)
        return out


@pytest.mark.filterwarnings("ignore:mhc finds nothing")
def test_a_forward_that_breaks_at_a_transform_is_left_alone() -> None:
    report = mhc.upgrade(Broken(), (inputs(),))
    assert report.sites == ()


def under_vmap(model: Any) -> None:
    vmap(model)(inputs())


def under_grad(model: Any) -> None:
    grad(lambda x: model(x).sum())(X)


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("transform", [under_vmap, under_grad])
def test_a_transform_around_compiled_code_is_refused(transform: Callable[[Any], None], is_compiled: bool) -> None:
    """Torch runs frames under a transform eagerly."""
    model = upgraded(Smooth)
    with pytest.raises(
        NotCompiledError, match=r"under a transform of torch\.func.*that no compiled code holds"
    ) as found:
        transform(compiled(model) if is_compiled else model)
    assert str(pickle.loads(pickle.dumps(found.value))) == str(found.value)


def test_kernels_that_are_asked_for_are_not_left_out_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "enable", lambda config, gm: frozenset({"cpu"}))
    model = upgraded(Smooth)
    run = under_mhc(lambda x: vmap(lambda each: model(each))(x), kernels="triton")
    with pytest.raises(KernelError, match=r"transforms of torch\.func know plain torch only"):
        run(inputs())


def graph_of(function: Callable[..., Any], *args: Any) -> fx.GraphModule:
    graphs: list[fx.GraphModule] = []

    def record(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    torch.compile(function, backend=record)(*args)
    return graphs[-1]


def test_settled_graphs_can_be_computed_with_and_read_what_is_recorded() -> None:
    gm = graph_of(lambda x: grad(lambda y: (y * y.sin()).sum())(x), torch.randn(3, 4))
    settled = copy_graph(gm)
    assert transforms.are_in(settled)
    (mark,) = [node for node in settled.graph.nodes if optable.name(node) == "_set_tensor_requires_grad"]
    assert {optable.name(user) for user in mark.users} == {"sin", "mul", "_autograd_grad"}
    tensors = [tensor for node in settled.graph.nodes if (tensor := value(node)) is not None]
    assert [(tensor + 1).shape for tensor in tensors] == [tensor.shape for tensor in tensors]
    assert len(gm.graph.nodes) == len(settled.graph.nodes)
    x = torch.randn(3, 4)
    assert all(torch.equal(a, b) for a, b in zip(settled(x), gm(x), strict=True))


def test_other_graphs_stay_as_they_are() -> None:
    gm = graph_of(copy.deepcopy(made()), inputs())
    before = [dict(node.meta) for node in gm.graph.nodes]
    assert not transforms.are_in(gm)
    transforms.settle(gm)
    assert all(node.meta == meta for node, meta in zip(gm.graph.nodes, before, strict=True))
