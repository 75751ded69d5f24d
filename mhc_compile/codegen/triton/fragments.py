"""Fragments that several kernels share: how streams are loaded, mixed and multiplied."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec, Step, blocks
from mhc_compile.codegen.text import each, lines

TYPES = {"bf16": "tl.bfloat16", "fp16": "tl.float16", "fp32": "tl.float32"}
MOST_GATES = (
    20  # coefficients of a token that are kept in registers through a loop; more are loaded where they are used
)


def distinct(spec: Spec) -> int:
    """Return how many different streams the op has before its write: one where all are still equal."""
    return 1 if spec.equal_streams else spec.n


def current(spec: Spec) -> int:
    """Return how many different streams the coefficients are made of."""
    return spec.n if spec.mixes else distinct(spec)


def sources(spec: Spec) -> list[str]:
    """Return the arguments that the current streams are made of."""
    steps = [_written(step, str(k)) for k, step in enumerate(spec.history)]
    return ["x", *(_written(spec) if spec.mixes else []), *(name for step in steps for name in step)]


def _written(step: Spec | Step, number: str = "") -> list[str]:
    """Return the arguments of a write: the op's own, or one of the history."""
    names = ["f", "post", "res", *["offset"] * step.offset, *["scale"] * step.scale]
    return [f"{name}{number}" for name in names]


def vector(name: str) -> str:
    """Load a vector of features, in fp32, to broadcast over tokens."""
    return f"tl.load({name} + c, within, other=0.0).to(tl.float32)[None, :]"


def row(name: str, width: int, at: int = 0) -> str:
    """Return the address of a tile of features in rows of `width` elements, from column `at` on."""
    start = f" + {at}" if at else ""
    return f"{name} + token[:, None] * {width}{start} + c[None, :]"


def load(name: str, width: int, at: int = 0) -> str:
    """Load such a tile."""
    return f"tl.load({row(name, width, at)}, inside, other=0.0)"


def store(name: str, value: str, width: int, at: int = 0) -> str:
    """Store such a tile."""
    return f"tl.store({row(name, width, at)}, {value}, inside)"


def scalar(name: str, width: int, at: int) -> str:
    """Load entry `at` of every token's coefficients, a vector of tokens."""
    return f"tl.load({name} + token * {width} + {at}, live, other=0.0)"


# -- the write of the site before --------------------------------------------------------------------------------------


def keeps_gates(spec: Spec) -> bool:
    """Return whether all coefficients of the write stay in registers."""
    return spec.n + spec.n * distinct(spec) <= MOST_GATES


def all_gates(spec: Spec, streams: range | None = None) -> str:
    """Load H_post and H_res of the site that writes (for some streams), unless they are loaded where they are used."""
    made = range(spec.n) if streams is None else streams
    return lines(_gates(spec, i) for i in made) if spec.mixes and keeps_gates(spec) else ""


def some_gates(spec: Spec, i: int) -> str:
    """Load what stream i is written with, unless it is there."""
    return _gates(spec, i) if spec.mixes and not keeps_gates(spec) else ""


def _gates(spec: Spec, i: int) -> str:
    return _load_gates(spec.n, i, spec.equal_streams, "p", "r")


def _load_gates(n: int, i: int, equal: bool, post: str, res: str, number: str = "") -> str:
    """Load entry i of a write's H_post and row i of its H_res, under names that start as given."""
    entries = [scalar(f"res{number}", n * n, i * n + j) for j in range(n)]
    if equal:  # every column multiplies the same stream
        entries = [" + ".join(entries)]
    first = scalar(f"post{number}", n, i)
    first = first if number else f"pinned({first})"
    return lines([f"{post}{i} = {first}", *(f"{res}{i}_{j} = {entry}" for j, entry in enumerate(entries))])


def load_sources(spec: Spec) -> str:
    """Load the old streams x0, x1, ... and the branch's output g, with its tail, in fp32; replay what is in between."""
    heads, c = spec.heads, spec.channels
    streams = lines(f"x{i} = {load('x', heads * c, i * c)}" for i in range(heads))
    if not spec.mixes and not spec.history:
        return streams
    wide = each(heads, "x{i} = x{i}.to(tl.float32)")
    steps = [_replayed(spec, k, heads if k == 0 else spec.n) for k in range(len(spec.history))]
    return lines([streams, wide, *steps, _branch(spec, c) if spec.mixes else ""])


def _replayed(spec: Spec, k: int, old: int) -> str:
    """Make the streams that write k of the history made of x0, x1, ...; its gates stay no longer than they are used."""
    made = [_branch(spec.history[k], spec.channels, str(k))]
    for i in range(spec.n):
        made += [_load_gates(spec.n, i, old < spec.n, "q", "s", str(k)), _mix(spec, i, old, "q", "s")]
    return lines([*made, each(spec.n, "x{i} = y{i}.to(tl.float32)")])


def feature_chunks(spec: Spec) -> str:
    """Return what the loops over a row go through; hoisted out of one, the gates of a replay would fill registers."""
    return "tl.range(0, C, BC, disable_licm=True)" if spec.history else "range(0, C, BC)"


def _branch(step: Spec | Step, c: int, number: str = "") -> str:
    """Load a branch's output g, with its tail, in fp32."""
    branch = [f"g = {load(f'f{number}', c)}.to(tl.float32)"]
    branch += [f"g = g + {vector(f'offset{number}')}"] * step.offset
    branch += [f"g = g * {step.multiplier!r}"] * (step.multiplier != 1)
    branch += [f"g = g * {vector(f'scale{number}')}"] * step.scale
    return lines(branch)


def mixed(spec: Spec, i: int) -> str:
    """Make stream i of the write, rounded as the forward stores it."""
    if not spec.mixes:
        return f"y{i} = x{i}"
    return lines([some_gates(spec, i), _mix(spec, i, distinct(spec), "p", "r")])


def _mix(spec: Spec, i: int, old: int, post: str, res: str) -> str:
    """Write stream i; forward, backward and replay share the expression, so that they round alike."""
    terms = [f"{res}{i}_{j}[:, None] * x{j}" for j in range(old)]
    return f"y{i} = ({' + '.join(terms)} + {post}{i}[:, None] * g).to({TYPES[spec.dtype]})"


def all_mixed(spec: Spec) -> str:
    """Make all current streams."""
    return lines(mixed(spec, i) for i in range(current(spec)))


# -- the site ----------------------------------------------------------------------------------------------------------


def read_out(spec: Spec) -> str:
    """Read: `u = H_pre y` in fp32, from weights h0, h1, ... and current streams."""
    if current(spec) == 1:
        weights = " + ".join(f"h{i}" for i in range(spec.n))
        return f"u = ({weights})[:, None] * y0.to(tl.float32)"
    return "u = " + " + ".join(f"h{i}[:, None] * y{i}.to(tl.float32)" for i in range(spec.n))


def rounded_read(spec: Spec) -> str:
    """Read, and round to what the read would have stored: the norm's input."""
    return lines([read_out(spec), f"u = u.to({TYPES[spec.dtype]}).to(tl.float32)"])


def load_phi(spec: Spec, i: int) -> str:
    """Load phi's rows of current stream i, a tile `[BC, width]` for each block of logits."""
    m, c, n = spec.logits, spec.channels, spec.n
    text = []
    for b, (start, width) in enumerate(blocks(m)):
        column = logit_columns(start, width)
        guard = f" & ({column} < {m})" if start + width > m else ""
        streams = range(n) if current(spec) == 1 else (i,)
        loads = [
            f"tl.load(phi + ({s * c} + c[:, None]) * {m} + {column}, within[:, None]{guard}, other=0.0)"
            for s in streams
        ]
        text.append(f"w{b} = " + " + ".join(loads))
    return lines(text)


def logit_columns(start: int, width: int) -> str:
    """Return the columns of a block of logits."""
    return f"({start} + tl.arange(0, {width}))[None, :]" if start else f"tl.arange(0, {width})[None, :]"


def roomy(spec: Spec) -> bool:
    """Return whether tiles leave registers for more: few narrow streams in aligned rows, no tail, no replay."""
    few = spec.n <= 4 and spec.dtype == "bf16" and spec.channels % 8 == 0
    return few and spec.norm != "layer" and not (spec.offset or spec.scale or spec.history)


_WIDE = '''
@triton.jit
def exact_times(a, b, acc):
    """acc + a b, where a is of the streams: six products of bf16 parts, as good as fp32."""
    return tl.dot(a.to(tl.float32), b, acc, input_precision="bf16x6")


@triton.jit
def times(a, b):
    """a b, both fp32."""
    return tl.dot(a, b, input_precision="bf16x6")
'''

_BF16 = '''
@triton.jit
def exact_times(a, b, acc):
    """acc + a b, where a is of the streams, so exact in bf16, and b is split in two halves of 8 bits each."""
    high = b.to(tl.bfloat16)
    low = (b - high.to(tl.float32)).to(tl.bfloat16)
    return tl.dot(a, low, tl.dot(a, high, acc))


@triton.jit
def times(a, b):
    """a b, both fp32 and split in two halves."""
    high = a.to(tl.bfloat16)
    low = (a - high.to(tl.float32)).to(tl.bfloat16)
    return exact_times(high, b, tl.dot(low, b.to(tl.bfloat16)))
'''


_PINNED = '''
@triton.jit
def pinned(v):
    """v itself, by a sum over an axis of one: it keeps Triton from making what v is used for once per layout."""
    return tl.sum(v[:, None], 1)
'''


def products(spec: Spec) -> str:
    """Return the helpers that multiply tiles at better than tf32's accuracy, whatever the streams' dtype."""
    return lines([_PINNED, _BF16 if spec.dtype == "bf16" else _WIDE])


def gate(spec: Spec) -> str:
    """Split the read weights h_pre `[BT, NP]` of a token into vectors h0, h1, ..."""
    return each(spec.n, "h{i} = tl.sum(tl.where(k[None, :] == {i}, h_pre, 0.0), 1)")
