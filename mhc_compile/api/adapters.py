"""Adapters: the hyper-connections of a model alone, in one file of safetensors, and the base model untouched."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mhc_compile.api.report import Report
from mhc_compile.api.wrappers import gathered, inner, is_planned, planned, shapes, shown_sites
from mhc_compile.errors import AdapterError, NotUpgradedError, PlanMismatchError, import_extra
from mhc_compile.model.attach import attach_sites, detach_sites
from mhc_compile.model.line_names import same_sites
from mhc_compile.model.sites import ATTRIBUTE, HEAD_PARTS, PARTS
from mhc_compile.passes.base import site_name
from mhc_compile.plan.model_plan import ModelPlan, SitePlan, options_that_differ

FORMAT = 1
KEY = "mhc_compile"  # of safetensors' metadata


def save_adapter(model: nn.Module, file: str | os.PathLike[str]) -> None:
    """Save the hyper-connections of a model alone: parameters, plan and options, in one file of safetensors.

    The file holds what `load_adapter` needs beside the base model, 0.4 % of a Llama's size at C = 4096. Of sites that
    a library has wrapped, such as PEFT's `modules_to_save`, those are saved that run. Under FSDP2 every process must
    call this, each with a file of its own.

    Args:
        model: an upgraded model, or a wrapper around one (torch.compile's, PEFT's, DDP's).
        file: where to; a file that is there already is replaced, once the new one is whole.

    Raises:
        NotUpgradedError: the model holds no plan, or no values (it is on the meta device).
        MissingDependencyError: safetensors is not installed.
    """
    save = _safetensors().torch.save_file
    root, plan = planned(model)
    tensors: dict[str, Tensor] = {}
    config = plan.config
    for site, shown in shown_sites(root, plan):
        for part in _parts(site):
            tensors[_name(site, part)] = _whole(getattr(shown, part), site)
        config = shown.config
    plan = dataclasses.replace(plan, config=config)
    note = {"format": FORMAT, "plan": plan.to_json(), "shapes": shapes(root, plan)}
    folder, name = os.path.split(os.path.abspath(file))
    with tempfile.TemporaryDirectory(prefix=f".{name}", dir=folder) as beside:
        save(tensors, os.path.join(beside, name), {"format": "pt", KEY: json.dumps(note)})
        os.replace(os.path.join(beside, name), os.path.join(folder, name))


def load_adapter(model: nn.Module, file: str | os.PathLike[str]) -> Report:
    """Give a model the hyper-connections of a file that `save_adapter` has written.

    The base model stays as it is; it may be on the meta device, and hyper-connections then get their values all the
    same: fill the base by `load_state_dict(..., assign=True, strict=False)`, not by `to_empty`, which empties all.

    Args:
        model: the base model, or a wrapper around it; it may have been upgraded before, with the same plan.
        file: the adapter.

    Returns:
        The sites.

    Raises:
        AdapterError: the file is no adapter, is damaged, or has the format of another release.
        PlanMismatchError: it does not fit: another model, other shapes, or the model was upgraded with another plan.
        MissingDependencyError: safetensors is not installed.
    """
    adapter = Adapter.read(file)
    again = is_planned(model)
    root, plan = planned(model) if again else (inner(model), adapter.plan)
    adapter.check_fits(root)
    if again:
        adapter.check_same(plan)
    else:
        attach_sites(root, plan)
    try:
        with torch.no_grad():
            for site, shown in shown_sites(root, plan):
                for part in _parts(site):
                    _fill(shown, part, adapter.tensors[_name(site, part)])
    except BaseException:
        if not again:
            detach_sites(root)
        raise
    return Report.of_plan(plan, root)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What a file of an adapter holds.

    Attributes:
        file: its path, for messages.
        plan: the plan, with its options.
        tensors: parameters and base of every site, by their names in a state_dict.
        shapes: those of the owners' own parameters, by name.
    """

    file: str
    plan: ModelPlan
    tensors: Mapping[str, Tensor]
    shapes: Mapping[str, list[int]]

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Adapter:
        """Read a file and check that it is whole."""
        file, library = os.fspath(file), _safetensors()
        try:
            with library.safe_open(file, framework="pt") as opened:
                note = json.loads((opened.metadata() or {}).get(KEY, "null"))
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        except (library.SafetensorError, ValueError) as error:
            raise AdapterError(
                f"{file} is no whole file of safetensors ({error}); save it anew by mhc_compile.save_adapter"
            ) from None
        if not isinstance(note, dict) or "format" not in note:
            raise AdapterError(
                f"{file} is no adapter of mhc_compile.save_adapter (of PEFT, or a whole model?); the state_dict of an"
                " upgraded model is read by mhc_compile.restore, a folder of Hugging Face's by"
                " mhc_compile.from_pretrained"
            )
        if note["format"] != FORMAT:
            raise AdapterError(
                f"{file} has format {note['format']} of adapters, this mhc_compile reads {FORMAT}; install the release"
                " that wrote it"
            )
        plan = ModelPlan.from_json(note["plan"])
        lost = [
            name for site in plan.sites for name in (_name(site, part) for part in _parts(site)) if name not in tensors
        ]
        if lost:
            raise AdapterError(f"{file} lacks {lost[0]}, which its plan has; save it anew by mhc_compile.save_adapter")
        return cls(file, plan, tensors, note["shapes"])

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model that is another one than that whose hyper-connections these are."""
        lost = self.plan.lost_owner(dict(model.named_modules()))
        if lost is not None:
            raise PlanMismatchError(
                f"{self.file} has a hyper-connection in {lost!r}, which this {type(model).__name__} does not"
                " have; load it into the model that it was saved from"
            )
        ours = shapes(model, self.plan)
        same = [name for name in self.shapes if name in ours]
        if self.shapes and not same:
            raise PlanMismatchError(
                f"{self.file} is of another model: this {type(model).__name__} has none of its parameters, such as"
                f" {next(iter(self.shapes))}; load it into the model that it was saved from"
            )
        for name in same:
            if ours[name] != self.shapes[name]:
                theirs, mine = ("x".join(map(str, sizes)) for sizes in (self.shapes[name], ours[name]))
                raise PlanMismatchError(
                    f"{self.file} is of a model in which {name} is {theirs}, and here it is {mine}; load it into the"
                    " model that it was saved from"
                )

    def check_same(self, plan: ModelPlan) -> None:
        """Refuse a model that was upgraded with another plan."""
        differ = options_that_differ(plan.config.function(), self.plan.config.function())
        sites = [[site.identity() for site in each.sites] for each in (self.plan, plan)]
        if differ or not same_sites(*sites):
            what = f"other values of {', '.join(differ)}" if differ else "other sites"
            raise PlanMismatchError(
                f"the model was upgraded with {what} than {self.file} has; mhc_compile.remove(model) first, or load"
                " the adapter into a model that was not upgraded"
            )


def _parts(site: SitePlan) -> tuple[str, ...]:
    return PARTS + HEAD_PARTS if site.head else PARTS


def _name(site: SitePlan, part: str) -> str:
    return site_name(site.owner, f"{ATTRIBUTE}.{site.label}.{part}")


def _whole(tensor: Any, site: SitePlan) -> Tensor:
    """Return what a parameter holds."""
    if tensor.is_meta:
        raise NotUpgradedError(f"site {site.name!r} is on the meta device, so there are no values to save")
    return gathered(tensor)


def _fill(site: nn.Module, part: str, value: Tensor) -> None:
    """Set a parameter or buffer; one on the meta device is replaced by one with values."""
    held = getattr(site, part)
    if not held.is_meta:
        held.copy_(value)
        return
    value = value.to(held.dtype)
    learned = isinstance(held, nn.Parameter)
    setattr(site, part, nn.Parameter(value, requires_grad=held.requires_grad) if learned else value)


def _safetensors() -> Any:
    remedy = "adapters are files of safetensors: pip install 'mhc_compile[adapters]'"
    import_extra("safetensors.torch", remedy)  # an attribute of the package from now on
    return import_extra("safetensors", remedy)
