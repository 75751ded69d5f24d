from __future__ import annotations

import dataclasses

import pytest

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect.record import record
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.runtime.space import Device, candidates, cost

SEAM = Spec("seam", 4, 4096, norm="rms", weight=True)
SIZES = [(n, channels) for n in (2, 4, 8) for channels in (1, 40, 2560, 4096, 5129)]
# what is tried first for SEAM and 8192 tokens on an H200
FIRST = {
    "project": {"BT": 128, "BC": 16, "SPLITS": 4, "num_warps": 4, "num_stages": 1},
    "read": {"BT": 1, "BC": 4096, "BM": 8, "num_warps": 16},
    "both": {"BT": 64, "BC": 32, "BR": 1, "BCR": 4096, "SPLITS": 8, "LAG": 1, "num_warps": 4, "num_stages": 2},
    "coefs": {"BT": 2, "BC": 1024, "BM": 8, "num_warps": 4},
    "streams": {"BT": 32, "BC": 64, "BP": 16, "SPLITS": 4, "num_warps": 8, "num_stages": 1},
    "back": {
        "BT": 4, "BC": 256, "BM": 8, "BS": 16, "BCS": 128, "BP": 32,
        "SPLITS": 8, "LAG": 1, "num_warps": 8, "num_stages": 1,
    },
}  # fmt: skip
kernels = pytest.mark.parametrize("kernel", FIRST)


@kernels
def test_a_few_dozen_candidates_each_once_in_the_models_order(kernel: str) -> None:
    for n, channels in SIZES:
        spec = Spec("seam", n, channels)
        found = candidates(spec, kernel, 8192)
        assert 6 <= len(found) <= 200
        assert len({tuple(tile.items()) for tile in found}) == len(found)
        costs = [cost(spec, kernel, tile, 8192, Device()) for tile in found]
        assert costs == sorted(costs)


@kernels
def test_the_model_tells_them_apart(kernel: str) -> None:
    first, *_, last = candidates(SEAM, kernel, 8192)
    assert first == FIRST[kernel]
    assert cost(SEAM, kernel, first, 8192, Device()) < cost(SEAM, kernel, last, 8192, Device())


@kernels
def test_candidates_launch(kernel: str) -> None:
    """Their names are parameters of the kernel, and the launch takes them all."""
    small = dataclasses.replace(SEAM, channels=96)
    module = build.load(generate(small), small.name)
    for tile in candidates(small, kernel, 300)[:5]:
        direction = "forward" if kernel in ("project", "read", "both") else "backward"
        launches = record(module, small, direction, 300, {**module.TILES, kernel: tile})
        (launch,) = [launch for launch in launches if launch.name == kernel]
        given = {**launch.arguments, **launch.options}
        assert all(given[name] == value for name, value in tile.items())


def test_programs_that_leave_processors_idle_cost_more() -> None:
    tile = {"BT": 64, "BC": 32, "SPLITS": 4, "num_warps": 8, "num_stages": 2}
    few, many = (cost(SEAM, "project", tile, tokens, Device()) for tokens in (64, 8192))
    assert few > 10 * many


def test_small_tiles_read_phi_more_often() -> None:
    tile = {"BT": 64, "BC": 32, "SPLITS": 8, "num_warps": 4, "num_stages": 3}
    short = {**tile, "BT": 32, "num_stages": 6}  # as much in flight
    assert cost(SEAM, "project", short, 1 << 20, Device()) > cost(SEAM, "project", tile, 1 << 20, Device())
