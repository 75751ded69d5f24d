"""Bytes of streams and branch tensors per token and site: ours, and what published designs move.

In units of C bytes, streams of 16 bits. The numbers of others are from reading their sources at the named revisions,
not from counters; gradient adds that autograd does between their ops are in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

CHANNELS = 4096


@dataclasses.dataclass(frozen=True)
class Design:
    """Bytes of a site: `(a n + b) C` forward, `(c n + d) C` backward.

    Attributes:
        name: whose.
        forward: a and b.
        backward: c and d; None for inference.
        source: where it was read.
    """

    name: str
    forward: tuple[int, int]
    backward: tuple[int, int] | None
    source: str

    def at(self, n: int) -> tuple[int, int | None]:
        """Return multiples of C for so many streams."""
        a, b = self.forward
        return a * n + b, None if self.backward is None else self.backward[0] * n + self.backward[1]


DESIGNS = (
    Design("mhc_compile, second reads from L2", (4, 4), (6, 6), "mhc_compile.codegen"),
    Design("mhc_compile, no read hits L2", (6, 4), (8, 10), "mhc_compile.codegen"),
    Design("TileKernels", (8, 4), (18, 6), "deepseek-ai/TileKernels@36d9e45"),
    Design("Megatron-LM, fused", (8, 4), (24, 6), "NVIDIA/Megatron-LM@d48bd6b (dev)"),
    Design("flash-mHC", (8, 4), (28, 6), "alint77/flash-mHC@11e5d34"),
    Design("TransformerEngine, norm_weight", (8, 4), (28, 6), "NVIDIA/TransformerEngine@d0067d0"),
    Design("TransformerEngine, default", (8, 4), (36, 6), "NVIDIA/TransformerEngine@d0067d0"),
    Design("Liger-Kernel", (16, 12), (50, 22), "linkedin/Liger-Kernel@ead96b6"),
    Design("aiter, two launches", (6, 4), None, "ROCm/aiter@e404860"),
    Design("TensorRT-LLM, one launch", (4, 4), None, "NVIDIA/TensorRT-LLM#13892"),
    Design("DeepGEMM Mega-mHC", (4, 4), None, "deepseek-ai/DeepGEMM#432"),
    Design("a plain residual add", (0, 6), (0, 6), "x + f, and its two gradients added"),
)


HEADS = ("bytes per token and site", "forward", "backward", "n=4", "sum", "to ours", f"kB at C={CHANNELS}", "read in")


def lines() -> list[tuple[str, ...]]:
    """Return the rows of the table."""
    ours = sum(value or 0 for value in DESIGNS[0].at(4))
    found: list[tuple[str, ...]] = []
    for design in DESIGNS:
        forward, backward = design.at(4)
        total = forward + (backward or 0)
        multiples = f"{forward}C" if backward is None else f"{forward}C + {backward}C"
        found.append(
            (
                design.name,
                _formula(*design.forward),
                "inference only" if design.backward is None else _formula(*design.backward),
                multiples,
                "" if backward is None else f"{total}C",
                "" if backward is None else f"{total / ours:.2f}x",
                f"{total * CHANNELS / 1e3:.0f}",
                design.source,
            )
        )
    return found


def _formula(a: int, b: int) -> str:
    return f"({a}n+{b})C" if a else f"{b}C"


def show(table: Callable[..., None]) -> None:
    """Print the table."""
    table("bytes by design, from reading sources, not measured", HEADS, lines())
