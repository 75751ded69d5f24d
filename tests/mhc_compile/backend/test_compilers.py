"""What reaches a compiler: tags of checkpoints where a backward is to come, and a hash of all that decides code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mhc_compile
from tests.nets.checkpointed import Checkpointed
from tests.nets.small import Block, agree, compiled, perturb, results

ROOT = Path(mhc_compile.__file__).resolve().parents[1]
EDIT = """
import sys
from mhc_compile.backend.compilers import source_hash
print(source_hash())
for name in sys.argv[1:]:
    with open(name, "a", encoding="utf-8") as file:
        file.write("# edited\\n")
    source_hash.cache_clear()
    print(source_hash())
"""


@pytest.fixture(params=["link", pytest.param("folder", marks=pytest.mark.slow)])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the package: passes/ beside it with a link, as in a checkout, or inside of it, as in a wheel."""
    ignored = shutil.ignore_patterns("__pycache__", "passes")
    shutil.copytree(ROOT / "mhc_compile", tmp_path / "mhc_compile", ignore=ignored)
    passes = (Path(mhc_compile.__file__).parent / "passes").resolve()
    inside = tmp_path / "mhc_compile" / "passes"
    if request.param == "folder":
        shutil.copytree(passes, inside)
    else:
        shutil.copytree(passes, tmp_path / "passes")
        inside.symlink_to("../passes", target_is_directory=True)
    return tmp_path


@pytest.mark.slow
def test_an_edit_of_any_nested_file_is_seen(tree: Path) -> None:
    nested = ("mhc_compile/passes/fuse_seams/fuser.py", "mhc_compile/codegen/runtime/build.py")
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    runs = []
    for edited in (nested, ()):
        command = [sys.executable, "-c", EDIT, *edited]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=True)
        runs.append(done.stdout.split())
    first, second = runs
    assert len(set(first)) == 1 + len(nested)
    assert second == first[-1:]


class Attending(Block):
    """A block whose branches draw random numbers."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.attn(self.norm1(x)) * scale for scale in (1.0, 2.0, 3.0))
        x = x + F.scaled_dot_product_attention(q, k, v, dropout_p=0.2)
        out: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return out


class FrozenTrunk(Checkpointed):
    """The trunk runs without gradients, the head with them."""

    switch: Callable[[], Any] = torch.no_grad

    def forward(self, x: Tensor) -> Tensor:
        with type(self).switch():
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=False) if self.active else block(x)
        out: Tensor = self.head(x.clone())
        return out


class InferredTrunk(FrozenTrunk):
    switch = torch.inference_mode


def frozen(model: nn.Module, x: Tensor) -> Any:
    model.requires_grad_(False)
    return compiled(model, compiler="aot_eager")(x), []


def tuned(model: nn.Module, x: Tensor) -> Any:
    """Only the hyper-connections are trained."""
    model.requires_grad_(False)
    for _, parameter in mhc_compile.named_parameters(model):
        parameter.requires_grad_()
    return results(compiled(model, compiler="aot_eager"), model, x)


def trained(model: nn.Module, x: Tensor) -> Any:
    return results(compiled(model, compiler="aot_eager"), model, x)


@torch.no_grad()
def evaluated(model: nn.Module, x: Tensor) -> Any:
    return compiled(model, compiler="aot_eager")(x), []


@pytest.mark.core(1)
@pytest.mark.parametrize(
    ("make", "run"),
    [
        *((Checkpointed, run) for run in (evaluated, frozen, tuned)),
        (FrozenTrunk, trained),
        (InferredTrunk, trained),
    ],
)
def test_checkpoints_that_draw_random_numbers_run_without_a_backward(make: type[Checkpointed], run: Any) -> None:
    """In a graph without a backward AOTAutograd refuses tags on what draws random numbers."""
    found = []
    for active in (True, False):
        torch._dynamo.reset()
        x = torch.randn(2, 5, 8 if make is Checkpointed else 16, generator=torch.Generator().manual_seed(3))
        torch.manual_seed(0)
        model = make(1, Attending, dropout=0.3)
        mhc_compile.upgrade(model, (x,))
        perturb(model)
        model.active = active
        torch.manual_seed(1)
        found.append(run(model, x))
    assert agree(*found)
