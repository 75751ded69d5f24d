"""Config: what to build at every site. Frozen, validated, every field also a torch.compile option."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from mhc_compile.errors import ConfigError, PlanMismatchError

CHOICES: dict[str, tuple[str, ...]] = {
    "connection": ("mhc", "deepseek-v4", "hc", "residual"),
    "readout": ("mean", "learned"),
    "kernels": ("auto", "triton", "cpp", "reference"),
    "compiler": ("inductor", "aot_eager", "eager"),
}
# fields of earlier versions, which had one value each; plans in checkpoints still name them
RETIRED = {"convention": "paper", "init": "home"}
_FUNCTION = ("streams", "connection", "projection", "sinkhorn_iters", "eps", "alpha", "readout")
_ADDED = {"readout": "mean"}  # of _FUNCTION, what plans of earlier versions lack, and what these built
_CHOICE = ("include", "exclude", "every", "split")
_UNITS = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_BUDGET = re.compile(rf"memory: *(\d+(?:\.\d+)?(?:e\d+)?) *({'|'.join(_UNITS)})", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Config:
    """What the rewrite builds.

    Attributes:
        streams: number n of residual streams, any integer >= 1 (1 leaves the model as it is).
        connection: "mhc" (arXiv 2512.24880), "deepseek-v4" (the same as DeepSeek-V4 computes it, with an eps in H_pre
            and in every sum of Sinkhorn), "hc" (unconstrained, arXiv 2409.19606) or "residual" (no rewrite).
        projection: registered map from logits to H_res, "sinkhorn" or "identity" (not of hc).
        sinkhorn_iters: iterations of the Sinkhorn projection; each scales columns, then rows (paper Eq. 9).
        eps: added to the mean square inside the norm of the streams (paper Eq. 15).
        alpha: gate of the dynamic part at the start; "auto" is 0.01 * 8192 / (n C), at most 1.
        readout: what ends a region: "mean" over the streams, or "learned", weights made of the streams by a head with
            parameters of its own (not for "hc").
        include: glob patterns of site names to rewrite.
        exclude: glob patterns of site names to leave alone.
        every: rewrite every k-th site only.
        split: glob patterns of site names. A region ends, and a new one starts, in front of a site that matches one
            where the site before does not: `"layers.8.*"` starts one with layer 8.
        recompute: what a training step keeps of the streams. "auto": the paper's optimum; in generated kernels the
            least of bytes kept plus moved. A number L_r >= 1: blocks of L_r sites, each of which keeps the streams of
            its first site only. "off": the compiler decides. A budget, "memory:2GiB" (or MiB, KiB, GB, MB, kB, B) or a
            fraction up to 1.0 of what blocks of one site keep: the cheapest plan that fits.
        kernels: "auto" (in Triton on CUDA devices, in C++ on CPUs, plain torch where neither can run), "triton" or
            "cpp" (these, an error where they cannot run) or "reference" (plain torch).
        compiler: who compiles the rewritten graph: "inductor", "aot_eager" or "eager" (for debugging).
        inductor: Inductor options, as a mapping.

    Raises:
        ConfigError: a value is of the wrong type or out of range.
    """

    streams: int = 4
    connection: str = "mhc"
    projection: str = "sinkhorn"
    sinkhorn_iters: int = 20
    eps: float = 1e-6
    alpha: float | str = 0.01
    readout: str = "mean"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    every: int = 1
    split: tuple[str, ...] = ()
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
        if self.readout == "learned" and self.connection == "hc":
            raise ConfigError(
                "readout='learned' weighs the streams by a sigmoid of all of them, which connection='hc' knows nothing"
                " of; use connection='mhc', or readout='mean'"
            )
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
        for name in ("include", "exclude", "split"):
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
            if name in RETIRED:
                other = ", or choose connection='deepseek-v4'" if name == "convention" else ""
                raise ConfigError(
                    f"option {name!r} is gone, since {RETIRED[name]!r} was its one value; leave it out{other}"
                )
            if name not in fields:
                near = difflib.get_close_matches(str(name), sorted(fields), 1)
                hint = (
                    f"; did you mean {near[0]!r}?"
                    if near
                    else f"; the options are {', '.join(sorted(fields))}."
                    f" One of Inductor's own goes into inductor={{{name!r}: ...}}"
                )
                raise ConfigError(f"unknown option {name!r}{hint}")
        return dataclasses.replace(base or cls(), **dict(options or {}))

    @classmethod
    def from_function(cls, function: Mapping[str, Any]) -> Config:
        """Build a Config from what `function` returned, here or in an earlier version.

        Raises:
            PlanMismatchError: it asks for something that this version cannot build.
        """
        try:
            return cls.from_options(current_function(function))
        except ConfigError as error:
            raise PlanMismatchError(
                f"the plan asks for what this mhc_compile cannot build ({error}); install the release that wrote it, or"
                " upgrade the model anew and load its own weights only"
            ) from None

    @property
    def rewrites(self) -> bool:
        """Whether a model gets hyper-connections at all: of more than one stream, and not "residual"."""
        return self.connection != "residual" and self.streams > 1

    def budget(self) -> float | None:
        """Return the memory that the streams may take: a fraction (up to 1.0), bytes (above), None without a budget.

        Raises:
            ConfigError: `recompute` is none of its values.
        """
        asked = self.recompute
        if asked in ("auto", "off") or (isinstance(asked, int) and not isinstance(asked, bool) and asked >= 1):
            return None
        if isinstance(asked, float) and 0 < asked <= 1:
            return asked
        found = _BUDGET.fullmatch(asked) if isinstance(asked, str) else None
        if found is None or (size := float(found[1]) * _UNITS[found[2].lower()]) <= 1:
            raise ConfigError(
                f"recompute must be 'auto', 'off', a number of sites >= 1, a fraction such as 0.5, or a budget such as"
                f" 'memory:2GiB', not {asked!r}"
            )
        return size

    def choice(self) -> dict[str, Any]:
        """Return the fields that choose sites, and are used by upgrade alone."""
        return {name: getattr(self, name) for name in _CHOICE}

    def build(self) -> dict[str, Any]:
        """Return the fields that say how the function is compiled, which torch.compile's options may change."""
        names = (field.name for field in dataclasses.fields(self))
        made = {name: getattr(self, name) for name in names if name not in _FUNCTION + _CHOICE}
        return made | {"inductor": dict(self.inductor)}

    def chosen_build(self) -> dict[str, Any]:
        """Return what of `build` is not the default."""
        standard = Config().build()
        return {name: value for name, value in self.build().items() if value != standard[name]}

    def splits(self, before: str, after: str) -> bool:
        """Tell whether a region ends between two sites that share streams otherwise."""
        return any(fnmatchcase(after, glob) and not fnmatchcase(before, glob) for glob in self.split)

    def function(self) -> dict[str, Any]:
        """Return the fields that define the model's parameters and function, as JSON-ready values."""
        return {name: getattr(self, name) for name in _FUNCTION}


def current_function(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return `Config.function()` of an earlier version as this version says it.

    Fields that are gone are left out, and those that came since have what it built.

    Raises:
        PlanMismatchError: such a field has another value than the one that is left.
    """
    for name, value in RETIRED.items():
        if function.get(name, value) != value:
            raise PlanMismatchError(
                f"the plan was made with {name}={function[name]!r}, but this mhc_compile knows {value!r} only; install"
                " the release that wrote it, or upgrade the model anew and load its own weights only"
            )
    return _ADDED | {name: value for name, value in function.items() if name not in RETIRED}


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name].default
