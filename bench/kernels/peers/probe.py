"""Contenders tried in processes of their own first: what crashes or hangs there does not take the run with it.

`python -m bench.kernels.peers.probe NAME DEVICE SHAPE...` prints a line of JSON for each shape.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from functools import partial
from pathlib import Path

import torch

from bench.kernels.peers import TRIED
from bench.kernels.support.reasons import reason
from bench.kernels.timing.race import Race
from bench.kernels.timing.sites import Shape

ROOT = Path(__file__).resolve().parents[3]


def failing(names: Sequence[str], shapes: Sequence[Shape], device: str, seconds: float) -> dict[str, dict[Shape, str]]:
    """Return by contender the shapes that it does not run on, and why."""
    with ThreadPoolExecutor(len(names)) as pool:
        found = pool.map(partial(_probed, shapes=shapes, device=device, seconds=seconds), names)
        return dict(zip(names, found, strict=True))


def _probed(name: str, shapes: Sequence[Shape], device: str, seconds: float) -> dict[Shape, str]:
    command = [
        sys.executable,
        "-m",
        "bench.kernels.peers.probe",
        name,
        device,
        *(json.dumps(astuple(s)) for s in shapes),
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        said, end = done.stdout, f"its process ended with {done.returncode}: {done.stderr.strip()[-200:]}"
    except subprocess.TimeoutExpired as error:
        said, end = (error.stdout or b"").decode() if isinstance(error.stdout, bytes) else "", "did not finish in time"
    reasons = [json.loads(line)["why"] for line in said.splitlines() if line.startswith('{"why"')]
    reasons += [end] * (len(shapes) - len(reasons))
    return {shape: why for shape, why in zip(shapes, reasons, strict=True) if why}


def main(argv: Sequence[str]) -> None:
    """Run a contender's site once forward and backward on each shape."""
    name, device, *shapes = argv
    for text in shapes:
        print(json.dumps({"why": tried(name, device, Shape(*json.loads(text)))}), flush=True)


def tried(name: str, device: str, shape: Shape) -> str:
    """Return why it does not run, or ""."""
    race = Race(shape, {name: TRIED[name]}, device, {})
    if name in race.out:
        return race.out[name]
    try:
        race.steps("both")[name](0)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
    except Exception as error:
        return reason(error)
    return ""


if __name__ == "__main__":
    main(sys.argv[1:])
