"""Activation checkpointing, inside a compiled model and around compiled blocks: same function, less memory."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import mhc_compile as mhc
from mhc_compile.backend.compilers import compile_with
from mhc_compile.capture.graphs import copy_graph
from mhc_compile.errors import UnsupportedModelError
from mhc_compile.passes.graph import checkpoints
from tests.nets import small
from tests.nets.checkpointed import Checkpointed, Halves, Nested
from tests.nets.small import Net, PostBlock, compiled, gradients, inputs, made, perturb, same, upgraded

ours = pytest.mark.filterwarnings("ignore::mhc_compile.MHCWarning")


def without(model: nn.Module) -> nn.Module:
    """The same model with checkpointing off."""
    twin = copy.deepcopy(model)
    twin.active = False  # type: ignore[assignment]
    return twin


class Saved:
    """Counts the bytes that are saved for backward; parameters live anyway."""

    def __init__(self) -> None:
        self.bytes = 0
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: Tensor) -> Tensor:
        self.bytes += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        return tensor


def step(
    run: Callable[..., Any], model: nn.Module, *args: Any, count: bool = True, **kwargs: Any
) -> tuple[Any, list[Tensor | None], int]:
    """Output and gradients of one step with the same random numbers every time, and the bytes saved for backward."""
    saved, parameters = Saved(), list(model.parameters())
    torch._dynamo.reset()
    torch.manual_seed(3)
    with saved.hooks if count else contextlib.nullcontext():
        out = run(*args, **kwargs)
    return out, gradients(out, parameters), saved.bytes


@pytest.mark.core(1)
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "make",
    [Checkpointed, Halves, Nested, lambda n: Checkpointed(n, PostBlock), lambda n: Checkpointed(n, dropout=0.2)],
    ids=["blocks", "branches", "nested", "post-norm", "dropout"],
)
def test_same_as_without(make: Callable[..., nn.Module], compiler: str) -> None:
    """Bit for bit, gradients too; under a compiler that recomputes, far less is kept."""
    model = upgraded(make, 3, moved=True)
    plain = without(model)
    how = {
        "compiler": compiler,
        "recompute": "off",
        "kernels": "reference",
    }  # a kernel does not cross a checkpoint's end
    out, grads, saved = step(compiled(model, **how), model, inputs())
    expected, wanted, most = step(compiled(plain, **how), plain, inputs())
    assert torch.equal(out, expected)
    assert all(grad is not None for grad in grads)
    assert same(grads, wanted)
    assert saved < (0.6 if make is not Halves else 0.95) * most or compiler == "eager"


def test_found_and_named_as_without() -> None:
    report, plain = (mhc.explain(model, (inputs(),)) for model in (made(Checkpointed), without(made(Checkpointed))))
    assert (report.sites, report.rejections) == (plain.sites, plain.rejections)
    assert len(report.sites) == 4


@pytest.mark.slow
def test_inductor_keeps_apart_what_is_recomputed_and_what_is_not() -> None:
    """Graphs that differ in nothing but the tags, which AOTAutograd's cache does not look at."""
    saved = []
    for tagged in (True, False, True, False):

        def backend(gm: Any, examples: Any, tagged: bool = tagged) -> Any:
            flat = copy_graph(gm)
            checkpoints.splice(flat)
            for node in flat.graph.nodes if not tagged else ():
                node.meta = {"example_value": node.meta.get("example_value")}
            flat.recompile()
            return compile_with(flat, examples, mhc.Config())

        model = made(Checkpointed, 2)
        out, _, kept = step(torch.compile(model, backend=backend), model, inputs())
        torch.testing.assert_close(out, without(model)(inputs()))
        saved.append(kept)
    assert saved[0] == saved[2] < 0.6 * saved[1] == 0.6 * saved[3]


@pytest.mark.slow
def test_without_gradients() -> None:
    model = upgraded(Checkpointed, moved=True)
    run, plain = (compiled(each, kernels="reference") for each in (model, without(model)))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(run(inputs()), plain(inputs()))


@pytest.mark.slow
@ours
def test_first_call() -> None:
    """It runs the original graph: as checkpointed layers do without a compiler, dropout included."""
    model, eager = (made(Checkpointed, dropout=0.3) for _ in range(2))
    found = step(compiled(model), model, inputs(), count=False)
    expected = step(eager, eager, inputs(), count=False)
    assert torch.equal(found[0], expected[0])
    assert same(found[1], expected[1])
    perturb(model)
    torch._dynamo.reset()
    how = {"compiler": "aot_eager", "kernels": "reference"}
    found = step(compiled(model, **how), model, inputs())
    plain = without(model)
    assert same(found[1], step(compiled(plain, **how), plain, inputs())[1])


def test_plain_on_purpose() -> None:
    model = upgraded(Checkpointed, moved=True)
    with mhc.plain(model):
        assert torch.equal(compiled(model)(inputs()), made(Checkpointed)(inputs()))


def test_export() -> None:
    model = upgraded(Checkpointed, moved=True)
    graph = mhc.export(model, (inputs(),))
    torch.testing.assert_close(graph(inputs()), compiled(model)(inputs()))
    assert "checkpoint" not in graph.code


# -- a policy that chooses what is recomputed -------------------------------------------------------------------------


def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op is torch.ops.aten.addmm.default else CheckpointPolicy.PREFER_RECOMPUTE


class Selective(Checkpointed):
    options: ClassVar = {"context_fn": functools.partial(create_selective_checkpoint_contexts, policy)}


@pytest.mark.parametrize("call", [mhc.explain, mhc.upgrade])
def test_selective_is_refused(call: Callable[..., Any]) -> None:
    model = made(Selective)
    before = small.snapshot(model)
    with pytest.raises(UnsupportedModelError, match=r"checkpointed\.py:\d+ runs .* leave context_fn out there"):
        call(model, (inputs(),))
    assert small.unchanged(model, before)


def test_selective_after_upgrade_is_refused() -> None:
    model = made(Selective)
    model.active = False  # type: ignore[assignment]
    mhc.upgrade(model, (inputs(),))
    model.active = True  # type: ignore[assignment]
    with pytest.raises(UnsupportedModelError, match="leave context_fn out there"):
        compiled(model)(inputs())
    with mhc.plain(model):
        assert torch.equal(compiled(model)(inputs()), made(Selective)(inputs()))


class Head(Net):
    """A selective checkpoint of something that holds no residual connection."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = checkpoint(self.head, x, use_reentrant=False, **Selective.options)
        return out


def test_selective_elsewhere_is_kept() -> None:
    model, plain = upgraded(Head, moved=True), upgraded(moved=True)
    out, grads, _ = step(compiled(model, compiler="aot_eager"), model, inputs())
    expected, wanted, _ = step(compiled(plain, compiler="aot_eager"), plain, inputs())
    assert torch.equal(out, expected)
    assert same(grads, wanted)


# -- around compiled blocks -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_around_compiled_blocks(dropout: float) -> None:
    """The second run of a block, in backward, takes the streams again."""
    model = upgraded(Checkpointed, 3, moved=True, dropout=dropout)
    plain = without(model)
    for each in (model, plain):
        small.compile_blocks(each, compiler="aot_eager", kernels="reference")
    out, grads, _ = step(model, model, inputs(), count=False)  # hooks around a checkpoint replace what it saves
    expected, wanted, _ = step(plain, plain, inputs(), count=False)
    assert torch.equal(out, expected)
    assert all(grad is not None for grad in grads)
    assert same(grads, wanted)
    if not dropout:
        whole = without(model)
        for block in whole.get_submodule("blocks").children():
            block._compiled_call_impl = None
        assert torch.equal(out, step(compiled(whole, kernels="reference"), whole, inputs())[0])


# -- Hugging Face's own switch ----------------------------------------------------------------------------------------


def llama(dropout: float = 0.0) -> tuple[nn.Module, dict[str, Tensor]]:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_dropout": dropout}
    config = transformers.LlamaConfig(**sizes, **heads, use_cache=False)
    return transformers.LlamaForCausalLM(config).train(), {"input_ids": torch.randint(0, 64, (2, 8))}


def switch_on(model: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the name that is going to replace it
        model.gradient_checkpointing_enable({"use_reentrant": False})


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "layers"])
def test_hugging_face(way: str) -> None:
    plain, call = llama()
    mhc.upgrade(plain, kwargs=call)
    perturb(plain)
    model = copy.deepcopy(plain)
    switch_on(model)
    results = []
    for each in (model, plain):
        for layer in each.get_submodule("model.layers").children() if way == "layers" else (each,):
            layer.compile(backend="mhc", options={"compiler": "aot_eager", "kernels": "reference"})
        results.append(step(each, each, count=way == "whole", **call))
    (out, grads, saved), (expected, wanted, most) = results
    assert torch.equal(out.logits, expected.logits)
    assert all(grad is not None for grad in grads)
    assert same(grads, wanted)
    assert saved < 0.5 * most or way == "layers"


@pytest.mark.slow
def test_hugging_face_upgraded_while_it_checkpoints() -> None:
    (model, call), (plain, _) = llama(), llama()
    switch_on(model)
    assert mhc.explain(model, kwargs=call).sites == mhc.explain(plain, kwargs=call).sites
