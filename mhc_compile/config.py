"""Config: what to build at every site. Frozen, validated, every field also a torch.compile option."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from mhc_compile.errors import ConfigError

# field -> values that work today; DESIGN names more, which get a place here when they exist
CHOICES: dict[str, tuple[str, ...]] = {
    "connection": ("mhc", "hc", "residual"),
    "convention": ("paper",),
    "init": ("home",),
    "readout": ("mean",),
    "kernels": ("auto", "triton", "reference"),
    "compiler": ("inductor", "aot_eager", "eager"),
}
_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(rf"memory: *(\d+(?:\.\d+)?(?:e\d+)?) *({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Config:
    """What the rewrite builds.

    Attributes:
        streams: number n of residual streams, any integer >= 1 (1 leaves the model as it is).
        connection: "mhc" (arXiv 2512.24880), "hc" (unconstrained, arXiv 2409.19606) or "residual" (no rewrite).
        projection: registered map from logits to H_res, "sinkhorn" or "identity" (mhc only).
        convention: order and placement of the projection's normalisations; "paper" is columns, then rows.
        sinkhorn_iters: iterations of the Sinkhorn projection, each columns then rows (paper Eq. 9).
        eps: added to the mean square inside the norm of the streams (paper Eq. 15).
        init: "home", exact and symmetry-breaking.
        alpha: gate of the dynamic part at the start; "auto" is 0.01 * 8192 / (n C), at most 1.
        readout: how streams become one tensor again; "mean".
        include: glob patterns of site names to rewrite.
        exclude: glob patterns of site names to leave alone.
        every: rewrite every k-th site only.
        recompute: what a training step keeps of the streams. "auto" (as little as it can), the number of sites of a
            block (L_r) that keeps the streams of its first site only, "off" (the compiler decides), "memory:2GiB" (or
            MiB, KiB, GB, MB, kB, B) or a fraction of what blocks of one site keep: the cheapest plan that fits.
        kernels: "auto" (generated Triton kernels on CUDA devices), "triton" (the same, an error where they cannot run)
            or "reference" (plain torch).
        compiler: who compiles the rewritten graph: "inductor", "aot_eager" or "eager" (for debugging).
        inductor: Inductor options, as a mapping.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    streams: int = 4
    connection: str = "mhc"
    projection: str = "sinkhorn"
    convention: str = "paper"
    sinkhorn_iters: int = 20
    eps: float = 1e-6
    init: str = "home"
    alpha: float | str = 0.01
    readout: str = "mean"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    every: int = 1
    recompute: str | int | float = "auto"
    kernels: str = "auto"
    compiler: str = "inductor"
    inductor: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check every field and freeze the sequences."""
        for name in ("streams", "sinkhorn_iters", "every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be an integer >= 1, not {value!r}; for example {name}={_default(name)}")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")
        if not _is_number(self.eps) or not 0 < self.eps < 1:
            raise ConfigError(f"eps must be a number between 0 and 1, not {self.eps!r}; for example 1e-6")
        if self.alpha != "auto" and not (_is_number(self.alpha) and 0 < float(self.alpha) <= 1):
            raise ConfigError(f"alpha must be 'auto' or a number in (0, 1], not {self.alpha!r}")
        if not isinstance(self.projection, str):
            raise ConfigError(f"projection must be the name of a registered projection, not {self.projection!r}")
        self._freeze_globs()
        self.budget()
        if not isinstance(self.inductor, Mapping):
            raise ConfigError(f"inductor must be a mapping of Inductor options, not {self.inductor!r}")

    def _freeze_globs(self) -> None:
        for name in ("include", "exclude"):
            value = getattr(self, name)
            globs = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else (value,)
            if not all(isinstance(glob, str) for glob in globs):
                raise ConfigError(f"{name} must be glob patterns of site names, not {value!r}")
            object.__setattr__(self, name, globs)

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None, base: Config | None = None) -> Config:
        """Build a Config from torch.compile's `options`, on top of `base`.

        Raises:
            ConfigError: an option is unknown (the message names the nearest one) or its value is wrong.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        for name in options or {}:
            if name not in fields:
                near = difflib.get_close_matches(str(name), sorted(fields), 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; the options are {', '.join(sorted(fields))}"
                raise ConfigError(f"unknown option {name!r}{hint}")
        return dataclasses.replace(base or cls(), **dict(options or {}))

    def budget(self) -> float | None:
        """Return the memory that the streams may take: bytes, or up to 1.0 a fraction; None where there is no budget.

        Raises:
            ConfigError: `recompute` is none of its values.
        """
        given = self.recompute
        if given in ("auto", "off") or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
            return None
        if isinstance(given, float) and 0 < given <= 1:
            return given
        found = _BUDGET.fullmatch(given) if isinstance(given, str) else None
        if found is None or (asked := float(found[1]) * _UNITS[found[2].lower()]) <= 1:
            raise ConfigError(
                f"recompute must be 'auto', 'off', a number of sites >= 1, a fraction such as 0.5, or a budget such as"
                f" 'memory:2GiB', not {given!r}"
            )
        return asked

    def function(self) -> dict[str, Any]:
        """Return the fields that define the model's parameters and function, as JSON-ready values."""
        names = "streams connection projection convention sinkhorn_iters eps init alpha readout"
        return {name: getattr(self, name) for name in names.split()}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name].default
