"""The modules that hold the parameters of sites, and the markers that bring these into graphs.

A `SiteModule` holds one site. An owner's `mhc` is an `OwnerSites`, which holds the owner's sites; that of the model
itself is the `RootSites`, which holds the plan, too.
"""

from __future__ import annotations

import dataclasses
import json
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from mhc_compile.config import Config, current_function
from mhc_compile.errors import NotCompiledError, PlanMismatchError, ShardedParametersError
from mhc_compile.model import start_values
from mhc_compile.model.line_names import renamed, same_sites
from mhc_compile.model.plan_text import PlanText, decode, encode
from mhc_compile.ops import connections
from mhc_compile.ops.connections import Maps

ATTRIBUTE = "mhc"  # where an owner keeps its sites
PARTS = ("phi", "alpha", "bias", "base")  # of a site
HEAD_PARTS = tuple(f"head_{part}" for part in PARTS)  # of its head, where it has one
BUFFERS = (PARTS[-1], HEAD_PARTS[-1])  # the others are parameters


@dataclasses.dataclass(frozen=True)
class Flow:
    """How streams flow through a site of the plan. Equal layers share code but not this, so no graph can hold it.

    Attributes:
        plan: the plan; None where it is not known.
        successors: number of sites that continue its streams; None where it is not known.
        starts: True where streams start here with a tensor that carried none when the model was upgraded.
        region: index of the site's region.
    """

    plan: PlanText | None = None
    successors: int | None = None
    starts: bool = False
    region: int = 0


def part_shapes(config: Config, channels: int, head: bool) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a site's parameters and buffers, by name; with those of its head where it has one."""
    kind, n = connections.get(config.connection), config.streams
    phi, width = kind.phi_shape(Maps.of(config), channels), start_values.bias(start_values.Place(0, 1), config).shape
    found: dict[str, tuple[int, ...]] = dict(zip(PARTS, (phi, (kind.gates(),), width, width), strict=True))
    return found | dict(zip(HEAD_PARTS, ((n * channels, n), (1,), (n,), (n,)), strict=True)) if head else found


class SiteModule(nn.Module):
    """The parameters of one hyper-connection: fp32 whatever the model's dtype (fp64 after `.double()`).

    Shapes are those of "mhc" with n streams of C features; "hc" has others (`ops.connections`).

    Attributes:
        spot: where in its owner the site stands, as text (`passes.base.Spot`).
        region: index of the region.
        phi: projection of the streams, `[nC, n^2 + 2n]` (paper Eq. 14).
        alpha: gates of the dynamic part, `[3]`.
        bias: learned change of the bias, `[n^2 + 2n]`, so that weight decay pulls towards the original function.
        base: the bias at the start, `[n^2 + 2n]`, a buffer.
        has_head: True where a learned readout ends the streams behind the site. It has further parameters, with the
            same meaning: `head_phi` `[nC, n]`, `head_alpha` `[1]`, `head_bias` `[n]` and the buffer `head_base` `[n]`.
    """

    phi: nn.Parameter
    alpha: nn.Parameter
    bias: nn.Parameter
    base: Tensor
    head_base: Tensor
    place: start_values.Place
    flow = Flow()
    spot = ""  # of modules that an older release has pickled
    region = 0
    has_head = False
    sums_gradients = False  # over processes that have other tokens, by hooks

    def __init__(
        self,
        path: str,
        label: str,
        place: start_values.Place,
        channels: int,
        config: Config,
        entry: bool,
        spot: str = "",
        region: int = 0,
        head: bool = False,
    ) -> None:
        """Create the parameters at their starting values, on torch's default device.

        Args:
            path: name in the model, `owner.label`.
            label: name within the owner.
            place: position in the region.
            channels: number C of features.
            config: what is built.
            entry: True where the region starts here, so that x is copied into the streams.
            spot: where in its owner it stands.
            region: index of the region.
            head: True where a learned readout ends the streams here.
        """
        super().__init__()
        self.path, self.label, self.place, self.channels = path, label, place, channels
        self.spot, self.region, self.has_head = spot, region, head
        self.entry = entry
        self.use(config)
        for name, shape in part_shapes(config, channels, head).items():
            tensor = torch.empty(shape, dtype=torch.float32)  # without values yet
            if name in BUFFERS:
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, nn.Parameter(tensor))
        self.reset_parameters()
        _SITES.add(self)

    def use(self, config: Config) -> None:
        """Take a config of the same function: what it says of the compilation is what torch.compile's options do not.

        Compiled code is guarded by `spec`, since equal layers share it.
        """
        self.config, build = config, config.chosen_build()
        self.spec = json.dumps({**config.function(), **({"build": build} if build else {})}, sort_keys=True)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Be known again after a copy or a load."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _SITES.add(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the values at which the model computes what it computed before the upgrade."""
        for name, parameter in self.named_parameters():
            parameter.fill_(self._start(name))
        self.base.copy_(start_values.bias(self.place, self.config))
        if self.has_head:
            self.head_base.copy_(start_values.head_bias(self.config))

    @torch.no_grad()
    def has_moved(self) -> bool:
        """Tell whether training has changed a parameter."""
        return any(bool((parameter != self._start(name)).any()) for name, parameter in self.named_parameters())

    def _start(self, name: str) -> float:
        """Return the value at the start; a gate's as fp32 holds it, so that it is the same after `.double()`."""
        if not name.endswith("alpha"):
            return 0.0
        return torch.tensor(start_values.alpha(self.config, self.channels), dtype=torch.float32, device="cpu").item()

    @property
    def is_sharded(self) -> bool:
        """Whether the parameters are DTensors, as FSDP2 makes them."""
        return isinstance(getattr(self.phi, "placements", None), tuple)

    def mark(self) -> None:
        """Make the parameters inputs of the graph that is being captured.

        Raises:
            NotCompiledError: nothing is being captured.
            ShardedParametersError: FSDP2 has not gathered the parameters.
        """
        if self.is_sharded:
            raise ShardedParametersError(f"the parameters of site {self.path!r} are sharded here")
        if not torch.compiler.is_dynamo_compiling():
            raise NotCompiledError(self.path, transformed=torch._C._are_functorch_transforms_active())
        parameters = [getattr(self, name) for name in (PARTS + HEAD_PARTS if self.has_head else PARTS)]
        torch.ops.mhc.site.default(parameters, self.label, self.spec, self.entry, self.spot)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def move(tensor: Tensor) -> Tensor:
            """Move, but keep 32 bits: coefficients in 16 would not sum to 1."""
            made = fn(tensor)
            narrow = made.is_floating_point() and made.dtype.itemsize < torch.float32.itemsize
            return tensor.to(made.device, torch.float32) if narrow else made

        _HOLDERS.pop(self.phi, None)  # torch swaps no tensor to which something refers weakly
        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def extra_repr(self) -> str:
        """Show the site's place and sizes."""
        return f"k={self.place.k}, L={self.place.length}, streams={self.config.streams}, channels={self.channels}"


def sites_in(module: nn.Module) -> Iterator[tuple[str, SiteModule]]:
    """Iterate over the sites of a module and of all in it, with their paths; also over those that are wrapped."""
    return ((path, each) for path, each in module.named_modules() if isinstance(each, SiteModule))


_SITES: weakref.WeakSet[SiteModule] = weakref.WeakSet()  # a graph's inputs are tensors, which know no module
_HOLDERS: Any = WeakIdKeyDictionary()  # what holder() found; a hint only, since FSDP2 replaces a site's phi unasked


def holder(phi: Any) -> SiteModule | None:
    """Return the site that holds this very phi. Every graph that a site is in has its phi among the inputs."""
    if not isinstance(phi, Tensor):
        return None
    known = _HOLDERS.get(phi)
    site = known() if known is not None else None
    if site is None or site.phi is not phi:
        site = next((each for each in list(_SITES) if each.phi is phi), None)
        if site is not None:
            _HOLDERS[phi] = weakref.ref(site)
    return site


class OwnerSites(nn.Module):
    """The sites of one owner, `owner.mhc.<label>`; where they are `disabled`, the owner runs its original function."""

    def __init__(self) -> None:
        """Start without sites."""
        super().__init__()
        self.disabled = False

    def add(self, site: SiteModule) -> None:
        """Register a site under its label, with an underscore where this module needs the name itself."""
        self.add_module(site.label + "_" * hasattr(self, site.label), site)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Read names of older releases, too."""
        theirs = (name.removeprefix(prefix).partition(".")[0] for name in state_dict if name.startswith(prefix))
        for old, new in renamed((name for name in theirs if name != "_extra_state"), self._modules).items():
            for name in [name for name in state_dict if name.startswith(f"{prefix}{old}.")]:
                state_dict[f"{prefix}{new}{name.removeprefix(prefix + old)}"] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: Tensor) -> Tensor:
        """Return x: a Sequential that owns sites calls its children, this one included."""
        return x

    def sites(self) -> Iterator[SiteModule]:
        """Iterate over the sites in program order, also over those that a library has wrapped."""
        return (site for _, site in sites_in(self))

    def mark(self) -> None:
        """Mark every site, unless they are disabled.

        Of a wrapped site, the one is marked that the wrapper shows, such as the copy that PEFT trains.

        Raises:
            NotCompiledError: nothing is being captured.
            ShardedParametersError: FSDP has not gathered the parameters.
        """
        if not self.disabled:
            shown: Any
            for shown in self.children():
                shown.mark()


class RootSites(OwnerSites):
    """The sites of the model itself, and the plan of all sites, which state_dict carries along.

    Attributes:
        is_one_graph: True where upgrade saw no graph break in the model's forward.
        kept: names of the sites of the plan that are here, where the model is one stage of a pipeline; else None.
    """

    is_one_graph = False
    kept: frozenset[str] | None = None

    def __init__(self, plan: str) -> None:
        """Hold the plan as its JSON text."""
        super().__init__()
        self.text = plan

    def sites_of_plan(self) -> list[dict[str, Any]]:
        """Return what identifies each site of the plan; in a stage of a pipeline, each that it keeps."""
        sites: list[dict[str, Any]] = json.loads(self.text)["sites"]
        return [site for site in sites if self.kept is None or site["name"] in self.kept]

    def get_extra_state(self) -> Tensor:
        """Return the plan as bytes in a uint8 tensor, which every checkpoint format can hold."""
        return encode(self.text)

    def set_extra_state(self, state: Any) -> None:
        """Check that a checkpoint was made for the sites that the model has.

        Raises:
            PlanMismatchError: it was made for others, or with options that are gone.
        """
        theirs, ours = json.loads(decode(state)), json.loads(self.text)
        if "function" in theirs:
            theirs["function"] = current_function(theirs["function"])
        same = {key: theirs.get(key) == ours[key] for key in ("version", "function")}
        same["sites"] = same_sites(theirs.get("sites", ()), ours["sites"])
        for key, is_same in same.items():
            if not is_same:
                raise PlanMismatchError(
                    f"the checkpoint was made for another plan (its {key} differ). Load it into a model without mHC"
                    " parameters by mhc_compile.restore(model, state_dict), which rebuilds the checkpoint's own plan."
                )
