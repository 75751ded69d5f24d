"""The first backward kernel of enter, seam and coefficients: gradients of the logits of every token."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, power
from mhc_compile.codegen.text import each, fill, lines
from mhc_compile.codegen.triton import forward, fragments, sinkhorn

_COEFS = '''
@triton.jit
def gates_back($gates, T, token, pid, BT: tl.constexpr, BC: tl.constexpr):
    """Gradients of the read and write logits, and what this program adds to those of alpha and the bias."""
    live = token < T
    k = tl.arange(0, $np)
    known = k < $n
    pair = live[:, None] & known[None, :]
    $read
    h_pre = tl.load(pre + token[:, None] * $n + k[None, :], pair, other=0.0)
    inverse = tl.load(r + token, live, other=0.0)
    logit = y + token * $logits
    row = dlogits + token * $columns
    sums = partial + pid * $four_n
    pre_logits = tl.load(logit[:, None] + k[None, :], pair, other=0.0)
    post_logits = tl.load(logit[:, None] + $n + k[None, :], pair, other=0.0)
    $less
    dz = d_pre * h_pre * (1 - h_pre)
    half = tl.sigmoid(post_logits * tl.load(alpha + 1) + tl.load(bias + $n + k, known, other=0.0)[None, :])
    dz_post = tl.load(g_post + token[:, None] * $n + k[None, :], pair, other=0.0) * 2 * half * (1 - half)
    tl.store(sums + k, tl.sum(dz, 0), known)
    tl.store(sums + $n + k, tl.sum(dz_post, 0), known)
    tl.store(sums + $two_n + k, tl.sum(dz * pre_logits, 0), known)
    tl.store(sums + $three_n + k, tl.sum(dz_post * post_logits, 0), known)
    dy = dz * tl.load(alpha)
    dy_post = dz_post * tl.load(alpha + 1)
    tl.store(row[:, None] + k[None, :], dy * inverse[:, None], pair)
    tl.store(row[:, None] + $n + k[None, :], dy_post * inverse[:, None], pair)
    # what x itself gets, by the norm of the streams
    tl.store(row + $logits, tl.sum(dy * pre_logits + dy_post * post_logits, 1) * inverse * inverse / -$size, live)


@triton.jit
def mix_back($mix, T, token, pid, BT: tl.constexpr):
    """The same for the mixing logits$how."""
    live = token < T
    $res


@triton.jit(do_not_specialize=["T", "mixers"])
def coefs($all, T, mixers, BT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr):
    """The first programs go back through Sinkhorn for many tokens each, beside the memory traffic of the others."""
    pid = tl.program_id(0).to(tl.int64)
    if pid < mixers:
        mix_back($mix, T, pid * BM + tl.arange(0, BM), pid, BM)
    else:
        gates_back($gates, T, (pid - mixers) * BT + tl.arange(0, BT), pid - mixers, BT, BC)
'''

_RES = """
k = tl.arange(0, $np)
at = k[None, :, None] * $n + k[None, None, :]
entry = (k[None, :, None] < $n) & (k[None, None, :] < $n)
mask = live[:, None, None] & entry
logits = tl.load((y + token * $logits)[:, None, None] + $mixing + at, mask, other=0.0)
gate = tl.load(alpha + 2)
z, weight = start(logits * gate + tl.load(bias + $mixing + at, entry, other=0.0), entry)
g = tl.load(g_res + token[:, None, None] * $square + at, mask, other=0.0)
$gradient
sums = mixed + pid * $two_square
cell = k[:, None] * $n + k[None, :]
square = (k[:, None] < $n) & (k[None, :] < $n)
tl.store(sums + cell, tl.sum(g, 0), square)
tl.store(sums + $square + cell, tl.sum(g * logits, 0), square)
g = g * gate
inverse = tl.load(r + token, live, other=0.0)
row = dlogits + token * $columns
tl.store(row[:, None, None] + $mixing + at, g * inverse[:, None, None], mask)
tl.store(row + $logits + 1, tl.sum(tl.sum(g * logits, 2), 1) * inverse * inverse / -$size, live)
"""

_NO_RES = "tl.store(dlogits + token * $columns + $logits + 1, tl.zeros((BT,), tl.float32), live)"

_SUMS = """
$gates
$zeros
for first in $chunks:
    c = first + tl.arange(0, BC)
    within = (c < C) | (C % BC == 0)
    inside = live[:, None] & within[None, :]
    $sources
    $streams
    du = tl.load(g_u + token[:, None] * C + c[None, :], inside, other=0.0).to(tl.float32)
    $norm
    $sums
$result
d_pre = tl.zeros((BT, $np), tl.float32)
$assemble
"""

ALONG, EVEN = 2, 3  # where a row of dlogits keeps the norm's sums, behind the logits and the two shares of x itself


def columns(spec: Spec) -> int:
    """Return the floats of a row of dlogits: dy r, two shares of x itself, two sums of the norm; 16-byte rows."""
    return -(-(spec.logits + 4) // 4) * 4


def norm_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the norm that both kernels read."""
    return ["weight"] * spec.weight + spec.statistics


def gates_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the programs for the read and write logits."""
    read = [*fragments.sources(spec), "g_u", *norm_arguments(spec)] if spec.reads else ["g_pre"]
    return [*read, "g_post", "pre", "y", "r", "alpha", "bias", "dlogits", "partial"]


MIX = ("g_res", "y", "r", "alpha", "bias", "dlogits", "mixed")


def coefs_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the kernel."""
    return forward.union(gates_arguments(spec), MIX)


def names(spec: Spec) -> dict[str, object]:
    """Return the words that the backward's templates share."""
    n = spec.n
    more = {"two_n": 2 * n, "three_n": 3 * n, "four_n": 4 * n, "two_square": 2 * n * n, "columns": columns(spec)}
    return forward.names(spec) | more


def coefs(spec: Spec) -> str:
    """Write the kernel of the coefficients' gradients."""
    words = names(spec) | {
        "gates": ", ".join(gates_arguments(spec)),
        "mix": ", ".join(MIX),
        "all": ", ".join(coefs_arguments(spec)),
    }
    given = fill("d_pre = tl.load(g_pre + token[:, None] * $n + k[None, :], pair, other=0.0)", **words)
    mixes = spec.projection == "sinkhorn"
    return fill(
        _COEFS,
        **words,
        read=_sums(spec) if spec.reads else given,
        less=f"h_pre = h_pre - {spec.smooth!r}" if spec.smooth else "",
        how=", by the exact gradient of the unrolled iteration" if mixes else ", of which there are none",
        res=fill(_RES, **words, gradient=sinkhorn.gradient(spec)) if mixes else fill(_NO_RES, **words),
    )


def load_norm(spec: Spec) -> str:
    """Load what the norm's backward needs besides the streams."""
    center = f"center = {fragments.scalar('mean', 1, 0)}" if spec.norm == "layer" else ""
    return lines([center, f"slope = {fragments.scalar('rstd', 1, 0)}" if spec.norm != "none" else ""])


def read_gates(spec: Spec) -> str:
    """Load the read weights h0, h1, ..."""
    return lines(f"h{i} = {fragments.scalar('pre', spec.n, i)}" for i in range(spec.n))


def _sums(spec: Spec) -> str:
    """Write `d_pre`, the products of du with every stream; the norm's backward is linear in sums over the row."""
    k = fragments.current(spec)
    layer, norm = spec.norm == "layer", spec.norm != "none"
    totals = [f"a{i}" for i in range(k)]
    sums = each(k, "v{i} = y{i}.to(tl.float32)\na{i} += tl.sum(du * v{i}, 1)")
    after, result = "", ""
    if norm:
        totals += [f"b{i}" for i in range(k)] + ["along"]
        weight = f"du = du * {fragments.vector('weight')}" if spec.weight else ""
        after = lines(
            [weight, fragments.rounded_read(spec), "u = u - center[:, None]" if layer else "", "u = u * slope[:, None]"]
        )
        sums = lines([sums, each(k, "b{i} += tl.sum(u * v{i}, 1)"), "along += tl.sum(du * u, 1)"])
        place = f"dlogits + token * {columns(spec)} + {spec.logits}"
        stores = ["along = along / C", f"tl.store({place} + {ALONG}, along * slope, live)"]
        even = ""
        if layer:
            totals += [f"e{i}" for i in range(k)] + ["even"]
            sums = lines([sums, each(k, "e{i} += tl.sum(v{i}, 1)"), "even += tl.sum(du, 1)"])
            stores += ["even = even / C", f"tl.store({place} + {EVEN}, even, live)"]
            even = " - even * e{i}"
        result = lines([*stores, each(k, "a{i} = slope * (a{i}" + even + " - along * b{i})")])
    return fill(
        _SUMS,
        gates=lines([fragments.all_gates(spec), read_gates(spec) if norm else "", load_norm(spec)]),
        zeros=lines(f"{name} = tl.zeros((BT,), tl.float32)" for name in totals),
        chunks=fragments.feature_chunks(spec),
        sources=fragments.load_sources(spec),
        streams=fragments.all_mixed(spec),
        norm=after,
        sums=sums,
        result=result,
        np=power(spec.n),
        assemble=lines(f"d_pre = tl.where(k[None, :] == {i}, a{min(i, k - 1)}[:, None], d_pre)" for i in range(spec.n)),
    )
