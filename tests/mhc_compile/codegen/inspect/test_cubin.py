"""Every generated kernel compiled for GPUs that are not here: no spills, it fits, wide loads and stores."""

from __future__ import annotations

from typing import Any

import pytest

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect import cubin
from mhc_compile.codegen.inspect.cubin import LIMITS, Binary, occupancy
from mhc_compile.codegen.spec import Step

NVIDIA = [target for target in LIMITS if target.startswith("sm_")]
STREAMS = {"x", "f", "new", "g_new", "g_u", "g_out", "u_out", "dx", "df", "out"}  # tensors of C features per token
NORM = {"norm": "rms_cast", "weight": True}
pytestmark = pytest.mark.xdist_group("cubin")  # what is compiled is kept in its process

# where ptxas keeps a few values on the stack: 2 to 4 that do not fit on consumer Blackwell, 2 on Hopper where stores
# that come late save a fifth of the time, more in the one launch that has them too, and one address of which it makes
# room for a fifth block
ALLOWED_STACK = {
    ("project", "sm_120"): 8, ("streams", "sm_120"): 16, ("streams", "sm_90"): 8, ("coefs", "sm_90"): 8,
    ("back", "sm_80"): 8, ("back", "sm_90"): 32, ("back", "sm_100"): 104,
}  # fmt: skip


def spec(op: str, n: int, channels: int = 4096, **options: Any) -> Spec:
    norm: dict[str, Any] = NORM if op in ("enter", "seam") else {}
    return Spec(op, n, channels, **{**norm, **options})


def binaries(spec: Spec, target: str) -> list[Binary]:
    text = generate(spec)
    return [binary for way in spec.directions for binary in cubin.inspect(text, spec, way, target)]


def check(spec: Spec, target: str, widest: int = 16) -> None:
    for binary in binaries(spec, target):
        where = f"{spec.name} {binary.kernel} on {target}"
        assert binary.anatomy.stack <= ALLOWED_STACK.get((binary.kernel, target), 0), where
        assert binary.occupancy >= 1, where
        assert binary.float_atomics == 0, where
        for access in binary.anatomy.accesses:
            named = STREAMS & set(access.text.replace("(", " ").replace("+", " ").split())
            if named and "inside" in access.text:
                assert access.width == (16 if widest == 16 else access.width), (where, access)
                assert access.width <= 16


@pytest.mark.core(1)
@pytest.mark.parametrize("op", ["seam", "leave", "enter"])
@pytest.mark.parametrize("target", NVIDIA)
def test_four_streams_on_every_gpu(op: str, target: str) -> None:
    check(spec(op, 4), target)


@pytest.mark.slow
@pytest.mark.parametrize("op", ["enter", "seam", "leave"])
@pytest.mark.parametrize(("n", "channels"), [(2, 4096), (4, 2560), (4, 7168)])
def test_other_sizes(op: str, n: int, channels: int) -> None:
    check(spec(op, n, channels), "sm_90")


@pytest.mark.slow
@pytest.mark.parametrize("op", ["enter", "seam"])
def test_streams_that_are_still_equal(op: str) -> None:
    check(spec(op, 4, equal_streams=True), "sm_90")


@pytest.mark.core(1)
@pytest.mark.parametrize("target", ["sm_90", "sm_80", "sm_100"])
@pytest.mark.parametrize(("op", "writes"), [("leave", 2), ("seam", 2), ("replay", 3)])
def test_replays(op: str, writes: int, target: str) -> None:
    """As many writes as are replayed at four streams in 16 bits."""
    check(spec(op, 4, history=(Step(),) * writes), target)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"norm": "layer", "shift": True, "offset": True, "scale": True}, {"norm": "none"}], ids=["all", "none"]
)
def test_what_is_taken_in(options: dict[str, Any]) -> None:
    check(spec("seam", 4, **{"weight": options["norm"] != "none", **options}), "sm_90")


@pytest.mark.slow
def test_eight_streams_forward() -> None:
    text, eight = generate(spec("seam", 8)), spec("seam", 8)
    for binary in cubin.inspect(text, eight, "forward", "sm_90"):
        assert binary.anatomy.stack == 0
        assert binary.occupancy >= 1


@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_eight_streams(target: str) -> None:
    """Its backward's tiles are small, so that all fits in registers, and its loads narrow."""
    check(spec("seam", 8), target, widest=4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_other_dtypes(dtype: str) -> None:
    check(spec("seam", 4, dtype=dtype, branch=dtype), "sm_90")


BOTH = {"BT": 64, "BC": 32, "BR": 2, "BCR": 4096, "SPLITS": 16, "LAG": 2, "num_warps": 8, "num_stages": 2}
BACK = {"BT": 4, "BC": 256, "BM": 8, "BS": 16, "BCS": 64, "BP": 32, "SPLITS": 32, "LAG": 1, "num_warps": 4}


@pytest.mark.core(1)
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize(
    ("way", "name", "tile"), [("forward", "both", BOTH), ("backward", "back", BACK)], ids=["forward", "backward"]
)
def test_one_launch(way: str, name: str, tile: dict[str, int], target: str) -> None:
    """The kernels that wait: their counters are integers."""
    seam = spec("seam", 4)
    text = generate(seam).replace("TILES = {", f"TILES = {{'{name}': {tile},\n ")
    binary, *_ = cubin.inspect(text, seam, way, target)
    assert binary.kernel == name
    assert binary.anatomy.stack <= ALLOWED_STACK.get((name, target), 0)
    assert binary.occupancy >= 1
    assert binary.float_atomics == 0
    assert binary.count("ATOM") > 0


@pytest.mark.core(1)
@pytest.mark.parametrize("op", ["enter", "seam", "leave"])
def test_amd(op: str) -> None:
    for binary in binaries(spec(op, 4), "gfx942"):
        assert binary.anatomy.stack == 0, binary
        assert binary.occupancy >= 1


@pytest.mark.slow
def test_the_number_of_tokens_does_not_compile_anew() -> None:
    """Its text is not in the kernel's key: what is compiled for other counts is the same binary."""
    seam = spec("seam", 2, 64)
    text = generate(seam)
    one, two = (cubin.inspect(text, seam, "forward", "sm_90", tokens) for tokens in (16, 4099))
    assert one == two


def test_occupancy_by_hand() -> None:
    assert occupancy(128, 0, 8, "sm_90") == 2  # 65536 / (128 * 32 * 8)
    assert occupancy(32, 100 * 1024, 4, "sm_90") == 2  # 228 KiB / 101 KiB
    assert occupancy(32, 0, 4, "sm_90") == 16  # 64 warps
    assert occupancy(32, 100 * 1024, 4, "sm_86") == 0


def test_spills_are_seen() -> None:
    """A tile that cannot fit in registers."""
    leave = spec("leave", 4)
    text = generate(leave).replace("'BC': 512, 'num_warps': 4", "'BC': 1024, 'num_warps': 1")
    assert text != generate(leave)
    assert max(binary.anatomy.stack for binary in cubin.inspect(text, leave, "backward", "sm_90")) > 100
