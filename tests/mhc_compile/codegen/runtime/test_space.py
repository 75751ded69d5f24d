from __future__ import annotations

import dataclasses

import pytest

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect.record import record
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.runtime.space import Device, candidates, cost

SEAM = Spec("seam", 4, 4096, norm="rms", weight=True)
KERNELS = ["project", "read", "both", "coefs", "streams", "back"]


@pytest.mark.parametrize("channels", [1, 40, 2560, 4096, 5129])
@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_has_a_few_dozen_candidates(kernel: str, n: int, channels: int) -> None:
    found = candidates(Spec("seam", n, channels), kernel, 8192)
    assert 1 <= len(found) <= 200
    assert len({tuple(tile.items()) for tile in found}) == len(found)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_model_orders_them(kernel: str) -> None:
    costs = [cost(SEAM, kernel, tile, 8192, Device()) for tile in candidates(SEAM, kernel, 8192)]
    assert costs == sorted(costs)
    assert costs[0] < costs[-1]


@pytest.mark.parametrize("kernel", KERNELS)
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
