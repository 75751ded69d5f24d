"""Spec: what one generated file is for. Everything that changes its text is a field here, and nothing else is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mhc_compile.errors import ConfigError
from mhc_compile.ops.limits import MOST_STREAMS
from mhc_compile.ops.norms import NORMS

OPS = ("enter", "seam", "leave", "coefficients", "replay")
DTYPES = {"bf16": 2, "fp16": 2, "fp32": 4}  # name -> bytes
_REPLAYS = {"seam": (False, True), "leave": (False, True), "replay": (True,)}  # whether an op may have a history
_WRITTEN = {"equal_streams": "plain", "equal_head": "plain_head"}  # field -> its name in generated files
_READ = {written: name for name, written in _WRITTEN.items()}


@dataclasses.dataclass(frozen=True)
class Step:
    """One write that a kernel replays: dtype of its branch's output, and what the branch ends with (see Spec)."""

    branch: str = "bf16"
    offset: bool = False
    scale: bool = False
    multiplier: float = 1.0


@dataclasses.dataclass(frozen=True)
class Spec:
    """One op for one shape of token.

    Attributes:
        op: "enter" (coefficients and read), "seam" (write, then those), "leave" (write and readout), "coefficients" or
            "replay" (the writes of the history, nothing else).
        n: number of streams.
        channels: C, the features of one stream.
        dtype: of the streams, "bf16", "fp16" or "fp32".
        branch: dtype of the branch's output f.
        projection: "sinkhorn" or "identity".
        iters: iterations of the Sinkhorn projection.
        smooth: what is added to H_pre and in Sinkhorn's sums (`ops.projections.SmoothSinkhorn`); 0 in the paper.
        eps: added to the mean square of the streams (paper Eq. 15).
        norm: the branch's norm, taken in: "none", "rms", "rms_cast" or "layer".
        norm_eps: its eps.
        weight: whether that norm has a weight.
        shift: whether it has a bias.
        offset: whether a vector `[C]` is added to the branch's output (bias).
        scale: whether it is then scaled by one (layer scale).
        multiplier: constant factor of the branch's output.
        equal_streams: the streams are all equal and come as one tensor `[T, C]`: the start of a region.
        history: the writes between x, then a block's head, and the streams that the op's backward reads. With any,
            the file is for that backward alone.
        equal_head: that head is of equal streams and comes as one tensor, too.
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
    equal_streams: bool = False
    history: tuple[Step, ...] = ()
    equal_head: bool = False
    smooth: float = 0.0

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
        unfit = self.equal_streams if self.history else self.equal_head
        if unfit or bool(self.history) not in _REPLAYS.get(self.op, (False,)):
            raise ConfigError(f"no kernel can be generated that replays {len(self.history)} writes for {self.op!r}")
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
    def directions(self) -> tuple[str, ...]:
        """Return the functions of the file."""
        if self.op == "replay":
            return ("forward",)
        return ("backward",) if self.history else ("forward", "backward")

    @property
    def heads(self) -> int:
        """Return how many different streams x holds: one where all are equal."""
        return 1 if self.equal_streams or self.equal_head else self.n

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
        flags = ["smooth"] * bool(self.smooth) + [self.norm] * (self.norm != "none")
        flags += [word for word in ("offset", "scale") if getattr(self, word)] + ["plain"] * self.equal_streams
        if self.history:
            flags += [f"replay{len(self.history)}", *["plain"] * self.equal_head]
        dtype = self.dtype if self.branch == self.dtype or not self.mixes else f"{self.dtype}_{self.branch}"
        return "_".join([self.op, f"n{self.n}", f"c{self.channels}", dtype, *flags])

    def table(self) -> dict[str, Any]:
        """Return all fields as Python's own types, those of a history, and `smooth`, only where there is one.

        Files that exist already, and what was tuned for them, go by the names in `_WRITTEN`.
        """
        fields = {_WRITTEN.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        absent = () if self.history else ("history", "plain_head")
        return {name: fields[name] for name in fields if name not in absent and (self.smooth or name != "smooth")}

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Spec:
        """Return the Spec of such a table."""
        fields = {_READ.get(name, name): value for name, value in table.items()}
        return cls(**{**fields, "history": tuple(Step(**step) for step in table.get("history", ()))})


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
