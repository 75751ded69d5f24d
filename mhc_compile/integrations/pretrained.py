"""from_pretrained: a model that was saved upgraded, loaded upgraded in one call."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from mhc_compile.api.checkpoints import EXTRA_STATE
from mhc_compile.errors import NotUpgradedError, PlanMismatchError, import_extra
from mhc_compile.model.attach import attach_sites
from mhc_compile.model.plan_text import decode
from mhc_compile.model.sites import ATTRIBUTE
from mhc_compile.plan.model_plan import ModelPlan

M = TypeVar("M")
_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_WEIGHTS = "model.safetensors"
_PLAN = rf"(^|\.){re.escape(EXTRA_STATE)}$"


def from_pretrained(model_class: type[M], folder: str | os.PathLike[str], *args: Any, **kwargs: Any) -> M:
    """Load a model that was upgraded when its `save_pretrained` wrote it; plan and options are the checkpoint's.

    The sites are created before the weights are read, so the library loads theirs with all others: from shards, onto
    the devices of a `device_map`, under names that it has changed. They stay fp32 in a model of 16 bits. A body may be
    loaded from the checkpoint of a model with a head, and the other way round.

    Args:
        model_class: the model's class, or one of transformers' Auto classes.
        folder: a folder, or the name of a repository on the hub, with weights in safetensors.
        args: for the class's own `from_pretrained`.
        kwargs: likewise.

    Returns:
        What the class's own `from_pretrained` returns.

    Raises:
        NotUpgradedError: the model was not upgraded when it was saved.
        PlanMismatchError: the plan does not fit this class, or the weights lack some of its parameters.
        MissingDependencyError: safetensors is not installed.
    """
    plan = _plan(os.fspath(folder), kwargs)
    loading = _loading(_concrete(cast("Any", model_class), folder, kwargs), plan)
    told = kwargs.pop("output_loading_info", False)
    made, info = loading.from_pretrained(folder, *args, output_loading_info=True, **kwargs)
    del cast("Any", made).mhc.set_extra_state
    lost = sorted(
        key for key in info["missing_keys"] if f".{ATTRIBUTE}." in f".{key}" and not key.endswith(EXTRA_STATE)
    )
    if lost:
        raise PlanMismatchError(
            f"the weights in {os.fspath(folder)!r} lack {len(lost)} parameters of the plan's hyper-connections, such as"
            f" {lost[0]}; save the upgraded model anew"
        )
    return cast("M", (made, info) if told else made)


def _loading(concrete: Any, plan: ModelPlan) -> Any:
    """Return the class while it is loaded: its instances get their sites when they are made, and their own class."""

    @functools.wraps(concrete.__init__)  # diffusers reads the signature
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        concrete.__init__(self, *args, **kwargs)
        self.__class__ = concrete
        attach_sites(self, _fitting(plan, self))
        _prepare(self)

    names = {name: getattr(concrete, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(concrete)(concrete.__name__, (concrete,), {**names, "__init__": init})


def _prepare(model: Any) -> None:
    """Tell the library to load sites in fp32, whatever dtype it is asked for, and to let the plan be, which is read."""
    model.mhc.set_extra_state = lambda state: None
    ours = {"_keep_in_fp32_modules_strict": ATTRIBUTE}
    ours |= dict.fromkeys(("_keys_to_ignore_on_load_missing", "_keys_to_ignore_on_load_unexpected"), _PLAN)
    for name, pattern in ours.items():
        setattr(model, name, {*(getattr(model, name, None) or ()), pattern})


def _concrete(model_class: Any, folder: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return the class that an Auto class stands for here: that of the model which it makes from the config."""
    if not hasattr(model_class, "_model_mapping"):
        return model_class
    transformers = _transformers()
    trust = {name: kwargs[name] for name in ("trust_remote_code",) if name in kwargs}
    config = kwargs.get("config")
    if config is None or isinstance(config, (str, os.PathLike)):
        hub = {name: kwargs[name] for name in _HUB if name in kwargs}
        config = transformers.AutoConfig.from_pretrained(config or folder, **hub, **trust)
    with torch.device("meta"):
        return type(model_class.from_config(config, **trust))


def _fitting(plan: ModelPlan, model: nn.Module) -> ModelPlan:
    """Return the plan with the paths of a model which may be the body, or have a head more, than the one saved."""
    known, prefix = dict(model.named_modules()), f"{getattr(model, 'base_model_prefix', '')}."
    for change in (str, lambda path: path.removeprefix(prefix), lambda path: (prefix + path).rstrip(".")):
        moved = plan.moved(change)
        if moved.lost_owner(known) is None:
            return moved
    raise PlanMismatchError(
        f"the checkpoint's plan has sites in {plan.lost_owner(known)!r}, which {type(model).__name__} does not have;"
        " load the class that was saved"
    )


def _plan(folder: str, kwargs: Mapping[str, Any]) -> ModelPlan:
    """Read the plan that stands among the weights."""
    safe_open = _safe_open()
    for file in _files(folder, kwargs):
        with safe_open(file, framework="pt") as opened:
            name = next(filter(re.compile(_PLAN).search, opened.keys()), None)
            if name is not None:
                return ModelPlan.from_json(decode(opened.get_tensor(name)))
    raise NotUpgradedError(
        f"the weights in {folder!r} hold no plan of hyper-connections ({EXTRA_STATE}), so the model was not upgraded"
        " when it was saved, or not as safetensors: load it by from_pretrained of its class, and upgrade it then"
    )


def _files(folder: str, kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Iterate over the files of weights among which the plan is."""
    if os.path.isdir(folder):
        yield from map(str, sorted(Path(folder, kwargs.get("subfolder") or "").glob("*.safetensors")))
        return
    cached_file, hub = _transformers().utils.cached_file, {name: kwargs[name] for name in _HUB if name in kwargs}
    with contextlib.suppress(OSError):
        index = json.loads(Path(cached_file(folder, f"{_WEIGHTS}.index.json", **hub)).read_text("utf-8"))
        for name in {shard for key, shard in index["weight_map"].items() if key.endswith(EXTRA_STATE)}:
            yield cached_file(folder, name, **hub)
        return
    yield cached_file(folder, _WEIGHTS, **hub)


def _transformers() -> Any:
    return import_extra("transformers", "this needs transformers: pip install 'mhc_compile[hugging-face]'")


def _safe_open() -> Any:
    return import_extra("safetensors", "weights are read by safetensors: pip install 'mhc_compile[adapters]'").safe_open
