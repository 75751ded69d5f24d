"""Spec: what one generated file is for. Everything that changes its text is a field here, and nothing else is."""

from __future__ import annotations

import dataclasses

from mhc_compile.errors import ConfigError
from mhc_compile.ops.norms import NORMS
from mhc_compile.ops.seams import MOST_STREAMS

OPS = ("enter", "seam", "leave", "coefficients")
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # name -> bytes


@dataclasses.dataclass(frozen=True)
class Spec:
    """One op for one shape of token.

    Attributes:
        op: "enter" (coefficients and read), "seam" (write, then those), "leave" (write and readout) or "coefficients".
        n: number of streams.
        channels: C, the features of one stream.
        dtype: of the streams, "bf16", "fp16" or "fp32".
        branch: dtype of the branch's output f.
        projection: "sinkhorn" or "identity".
        iters: iterations of the Sinkhorn projection.
        eps: added to the mean square of the streams (paper Eq. 15).
        norm: the branch's norm, taken in: "none", "rms", "rms_cast" or "layer".
        norm_eps: its eps.
        weight: whether that norm has a weight.
        shift: whether it has a bias.
        offset: whether a vector `[C]` is added to the branch's output (bias).
        scale: whether it is then scaled by one (layer scale).
        multiplier: constant factor of the branch's output.
        plain: the streams are all equal and come as one tensor `[T, C]`: the start of a region.
    """

    op: str
    n: int
    channels: int
    dtype: str = "bf16"
    branch: str = "bf16"
    projection: str = "sinkhorn"
    iters: int = 20
    eps: float = 1e-6
    norm: str = "none"
    norm_eps: float = 1e-6
    weight: bool = False
    shift: bool = False
    offset: bool = False
    scale: bool = False
    multiplier: float = 1.0
    plain: bool = False

    def __post_init__(self) -> None:
        """Refuse what no kernel can be written for."""
        allowed = {
            "op": OPS,
            "norm": NORMS,
            "dtype": tuple(DTYPES),
            "branch": tuple(DTYPES),
            "projection": ("sinkhorn", "identity"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                known = ", ".join(map(repr, values))
                raise ConfigError(f"no kernel can be generated for {name}={getattr(self, name)!r}; there are {known}")
        if not 1 <= self.n <= MOST_STREAMS or self.channels < 1:
            raise ConfigError(
                f"no kernel can be generated for {self.n} streams of {self.channels} features: 1 to {MOST_STREAMS}"
                " streams and at least one feature; Config(kernels='reference') runs any number"
            )

    @property
    def logits(self) -> int:
        """Return m, the number of logits of a token: read, write and mixing."""
        return 2 * self.n + (self.n**2 if self.projection == "sinkhorn" else 0)

    @property
    def mixes(self) -> bool:
        """Return whether the op writes: makes new streams of old ones and a branch's output."""
        return self.op in ("seam", "leave")

    @property
    def reads(self) -> bool:
        """Return whether the op makes a branch's input."""
        return self.op in ("enter", "seam")

    @property
    def matrices(self) -> int:
        """Return how many H_res a program makes: an entry for each of its threads."""
        return max(1, 128 // power(self.n) ** 2)

    @property
    def statistics(self) -> list[str]:
        """Return what the norm leaves for the backward."""
        return ["mean"] * (self.norm == "layer") + ["rstd"] * (self.norm != "none")

    @property
    def name(self) -> str:
        """Return a file name's stem, readable."""
        flags = [self.norm] * (self.norm != "none")
        flags += [word for word in ("offset", "scale", "plain") if getattr(self, word)]
        dtype = self.dtype if self.branch == self.dtype or not self.mixes else f"{self.dtype}_{self.branch}"
        return "_".join([self.op, f"n{self.n}", f"c{self.channels}", dtype, *flags])


def power(x: int) -> int:
    """Return the smallest power of two that is not below x."""
    return 1 << (x - 1).bit_length()


def blocks(columns: int) -> list[tuple[int, int]]:
    """Cut columns into (start, width) blocks of powers of two, at least 16, that reach little beyond the end."""
    found, start = [], 0
    while start < columns:
        rest = columns - start
        width = max(power(rest), 16)
        if width > 16 and width > 1.5 * rest:
            width //= 2
        found.append((start, width))
        start += width
    return found
