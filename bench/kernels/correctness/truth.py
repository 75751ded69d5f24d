"""The equations of the generated ops once more: plain torch in fp64, gradients by autograd, some tokens at a time.

Values are rounded where the ops round them (the new streams, what a norm sees); their gradients pass unchanged. Which
way a value between two steps is rounded hangs on the last bit of fp32, so it is taken from what the kernels stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from mhc_compile.codegen import Spec
from mhc_compile.codegen.runtime.dtypes import TORCH

Named = dict[str, Tensor]
OF = {  # what each result of a backward is the gradient of
    "dx": "x", "df": "f", "dpost": "post", "dres": "res", "dphi": "phi", "dalpha": "alpha", "dbias": "delta",
    "dscale": "scale", "doffset": "offset", "dweight": "weight", "dshift": "shift",
}  # fmt: skip
PARAMETERS = {"phi", "alpha", "delta", "base", "scale", "offset", "weight", "shift"}
RESULTS = {"g_new": "new", "g_u": "u_out", "g_post": "post_out", "g_res": "res_out", "g_pre": "pre", "g_out": "out"}
CHUNK_BYTES = 2**27  # of streams in fp64


def chunks(spec: Spec, given: Named, upstream: Named, stored: Named) -> Iterator[tuple[slice, Named, Named]]:
    """Yield some tokens, and their results and gradients; those of parameters are these tokens' share.

    Args:
        spec: of the file.
        given: what its forward took.
        upstream: gradients of the forward's results.
        stored: what the forward returned.
    """
    tokens = given["x"].shape[0]
    size = max(1, CHUNK_BYTES // (8 * spec.n * spec.channels))
    for start in range(0, tokens, size):
        part = slice(start, min(tokens, start + size))
        leaves = {name: (t if name in PARAMETERS else t[part]).double().requires_grad_() for name, t in given.items()}
        made = equations(spec, leaves, {name: t[part] for name, t in stored.items()})
        wanted = {RESULTS[name]: g[part].double() for name, g in upstream.items()}
        live = [name for name in wanted if made[name].requires_grad]
        roots, grads = [made[name] for name in live], [wanted[name] for name in live]
        found = torch.autograd.grad(roots, list(leaves.values()), grads, materialize_grads=True)
        by_leaf = dict(zip(leaves, found, strict=True))
        gradients = {name: by_leaf[leaf] for name, leaf in OF.items() if leaf in by_leaf}
        yield part, {name: t.detach() for name, t in made.items()}, gradients


def equations(spec: Spec, t: Mapping[str, Tensor], stored: Named) -> Named:
    """Return an op's results by the names that generated files give them; `stored` has those of the kernels."""
    x, n = t["x"], spec.n
    if spec.equal_streams:
        x = x.unsqueeze(-2).expand(*x.shape[:-1], n, x.shape[-1])
    made: Named = {}
    if spec.mixes:
        branch = (t["f"] + t.get("offset", 0.0)) * spec.multiplier * t.get("scale", 1.0)
        x = torch.einsum("tij,tjc->tic", t["res"], x) + torch.einsum("ti,tc->tic", t["post"], branch)
        if spec.op == "leave":
            return {"out": x.mean(-2)}
        made["new"] = x
        x = passed(x, stored["new"])
    made |= coefficients(spec, x, t)
    if spec.reads:
        u = torch.einsum("tn,tnc->tc", made["pre"], x)
        if spec.norm != "none":
            read = torch.einsum("tn,tnc->tc", stored["pre"].double(), x.detach())
            u = passed(u, read.float().to(TORCH[spec.dtype]))
        made |= normed(spec, u, t)
    return made


def coefficients(spec: Spec, x: Tensor, t: Mapping[str, Tensor]) -> Named:
    """Return the coefficients of streams `[T, n, C]` (arXiv 2512.24880, Eq. 14-19)."""
    n, row = spec.n, x.flatten(-2)
    r = 1 / torch.sqrt((row * row).mean(-1, keepdim=True) + spec.eps)
    y = torch.einsum("tk,km->tm", row, t["phi"]) * r
    bias = t["delta"] + t["base"]
    z = [y[:, a:b] * t["alpha"][i] + bias[a:b] for i, (a, b) in enumerate(((0, n), (n, 2 * n), (2 * n, y.shape[1])))]
    pre, post = 1 / (1 + torch.exp(-z[0])), 2 / (1 + torch.exp(-z[1]))
    if spec.projection == "identity":
        res = torch.eye(n, dtype=x.dtype, device=x.device).expand(len(x), n, n)
    else:
        res = torch.exp(z[2].unflatten(-1, (n, n)))
        for _ in range(spec.iters):
            res = res / res.sum(-2, keepdim=True)
            res = res / res.sum(-1, keepdim=True)
    return {"post_out": post, "res_out": res, "pre": pre, "y": y, "r": r}


def normed(spec: Spec, u: Tensor, t: Mapping[str, Tensor]) -> Named:
    """Return the branch's input and the statistics of its norm."""
    if spec.norm == "none":
        return {"u_out": u}
    mean = u.mean(-1, keepdim=True)
    centred = u - mean if spec.norm == "layer" else u
    rstd = 1 / torch.sqrt((centred * centred).mean(-1, keepdim=True) + spec.norm_eps)
    hat = centred * rstd
    if spec.norm == "rms_cast":  # rounded in front of its weight
        hat = passed(hat, hat.detach().to(TORCH[spec.dtype]))
    made = {"u_out": hat * t.get("weight", 1.0) + t.get("shift", 0.0), "rstd": rstd}
    return made | ({"mean": mean} if spec.norm == "layer" else {})


def passed(t: Tensor, value: Tensor) -> Tensor:
    """Return a value with the gradient of t, which it is up to rounding."""
    return t + (value.double() - t.detach())
