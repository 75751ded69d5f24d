"""Pipelines by torch's own schedules: several processes equal one, with mHC parameters away from their start."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mhc_compile as mhc
from tests.end_to_end.distributed import staged
from tests.end_to_end.distributed.ranks import on_ranks
from tests.end_to_end.distributed.staged import Staged, alone, compile_stage, data, own, parts, pipelined
from tests.nets.small import gradient_error, same, upgraded

dist: Any = torch.distributed
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    pytest.mark.xdist_group("processes"),
]
Run = tuple[list[Tensor], dict[str, Tensor]]  # losses and gradients
REFERENCE = mhc.Config(kernels="reference")
SOME = ("1F1B", "Interleaved1F1B", staged.SENT_EARLY)  # one for each way to give stages to processes


def whole_model(layers: int, config: mhc.Config = REFERENCE) -> nn.Module:
    return upgraded(Staged, layers, moved=True, config=config)


def gradients(models: Sequence[nn.Module]) -> dict[str, Tensor]:
    found: dict[str, Any] = {name: p.grad for model in models for name, p in model.named_parameters()}
    assert all(grad is not None for grad in found.values()), [name for name, grad in found.items() if grad is None]
    return {name: grad.full_tensor() if hasattr(grad, "full_tensor") else grad for name, grad in found.items()}


def expected(model: nn.Module, compiler: str) -> Run:
    compile_stage(model, compiler)
    losses = alone(model, model, *data(model))
    return [each.detach() for each in losses], gradients([model])


def step(schedule: str, model: nn.Module, sizes: Sequence[int], rank: int, ranks: int, compiler: str) -> Run:
    """The second of two steps."""
    torch._dynamo.reset()
    cut = parts(model, sizes)
    mine = {i: cut[i] for i in own(schedule, rank, ranks)}
    mhc.connect_stages(mine, len(sizes))
    for part in mine.values():
        compile_stage(part, compiler)
    pipelined(schedule, mine, len(sizes), *data(model))
    for part in mine.values():
        part.zero_grad()
    losses = pipelined(schedule, mine, len(sizes), *data(model))
    return [each.detach() for each in losses], gradients([*mine.values()])


def check(found: Sequence[Run], wanted: Run, tolerance: float = 0.0) -> None:
    """Every parameter once, and the losses once."""
    (losses,) = [each for each, _ in found if each]
    merged = {name: grad for _, grads in found for name, grad in grads.items()}
    assert sum(len(grads) for _, grads in found) == len(merged) == len(wanted[1])
    pairs = [(merged[name], wanted[1][name]) for name in wanted[1]]
    if tolerance:
        assert gradient_error(*map(list, zip(*pairs, strict=True))) < tolerance
        assert torch.allclose(torch.stack(losses), torch.stack(wanted[0]), rtol=tolerance)
    else:
        assert same([a for a, _ in pairs], [b for _, b in pairs])
        assert same(losses, wanted[0])


# -- schedules --------------------------------------------------------------------------------------------------------


def several(schedules: Sequence[str], compiler: str, ranks: int, rank: int) -> dict[str, Run]:
    """Each schedule with two stages on each process, or an uneven one."""
    uneven = {2: (1, 3), 4: (2, 1, 2, 3)}[ranks]
    layers = 4 if ranks == 2 else 8
    sizes = {name: uneven if name in staged.SINGLE else (layers // 2 // ranks,) * 2 * ranks for name in schedules}
    return {name: step(name, whole_model(layers), sizes[name], rank, ranks, compiler) for name in schedules}


@pytest.mark.parametrize(
    ("schedules", "compiler", "ranks"),
    [
        (SOME, "eager", 2),
        pytest.param(staged.SCHEDULES, "aot_eager", 2, marks=pytest.mark.slow),
        pytest.param(staged.SCHEDULES, "eager", 4, marks=pytest.mark.slow),
    ],
    ids=["two", "two-aot", "four"],
)
def test_schedules(schedules: Sequence[str], compiler: str, ranks: int, tmp_path: Path) -> None:
    """Losses and gradients bit for bit, but where a schedule adds up microbatches in another order."""
    found = on_ranks(functools.partial(several, schedules, compiler, ranks), tmp_path, ranks)
    wanted = expected(whole_model(4 if ranks == 2 else 8), compiler)
    for name in schedules:
        check([each[name] for each in found], wanted, 1e-6 if name == "LoopedBFS" else 0.0)


# -- what stages are made of ------------------------------------------------------------------------------------------


def kernels(rank: int) -> Run:
    return step("DualPipeV", whole_model(4, mhc.Config(recompute=2)), (1,) * 4, rank, 2, "inductor")


@pytest.mark.slow
def test_inductor_with_kernels_and_recompute(tmp_path: Path) -> None:
    found = on_ranks(kernels, tmp_path)
    check(found, expected(whole_model(4, mhc.Config(recompute=2)), "inductor"), 1e-5)


def sharded(rank: int) -> Run:
    """Two stages on two processes each, which share their parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("stages", "shards"))
    index, replica = divmod(rank, 2)
    part: Any = parts(whole_model(4), (2, 2))[index]
    mhc.connect_stages({index: part}, 2, mesh["stages"])
    mhc.shard_sites(part, mesh=mesh["shards"])
    for block in part.blocks.values():
        fully_shard(block, mesh=mesh["shards"])
    fully_shard(part, mesh=mesh["shards"])
    compile_stage(part, "aot_eager")
    x, target = (each.chunk(2)[replica] for each in data(part))
    losses = pipelined("1F1B", {index: part}, 2, x, target, mesh["stages"].get_group())
    found = gradients([part])
    return [each.detach() for each in losses], found if replica == 0 else {}


@pytest.mark.slow
def test_fsdp_within_stages(tmp_path: Path) -> None:
    found = on_ranks(sharded, tmp_path, 4)
    merged = {name: grad for _, grads in found for name, grad in grads.items()}
    model = whole_model(4)
    compile_stage(model, "aot_eager")
    for x, target in zip(*(each.chunk(2) for each in data(model)), strict=True):
        alone(model, model, x, target)
    wanted = {name: grad / 2 for name, grad in gradients([model]).items()}
    assert merged.keys() == wanted.keys()
    assert gradient_error([merged[name] for name in wanted], [*wanted.values()]) < 1e-5


class Checkpointed(Staged):
    """Each block is checkpointed, with streams as the only tensors between them."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) if self.stem is not None else x
        for block in self.blocks.values():
            x = checkpoint(block, x, use_reentrant=False)
        return self.head(x) if self.head is not None else x


def checkpointed_and_narrow(rank: int) -> list[Run]:
    checkpoints = upgraded(Checkpointed, 4, moved=True, config=REFERENCE)
    narrow = whole_model(4).bfloat16()
    return [step("ZBVZeroBubble", model, (1,) * 4, rank, 2, "aot_eager") for model in (checkpoints, narrow)]


@pytest.mark.slow
def test_checkpoints_and_bf16(tmp_path: Path) -> None:
    found = on_ranks(checkpointed_and_narrow, tmp_path)
    check([each[0] for each in found], expected(upgraded(Checkpointed, 4, moved=True, config=REFERENCE), "aot_eager"))
    check([each[1] for each in found], expected(whole_model(4).bfloat16(), "aot_eager"))


# -- mistakes ---------------------------------------------------------------------------------------------------------


def refused(rank: int) -> list[str]:
    """What the processes say where one of them has left a layer out, has another plan, or mixes its layers up."""
    said = []
    for mistake in ("layer", "plan"):
        model = whole_model(3 if mistake == "plan" and rank else 4)
        part = parts(model, (2, 1) if mistake == "plan" and rank else (2, 2))[rank]
        if mistake == "layer" and rank:
            del part.get_submodule("blocks")._modules["3"]
        try:
            mhc.connect_stages({rank: part}, 2)
        except mhc.MHCError as error:
            said.append(f"{type(error).__name__} {error}")
    return said


def test_every_process_refuses_what_one_did_wrong(tmp_path: Path) -> None:
    """The same on both, within a minute."""
    first, second = on_ranks(refused, tmp_path, deadline=60)
    assert first == second
    layer, plan = first
    assert re.match(r"PlanMismatchError site 'blocks\.3\.attn' of the plan is in no stage", layer)
    assert re.match(r"PlanMismatchError stage 0 \(rank 0\) and stage 1 \(rank 1\) have different plans", plan)


def mixed_up(rank: int) -> None:
    """Layers of a stage that run in another order than at upgrade: its process finds out when it runs."""
    part: Any = parts(whole_model(4), (2, 2))[rank]
    mhc.connect_stages({rank: part}, 2)
    if rank:
        part.blocks = nn.ModuleDict({name: part.blocks[name] for name in ("3", "2")})
    pipelined("1F1B", {rank: part}, 2, *data(part))


@pytest.mark.slow
def test_a_process_that_fails_leaves_none_waiting(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"PlanMismatchError|CarryError|onnection"):
        on_ranks(mixed_up, tmp_path, deadline=60)
