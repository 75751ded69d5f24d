"""How far a module has come on its way to a plan, and what that means for a graph of it without markers.

A graph with markers says itself which sites it holds. One without may be the first of a model that nobody has planned,
a graph of a planned model that happens to hold no site, or the original function on purpose. Which of these it is
depends on the module whose forward the graph is, and this file alone knows it:

| phase | who moves a module there | what the backend does with a graph without markers |
| --- | --- | --- |
| `NOT_PLANNED` | every module starts here | plans it: the first call creates the sites found |
| `REMOVED` | `remove`: only `upgrade` and `restore` give it sites again | compiles it as it is |
| `COLLECTING` | a first call that has created sites | plans it too: other graphs of this forward may hold more |
| `PLANNED` | `upgrade`, `restore`; after a first call the first graph with markers | checks it, compiles it as it is |
| `PART_OF_PLANNED` | `upgrade` and `restore` of a model around it, `connect_stages` | checks it, compiles it as it is |
| `HOLDS_SITES` | nobody: a module in it has sites, by the plan of another module | checks it, compiles it as it is |
| `DISABLED` | `with plain(model)`, until it ends | compiles it as it is |

The check is that nothing of the planned model runs plain unasked (`backend.planned`).
Where the first call finds no site, it warns; not while `COLLECTING`, since the model has sites in another graph.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from torch import nn

from mhc_compile.errors import NotUpgradedError
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites, SiteModule, sites_in

_KEY = "_mhc_phase"  # in the module's own __dict__, so that copies and pickles of it keep their phase
_LEFT_OUT = "_mhc_left_out"  # likewise


class Phase(enum.Enum):
    """How far a module has come; the table above says what each phase means."""

    NOT_PLANNED = enum.auto()
    REMOVED = enum.auto()
    COLLECTING = enum.auto()
    PLANNED = enum.auto()
    PART_OF_PLANNED = enum.auto()
    HOLDS_SITES = enum.auto()
    DISABLED = enum.auto()

    @property
    def plans_graphs(self) -> bool:
        """Whether a graph without markers is planned; otherwise it is compiled as it is."""
        return self in (Phase.NOT_PLANNED, Phase.COLLECTING)


def phase_of(module: nn.Module | None) -> Phase:
    """Return the phase of the module whose forward a graph is; without a module, `NOT_PLANNED`."""
    if module is None:
        return Phase.NOT_PLANNED
    held = [each for each in module.modules() if isinstance(each, OwnerSites)]
    if held and all(sites.disabled for sites in held):
        return Phase.DISABLED
    phase: Phase = vars(module).get(_KEY, Phase.HOLDS_SITES if held else Phase.NOT_PLANNED)
    return phase


def set_planned(model: nn.Module) -> None:
    """Move a model to `PLANNED`, and every module in it to `PART_OF_PLANNED`."""
    for module in model.modules():
        vars(module)[_KEY] = Phase.PART_OF_PLANNED
    vars(model)[_KEY] = Phase.PLANNED


def set_part(module: nn.Module) -> None:
    """Move a module to `PART_OF_PLANNED`, unless it was planned: a stage of a pipeline may be one of the user's own."""
    vars(module).setdefault(_KEY, Phase.PART_OF_PLANNED)


def is_planned(module: nn.Module) -> bool:
    """Tell whether the module is a planned model or was a part of one when that was planned."""
    return vars(module).get(_KEY) in (Phase.PLANNED, Phase.PART_OF_PLANNED) or ATTRIBUTE in module._modules


def sites_of(model: nn.Module) -> list[SiteModule]:
    """Return the sites of an upgraded model, or of a part of one, which may have none.

    Raises:
        NotUpgradedError: it is neither.
    """
    sites = [site for _, site in sites_in(model)]
    if not sites and not is_planned(model):
        raise NotUpgradedError("the model holds no mHC parameters; call mhc_compile.upgrade(model, args) first")
    return sites


def is_collecting(module: nn.Module) -> bool:
    """Tell whether a first call has created sites of some graphs, and others may come."""
    return vars(module).get(_KEY) is Phase.COLLECTING


def leave_out(module: nn.Module, spots: Iterable[str]) -> None:
    """Note which connections of a module's own forward the plan leaves plain, by their places."""
    vars(module)[_LEFT_OUT] = frozenset(spots) | left_out(module)


def left_out(module: nn.Module) -> frozenset[str]:
    """Return the places of the connections that the plan leaves plain in a module's own forward."""
    found: frozenset[str] = vars(module).get(_LEFT_OUT, frozenset())
    return found


def set_collecting(model: nn.Module) -> None:
    """Move a model to `COLLECTING`: a first call has created sites of one of its graphs."""
    vars(model)[_KEY] = Phase.COLLECTING


def close_first_call(module: nn.Module | None) -> None:
    """Move from `COLLECTING` to `PLANNED`: graphs come back with their markers now, so all have been seen once."""
    if module is not None and is_collecting(module):
        vars(module)[_KEY] = Phase.PLANNED


def set_removed(model: nn.Module) -> None:
    """Move a model, and every module in it, to `REMOVED`."""
    for module in model.modules():
        vars(module)[_KEY] = Phase.REMOVED


def forget_phase(module: nn.Module) -> None:
    """Move one module back to `NOT_PLANNED`."""
    vars(module).pop(_KEY, None)
    vars(module).pop(_LEFT_OUT, None)
