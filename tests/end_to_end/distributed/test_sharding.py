"""Two processes equal one: gradients and training, with mHC parameters away from their start."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mhc_compile as mhc
from mhc_compile.errors import CarryError, NarrowParametersError, NotUpgradedError, ShardedParametersError
from tests.end_to_end.distributed.ranks import RANKS, on_ranks
from tests.nets.small import Block, compile_blocks, gradient_error, inputs, made, upgraded

dist: Any = torch.distributed
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("processes"),
]
Tensors = dict[str, Tensor]


def backward(run: Any, rank: int | None = None) -> None:
    """One process's share of the batch, or all of it; the gradients are those of the mean over processes."""
    x, upstream = inputs(4, 5), torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(11))
    if rank is not None:
        x, upstream = x.chunk(RANKS)[rank], upstream.chunk(RANKS)[rank]
    out = run(x)
    out.backward((upstream if rank is not None else upstream / RANKS).to(out.dtype))


def grads(model: nn.Module) -> Tensors:
    found: dict[str, Any] = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in found.values())
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def compiled(model: nn.Module) -> Any:
    return torch.compile(model, backend="mhc", options={"compiler": "aot_eager"})


def train(model: nn.Module, run: Any, rank: int | None = None) -> None:
    """Two steps, with a look at the outputs in between, which must not leave old parameters behind."""
    optimizer = torch.optim.SGD(mhc.param_groups(model, lr=0.01))
    for _ in range(2):
        optimizer.zero_grad()
        backward(run, rank)
        with torch.no_grad():
            run(inputs(2, 5))
        optimizer.step()
    optimizer.zero_grad()
    backward(run, rank)


def alone(work: Callable[..., None] | None = None) -> Tensors:
    """The same in this process."""
    model = upgraded(moved=True)
    if work is None:
        backward(compiled(model))
    else:
        work(model, compiled(model))
    return grads(model)


def check(found: Tensors, expected: Tensors, tolerance: float = 3e-5) -> None:
    assert list(found) == list(expected)
    assert gradient_error(list(found.values()), list(expected.values())) < tolerance


# -- the whole model --------------------------------------------------------------------------------------------------


def wrapped(rank: int) -> list[Tensors]:
    from torch.distributed.fsdp import fully_shard

    parallel = nn.parallel.DistributedDataParallel(upgraded(moved=True))
    backward(compiled(parallel), rank)
    sharded: Any = fully_shard(upgraded(moved=True))
    backward(compiled(sharded), rank)
    return [grads(parallel), grads(sharded)]


@pytest.mark.slow
def test_whole_models(tmp_path: Path) -> None:
    """In DistributedDataParallel and in FSDP2."""
    expected = alone()
    for found in on_ranks(wrapped, tmp_path):
        for each in found:
            check(each, expected)


OPTIONS: tuple[dict[str, Any], ...] = (
    {"static_graph": True},
    {"find_unused_parameters": True},
    {"gradient_as_bucket_view": True},
)


def by_options(rank: int) -> list[Tensors]:
    """A step at once, and one of two microbatches, of which the first is not synchronised."""
    found = []
    upstream = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(11))
    x, grad = inputs(4, 5).chunk(RANKS)[rank], upstream.chunk(RANKS)[rank]
    for options, blocks in itertools.product(OPTIONS, (False, True)):
        torch._dynamo.reset()
        model = upgraded(moved=True)
        if blocks:
            compile_blocks(model, compiler="aot_eager")
        parallel: Any = nn.parallel.DistributedDataParallel(model, **options)
        run = parallel if blocks else compiled(parallel)
        run(x).backward(grad)
        parallel.zero_grad()
        with parallel.no_sync():
            run(x[:1]).backward(grad[:1])
        run(x[1:]).backward(grad[1:])
        found.append(grads(parallel))
    return found


@pytest.mark.slow
def test_options_of_distributed_data_parallel(tmp_path: Path) -> None:
    expected = alone()
    for found in on_ranks(by_options, tmp_path):
        assert len(found) == 2 * len(OPTIONS)
        for each in found:
            check(each, expected)


def shard(model: nn.Module, policy: Any) -> None:
    """Everything in groups below the root's, which FSDP2 does not gather anew after a call without backward."""
    from torch.distributed.fsdp import fully_shard

    for part in (*model.children(), *model.get_submodule("blocks").children()):
        if isinstance(part, nn.Linear | Block):
            fully_shard(part, mp_policy=policy)
    fully_shard(model, mp_policy=policy)


def sites_apart(rank: int) -> tuple[Tensors, Tensors]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    wide, narrow = upgraded(moved=True), upgraded(moved=True)
    for model, dtype in ((wide, None), (narrow, torch.bfloat16)):
        mhc.shard_sites(model)
        shard(model, MixedPrecisionPolicy(param_dtype=dtype))
    train(wide, compiled(wide), rank)
    backward(compiled(narrow), rank)
    return grads(wide), grads(narrow)


@pytest.mark.slow
def test_sites_in_a_group_of_their_own(tmp_path: Path) -> None:
    """They train as in one process, and stay wide where the layers around them are cast (or it would be refused)."""
    trained, once = alone(train), alone()
    for wide, narrow in on_ranks(sites_apart, tmp_path):
        check(wide, trained)
        check(narrow, once, 0.1)


# -- blocks one by one ------------------------------------------------------------------------------------------------


def blocks(rank: int) -> tuple[Tensors, Tensors, Tensors]:
    from torch.distributed.fsdp import MixedPrecisionPolicy

    wide, narrow, whole = (upgraded(moved=True) for _ in range(3))
    shard(wide, MixedPrecisionPolicy())
    for model in (narrow, whole):
        mhc.shard_sites(model)
        shard(model, MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    for model in (wide, narrow):
        compile_blocks(model, compiler="aot_eager")
    train(wide, wide, rank)
    backward(narrow, rank)
    backward(compiled(whole), rank)
    return grads(wide), grads(narrow), grads(whole)


def test_blocks_in_shards(tmp_path: Path) -> None:
    """FSDP2 makes new tensors between them and waits for their gradients; streams are carried all the same."""
    expected = alone(train)
    for wide, narrow, whole in on_ranks(blocks, tmp_path):
        check(wide, expected)
        check(narrow, whole)


# -- one process of its own -------------------------------------------------------------------------------------------


@pytest.fixture
def group(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
def test_narrow_parameters_are_refused() -> None:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model: Any = fully_shard(upgraded(), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    with pytest.raises(NarrowParametersError, match=r"'blocks\.0\.attn' .* torch\.bfloat16.* mhc_compile\.shard_sites"):
        compiled(model)(inputs())


@pytest.mark.usefixtures("group")
def test_sites_are_sharded_before_their_layers() -> None:
    from torch.distributed.fsdp import fully_shard

    model: Any = fully_shard(upgraded())
    with pytest.raises(ShardedParametersError, match=r"'blocks\.0\.attn' were sharded before shard_sites was called: "):
        mhc.shard_sites(model)


@pytest.mark.usefixtures("group")
def test_sharded_parameters_are_refused() -> None:
    """In a part of a sharded model, and where the model around sharded sites is not."""
    from torch.distributed.fsdp import fully_shard

    model = upgraded()
    mhc.shard_sites(model)
    with pytest.raises(ShardedParametersError, match=r"the model itself is not sharded: .* fully_shard on its layers"):
        compiled(model)(inputs())
    torch._dynamo.reset()
    fully_shard(model)
    with pytest.raises(ShardedParametersError, match=r"'blocks\.0\.attn' are sharded here: .* not a part of it"):
        compiled(model.get_submodule("blocks.0"))(torch.randn(2, 16))
    torch._dynamo.reset()
    assert compiled(model)(inputs()).shape == (3, 5, 4)


@pytest.mark.core(2)
@pytest.mark.usefixtures("group")
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.clone(),
        lambda x: x.view(x.shape),
        lambda x: x.detach().requires_grad_(),
        lambda x: x.mul_(2.0),
        lambda x: (x.detach().zero_(), x)[1],
    ],
    ids=["clone", "view", "detach", "in-place", "in-place, on an alias"],
)
def test_what_is_made_of_a_shards_output_carries_nothing(change: Callable[[Tensor], Tensor]) -> None:
    from torch.distributed.fsdp import fully_shard

    model = upgraded(moved=True)
    first, second = model.get_submodule("blocks").children()
    fully_shard(second)
    compile_blocks(model)
    x = first(model.get_submodule("stem")(inputs()))
    with pytest.raises(CarryError, match="Compile the whole model instead"):
        second(change(x))


@pytest.mark.usefixtures("group")
def test_streams_do_not_outlive_their_use() -> None:
    """Kept hidden states do not keep them, nor does the way by which the next block found them."""
    from torch.distributed.fsdp import fully_shard

    model = upgraded(moved=True)
    first, second = model.get_submodule("blocks").children()
    for block in (first, second):
        fully_shard(block)
    compile_blocks(model)
    x = first(model.get_submodule("stem")(inputs()))
    (carried,) = [value for name, value in vars(x).items() if "mhc" in name]
    assert carried.weak() is not None
    second(x).sum().backward()
    gc.collect()
    assert carried.weak() is None


def test_sites_of_a_plain_model() -> None:
    with pytest.raises(NotUpgradedError):
        mhc.shard_sites(made())
