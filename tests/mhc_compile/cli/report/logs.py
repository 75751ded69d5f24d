"""Logs of runs that never were, as `mhc_compile.Monitor` would have written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mhc_compile.api.monitor.run_log import RunLog

MODEL: dict[str, Any] = {
    "kind": "model",
    "name": "Net</script>",
    "every": 10,
    "config": {"connection": "mhc", "streams": 4, "exclude": []},
    "versions": {"torch": "2.13"},
    "parameters": 1000,
    "map": {
        "parameters": 100,
        "sites": [
            {"name": "a.<b>", "kind": "pre-norm", "region": 0, "k": 0, "length": 2, "shape": [2, 5, 16],
             "lifts": ["relu"], "source": "/x/net.py:7"},
        ],
        "rejections": [{"reason": "no-skip", "residual": False, "message": "neither is computed from the other"}] * 2,
        "cuts": [{"name": "a", "kind": "region", "carries": True, "reason": "print"}],
        "memory": {"kept": 2048, "peak": 4096, "without": 8192, "before_rewrite": 1024, "recompute": "auto",
                   "runs": [{"sites": ["a", "b"], "size": 2}]},
    },
    "kernels": [{"device": "cpu", "dtype": "torch.float32", "language": None, "why_not": "no compiler"}],
}  # fmt: skip


def sites(count: int = 2, n: int = 4, gain: float = 1.5, spread: float = 0.1) -> dict[str, list[Any]]:
    """The columns of a look."""
    eye = [[float(i == j) * 0.9 + 0.025 for j in range(n)] for i in range(n)]
    numbers = ("forward backward composite_forward composite_backward composite_forward_max composite_backward_max"
               " column_error from_identity from_uniform dominance").split()  # fmt: skip
    return {
        "name": [f"layers.{i}.attn" for i in range(count)],
        "call": [0] * count,
        "region": [0] * count,
        **{name: [gain] * count for name in numbers},
        "spread": [spread] * count,
        **{name: [[0.25] * n] * count for name in ("h_pre", "h_post")},
        **{name: [eye] * count for name in ("h_res", "composite")},
    }


def write(folder: Path, steps: list[dict[str, Any]], model: dict[str, Any] | None = MODEL) -> Path:
    """Write a log with these records of steps, numbered by tens, and return its folder."""
    log = RunLog(folder)
    if model is not None:
        log.write(model)
    for number, step in enumerate(steps):
        log.write({"kind": "step", "step": 10 * number, **step})
    log.close()
    return folder


def look(loss: float = 1.0, **columns: Any) -> dict[str, Any]:
    """A record of a step with gains."""
    return {
        "loss": loss,
        "grad_norm": {"model": 2.0, "mhc": 0.5, "total": 2.1, "share": 0.06},
        "sites": sites(**columns),
    }
