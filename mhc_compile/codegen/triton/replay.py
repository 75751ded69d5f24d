"""replay: the streams that a block's writes make of its head, in one pass over what they wrote."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.text import fill, lines
from mhc_compile.codegen.triton import fragments

_REPLAY = '''
@triton.jit(do_not_specialize=["T"])
def replay($arguments, new, T, BT: tl.constexpr, BC: tl.constexpr):
    """All writes between one load and one store of the streams, each rounded as the forward rounded it."""
    token = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    live = token < T
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    within = (c < C) | (C % BC == 0)
    inside = live[:, None] & within[None, :]
    $sources
    $store
'''


def forward(spec: Spec) -> str:
    """Write the kernel."""
    n, c = spec.n, spec.channels
    return fill(
        _REPLAY,
        arguments=", ".join(fragments.sources(spec)),
        sources=fragments.load_sources(spec),
        store=lines(fragments.store("new", f"y{i}", n * c, i * c) for i in range(n)),
    )
