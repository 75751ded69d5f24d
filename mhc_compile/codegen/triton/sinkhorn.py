"""Sinkhorn-Knopp in registers, and the exact gradient of the unrolled iteration."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, power
from mhc_compile.codegen.text import fill, lines
from mhc_compile.ops.reference import lasting

SEGMENT = 5  # iterations whose iterates are in registers at once on the way back

_FORWARD = '''
@triton.jit
def total(h, axis: tl.constexpr):
    """Sums over rows (axis 1) or columns (axis 2).$padding"""
    $total


@triton.jit
def start(z, known):
    """z less the maxima of its columns, which the first normalisation cancels, then of its rows; and their exp."""
    $start


@triton.jit
def sinkhorn(h, weight, ITERS: tl.constexpr):
    """ITERS times: columns to 1, then rows. The first sums take the rows by their weight."""
    h = h / total(h * weight, 1)
    h = h / total(h, 2)
    for _ in range(ITERS - 1):
        h = h / total(h, 1)
        h = h / total(h, 2)
    return h
'''

_DIVISORS = '''
@triton.jit
def divisors(h, weight, ITERS: tl.constexpr):
    """The logarithm of what each entry is divided by in that."""
    columns = total(h * weight, 1)
    h = h / columns
    rows = total(h, 2)
    h = h / rows
    by = tl.log(columns) + tl.log(rows)
    for _ in range(ITERS - 1):
        columns = total(h, 1)
        h = h / columns
        rows = total(h, 2)
        h = h / rows
        by += tl.log(columns) + tl.log(rows)
    return by
'''

_SEGMENT = '''
@triton.jit
def back_$steps(h0, weight, g, LAST: tl.constexpr):
    """Gradient of log(h0) through $steps of those iterations: M' = M / s gives G = G' - M' sum(G')."""
    $forward
    if LAST:  # what comes is the gradient of H_res itself
        g = g * h$halves
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
    only = 'tl.where(known, {}, float("-inf"))' if padded else "{}"
    begin = [
        f"z = z - tl.max({only.format('z')}, 1, keep_dims=True)",
        f"low = tl.max({only.format('z')}, 2, keep_dims=True)",
        f"return {only.format('z - low')}, tl.exp(low)",
    ]
    note = " Rows and columns of the padding sum to nothing: they stay 0." if padded else ""
    text = fill(_FORWARD, total=total, start=lines(begin), padding=note)
    return f"{text}\n{_DIVISORS}" if _outlasts(spec) else text


def _outlasts(spec: Spec) -> bool:
    """Return whether what has underflowed has to be made again on the way (`reference.lasting`)."""
    return spec.iters > lasting(spec.n)


def segments(iters: int, most: int = SEGMENT) -> list[int]:
    """Cut the iterations into segments of at most so many."""
    return [min(most, iters - done) for done in range(0, iters, most)]


def _starts(spec: Spec, cuts: list[int]) -> list[str]:
    """Make what each segment starts from: `at0` and, of weight 1, `at1`, `at2`, ..."""
    text = ["at0 = tl.exp(z)"]
    for i, steps in enumerate(cuts[:-1]):
        before = f"(at{i}, {_weight(i)}, {steps})"
        if not _outlasts(spec):
            text.append(f"at{i + 1} = sinkhorn{before}")
        else:
            text += [f"by {'+=' if i else '='} divisors{before}", f"at{i + 1} = tl.exp(z - by)"]
    return text


def _weight(segment: int) -> str:
    return "1.0" if segment else "weight"


def matrix(spec: Spec) -> str:
    """Write `h_res` from what `start` returns, `z` and `weight`."""
    cuts = segments(spec.iters, min(spec.iters, lasting(spec.n)))
    last = len(cuts) - 1
    return lines([*_starts(spec, cuts), f"h_res = sinkhorn(at{last}, {_weight(last)}, {cuts[-1]})"])


def backward(spec: Spec) -> str:
    """Write the gradient through one segment, for every length of segment there is."""
    if spec.projection != "sinkhorn":
        return ""
    return "\n\n".join(_segment(steps).strip("\n") + "\n" for steps in sorted(set(segments(spec.iters))))


def _segment(steps: int) -> str:
    halves = [(t, 1 + t % 2) for t in range(2 * steps)]  # columns, rows, columns, ...
    weight = " * weight"
    return fill(
        _SEGMENT,
        steps=steps,
        halves=2 * steps,
        forward=lines(f"h{t + 1} = h{t} / total(h{t}{weight * (t == 0)}, {axis})" for t, axis in halves),
        backward=lines(
            f"g = g - h{t + 1}{weight * (t == 0)} * tl.sum(g, {axis}, keep_dims=True)" for t, axis in reversed(halves)
        ),
    )


def gradient(spec: Spec) -> str:
    """Write `g`, the gradient of z, from `z`, `weight` and the gradient `g` of H_res, segment by segment."""
    cuts = segments(spec.iters)
    last = len(cuts) - 1
    back = [f"g = back_{steps}(at{i}, {_weight(i)}, g, {i == last})" for i, steps in reversed(list(enumerate(cuts)))]
    return lines([*_starts(spec, cuts), *back])
