"""The forward of enter, seam and coefficients: make and project the streams, then read them."""

from __future__ import annotations

from collections.abc import Iterable

from mhc_compile.codegen.spec import Spec, blocks, power
from mhc_compile.codegen.text import fill, lines
from mhc_compile.codegen.triton import fragments, sinkhorn

_PROJECT = '''
@triton.jit
def project_tokens($project, T, token, split, BT: tl.constexpr, BC: tl.constexpr, SPLITS: tl.constexpr):
    """$doc"""
    live = token < T
    steps: tl.constexpr = (C + BC * SPLITS - 1) // (BC * SPLITS)
    $gates
    $zeros
    square = tl.zeros((BT,), tl.float32)
    for step in range(steps):
        c = (split * steps + step) * BC + tl.arange(0, BC)
        within = (c < C) | (C % (BC * SPLITS) == 0)
        inside = live[:, None] & within[None, :]
        $sources
        $streams
    sums = partial + (split * tl.cast(T, tl.int64) + token) * $width
    $store
    tl.store(sums + $logits, square, live)


@triton.jit(do_not_specialize=["T"])
def project($project, T, BT: tl.constexpr, BC: tl.constexpr, SPLITS: tl.constexpr):
    """The first launch: a tile of tokens, and a split of the features, for each program."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    project_tokens($project, T, token, tl.program_id(1), BT, BC, SPLITS)
'''

_READ = '''
@triton.jit
def read_tokens($read, T, token, BT: tl.constexpr, BC: tl.constexpr, SPLITS: tl.constexpr):
    """$doc."""
    live = token < T
    k = tl.arange(0, $np)
    known = (k < $n)[None, :]
    pair = live[:, None] & known
    square = tl.zeros((BT,), tl.float32)
    pre_logits = tl.zeros((BT, $np), tl.float32)
    post_logits = tl.zeros((BT, $np), tl.float32)
    for split in range(SPLITS):  # in this order always, so that two runs agree to the bit
        sums = partial + (split * tl.cast(T, tl.int64) + token) * $width
        square += tl.load(sums + $logits, live, other=0.0)
        pre_logits += tl.load(sums[:, None] + k[None, :], pair, other=0.0)
        post_logits += tl.load(sums[:, None] + $n + k[None, :], pair, other=0.0)
    inverse = tl.rsqrt(square / $size + $eps)
    tl.store(r + token, inverse, live)
    empty = (inverse == 0)[:, None]  # a square that overflows, as an RMSNorm does it
    pre_logits = tl.where(empty, 0.0, pre_logits * inverse[:, None])
    post_logits = tl.where(empty, 0.0, post_logits * inverse[:, None])
    logit = y + token * $logits
    tl.store(logit[:, None] + k[None, :], pre_logits, pair)
    tl.store(logit[:, None] + $n + k[None, :], post_logits, pair)
    h_pre = tl.sigmoid(gated(pre_logits, alpha, delta, base, k[None, :], known))$more
    h_post = 2 * tl.sigmoid(gated(post_logits, alpha + 1, delta + $n, base + $n, k[None, :], known))
    tl.store(pre + token[:, None] * $n + k[None, :], h_pre, pair)
    tl.store(post_out + token[:, None] * $n + k[None, :], h_post, pair)
    $body


@triton.jit
def mix_tokens($mix, T, token, BT: tl.constexpr, SPLITS: tl.constexpr):
    """H_res of every token$how."""
    live = token < T
    k = tl.arange(0, $np)
    at = k[None, :, None] * $n + k[None, None, :]
    entry = (k[None, :, None] < $n) & (k[None, None, :] < $n)
    mask = live[:, None, None] & entry
    $res


@triton.jit(do_not_specialize=["T", "mixers"])
def read($all, T, mixers, BT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr):
    """The second launch: the first programs make H_res of many tokens each, beside the memory traffic of the others."""
    pid = tl.program_id(0).to(tl.int64)
    if pid < mixers:
        mix_tokens($mix, T, pid * BM + tl.arange(0, BM), BM, SPLITS)
    else:
        read_tokens($read, T, (pid - mixers) * BT + tl.arange(0, BT), BT, BC, SPLITS)
'''

GATED = '''
@triton.jit
def gated(logits, alpha, delta, base, at, known):
    """z = alpha y + b, where the bias b is a fixed start and what was learned since."""
    b = tl.load(delta + at, known, other=0.0) + tl.load(base + at, known, other=0.0)
    return logits * tl.load(alpha) + b
'''

_SINKHORN = """
square = tl.zeros((BT,), tl.float32)
logits = tl.zeros((BT, $np, $np), tl.float32)
for split in range(SPLITS):
    sums = partial + (split * tl.cast(T, tl.int64) + token) * $width
    square += tl.load(sums + $logits, live, other=0.0)
    logits += tl.load(sums[:, None, None] + $mixing + at, mask, other=0.0)
inverse = tl.rsqrt(square / $size + $eps)[:, None, None]
logits = tl.where(inverse == 0, 0.0, logits * inverse)  # a square that overflows, as an RMSNorm does it
tl.store(y + token[:, None, None] * $logits + $mixing + at, logits, mask)
z, weight = start(gated(logits, alpha + 2, delta + $mixing, base + $mixing, at, entry), entry)
$matrix
tl.store(res_out + token[:, None, None] * $square + at, h_res, mask)
"""

_IDENTITY = """
one = tl.where(k[None, :, None] == k[None, None, :], 1.0, 0.0) + tl.zeros((BT, 1, 1), tl.float32)
tl.store(res_out + token[:, None, None] * $square + at, one, mask)
"""

_READ_CHUNKS = """
$gates
for first in range(0, C, BC):
    c = first + tl.arange(0, BC)
    within = (c < C) | (C % BC == 0)
    inside = live[:, None] & within[None, :]
    $streams
    $read
    $store
"""

_READ_ROWS = """
$gates
c = tl.arange(0, BC)  # whole rows: the norm's sums are those of this program
within = (c < C) | (C % BC == 0)
inside = live[:, None] & within[None, :]
$streams
$read
$norm
$store
"""

_RMS = """
slope = tl.rsqrt(tl.sum(u * u, 1) / C + $norm_eps)
u = u * slope[:, None]
tl.store(rstd + token, slope, live)
"""

_LAYER = """
center = tl.sum(u, 1) / C
u = tl.where(inside, u - center[:, None], 0.0)
tl.store(mean + token, center, live)
"""


def width(spec: Spec) -> int:
    """Return the floats of a row of partial sums: the logits, the square sum, and a multiple of 16 bytes."""
    return -(-(spec.logits + 1) // 4) * 4


def project_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the first kernel."""
    return [*fragments.sources(spec), "phi", *["new"] * spec.mixes, "partial"]


def read_arguments(spec: Spec) -> list[str]:
    """Return the tensors that reading takes."""
    norm = ["weight"] * spec.weight + ["shift"] * spec.shift
    streams = [("new" if spec.mixes else "x"), *norm, "u_out", *spec.statistics] if spec.reads else []
    return ["partial", "alpha", "delta", "base", *streams, "post_out", "pre", "y", "r"]


MIX = ("partial", "alpha", "delta", "base", "res_out", "y")


def union(*groups: Iterable[str]) -> list[str]:
    """Return the names of all groups, each once, in their order."""
    return list(dict.fromkeys(name for group in groups for name in group))


def names(spec: Spec) -> dict[str, object]:
    """Return the words that the templates of several kernels share."""
    return {
        "n": spec.n,
        "np": power(spec.n),
        "square": spec.n**2,
        "logits": spec.logits,
        "mixing": 2 * spec.n,  # where the mixing logits start
        "size": float(spec.n * spec.channels),
        "eps": repr(spec.eps),
        "width": width(spec),
    }


def arguments(spec: Spec) -> dict[str, str]:
    """Return the tensors of every kernel and part, by the word that stands for them."""
    project, read = project_arguments(spec), read_arguments(spec)
    groups = {"project": project, "read": read, "mix": MIX, "all": union(read, MIX), "both": union(project, read, MIX)}
    return {word: ", ".join(group) for word, group in groups.items()}


def project(spec: Spec) -> str:
    """Write the kernel that makes the new streams and each split's share of their projection."""
    n, c, wide = spec.n, spec.channels, blocks(spec.logits)
    times = "" if fragments.current(spec) == n else f"{n} * "  # equal streams count n times
    streams = []
    for i in range(fragments.current(spec)):
        streams += [
            fragments.mixed(spec, i),
            fragments.store("new", f"y{i}", n * c, i * c) if spec.mixes else "",
            f"square += {times}tl.sum(y{i}.to(tl.float32) * y{i}.to(tl.float32), 1)",
            fragments.load_phi(spec, i),
            *(f"z{b} = exact_times(y{i}, w{b}, z{b})" for b in range(len(wide))),
        ]
    store = []
    for b, (start, size) in enumerate(wide):
        column = fragments.logit_columns(start, size)
        guard = f" & ({column} < {spec.logits})" if start + size > spec.logits else ""
        store.append(f"tl.store(sums[:, None] + {column}, z{b}, live[:, None]{guard})")
    doc = "New streams H_res x + H_post f, and" if spec.mixes else "For each token"
    return fill(
        _PROJECT,
        **names(spec),
        **arguments(spec),
        doc=f"{doc} this split's share of the projection x phi and of |x|^2.",
        gates=fragments.all_gates(spec),
        zeros=lines(f"z{b} = tl.zeros((BT, {size}), tl.float32)" for b, (_, size) in enumerate(wide)),
        sources=fragments.load_sources(spec),
        streams=lines(streams),
        store=lines(store),
    )


def read(spec: Spec) -> str:
    """Write the kernel that turns sums into coefficients and reads the branch's input."""
    words = names(spec)
    mixes = spec.projection == "sinkhorn"
    return fill(
        _READ,
        **words,
        **arguments(spec),
        more=f" + {spec.smooth!r}" if spec.smooth else "",
        doc="H_pre and H_post of every token" + ", and the branch's input" * spec.reads,
        how=", by Sinkhorn in registers" if mixes else ": streams do not mix",
        res=fill(_SINKHORN, **words, matrix=sinkhorn.matrix(spec)) if mixes else fill(_IDENTITY, **words),
        body=_read_part(spec) if spec.reads else "",
    )


def _read_part(spec: Spec) -> str:
    source, k, c = ("new", spec.n, spec.channels) if spec.mixes else ("x", fragments.distinct(spec), spec.channels)
    common = {
        "gates": fragments.gate(spec),
        "streams": lines(f"y{i} = {fragments.load(source, k * c, i * c)}" for i in range(k)),
        "store": fragments.store("u_out", f"u.to({fragments.TYPES[spec.dtype]})", c),
    }
    if spec.norm == "none":
        return fill(_READ_CHUNKS, **common, read=fragments.read_out(spec))
    cast = f"u = u.to({fragments.TYPES[spec.dtype]}).to(tl.float32)" if spec.norm == "rms_cast" else ""
    norm = [
        _LAYER if spec.norm == "layer" else "",
        _RMS.replace("$norm_eps", repr(spec.norm_eps)),
        cast,
        f"u = u * {fragments.vector('weight')}" if spec.weight else "",
        f"u = u + {fragments.vector('shift')}" if spec.shift else "",
    ]
    return fill(_READ_ROWS, **common, read=fragments.rounded_read(spec), norm=lines(part.strip("\n") for part in norm))
