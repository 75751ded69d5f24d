"""What a frame's graph has to do with planned models: what it runs of them, and that none of it runs plain unasked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import fx, nn

from mhc_compile.capture.frames import is_in_parts, module_called
from mhc_compile.config import Config
from mhc_compile.errors import PlanMismatchError, SiteNotFoundError
from mhc_compile.model.phase import is_collecting, is_planned, left_out
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites, RootSites, sites_in
from mhc_compile.model.subclasses import known
from mhc_compile.passes.base import Residual
from mhc_compile.passes.bind_sites import markers
from mhc_compile.passes.graph.walk import calls, stacks
from mhc_compile.passes.plan_streams import excluded

_AGAIN = (
    "mhc_compile.remove(model) and upgrade it as it is now. (A trained model can be saved, and restored into a model of"
    " the new shape by mhc_compile.restore, before)"
)


@dataclasses.dataclass(frozen=True)
class Planned:
    """The modules of planned models whose forwards a frame's graph runs.

    Attributes:
        root: the module whose forward the frame is, if it is a module's.
        called: the other modules that the frame runs, by their ids as text.
        parted: True where a graph break cuts the frame.
        whole: True where the frame runs all of a planned model's forward.
    """

    root: nn.Module | None = None
    called: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)
    parted: bool = False
    whole: bool = False

    @classmethod
    def of(cls, gm: fx.GraphModule, root: nn.Module | None) -> Planned:
        """Read a graph of Dynamo's, while Dynamo compiles its frame.

        A break inside of a module's forward ends the graph in front of its call, so a call that is in a graph is there
        from end to end.
        """
        remembered, called = known(), dict[str, nn.Module]()
        for key, source in dict.fromkeys(entry for stack in stacks(gm) for entry in stack):
            number = key.partition("@")[0]
            if number not in called and (module := remembered.get(number) or module_called(source, number)) is not None:
                called[number] = module
        parted = is_in_parts(gm)
        whole = (_is_whole(root) and not parted) or any(map(_is_whole, called.values()))
        return cls(root, called, parted, whole)

    @property
    def models(self) -> list[nn.Module]:
        """The planned models that the frame runs."""
        return [module for module in (self.root, *self.called.values()) if module is not None and _holds_plan(module)]

    @property
    def any(self) -> bool:
        """Whether the frame runs something of a planned model, which is neither disabled nor still to be seen whole."""
        modules = [module for module in (self.root, *self.called.values()) if module is not None]
        return any(map(is_planned, modules)) and not any(_is_disabled(m) or is_collecting(m) for m in modules)

    def check(self, gm: fx.GraphModule) -> None:
        """Refuse a graph that runs an owner whose sites were not marked, or a model whose sites were moved.

        Raises:
            SiteNotFoundError: an owner's forward has run without its sites.
            PlanMismatchError: the model's sites are not those of its plan.
        """
        for model in self.models:
            _check_sites(model)
        marked = {calls(marker)[-1:] for module in gm.modules() for marker in markers(module)}
        for stack in stacks(gm):
            for entry in stack:
                owner = self._module(entry)
                if owner is not None and _has_sites(owner) and (entry,) not in marked:
                    raise SiteNotFoundError(_bypassed(owner))
        if self.root is not None and "forward" in vars(self.root) and _has_sites(self.root) and () not in marked:
            raise SiteNotFoundError(_bypassed(self.root))

    def stays_plain(self, residual: Residual, config: Config) -> bool:
        """Tell whether a connection without a site is left alone: outside of planned models, or as their plans say."""
        around = [*map(self._module, calls(residual.total))]
        modules = [module for module in (self.root, *around) if module is not None]
        if not any(map(is_planned, modules)) or any(map(_is_disabled, modules)):
            return True
        own = around[-1] if around else self.root
        if own is not None and str(residual.spot) in left_out(own):
            return True
        return excluded(residual.name, 0, config)

    def _module(self, entry: tuple[str, str]) -> nn.Module | None:
        return self.called.get(entry[0].partition("@")[0])


def _holds_plan(module: nn.Module | None) -> bool:
    return module is not None and isinstance(module._modules.get(ATTRIBUTE), RootSites)


def _is_whole(module: nn.Module | None) -> bool:
    """Tell whether a module holds a plan and all sites of it."""
    held = module._modules.get(ATTRIBUTE) if module is not None else None
    return isinstance(held, RootSites) and held.kept is None


def _is_disabled(module: nn.Module) -> bool:
    held = module._modules.get(ATTRIBUTE)
    return isinstance(held, OwnerSites) and held.disabled


def _has_sites(module: nn.Module) -> bool:
    held = module._modules.get(ATTRIBUTE)
    return held is not None and any(sites_in(held)) and not getattr(held, "disabled", False)


def _bypassed(owner: nn.Module) -> str:
    name, kind = next((site.path for _, site in sites_in(owner)), ATTRIBUTE), type(owner).__name__
    return (
        f"site {name!r} is in the plan, but {kind}, which owns it, ran here without it: its forward was replaced after"
        " the upgrade (by a library of kernels or hooks, or by hand). Replace it first, then upgrade:"
        " mhc_compile.remove(model), replace, upgrade"
    )


def _check_sites(model: nn.Module) -> None:
    """Check that every site of a model's plan is where the plan says, and no other."""
    held = model._modules[ATTRIBUTE]
    assert isinstance(held, RootSites)
    names = [str(site["name"]) for site in held.sites_of_plan()]
    planned = {name: name.rpartition(".")[0] for name in names}
    found = set()
    for path, site in sites_in(model):
        owner = f".{path}".rpartition(f".{ATTRIBUTE}.")[0].removeprefix(".")
        stays = held.kept is not None or _is_within(planned.get(site.path, ""), owner)  # a stage may number layers anew
        if site.path not in planned or not stays:
            raise PlanMismatchError(
                f"{owner or 'the model'!r} holds site {site.path!r}, which is not its place in the plan: layers were"
                f" added, moved, copied or taken away since upgrade; {_AGAIN}"
            )
        found.add(site.path)
    lost = next((name for name in planned if name not in found), None)
    if lost is not None:
        raise PlanMismatchError(
            f"site {lost!r} is in the plan, but the model has it no more: its layer was replaced or taken away since"
            f" upgrade; {_AGAIN}"
        )


def _is_within(planned: str, owner: str) -> bool:
    """Tell whether a path is another one with steps of wrappers in between, such as `_checkpoint_wrapped_module`."""
    steps = iter(owner.split("."))
    return not planned or all(step in steps for step in planned.split("."))
