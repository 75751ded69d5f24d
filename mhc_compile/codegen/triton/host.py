"""The host side of a generated file: what a caller gives, what is allocated, what is launched."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.text import fill, lines
from mhc_compile.codegen.triton import forward as fore
from mhc_compile.codegen.triton import fragments, grad_streams, grad_sums, one_launch
from mhc_compile.codegen.triton import grad_logits as back

_FORWARD = '''
def forward($inputs, tiles=TILES):
    """Return $returns."""
    tokens = x.shape[:$axes]
    T = tokens.numel()

    def floats(*shape):
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    $allocate
    if not T:
        return [$outputs]
    $launch
    return [$outputs]
'''

_TWO = """
a, b = tiles["project"], tiles["read"]
partial = floats(a["SPLITS"], T, $width)
project[(triton.cdiv(T, a["BT"]), a["SPLITS"])]($project, T, **a)
mixers = triton.cdiv(T, b["BM"])
read[(mixers + triton.cdiv(T, b["BT"]),)]($all, T, mixers, SPLITS=a["SPLITS"], **b)
"""

_EITHER = """
if "both" in tiles:
    a = tiles["both"]
    groups = triton.cdiv(T, a["BT"])
    partial = floats(a["SPLITS"], T, $width)
    counters = torch.zeros(1 + groups, dtype=torch.int32, device=x.device)
    tasks = a["SPLITS"] + a["BT"] // a["BR"] + 1
    both[((groups + a["LAG"]) * tasks,)]($both, counters, T, groups, **a)
else:
    $two
"""

_BACKWARD = '''
def backward($inputs, tiles=TILES):
    """Return $returns."""
    T = y.numel() // $logits

    def floats(*shape):
        return torch.empty(shape, dtype=torch.float32, device=x.device)

    $dx
    $allocate
    dalpha, dbias, dphi = floats(3), floats($logits), floats($rows, $logits)
    $vectors
    if T:
        $launch
    else:
        for total in ($sums):
            total.zero_()
    return [$outputs]
'''

_THREE = """
a, b = tiles["coefs"], tiles["streams"]
splits, pieces = b["SPLITS"], triton.cdiv(C.value, b["BC"])
programs, mixers = triton.cdiv(T, a["BT"]), triton.cdiv(T, a["BM"])
$workspace
coefs[(mixers + programs,)]($coefs, T, mixers, **a)
streams[($roles, pieces, splits)]($streams, T, **b)
"""

_ONE = """
a = tiles["back"]
splits, pieces = a["SPLITS"], triton.cdiv(C.value, a["BCS"])
whole = max(a["BT"], a["BM"], a["BS"])
share = triton.cdiv(triton.cdiv(T, whole), splits) * whole
programs, mixers = splits * share // a["BT"], splits * share // a["BM"]
$workspace
counters = torch.zeros(1 + splits, dtype=torch.int32, device=x.device)
tasks = (programs + mixers) // splits + pieces * $roles
back[((splits + a["LAG"]) * tasks,)]($back, counters, T, share, pieces, **a)
"""

_WORKSPACE = """
partial, mixed = floats(programs, $four_n), floats(mixers, $two_square)
dlogits, shared = floats(T, $columns), floats(splits, $shared)
$by_token
"""

_REDUCE = """
c = tiles["reduce"]
blocks = 1 + triton.cdiv($shared, c["BC"])$more
reduce[(blocks,)]($reduce, T, programs, mixers, SPLITS=splits, PIECES=pieces, **c)
"""

_EITHER_BACK = """
if "back" in tiles:
    $one
else:
    $three
$reduce
"""

_LEAVE = '''
def forward($inputs, tiles=TILES):
    """Return the mean over the new streams, shaped and typed like one stream."""
    T = f.numel() // C.value
    out = torch.empty(f.shape, dtype=x.dtype, device=x.device)
    if T:
        a = tiles["leave"]
        leave[(triton.cdiv(T, a["BT"]), triton.cdiv(C.value, a["BC"]))]($inputs, out, T, **a)
    return [out]
'''

_REPLAY = '''
def forward($inputs, tiles=TILES):
    """Return the streams that the writes make of the head x."""
    T = f0.numel() // C.value
    new = torch.empty((*f0.shape[:-1], $n, C.value), dtype=x.dtype, device=x.device)
    if T:
        a = tiles["replay"]
        replay[(triton.cdiv(T, a["BT"]), triton.cdiv(C.value, a["BC"]))]($inputs, new, T, **a)
    return [new]
'''

_LEAVE_BACKWARD = '''
def backward(g_out, $inputs, tiles=TILES):
    """Return dx, df, dpost, dres."""
    T = f.numel() // C.value
    $allocate
    if T:
        a = tiles["leave_backward"]
        leave_backward[(triton.cdiv(T, a["BT"]),)](g_out, $inputs, dx, df, dpost, dres, T, **a)
    return [dx, df, dpost, dres]
'''


def inputs(spec: Spec) -> list[str]:
    """Return what `forward` takes."""
    norm = ["weight"] * spec.weight + ["shift"] * spec.shift
    site = ["phi", "alpha", "delta", "base", *norm]
    return [*fragments.sources(spec), *([] if spec.op in ("leave", "replay") else site)]


def outputs(spec: Spec) -> list[str]:
    """Return what `forward` returns."""
    if spec.op == "leave":
        return ["out"]
    return [*["new"] * spec.mixes, *["u_out"] * spec.reads, "post_out", "res_out", "pre", "y", "r", *spec.statistics]


def backward_inputs(spec: Spec) -> list[str]:
    """Return what `backward` takes."""
    if spec.op == "leave":
        return ["g_out", *fragments.sources(spec)]
    given = [*["g_new"] * spec.mixes, *[("g_u" if spec.reads else "g_pre"), "g_post", "g_res"]]
    site = ["phi", "alpha", "bias", *["weight"] * spec.weight, "pre", "y", "r", *spec.statistics]
    return [*given, *fragments.sources(spec), *site]


def backward_outputs(spec: Spec) -> list[str]:
    """Return what `backward` returns."""
    written = ["df", "dpost", "dres"] if spec.mixes else []
    site = [] if spec.op == "leave" else ["dphi", "dalpha", "dbias", *grad_streams.vectors(spec)]
    return ["dx", *written, *site]


def _allocate(spec: Spec) -> str:
    n, m = spec.n, spec.logits
    shapes = {
        "post_out": f"{n}",
        "res_out": f"{n}, {n}",
        "pre": f"{n}",
        "y": f"{m}",
        **dict.fromkeys(("r", "mean", "rstd"), "1"),
    }
    text = []
    if spec.mixes:
        text.append(f"new = torch.empty((*tokens, {n}, C.value), dtype=x.dtype, device=x.device)")
    if spec.reads:
        text.append("u_out = torch.empty((*tokens, C.value), dtype=x.dtype, device=x.device)")
    return lines([*text, *(f"{name} = floats(*tokens, {shapes[name]})" for name in outputs(spec) if name in shapes)])


def forward(spec: Spec) -> str:
    """Write the function that runs the forward."""
    if spec.op == "leave":
        return fill(_LEAVE, inputs=", ".join(inputs(spec)))
    if spec.op == "replay":
        return fill(_REPLAY, inputs=", ".join(inputs(spec)), n=spec.n)
    words = fore.names(spec) | fore.arguments(spec)
    two = fill(_TWO, **words)
    return fill(
        _FORWARD,
        inputs=", ".join(inputs(spec)),
        returns=", ".join(outputs(spec)),
        axes="-1" if spec.equal_streams else "-2",
        allocate=_allocate(spec),
        launch=fill(_EITHER, **words, two=two.strip("\n")) if spec.reads else two,
        outputs=", ".join(outputs(spec)),
    )


def _dx(spec: Spec) -> str:
    """Allocate the gradient of the streams that the op's write had: x, or what is replayed from it."""
    if not spec.equal_head:
        return "dx = torch.empty_like(x)"
    return f"dx = torch.empty((*f.shape[:-1], {spec.n}, C.value), dtype=x.dtype, device=x.device)"


def _leave_backward(spec: Spec) -> str:
    """Write the function that runs the backward of leave."""
    allocate = "dx, df, dpost, dres = (torch.empty_like(t) for t in (x, f, post, res))"
    if spec.equal_head:
        allocate = lines([_dx(spec), "df, dpost, dres = (torch.empty_like(t) for t in (f, post, res))"])
    return fill(_LEAVE_BACKWARD, inputs=", ".join(fragments.sources(spec)), allocate=allocate)


def backward(spec: Spec) -> str:
    """Write the function that runs the backward."""
    if spec.op == "leave":
        return _leave_backward(spec)
    vectors = grad_streams.vectors(spec)
    words = back.names(spec) | {"shared": grad_streams.shared(spec), "logits": spec.logits}
    return fill(
        _BACKWARD,
        **words,
        inputs=", ".join(backward_inputs(spec)),
        returns=", ".join(backward_outputs(spec)),
        dx=_dx(spec),
        allocate="df, dpost, dres = (torch.empty_like(t) for t in (f, post, res))" * spec.mixes,
        rows=spec.n * spec.channels,
        vectors=lines(f"{name} = floats(C.value)" for name in vectors),
        sums=", ".join(["dalpha", "dbias", "dphi", *vectors]),
        launch=_launches(spec, words),
        outputs=", ".join(backward_outputs(spec)),
    )


def _launches(spec: Spec, words: dict[str, object]) -> str:
    """Write the launches of the backward: three, or one and the sums."""
    coefs = spec.n + spec.n**2
    by_token = f"by_token = floats(pieces, T, {coefs})" * spec.mixes
    words = words | {
        "workspace": fill(_WORKSPACE, **words, by_token=by_token).strip("\n"),
        "roles": 1 + len(grad_streams.phi_groups(spec)),
        "coefs": ", ".join(back.coefs_arguments(spec)),
        "streams": ", ".join(grad_streams.streams_arguments(spec)),
        "back": ", ".join(one_launch.back_arguments(spec)),
        "more": f' + triton.cdiv(T * {coefs}, c["BC"])' * spec.mixes,
    }
    three = fill(_THREE, **words)
    reduce = fill(_REDUCE, **words | {"reduce": ", ".join(grad_sums.reduce_arguments(spec))})
    if not spec.reads:
        return three + reduce.strip("\n")
    return fill(_EITHER_BACK, one=fill(_ONE, **words), three=three, reduce=reduce)
