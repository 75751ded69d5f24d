"""An upgraded model, or any FX graph, as one graph in plain torch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

import mhc_compile as mhc
from mhc_compile.backend import mhc as backend
from mhc_compile.errors import CaptureError, NotUpgradedError
from tests.nets.small import Block, Net, Plain, PostBlock, Shared, inputs, made, perturb, upgraded


def compiled(model: nn.Module) -> Callable[..., Any]:
    return torch.compile(model, backend=backend, options={"compiler": "aot_eager"})


def gradients(model: Callable[..., Tensor], parameters: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    out = model(x)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, list(parameters.values()), upstream)
    return dict(zip(parameters, found, strict=True)) | {"output": out.detach()}


def near(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name] - tensor).abs().max() <= tolerance * tensor.abs().max(), name


@pytest.mark.core(1)
@pytest.mark.parametrize(
    "config",
    [mhc.Config(streams=3), mhc.Config(streams=2, connection="hc"), mhc.Config(projection="identity")],
    ids=["mhc", "hc", "identity"],
)
@pytest.mark.parametrize("make", [Net, Shared, lambda: Net(2, PostBlock)], ids=["net", "shared", "post"])
def test_export_equals_the_compiled_model(make: Callable[[], nn.Module], config: mhc.Config) -> None:
    model, x = made(make).double(), inputs().double()
    mhc.upgrade(model, (x,), config=config)
    perturb(model)
    graph = mhc.export(model, (x,))
    ours, theirs = dict(graph.named_parameters()), dict(model.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name] is theirs[name] for name in theirs)
    near(gradients(graph, ours, x), gradients(compiled(model), theirs, x), 1e-10)


@pytest.mark.slow
def test_in_single_precision() -> None:
    model = upgraded(moved=True)
    torch.testing.assert_close(
        mhc.export(model, (inputs(),))(inputs()), compiled(model)(inputs()), rtol=1e-5, atol=1e-6
    )


def test_it_needs_nothing_of_this_package() -> None:
    graph = mhc.export(upgraded(moved=True), (inputs(),))
    assert not any("mhc" in str(node.target) for node in graph.graph.nodes if node.op != "get_attr")
    assert not any(type(module).__module__.startswith("mhc_compile") for module in graph.modules())


@pytest.mark.slow
def test_export_save_load() -> None:
    graph = mhc.export(upgraded(moved=True), (inputs(),))
    file = io.BytesIO()
    torch.export.save(torch.export.export(graph, (inputs(),)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(inputs()), graph(inputs()))
    assert dict(loaded.named_parameters()).keys() == dict(graph.named_parameters()).keys()


def test_export_leaves_the_model_as_it_is() -> None:
    model = upgraded(moved=True)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    expected = compiled(model)(inputs())
    mhc.export(model, (inputs(),))
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(compiled(model)(inputs()), expected)


@pytest.mark.slow
def test_sizes_are_those_of_the_arguments_whatever_the_model_has_seen() -> None:
    model = upgraded(moved=True)
    run = compiled(model)
    run(inputs(6, 5))
    run(inputs(2, 5))
    graph = mhc.export(model, (inputs(),))
    torch.testing.assert_close(graph(inputs()), run(inputs()))
    assert not graph.graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)


@pytest.mark.slow
def test_sizes_that_are_marked_as_dynamic_stay_so() -> None:
    model, x = upgraded(moved=True), inputs(4, 5)
    torch._dynamo.mark_dynamic(x, 0)
    graph, theirs = mhc.export(model, (x,)), dict(model.named_parameters())
    program = torch.export.export(graph, (inputs(4, 5),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    for batch in (2, 7):
        torch.testing.assert_close(program.module()(inputs(batch, 5)), graph(inputs(batch, 5)))
        expected = gradients(compiled(model), theirs, inputs(batch, 5))
        near(gradients(graph, dict(graph.named_parameters()), inputs(batch, 5)), expected, 1e-5)


class Structured(nn.Module):
    """Keyword arguments, an unused one, and a nested result with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(8), Block(8))
        self.register_buffer("offset", torch.ones(8))

    def forward(self, x: Tensor, *, scale: Tensor, unused: Tensor | None = None, flag: bool = True) -> dict[str, Any]:
        y = self.blocks(x * scale if flag else x) + self.offset
        return {"y": y, "both": (y.sum(), x), "offset": self.offset, "constant": 3, "none": None}


def test_arguments_and_results_keep_their_structure() -> None:
    model = Structured()
    kwargs = {"scale": torch.tensor(2.0), "unused": torch.ones(2), "flag": True}
    mhc.upgrade(model, (inputs(),), kwargs)
    perturb(model)
    graph = mhc.export(model, (inputs(),), kwargs)
    x, other = inputs(seed=1), kwargs | {"scale": torch.tensor(0.5)}
    ours, theirs = graph(x, **other), compiled(model)(x, **other)
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(ours, theirs)
    assert ours["both"][1] is x
    assert (ours["constant"], ours["none"]) == (3, None)
    assert dict(graph.named_buffers())["offset"] is model.offset


FORMS: dict[str, Callable[[nn.Module], fx.GraphModule]] = {
    "symbolic_trace": fx.symbolic_trace,
    "export": lambda model: torch.export.export(model, (inputs(),)).module(),
    "plain": lambda model: fx.GraphModule(model, fx.Tracer().trace(model)),
}


@pytest.mark.core(1)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("block", [Block, PostBlock])
def test_rewrite_any_graph(form: str, block: type[nn.Module]) -> None:
    model = made(Net, 2, block).eval()
    gm = FORMS[form](model)
    code, state = gm.code, copy.deepcopy(gm.state_dict())
    sites = len(mhc.explain(model, (inputs(),)).sites)
    rewritten = mhc.rewrite(gm, (inputs(),), config=mhc.Config(streams=3))
    torch.testing.assert_close(rewritten(inputs()), model(inputs()), rtol=1e-5, atol=1e-5)
    parameters = dict(rewritten.named_parameters())
    assert len([name for name in parameters if name.endswith(".phi")]) == sites == 4
    assert len(parameters) == len(list(model.parameters())) + 3 * sites

    optimizer = torch.optim.SGD(rewritten.parameters(), lr=0.1)
    for _ in range(2):  # with phi at zero, the gates have no gradient
        optimizer.zero_grad()
        rewritten(inputs()).square().mean().backward()
        optimizer.step()
    assert [name for name, p in parameters.items() if p.grad is None or not p.grad.any()] == []

    assert gm.code == code
    assert all(torch.equal(t, state[name]) for name, t in gm.state_dict().items())
    assert not any(p is q for p in rewritten.parameters() for q in gm.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:mhc finds nothing")
def test_rewrite_takes_what_export_gives() -> None:
    graph = mhc.export(upgraded(moved=True), (inputs(),))
    expected = graph(inputs())
    assert torch.equal(mhc.rewrite(graph, (inputs(),), config=mhc.Config(exclude=("*",)))(inputs()), expected)


def test_rewrite_without_a_site() -> None:
    gm = fx.symbolic_trace(made(Plain))
    with pytest.warns(mhc.MHCWarning, match="nothing"):
        assert torch.equal(mhc.rewrite(gm, (inputs(),))(inputs()), gm(inputs()))


def test_a_model_that_was_not_upgraded() -> None:
    with pytest.raises(NotUpgradedError, match=r"call mhc_compile.upgrade first"):
        mhc.export(made(Net), (inputs(),))


class Result(NamedTuple):
    logits: Tensor


class Opaque:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Wrapped(Net):
    """A net that returns something else."""

    wrap: Callable[[Tensor], Any] = Opaque

    def forward(self, x: Tensor) -> Any:
        return type(self).wrap(super().forward(x))


class Named(Wrapped):
    wrap = Result


class Breaking(Net):
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        torch._dynamo.graph_break()
        return x.sin()


OUTSIDE = torch.ones(4)


class Outside(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + OUTSIDE


@pytest.mark.core(2)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Wrapped, r"returns a Opaque that a graph cannot; return tensors only"),
        (Breaking, r"breaks into several graphs, and an exported graph must be one"),
        (Outside, r"is neither a tensor of the model nor an argument"),
    ],
)
def test_what_is_no_graph(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        mhc.export(upgraded(make), (inputs(),))


def test_a_model_in_plain_mode() -> None:
    model = upgraded()
    with mhc.plain(model), pytest.raises(CaptureError, match=r"mhc\.plain"):
        mhc.export(model, (inputs(),))


@pytest.mark.slow
def test_a_named_tuple_is_a_structure() -> None:
    model = upgraded(Named, moved=True)
    result = mhc.export(model, (inputs(),))(inputs())
    assert isinstance(result, Result)
    torch.testing.assert_close(result.logits, compiled(model)(inputs()).logits)


class Split(Net):
    """Says where a pipeline is cut, as torch.distributed.pipelining asks for."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.blocks
        out = first(self.stem(x))
        torch.ops.pippy._pipe_split()
        result: Tensor = self.head(second(out))
        return result


@pytest.mark.slow
def test_a_graph_with_splits_becomes_stages_of_torchs() -> None:
    """Streams cross a split, and nothing else."""
    pipelining = pytest.importorskip("torch.distributed.pipelining")
    model, x = upgraded(Split, moved=True), inputs()
    pipe = pipelining.pipeline(mhc.export(model, (x,)), mb_args=(x,))
    assert pipe.num_stages == 2
    streams = pipe.get_stage_module(0)(x)
    assert streams.shape == (3, 5, 4, 16)
    near({"out": pipe.get_stage_module(1)(streams)}, {"out": compiled(model)(x)}, 1e-5)
