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

_SMOOTH = '''
@triton.jit
def total(h, axis: tl.constexpr):
    """Sums over rows (axis 1) or columns (axis 2), and what DeepSeek-V4 adds to them."""
    return tl.sum(h, axis, keep_dims=True) + $smooth


@triton.jit
def start(z, known):
    """A softmax of the columns, and what is added to each of its entries."""
    h = tl.exp(tl.where(known, z - tl.max(tl.where(known, z, float("-inf")), 1, keep_dims=True), float("-inf")))
    return h / tl.maximum(tl.sum(h, 1, keep_dims=True), 1.0), tl.where(known, $smooth, 0.0)


@triton.jit
def sinkhorn(h, FIRST: tl.constexpr, ITERS: tl.constexpr):
    """ITERS times: columns to 1, then rows; the softmax has done so with the first columns."""
    if not FIRST:
        h = h / total(h, 1)
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
    if spec.smooth:
        return fill(_SMOOTH, smooth=repr(spec.smooth))
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
    return not spec.smooth and spec.iters > lasting(spec.n)


def segments(iters: int, most: int = SEGMENT) -> list[int]:
    """Cut the iterations into segments of at most so many."""
    return [min(most, iters - done) for done in range(0, iters, most)]


def _starts(spec: Spec, cuts: list[int]) -> list[str]:
    """Make what each segment starts from: `at0` and, of weight 1, `at1`, `at2`, ..."""
    text = ["at0 = z + weight" if spec.smooth else "at0 = tl.exp(z)"]
    for i, steps in enumerate(cuts[:-1]):
        before = f"(at{i}, {_first(spec, i)}, {steps})"
        if not _outlasts(spec):
            text.append(f"at{i + 1} = sinkhorn{before}")
        else:
            text += [f"by {'+=' if i else '='} divisors{before}", f"at{i + 1} = tl.exp(z - by)"]
    return text


def _first(spec: Spec, segment: int) -> str:
    """Return what tells a function that it begins: the weights of the rows, else 1; or whether a softmax was before."""
    if spec.smooth:
        return str(segment == 0)
    return "1.0" if segment else "weight"


def matrix(spec: Spec) -> str:
    """Write `h_res` from what `start` returns, `z` and `weight`."""
    cuts = segments(spec.iters, min(spec.iters, lasting(spec.n)) if _outlasts(spec) else spec.iters)
    last = len(cuts) - 1
    return lines([*_starts(spec, cuts), f"h_res = sinkhorn(at{last}, {_first(spec, last)}, {cuts[-1]})"])


def backward(spec: Spec) -> str:
    """Write the gradient through one segment, for every length of segment there is."""
    if spec.projection != "sinkhorn":
        return ""
    write = _smooth_segment if spec.smooth else _segment
    return "\n\n".join(write(steps).strip("\n") + "\n" for steps in sorted(set(segments(spec.iters))))


def _smooth_segment(steps: int) -> str:
    halves = [(t, 1 + t % 2) for t in range(1, 2 * steps)]
    before = ["h1 = h0 if FIRST else h0 / total(h0, 1)"]
    before += [f"h{t + 1} = h{t} / total(h{t}, {axis})" for t, axis in halves]
    after = [f"g = g - h{t + 1} * tl.sum(g, {axis}, keep_dims=True)" for t, axis in reversed(halves)]
    after.append("g = g if FIRST else g - h1 * tl.sum(g, 1, keep_dims=True)")
    text = _SEGMENT.replace("weight, g", "FIRST: tl.constexpr, g")
    return fill(text, steps=steps, halves=2 * steps, forward=lines(before), backward=lines(after))


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
    back = [
        f"g = back_{steps}(at{i}, {_first(spec, i)}, g, {i == last})" for i, steps in reversed(list(enumerate(cuts)))
    ]
    softmax = [f"g = g * z / (z + {spec.smooth!r})", "g = g - z * tl.sum(g, 1, keep_dims=True)"]
    return lines([*_starts(spec, cuts), *back, *(softmax if spec.smooth else ())])
