"""The second backward kernel: gradients of the streams, of the branch's output and of phi."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, blocks
from mhc_compile.codegen.text import fill, lines
from mhc_compile.codegen.triton import forward, fragments
from mhc_compile.codegen.triton.grad_logits import ALONG, EVEN, columns, load_norm, norm_arguments, read_gates

MOST_LOGITS = 160  # columns of phi's gradient that a program sums at once

_ROLE = '''
@triton.jit
def $name($arguments, T, first_token, last_token, c, piece, split, BT: tl.constexpr, BC: tl.constexpr):
    """$doc"""
    within = (c < C) | (C % BC == 0)
    $zeros
    for first in tl.range(first_token, last_token, BT, disable_licm=True):  # hoisting would cost registers
        token = tl.cast(first, tl.int64) + tl.arange(0, BT)
        live = token < last_token
        inside = live[:, None] & within[None, :]
        $gates
        $sources
        $body
    $store
'''

_ROLES = '''
@triton.jit
def slice_back($all, T, begin, end, role, piece, split, BT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr):
    """A slice of the features for a share of the tokens, in $count roles: together they would not fit the registers."""
    c = piece * BC + tl.arange(0, BC)
    if role == 0:
        streams_back($back, T, begin, end, c, piece, split, BT, BC)
    $others


@triton.jit(do_not_specialize=["T"])
def streams($all, T, BT: tl.constexpr, BC: tl.constexpr, BP: tl.constexpr, SPLITS: tl.constexpr):
    """Programs of the same slice and share are neighbours, so that what one reads the other finds in the cache."""
    split = tl.program_id(2)
    share = tl.cdiv(tl.cdiv(T, BT), SPLITS) * BT
    begin, end = split * share, tl.minimum(T, (split + 1) * share)
    slice_back($all, T, begin, end, tl.program_id(0), tl.program_id(1), split, BT, BC, BP)
'''


def vectors(spec: Spec) -> list[str]:
    """Return the gradients that are vectors of features, summed over tokens."""
    write = ["doffset"] * spec.offset + ["dscale"] * spec.scale
    return write + ["dweight"] * spec.weight + ["dshift"] * spec.shift


def shared(spec: Spec) -> int:
    """Return how many gradients are sums over tokens: phi's and those of vectors."""
    return spec.channels * (spec.n * spec.logits + len(vectors(spec)))


def back_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the streams' own gradients."""
    read = ["g_u", "pre", *norm_arguments(spec)] if spec.reads else []
    write = ["df", "by_token"] if spec.mixes else []
    return [*["g_new"] * spec.mixes, *fragments.sources(spec), *read, "phi", "dlogits", "dx", *write, *_sums(spec)]


def _sums(spec: Spec) -> list[str]:
    return ["shared"] if vectors(spec) else []


def phi_arguments(spec: Spec) -> list[str]:
    """Return the tensors of phi's gradient."""
    return [*fragments.sources(spec), "dlogits", "shared"]


def streams_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the second kernel."""
    return forward.union(back_arguments(spec), phi_arguments(spec))


def streams(spec: Spec) -> str:
    """Write the kernel of the streams' gradients."""
    back, phi = ", ".join(back_arguments(spec)), ", ".join(phi_arguments(spec))
    start = spec.n * spec.logits * spec.channels
    stores = [
        f"tl.store(mine + {start + v * spec.channels} + c, {name}, within)" for v, name in enumerate(vectors(spec))
    ]
    groups = phi_groups(spec)
    others = [
        f"elif role == {q + 1}:\n    phi_back_{q}({phi}, T, begin, end, c, piece, split, BP, BC)"
        for q in range(len(groups))
    ]
    main = fill(
        _ROLE,
        name="streams_back",
        doc="Gradients of the streams and of f; sums over tokens of what vectors of features get.",
        arguments=back,
        zeros=lines(f"{name} = tl.zeros((BC,), tl.float32)" for name in vectors(spec)),
        gates=_gates(spec),
        sources=fragments.load_sources(spec),
        body=_body(spec),
        store=lines([_mine(spec), *stores]) if stores else "",
    )
    roles = fill(_ROLES, all=", ".join(streams_arguments(spec)), back=back, others=lines(others), count=1 + len(groups))
    return "\n".join([main, *(_phi(spec, q, group) for q, group in enumerate(groups)), roles])


def phi_groups(spec: Spec) -> list[range]:
    """Cut the current streams into groups whose part of phi's gradient fits in registers."""
    k, wide = fragments.current(spec), sum(width for _, width in blocks(spec.logits))
    size = max(1, min(k, MOST_LOGITS // wide))
    return [range(i, min(k, i + size)) for i in range(0, k, size)]


def phi_tokens(spec: Spec) -> int:
    """Return how many tokens at once a role for phi's gradient multiplies by default: a replay needs registers too."""
    return 32 if spec.n <= 4 and not spec.history else 16


def _phi(spec: Spec, number: int, group: range) -> str:
    """Write the role that sums phi's gradient of some streams."""
    wide, last = blocks(spec.logits), group[-1]
    body = []
    for i in group:
        body.append(fragments.mixed(spec, i))
        body += [f"dphi{i}_{b} = exact_times(tl.trans(y{i}), dy{b}, dphi{i}_{b})" for b in range(len(wide))]
    which = f"stream {last}" if last == group[0] else f"streams {group[0]} to {last}"
    if fragments.current(spec) == 1:
        which = "the streams, which are all equal"
    return fill(
        _ROLE,
        name=f"phi_back_{number}",
        arguments=", ".join(phi_arguments(spec)),
        doc=f"Gradient of phi's rows of {which}.",
        zeros=lines(f"dphi{i}_{b} = tl.zeros((BC, {w}), tl.float32)" for i in group for b, (_, w) in enumerate(wide)),
        gates=lines([fragments.all_gates(spec, group), f"row = dlogits + token * {columns(spec)}", _load_dy(spec)]),
        sources=fragments.load_sources(spec),
        body=lines(body),
        store=_store(spec, group),
    )


def _load_dy(spec: Spec) -> str:
    """Load the gradients of the logits, a tile for each block of them."""
    text = []
    for b, (start, wide) in enumerate(blocks(spec.logits)):
        column = fragments.logit_columns(start, wide)
        guard = f" & ({column} < {spec.logits})" if start + wide > spec.logits else ""
        text.append(f"dy{b} = tl.load(row[:, None] + {column}, live[:, None]{guard}, other=0.0)")
    return lines(text)


def _gates(spec: Spec) -> str:
    """Load all scalars of a token that its streams' gradients need."""
    m = spec.logits
    text = [
        fragments.all_gates(spec),
        read_gates(spec) if spec.reads else "",
        f"row = dlogits + token * {columns(spec)}",
    ]
    shares = " + ".join(f"tl.load(row + {m + i}, live, other=0.0)" for i in range(2))
    text += [f"shrink = {shares}", load_norm(spec)]
    if spec.norm != "none":
        text.append(f"along = tl.load(row + {m + ALONG}, live, other=0.0)")
    if spec.norm == "layer":
        text.append(f"even = tl.load(row + {m + EVEN}, live, other=0.0)")
    return lines([*text, _load_dy(spec)])


def _du(spec: Spec) -> str:
    """Load the gradient of the read, through the norm where there is one."""
    load = f"du = {fragments.load('g_u', spec.channels)}.to(tl.float32)"
    if spec.norm == "none":
        return load
    layer = spec.norm == "layer"
    hat = "u * slope[:, None]"
    if spec.norm == "rms_cast":  # what the weight was multiplied with
        hat = f"({hat}).to({fragments.TYPES[spec.dtype]}).to(tl.float32)"
    return lines(
        [
            load,
            fragments.all_mixed(spec),
            fragments.rounded_read(spec),
            "u = u - center[:, None]" if layer else "",
            f"dweight += tl.sum(du * {hat}, 0)" if spec.weight else "",
            "dshift += tl.sum(du, 0)" if spec.shift else "",
            f"du = du * {fragments.vector('weight')}" if spec.weight else "",
            f"du = slope[:, None] * (du{' - even[:, None]' if layer else ''} - along[:, None] * u)",
        ]
    )


def _body(spec: Spec) -> str:
    """Stream by stream, so that few tiles are alive at once: dX_i, then what the old streams get of it."""
    n, c, k, j = spec.n, spec.channels, fragments.current(spec), fragments.distinct(spec)
    wide = range(len(blocks(spec.logits)))
    text = [_du(spec) if spec.reads else ""]
    for i in range(k):
        read = f"({' + '.join(f'h{s}' for s in range(n))})" if k == 1 else f"h{i}"
        text += [
            fragments.mixed(spec, i) if spec.norm == "none" else fragments.some_gates(spec, i),
            fragments.load_phi(spec, i),
            *(f"d{b} = tl.trans(times(w{b}, tl.trans(dy{b})))" for b in wide),
            f"d = {f'{n} * ' if k == 1 else ''}shrink[:, None] * y{i}.to(tl.float32)",
            f"d += {read}[:, None] * du" if spec.reads else "",
            f"d += {fragments.load('g_new', n * c, i * c)}.to(tl.float32)" if spec.mixes else "",
            *(f"d += d{b}" for b in wide),
        ]
        text += _written(spec, i, j) if spec.mixes else [_put(spec, "d", i, j)]
    if spec.mixes:
        text += _late(spec)
        text += [_put(spec, f"x{s}_grad", s, j) for s in range(j)]
        text += _tail(spec)
    return lines(text)


def _put(spec: Spec, value: str, i: int, k: int) -> str:
    return fragments.store("dx", f"{value}.to({fragments.TYPES[spec.dtype]})", k * spec.channels, i * spec.channels)


def _tail(spec: Spec) -> list[str]:
    """Pass the gradient of what was written back through the branch's tail."""
    c = spec.channels
    text = [f"g_grad = g_grad * {spec.multiplier!r}"] * (spec.multiplier != 1)
    if spec.scale:
        bare = f"{fragments.load('f', c)}.to(tl.float32)" + f" + {fragments.vector('offset')}" * spec.offset
        text += [f"dscale += tl.sum(g_grad * ({bare}), 0)", f"g_grad = g_grad * {fragments.vector('scale')}"]
    text += ["doffset += tl.sum(g_grad, 0)"] * spec.offset
    return [*text, fragments.store("df", f"g_grad.to({fragments.TYPES[spec.branch]})", c)]


def _written(spec: Spec, i: int, j: int) -> list[str]:
    """Pass dX_i on to f, the old streams and the coefficients that wrote it."""
    n = spec.n
    sign = "+=" if i else "="
    text = [f"g_grad {sign} p{i}[:, None] * d", _total(spec, i, "tl.sum(d * g, 1)")]
    text += [f"x{s}_grad {sign} r{i}_{s}[:, None] * d" for s in range(j)]
    text += ["same = tl.sum(d * x0, 1)"] * spec.equal_streams
    for s in range(n):
        product = "same" if spec.equal_streams else f"tl.sum(d * x{s}, 1)"
        text.append(_total(spec, n + i * n + s, product))
    return text


def _total(spec: Spec, column: int, value: str) -> str:
    """Keep a coefficient's gradient, or store it where there are too many for the registers."""
    return f"total{column} = {value}" if fragments.roomy(spec) else _store_total(spec, column, value)


def _late(spec: Spec) -> list[str]:
    """Store what was kept: no load of a stream may pass a store, so those in between would wait for each other."""
    columns = range(spec.n + spec.n**2) if fragments.roomy(spec) else ()
    return [_store_total(spec, column, f"total{column}") for column in columns]


def _store_total(spec: Spec, column: int, value: str) -> str:
    row = f"by_token + (piece * tl.cast(T, tl.int64) + token) * {spec.n + spec.n**2}"
    return f"tl.store({row} + {column}, {value}, live)"


def _mine(spec: Spec) -> str:
    return f"mine = shared + split.to(tl.int64) * {shared(spec)}"


def _store(spec: Spec, group: range) -> str:
    """Write this program's sums over its tokens into its row of `shared`."""
    m, c = spec.logits, spec.channels
    text = [_mine(spec)]
    for i in range(spec.n) if fragments.current(spec) == 1 else group:
        for b, (start, wide) in enumerate(blocks(m)):
            column = fragments.logit_columns(start, wide)
            guard = f" & ({column} < {m})" if start + wide > m else ""
            source = f"dphi{min(i, fragments.current(spec) - 1)}_{b}"
            text.append(f"tl.store(mine + ({i * c} + c)[:, None] * {m} + {column}, {source}, within[:, None]{guard})")
    return lines(text)
