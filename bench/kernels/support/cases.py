"""What a run covers: the real sizes, or tiny ones for Triton's interpreter."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mhc_compile.codegen import Spec

RMS: Mapping[str, Any] = {"norm": "rms", "weight": True}
TAIL: Mapping[str, Any] = {"offset": True, "scale": True, "multiplier": 0.7}
LAYER: Mapping[str, Any] = {"norm": "layer", "weight": True, "shift": True, **TAIL}


@dataclasses.dataclass(frozen=True)
class Case:
    """A generated file and how many tokens it is given."""

    spec: Spec
    tokens: int

    @property
    def name(self) -> str:
        """Return the name that tables show."""
        projection = "" if self.spec.projection == "sinkhorn" else f" {self.spec.projection}"
        return f"{self.spec.name}{projection} x {self.tokens}"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Numbers of tokens, features and streams, the most telling first."""

    tokens: int
    channels: tuple[int, ...]
    streams: tuple[int, ...]

    def shapes(self) -> list[tuple[int, int]]:
        """Return (streams, channels) of every shape."""
        return [(n, c) for n in self.streams for c in self.channels]

    def correctness(self) -> list[Case]:
        """Return every op and the seam at every size; dtypes, norms and tails at one."""
        n, c = self.streams[0], self.channels[0]
        seams = [Spec("seam", n, c, **RMS) for n, c in self.shapes()]
        others = [spec for c in self.channels for spec in ops(n, c) if spec.op != "seam"]
        kinds = [
            Spec("seam", n, c, **LAYER),
            Spec("seam", n, c, equal_streams=True),
            Spec("enter", n, c, **RMS),
            Spec("seam", n, c, projection="identity"),
            *(Spec("seam", n, c, dtype=dtype, branch=dtype, **RMS) for dtype in ("fp16", "fp32")),
        ]
        cases = [Case(spec, self.tokens) for spec in (*seams, *others, *kinds)]
        return [*cases, Case(Spec("seam", 3, c + 17, **RMS), self.tokens // 2 + 1)]


def ops(n: int, channels: int) -> list[Spec]:
    """Return the four ops as a model uses them: it enters with equal streams, and RMSNorm follows each read."""
    return [
        Spec("seam", n, channels, **RMS),
        Spec("enter", n, channels, equal_streams=True, **RMS),
        Spec("leave", n, channels),
        Spec("coefficients", n, channels),
    ]


REAL = Sizes(tokens=8192, channels=(4096, 2560, 7168), streams=(4, 2, 8))
DRY = Sizes(tokens=5, channels=(24,), streams=(2,))
