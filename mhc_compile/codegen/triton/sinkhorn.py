"""Sinkhorn-Knopp in registers, and the exact gradient of the unrolled iteration."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, power
from mhc_compile.codegen.text import fill, lines

SEGMENT = 5  # iterations whose iterates are in registers at once on the way back

_FORWARD = '''
@triton.jit
def total(h, axis: tl.constexpr):
    """Sums over rows (axis 1) or columns (axis 2).$padding"""
    $total


@triton.jit
def start(z, known):
    """exp(z), with the largest entry of each matrix at 1, which the first normalisation cancels."""
    $start


@triton.jit
def sinkhorn(h, ITERS: tl.constexpr):
    """ITERS times: columns to 1, then rows."""
    for _ in range(ITERS):
        h = h / total(h, 1)
        h = h / total(h, 2)
    return h
'''

_SEGMENT = '''
@triton.jit
def back_$steps(h0, g):
    """Gradient of h0 through $steps of those iterations: M' = M / s gives dM = (dM' - sum(dM' M')) / s."""
    $forward
    $backward
    return g
'''


def forward(spec: Spec) -> str:
    """Write the iteration, if the op needs it."""
    if spec.projection != "sinkhorn":
        return ""
    padded = power(spec.n) != spec.n
    total = "s = tl.sum(h, axis, keep_dims=True)\nreturn tl.where(s == 0, 1.0, s)" if padded else (
        "return tl.sum(h, axis, keep_dims=True)"
    )  # fmt: skip
    largest = "tl.max(tl.max(z, 2, keep_dims=True), 1, keep_dims=True)"
    begin = f"return tl.exp(z - {largest})"
    if padded:
        begin = f'z = tl.where(known, z, float("-inf"))\n{begin}'
    note = " Rows and columns of the padding sum to nothing: they stay 0." if padded else ""
    return fill(_FORWARD, total=total, start=begin, padding=note)


def segments(iters: int) -> list[int]:
    """Cut the iterations into segments of at most SEGMENT."""
    return [min(SEGMENT, iters - done) for done in range(0, iters, SEGMENT)]


def backward(spec: Spec) -> str:
    """Write the gradient through one segment, for every length of segment there is."""
    if spec.projection != "sinkhorn":
        return ""
    return "\n\n".join(_segment(steps).strip("\n") + "\n" for steps in sorted(set(segments(spec.iters))))


def _segment(steps: int) -> str:
    halves = [(t, 1 + t % 2) for t in range(2 * steps)]  # columns, rows, columns, ...
    return fill(
        _SEGMENT,
        steps=steps,
        forward=lines(f"s{t} = total(h{t}, {axis})\nh{t + 1} = h{t} / s{t}" for t, axis in halves),
        backward=lines(
            f"g = (g - tl.sum(g * h{t + 1}, {axis}, keep_dims=True)) / s{t}" for t, axis in reversed(halves)
        ),
    )


def gradient(spec: Spec) -> str:
    """Write `g`, the gradient of z, from `z` and the gradient `g` of H_res: iterates are made again per segment."""
    cuts = segments(spec.iters)
    made = [f"at{i + 1} = sinkhorn(at{i}, {steps})" for i, steps in enumerate(cuts[:-1])]
    back = [f"g = back_{steps}(at{i}, g)" for i, steps in reversed(list(enumerate(cuts)))]
    return lines([*made, *back, "g = g * at0"])
