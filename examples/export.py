"""Export a trained model with hyper-connections as one plain graph, which runs without mhc_compile.

The graph goes through `torch.export`, is saved, loaded and compared with the model. With `--package` it is compiled
ahead of time by AOTInductor, too. Takes about 15 seconds on two cores, 20 more with the package:

    python examples/export.py [--package]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import mhc_compile as mhc


class Block(nn.Module):
    """An MLP with a residual connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[batch, width]` to the same shape."""
        return x + self.layers(self.norm(x))


def trained(x: Tensor) -> nn.Module:
    """Return an upgraded model after some steps of training, so that its hyper-connections do something."""
    model = nn.Sequential(nn.Linear(8, 32), *(Block(32) for _ in range(4)), nn.Linear(32, 8))
    mhc.upgrade(model, (x,))
    model.compile(backend="mhc")
    optimizer = torch.optim.AdamW(mhc.param_groups(model, lr=1e-2))
    for step in range(30):
        optimizer.zero_grad()
        loss = functional.mse_loss(model(x), x.cumsum(-1))
        loss.backward()
        optimizer.step()
        if step in (0, 29):
            print(f"loss in step {step}: {loss.item():.3f}")
    return model.eval()


def main() -> None:
    """Run the example."""
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = trained(x)
    with torch.no_grad():
        expected = model(x)

        shapes = {"input": {0: torch.export.Dim("batch")}}  # of torch.export: for batches of every size
        graph = mhc.export(model, (x,), dynamic_shapes=shapes)  # parameters are the model's own, under their names
        program = torch.export.export(graph, (x,), dynamic_shapes=shapes)
        ours = [node for node in program.graph.nodes if "mhc" in str(node.target) and node.op == "call_function"]
        print(f"the exported program has {len(program.graph.nodes)} nodes, {len(ours)} of them ops of mhc_compile")

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "model.pt2")
            torch.export.save(program, file)
            loaded = torch.export.load(file).module()
            results = {"saved and loaded": torch.cat([loaded(part) for part in x.split(5)])}
            if "--package" in sys.argv:
                package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/package.pt2")
                results["AOTInductor"] = torch._inductor.aoti_load_package(package)(x)

    for name, result in results.items():
        difference = (result - expected).abs().max().item()
        print(f"{name}: outputs differ from the model's by at most {difference:.1e}")
        if ours or not difference < 1e-5:
            sys.exit(f"failed: {name}, the exported program is not the model")


if __name__ == "__main__":
    main()
