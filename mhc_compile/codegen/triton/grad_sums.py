"""The third backward kernel: sums over what programs left, in an order that is always the same."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, power
from mhc_compile.codegen.text import fill, lines
from mhc_compile.codegen.triton import grad_logits
from mhc_compile.codegen.triton.grad_streams import shared, vectors

_REDUCE = '''
@triton.jit
def add_up(source, rows, columns, first, BR: tl.constexpr, BC: tl.constexpr):
    """Sums over the rows of `source`, always in the same order, for columns from `first`."""
    at = first + tl.arange(0, BC)
    total = tl.zeros((BR, BC), tl.float32)
    for row in range(0, rows, BR):
        i = tl.cast(row, tl.int64) + tl.arange(0, BR)
        mask = (i < rows)[:, None] & (at < columns)[None, :]
        total += tl.load(source + i[:, None] * columns + at[None, :], mask, other=0.0)
    return tl.sum(total, 0), at


@triton.jit(do_not_specialize=["T", "programs", "mixers"])
def reduce(
    $arguments, T, programs, mixers,
    SPLITS: tl.constexpr, PIECES: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):
    """Adds up what the programs of the other two kernels left, without atomics."""
    pid = tl.program_id(0).to(tl.int64)
    if pid == 0:
        gates, k = add_up(partial, programs, $four_n, 0, $tall, $gates_wide)
        tl.store(dbias + k, gates, k < $two_n)
        tl.store(dalpha, tl.sum(tl.where((k >= $two_n) & (k < $three_n), gates, 0.0), 0))
        tl.store(dalpha + 1, tl.sum(tl.where(k >= $three_n, gates, 0.0), 0))
        $mixing_sums
    elif pid <= tl.cdiv($shared, BC):
        total, at = add_up(shared, SPLITS, $shared, (pid - 1) * BC, BR, BC)
        $vectors
    $tokens
'''

_MIXING = """
cells, m = add_up(mixed, mixers, $two_square, 0, 32, $mixing_wide)
tl.store(dbias + $two_n + m, cells, m < $square)
tl.store(dalpha + 2, tl.sum(tl.where(m >= $square, cells, 0.0), 0))
"""

_TOKENS = """
else:
    columns = tl.cast(T, tl.int64) * $coefs
    coefs, i = add_up(by_token, PIECES, columns, (pid - 1 - tl.cdiv($shared, BC)) * BC, BR, BC)
    row, entry = i // $coefs, i % $coefs
    tl.store(dpost + row * $n + entry, coefs, (i < columns) & (entry < $n))
    tl.store(dres + row * $square + entry - $n, coefs, (i < columns) & (entry >= $n))
"""


def reduce_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the third kernel."""
    tokens = ["by_token", "dpost", "dres"] if spec.mixes else []
    return ["partial", "mixed", "dbias", "dalpha", "shared", "dphi", *vectors(spec), *tokens]


def reduce(spec: Spec) -> str:
    """Write the kernel that adds up what programs left."""
    n, end = spec.n, spec.n * spec.logits * spec.channels
    words = grad_logits.names(spec) | {
        "coefs": n + n * n,
        "shared": shared(spec),
        "tall": max(1, 4096 // power(4 * n)),
        "gates_wide": power(4 * n),
        "mixing_wide": power(2 * n * n),
    }
    return fill(
        _REDUCE,
        **words,
        arguments=", ".join(reduce_arguments(spec)),
        mixing_sums=fill(_MIXING, **words) if spec.projection == "sinkhorn" else "tl.store(dalpha + 2, 0.0)",
        tokens=fill(_TOKENS, **words) if spec.mixes else "",
        vectors=lines([f"tl.store(dphi + at, total, at < {end})", *_vector_sums(spec)]),
    )


def _vector_sums(spec: Spec) -> list[str]:
    """Write each vector's part of the sums over tokens, behind phi's."""
    start, c = spec.n * spec.logits * spec.channels, spec.channels
    starts = [(name, start + i * c) for i, name in enumerate(vectors(spec))]
    return [f"tl.store({name} + at - {at}, total, (at >= {at}) & (at < {at + c}))" for name, at in starts]
