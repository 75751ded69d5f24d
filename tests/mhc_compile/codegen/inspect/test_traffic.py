from __future__ import annotations

import sys

import pytest

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.inspect import traffic
from mhc_compile.codegen.inspect.traffic import Traffic, count, total
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.spec import Step

C, TOKENS = 48, 8

TOY = """
import torch
import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T"])
def double(x, h, out, T, C: tl.constexpr, BC: tl.constexpr):
    t, c = tl.program_id(0), tl.arange(0, BC)
    a = tl.load(x + t * C + c, c < C, other=0.0)
    b = tl.load(x + t * C + c, c < C, other=0.0)  # asked for twice
    first = tl.load(h)
    tl.store(out + t * C + c, (a + b) * first, c < C)


@triton.jit(do_not_specialize=["T"])
def half(x, out, T, C: tl.constexpr, BC: tl.constexpr):
    t, c = tl.program_id(0), tl.arange(0, BC)
    for step in range(tl.minimum(T, 1)):
        a = tl.load(x + t * C + c, c < C // 2, other=0.0) + tl.load(out + t * C + c, c < C // 2, other=0.0)
        tl.store(out + t * C + c, a, c < C // 2)


def forward(x, h_post=None):
    T, C = x.shape
    out, h = torch.empty_like(x), torch.ones(1)
    double[(T,)](x, h, out, T, C=C, BC=64)
    half[(T,)](x, out, T, C=C, BC=64)
"""


def test_toy_is_counted_to_the_byte() -> None:
    spec = Spec("enter", 2, C, "fp32", equal_streams=True)
    rows = {
        (row.kernel, row.tensor, row.kind): row
        for row in count(TOY.replace(", h_post=None", ""), spec, "forward", TOKENS)
    }
    all_ = TOKENS * C * 4
    part = all_ // 2
    assert rows.pop(("double", "x", "load")) == Traffic("double", "x", "load", True, 2 * all_, all_, all_)
    assert rows.pop(("double", "h", "load")) == Traffic("double", "h", "load", False, 4 * TOKENS, 4, 4)
    assert rows.pop(("double", "out", "store")) == Traffic("double", "out", "store", True, all_, all_, all_)
    # the second launch finds all in the cache: what the first loaded, and what it stored
    assert rows.pop(("half", "x", "load")) == Traffic("half", "x", "load", True, part, part, 0)
    assert rows.pop(("half", "out", "load")) == Traffic("half", "out", "load", True, part, part, 0)
    assert rows.pop(("half", "out", "store")) == Traffic("half", "out", "store", True, part, part, 0)
    assert not rows


@pytest.mark.core(3)
@pytest.mark.parametrize("n", [4, 1, 8, 2, 3])
@pytest.mark.parametrize(
    ("options", "forward", "backward", "again"),
    [
        # features of one stream, the units of C, by n: least and most of the design, written out here anew, and what
        # the roles of the second backward kernel ask for once more, next to each other in the same launch
        ({"op": "seam"}, ("4n+4", "6n+4"), ("6n+6", "8n+10"), "1n+1"),
        ({"op": "seam", "norm": "rms", "weight": True}, ("4n+4", "6n+4"), ("6n+6", "8n+10"), "1n+1"),
        ({"op": "seam", "equal_streams": True}, ("2n+6", "4n+6"), ("2n+10", "2n+16"), "2"),
        ({"op": "enter"}, ("2n+2", "4n+2"), ("4n+2", "6n+4"), "1n"),
        ({"op": "enter", "equal_streams": True}, ("4", "6"), ("6", "10"), "1"),
        ({"op": "leave"}, ("2n+4", "2n+4"), ("4n+6", "4n+6"), "0"),
        ({"op": "coefficients"}, ("2n", "2n"), ("4n", "4n"), "1n"),
    ],
    ids=["seam", "seam-rms", "seam-equal", "enter", "enter-equal", "leave", "coefficients"],
)
def test_generated_kernels_move_what_the_design_says(
    options: dict[str, object], forward: tuple[str, str], backward: tuple[str, str], again: str, n: int
) -> None:
    spec = Spec(n=n, channels=C, **options)  # type: ignore[arg-type]

    def size(formula: str) -> int:
        return C * int(eval(formula.replace("n", "*n"), {"n": n}))

    groups = {8: 4}.get(n, 1) if options != {"op": "enter", "equal_streams": True} else 1
    for direction, formulas in (("forward", forward), ("backward", backward)):
        least, most = map(size, formulas)
        found = total(count(generate(spec), spec, direction, TOKENS), spec, direction, TOKENS)
        asked = most + (2 * groups * size(again) if direction == "backward" else 0)
        assert (found.call, found.launch, found.requested) == (least, most, asked)
        assert (found.least, found.most) == (least, most)


@pytest.mark.slow
@pytest.mark.parametrize("equal", [False, True], ids=["streams", "equal"])
@pytest.mark.parametrize(("n", "writes"), [(2, 3), (4, 1), (4, 2)])
def test_a_replay_reads_the_head_and_what_was_written(n: int, writes: int, equal: bool) -> None:
    """In place of x_l: the head, and for each write an output and its maps, once per launch."""
    history, head = (Step(),) * writes, 1 if equal else n
    seam = Spec("seam", n, C, history=history, equal_head=equal)
    found = total(count(generate(seam), seam, "backward", TOKENS), seam, "backward", TOKENS)
    least = 2 * C * (n + 1 + head + writes + n + 2)
    assert (found.call, found.launch) == (found.least, found.most) == (least, least + 2 * C * (head + writes + 2))
    replay = Spec("replay", n, C, history=history, equal_head=equal)
    found = total(count(generate(replay), replay, "forward", TOKENS), replay, "forward", TOKENS)
    assert found.call == found.launch == found.requested == found.least == 2 * C * (head + writes + n)


@pytest.mark.slow
def test_one_launch_reads_again_what_it_holds() -> None:
    """What the launches of a direction read twice is read twice within the one."""
    spec = Spec("seam", 4, C, norm="rms", weight=True)
    both = {"BT": 16, "BC": 16, "BR": 4, "BCR": 64, "SPLITS": 2, "LAG": 1}
    back = {"BT": 2, "BC": 16, "BM": 4, "BS": 16, "BCS": 16, "BP": 16, "SPLITS": 2, "LAG": 1}
    text = generate(spec).replace("TILES = {", f"TILES = {{'both': {both}, 'back': {back},\n ")
    for direction, least in (("forward", 20 * C), ("backward", 30 * C)):
        found = total(count(text, spec, direction, TOKENS), spec, direction, TOKENS)
        assert (found.call, found.launch) == (least, least)


def test_fp32_costs_twice_as_much() -> None:
    spec = Spec("seam", 4, C, "fp32", "bf16")
    found = total(count(generate(spec), spec, "forward", TOKENS), spec, "forward", TOKENS)
    assert found.call == found.least == C * (2 * 20 - 2)  # f stays narrow


def test_few_bytes_besides_the_streams() -> None:
    """Coefficients and partial sums, without parameters: some kilobytes per token however wide the streams."""
    spec = Spec("seam", 4, C)
    rows = [row for row in count(generate(spec), spec, "forward", TOKENS) if row.tensor != "phi"]
    assert 0 < total(rows, spec, "forward", TOKENS).rest < 2048


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_ends_with_the_sums(
    rich: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.table", None)
    traffic.show(Spec("leave", 2, C), TOKENS)
    shown = capsys.readouterr().out
    assert "leave_back" in shown
    assert f"{8 * C}" in shown
    assert ("┃" in shown) == rich


def test_the_interpreters_own_methods_come_back() -> None:
    with pytest.raises(AttributeError):
        count("", Spec("leave", 2, C), "forward", TOKENS)
    spec = Spec("leave", 2, C)
    again = count(generate(spec), spec, "forward", TOKENS)
    assert len(again) == len({(row.kernel, row.tensor, row.kind) for row in again})
    build.require_triton()
