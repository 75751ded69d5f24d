"""Selective recompute of whole models: the same gradients, what is kept, and what else recomputes or moves memory."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor.utils import fresh_cache
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import mhc_compile as mhc
from mhc_compile.cli.measure import saved_bytes
from mhc_compile.passes.graph import checkpoints
from tests.nets import small
from tests.nets.checkpointed import Checkpointed, Halves
from tests.nets.partition import WORK, parts
from tests.nets.small import (
    Net,
    PostBlock,
    Shared,
    compile_blocks,
    compiled,
    inputs,
    perturb,
    results,
    same,
    upgraded,
)

SIZES = (1, 3, 8)


def steps(model: nn.Module, x: Tensor, how: Any, compiler: str = "aot_eager", **options: Any) -> small.Results:
    """One step with the same random numbers every time."""
    torch._dynamo.reset()
    torch.manual_seed(3)
    return results(compiled(model, compiler=compiler, recompute=how, **options), model, x)


SIZE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2, "attn_implementation": "eager"
}  # fmt: skip


def llama(layers: int = 2) -> nn.Module:
    shape = {"vocab_size": 17, "num_hidden_layers": layers, "max_position_embeddings": 16, "use_cache": False}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE, **shape))


def vit(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZE, num_hidden_layers=layers, image_size=8, patch_size=4)
    return transformers.ViTForImageClassification(config)


@pytest.mark.core(1)
@pytest.mark.parametrize(
    "make",
    [
        Net,
        pytest.param(lambda n: Net(n, PostBlock), id="Net(n, PostBlock)"),
        pytest.param(lambda n: Net(n, dropout=0.3), id="Net(n, dropout=0.3)"),
        Checkpointed,
        Halves,
    ],
)
def test_gradients_are_the_same_to_the_bit(make: Callable[[int], nn.Module]) -> None:
    model = upgraded(make, 4, moved=True)
    out, grads = steps(model, inputs(), "off")
    for how in SIZES:
        found = steps(model, inputs(), how)
        assert torch.equal(found[0], out)
        assert same(found[1], grads)


@pytest.mark.core(1)
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_blocks_keep_the_streams_of_their_first_site(size: int) -> None:
    """The first site of all keeps one stream, for it has nothing else."""
    model = upgraded(Net, 4, moved=True)
    assert parts(model, inputs(), recompute=size).streams(4) == -(-8 // size) - 1


CONFIGS = [
    mhc.Config(streams=2),
    mhc.Config(),
    mhc.Config(streams=3, projection="identity"),
    mhc.Config(streams=3, connection="hc"),
]
MODELS = [
    (vit, {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)}),
    (llama, {"input_ids": torch.arange(14).view(2, 7)}),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "given", "config"),
    [(*MODELS[i % 2], config) for i, config in enumerate(CONFIGS)],
    ids=["vit-two", "llama-four", "vit-identity", "llama-hc"],
)
def test_as_much_is_kept_as_is_planned(make: Callable[[], nn.Module], given: Any, config: mhc.Config) -> None:
    """Beside what the plain model keeps."""
    plain = make()
    before = parts(plain, run=lambda step: step(**given), connection="residual").saved_bytes()
    model = copy.deepcopy(plain)
    mhc.upgrade(model, kwargs=given, config=config, verify=False)
    for how in (1, 3):
        asked = mhc.Config.from_options({"recompute": how}, config)
        memory = mhc.explain(plain, kwargs=given, config=asked).memory
        kept = parts(model, run=lambda step: step(**given), recompute=how).saved_bytes()
        assert kept - before == pytest.approx(memory.kept - memory.before_rewrite, abs=0.02 * memory.kept)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "given"), MODELS, ids=["vit", "llama"])
def test_no_branch_runs_twice(make: Callable[[], nn.Module], given: Any) -> None:
    """Nor are coefficients made again."""
    model = make()
    mhc.upgrade(model, kwargs=given, verify=False)
    found = {how: parts(model, run=lambda step: step(**given), recompute=how).ops() for how in ("off", 2, 6)}
    work = {how: [{op: ops[op] for op in WORK} for ops in both] for how, both in found.items()}
    assert work[2] == work[6] == work["off"]
    assert sum(work["off"][1].values()) > 20
    assert all(found[how][1]["mhc.coefficients.default"] == 0 for how in (2, 6))


# -- beside others that recompute or move memory ----------------------------------------------------------------------


@pytest.mark.slow
def test_hugging_face_gradient_checkpointing() -> None:
    """Its layers are recomputed as a whole; nothing of ours is in them."""
    plain, checkpointed = (llama(3) for _ in range(2))
    checkpointed.gradient_checkpointing_enable()  # type: ignore[operator]  # Hugging Face's
    given = MODELS[0][1]
    found = []
    for model, how in ((plain, "off"), (checkpointed, 2)):
        model.train()
        mhc.upgrade(model, kwargs=given, verify=False)
        perturb(model)
        found.append(parts(model, run=lambda step: step(**given, use_cache=False), recompute=how))
    torch.testing.assert_close(found[1].results, found[0].results)
    assert found[1].saved_bytes() < 0.5 * found[0].saved_bytes()


class Selective(Net):
    """The branches run under a policy that keeps matrix products."""

    def forward(self, x: Tensor) -> Tensor:
        def keep_products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            products = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
            return CheckpointPolicy.MUST_SAVE if op in products else CheckpointPolicy.PREFER_RECOMPUTE

        contexts = functools.partial(create_selective_checkpoint_contexts, keep_products)
        x = self.stem(x)
        for block in self.blocks:
            for norm, branch in (("norm1", "attn"), ("norm2", "mlp")):
                u = block.get_submodule(norm)(x)
                x = x + checkpoint(block.get_submodule(branch), u, use_reentrant=False, context_fn=contexts)
        out: Tensor = self.head(x)
        return out


@pytest.mark.slow
def test_selective_checkpoints_of_branches() -> None:
    model = upgraded(Selective, 4, moved=True)
    expected = steps(model, inputs(), "off")
    found = parts(model, inputs(), recompute=4)
    assert small.agree(steps(model, inputs(), 4), expected)
    assert found.streams(4) == 1
    assert found.ops()[1]["aten.addmm.default"] == 0  # no product of the forward runs again


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.0, 0.3, 0.7])
def test_activation_memory_budget(budget: float) -> None:
    """Torch's own budget recomputes more; the function is the same."""
    model = upgraded(Net, 3, moved=True)
    expected = steps(model, inputs(), "off")
    with torch._functorch.config.patch(activation_memory_budget=budget):
        assert small.agree(steps(model, inputs(), 3), expected)


@pytest.mark.slow
def test_saved_tensors_on_the_cpu() -> None:
    """What blocks keep goes through hooks, as everything that is saved."""
    model = upgraded(Net, 3, moved=True)
    expected = steps(model, inputs(), 3)
    with torch.autograd.graph.save_on_cpu():
        found = steps(model, inputs(), 3)
    assert torch.equal(found[0], expected[0])
    assert same(found[1], expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    model = upgraded(Net, 3, moved=True)
    found = []
    for how in ("off", 2, 6):
        with torch.autocast("cpu", dtype):
            found.append(steps(model, inputs(), how))
    for out, grads in found[1:]:
        assert torch.equal(out, found[0][0])
        assert same(grads, found[0][1])


@pytest.mark.slow
def test_dynamic_shapes() -> None:
    """One graph for all sizes, tokens none included."""
    model = upgraded(Net, 3, moved=True)
    torch._dynamo.reset()
    run = compiled(model, compiler="aot_eager", recompute=4)
    for shape in ((2, 5), (3, 7), (1, 11)):
        x = inputs(*shape)
        torch._dynamo.maybe_mark_dynamic(x, (0, 1))
        found = results(run, model, x)
        assert small.agree(found, small.afresh(model, x))


@pytest.mark.slow
def test_gradients_accumulate() -> None:
    """Two forwards before their backwards, each with streams of its own."""
    model = upgraded(Net, 3, moved=True)
    torch._dynamo.reset()
    run = compiled(model, compiler="aot_eager", recompute=3)
    outs = [run(inputs(seed=seed)) for seed in (1, 2)]
    (outs[0].square().sum() + (3 * outs[1]).sin().sum()).backward()
    together = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    off = compiled(model, compiler="aot_eager", recompute="off")
    off(inputs(seed=1)).square().sum().backward()
    (3 * off(inputs(seed=2))).sin().sum().backward()
    assert small.gradient_error(together, [parameter.grad for parameter in model.parameters()]) < 1e-5


@pytest.mark.slow
def test_a_block_that_is_called_again() -> None:
    model = upgraded(Shared, 4, moved=True)
    expected = steps(model, inputs(), "off")
    for how in SIZES:
        found = steps(model, inputs(), how)
        assert same(found[1], expected[1])


@pytest.mark.slow
def test_blocks_compiled_one_by_one() -> None:
    """No block of ours crosses a graph: streams that are handed over are kept as the input they are."""
    model = upgraded(Net, 4, moved=True)
    expected = steps(model, inputs(), 1, kernels="reference")
    torch._dynamo.reset()
    compile_blocks(model, compiler="aot_eager", kernels="reference")
    assert same(results(model, model, inputs())[1], expected[1])


@pytest.mark.slow
def test_other_readers_of_a_sum() -> None:
    """Hidden states of all layers, which are read out of streams that are not kept."""
    given = {**MODELS[0][1], "output_hidden_states": True}
    model = llama(3)
    mhc.upgrade(model, kwargs=given, verify=False)
    perturb(model)
    runs = [parts(model, run=lambda step: step(**given), recompute=how).results for how in ("off", 3)]
    torch.testing.assert_close(runs[1], runs[0])


@pytest.mark.slow
def test_without_gradients_nothing_is_recomputed() -> None:
    model = upgraded(Net, 3, moved=True)
    expected, _ = steps(model, inputs(), "off")
    with torch.no_grad():
        assert torch.equal(steps(model, inputs(), 3)[0], expected)


@pytest.mark.slow
def test_two_plans_and_one_warm_cache() -> None:
    """The decision is in the text that caches go by, so a plan never hits what another left behind."""
    model, x = upgraded(Net, 2, moved=True), inputs().requires_grad_()
    kept, events, found = [], [], []
    with fresh_cache(), mock.patch.object(checkpoints, "tags", return_value={}):  # which the cache's label holds, too
        for how in (1, 4, 1, 4):
            torch._dynamo.reset()
            counters.clear()
            run = torch.compile(model, backend="mhc", options={"recompute": how})
            found.append(results(run, model, x))  # the cache gets an entry when the backward is compiled
            kept.append(saved_bytes(functools.partial(run, x), (x, *model.parameters())))
            events.append([name for name in ("hit", "miss") if counters["aot_autograd"][f"autograd_cache_{name}"]])
    assert events == [["miss"], ["miss"], ["hit"], ["hit"]]
    assert kept[0] == kept[2] > kept[1] == kept[3]
    assert all(small.agree(each, found[0], 1e-6) for each in found[1:])
