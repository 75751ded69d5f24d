"""leave: the write of a region's last site and the mean over the streams, without ever making the new streams."""

from __future__ import annotations

import itertools

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.text import each, fill, lines
from mhc_compile.codegen.triton import fragments

_FORWARD = '''
@triton.jit(do_not_specialize=["T"])
def leave($arguments, out, T, BT: tl.constexpr, BC: tl.constexpr):
    """The mean of H_res x + H_post f over the new streams, from the column means of H_res."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < T
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    within = (c < C) | (C % BC == 0)
    inside = live[:, None] & within[None, :]
    $gates
    $sources
    u = $sum
    tl.store(out + token[:, None] * C + c[None, :], u.to($dtype), inside)
'''

_BACKWARD = '''
@triton.jit(do_not_specialize=["T"])
def leave_backward(g_out, $arguments, dx, df, dpost, dres, T, BT: tl.constexpr, BC: tl.constexpr):
    """Every new stream has the same gradient d, that of the output / n."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < T
    $gates
    $zeros
    for first in $chunks:
        c = first + tl.arange(0, BC)
        within = (c < C) | (C % BC == 0)
        inside = live[:, None] & within[None, :]
        $sources
        d = tl.load(g_out + token[:, None] * C + c[None, :], inside, other=0.0).to(tl.float32)
        $body
    $store
'''


def _gates(spec: Spec) -> str:
    """Average the coefficients over the new streams: p, r0, r1, ..."""
    n = spec.n

    def mean(name: str, entries: list[str]) -> str:
        return lines(
            [f"{name} = {entries[0]}", *(f"{name} += {entry}" for entry in entries[1:]), f"{name} = {name} / {n}"]
        )

    shared = range(n) if spec.equal_streams else None  # every column multiplies the same stream
    text = [mean("p", [fragments.scalar("post", n, i) for i in range(n)])]
    for j in range(fragments.distinct(spec)):
        entries = [fragments.scalar("res", n * n, i * n + s) for i in range(n) for s in shared or (j,)]
        text += [mean(f"r{j}", entries)]
    return lines(text)


def forward(spec: Spec) -> str:
    """Write the forward kernel."""
    terms = [f"r{j}[:, None] * x{j}" for j in range(fragments.distinct(spec))]
    return fill(
        _FORWARD,
        arguments=", ".join(fragments.sources(spec)),
        gates=_gates(spec),
        sources=fragments.load_sources(spec),
        sum=" + ".join([*terms, "p[:, None] * g"]),
        dtype=fragments.TYPES[spec.dtype],
    )


def backward(spec: Spec) -> str:
    """Write the backward kernel."""
    n, k, c, dtype = spec.n, fragments.distinct(spec), spec.channels, fragments.TYPES[spec.dtype]
    factor = "" if spec.multiplier == 1 else f" * {spec.multiplier!r}"
    body = [
        fragments.store("df", f"(p[:, None] * d{factor}).to({fragments.TYPES[spec.branch]})", c),
        *(fragments.store("dx", f"(r{j}[:, None] * d).to({dtype})", k * c, j * c) for j in range(k)),
        "with_f += tl.sum(d * g, 1)",
        each(k, "with_x{i} += tl.sum(d * x{i}, 1)"),
    ]
    store = [f"tl.store(dpost + token * {n} + {i}, with_f / {n}, live)" for i in range(n)]
    for i, j in itertools.product(range(n), repeat=2):
        store += [f"tl.store(dres + token * {n * n} + {i * n + j}, with_x{min(j, k - 1)} / {n}, live)"]
    return fill(
        _BACKWARD,
        arguments=", ".join(fragments.sources(spec)),
        gates=_gates(spec),
        zeros=lines(f"{name} = tl.zeros((BT,), tl.float32)" for name in ["with_f", *(f"with_x{j}" for j in range(k))]),
        chunks=fragments.feature_chunks(spec),
        sources=fragments.load_sources(spec),
        body=lines(body),
        store=lines(store),
    )
