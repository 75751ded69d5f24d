"""upgrade: run once, plan, register parameters, verify."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from mhc_compile.api.explain import survey
from mhc_compile.api.report import Report
from mhc_compile.api.wrappers import inner
from mhc_compile.backend import mhc
from mhc_compile.capture.frames import original
from mhc_compile.capture.model_run import Captured, run_captured
from mhc_compile.config import Config
from mhc_compile.errors import (
    AlreadyUpgradedError,
    ConfigError,
    ConfigMismatchError,
    UnsupportedModelError,
    VerificationError,
    warn,
)
from mhc_compile.model import config_note
from mhc_compile.model.attach import attach_sites, detach_sites
from mhc_compile.model.sites import ATTRIBUTE, OwnerSites, RootSites, sites_in
from mhc_compile.ops import connections
from mhc_compile.passes.graph.layouts.sharded import whole
from mhc_compile.plan.model_plan import ModelPlan, options_that_differ

# of the largest entry of each output; measured: 1e-6 in fp32, and a few roundings in 16 bits
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 8e-3}

_PEFT = (
    "PEFT's save_pretrained does not save the hyper-connections of a model that was upgraded after get_peft_model: save"
    " them by mhc_compile.save_adapter(model, file), or upgrade first and have LoraConfig(modules_to_save=['mhc'])"
)


def upgrade(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: Config | None = None,
    verify: bool | float = True,
) -> Report:
    """Give a model the parameters of hyper-connections at its residual adds, once and for all.

    The model is run once with the arguments. From then on it has them wherever it is called, fastest compiled with
    backend="mhc", and computes what it did until training moves them. Called again, it takes the compilation's config.

    Args:
        model: any module, or what torch.compile or PEFT wraps around one; changed in place (classes, modules `mhc`).
        args: positional arguments of a typical call.
        kwargs: keyword arguments of that call.
        config: what to build; by default `Config()`. What it says of the compilation (recompute, kernels, compiler,
            inductor) holds wherever torch.compile's options say nothing else.
        verify: compare outputs before and after; a number is the tolerance, relative to the largest entry. By default
            1e-4 in fp32; what a rounding at every site changes is allowed too, with a warning.

    Returns:
        What was found and built; `max_error` is the measured difference.

    Raises:
        ConfigError: the projection is not registered, or Inductor's options cannot be kept.
        CaptureError: the model does not run with these arguments.
        ConfigMismatchError: the model was upgraded with other options.
        NotRestoredError: the model was saved with sites that it was loaded without.
        AlreadyUpgradedError: a part of the model was upgraded, or a model of which it is a part.
        UnsupportedModelError: the model is a GraphModule; `rewrite` is for those.
        VerificationError: outputs differ by more than the tolerance; the model is as it was.
        MHCError: another reason not to upgrade; the model is as it was.
    """
    outer, model = original(model), inner(model)
    if isinstance(held := getattr(model, ATTRIBUTE, None), RootSites):
        return _upgrade_again(model, held, config)
    _refuse(model)
    config = _checked(config)
    args, kwargs = _on_device(model, tuple(args), dict(kwargs or {}))
    found, captured = survey(model, args, kwargs, config)
    report = dataclasses.replace(found, training=True)
    if captured is None or not report.sites or not config.rewrites:
        return report
    attach_sites(model, report.plan).is_one_graph = report.graphs == 1
    error = None if verify is False else _verify(model, args, kwargs, captured, verify, config)
    del captured
    _finish(outer, model)
    return dataclasses.replace(report, max_error=error)


def _finish(outer: nn.Module, model: nn.Module) -> None:
    if outer is not model:
        warn(_PEFT)
    if torch.__future__.get_swap_module_params_on_conversion():
        gc.collect()  # what Dynamo leaves of a run refers weakly to parameters, and such tensors cannot be swapped


def _refuse(model: nn.Module) -> None:
    """Refuse models that cannot mark their sites, and parts of upgraded models or wholes around them."""
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"upgrade takes a module, which keeps the parameters, not a {type(model).__name__}; for a function upgrade"
            " the modules that it calls"
        )
    if isinstance(model, fx.GraphModule):
        raise UnsupportedModelError(
            "a GraphModule makes its forward and its class anew whenever it is recompiled, copied or pickled, so it"
            " cannot mark its sites; mhc_compile.rewrite(graph_module, args) returns a rewritten graph instead"
        )
    if any(hasattr(module, "_hf_hook") for module in model.modules()) and any(p.is_meta for p in model.parameters()):
        raise UnsupportedModelError(
            "accelerate keeps weights of this model elsewhere and fetches them by hooks, which break every forward, so"
            " no site could be compiled; load the model onto its devices whole (without device_map offloading), or call"
            " accelerate.hooks.remove_hook_from_submodules(model) where it fits"
        )
    part = next((path for path, module in model.named_modules() if isinstance(module, OwnerSites)), None)
    if part is not None:
        raise AlreadyUpgradedError(
            f"{part!r} holds mHC parameters already, but not by an upgrade of this very model: a part of it, or a model"
            " around it, was upgraded. mhc_compile.remove them where they were made, then upgrade the whole model once"
        )
    config_note.check(model)


def _checked(config: Config | Mapping[str, Any] | None) -> Config:
    """Return the config, which sites keep for the compilation."""
    config = Config.from_options(config) if isinstance(config, Mapping) else config or Config()
    try:
        json.dumps(config.build())
    except TypeError as error:
        raise ConfigError(f"inductor={dict(config.inductor)!r} cannot be kept with the model ({error}); give it to"
                          " torch.compile's options instead") from None  # fmt: skip
    return config


def _upgrade_again(model: nn.Module, held: RootSites, config: Config | None) -> Report:
    """Use what a further config says of the compilation, and refuse what would be another model."""
    plan = ModelPlan.from_json(held.text)
    if config is not None:
        config = _checked(config)
        ours, theirs = ({**each.function(), **each.choice()} for each in (plan.config, config))
        if differ := options_that_differ(ours, theirs):
            raise ConfigMismatchError(
                f"the model was upgraded with other values of {', '.join(differ)}; remove(model) first, or leave"
                " config out"
            )
        for _, site in sites_in(model):
            site.use(config)
        held.text = dataclasses.replace(plan, config=config).to_json()
    return Report.of_plan(plan, model)


def _on_device(model: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Move tensors to the meta device where the model is there."""
    if not any(p.is_meta for p in model.parameters()):
        return args, kwargs

    def move(leaf: Any) -> Any:
        return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

    return tree_map(move, args), tree_map(move, kwargs)


def _verify(model: nn.Module, args: Any, kwargs: Any, before: Captured, allowed: bool | float, config: Config) -> float:
    """Run the rewritten model and compare; return the largest relative difference, or take the sites away again."""

    def run() -> Any:
        return run_captured(model, args, kwargs, backend, doing="checking that nothing changed").output

    def backend(gm: Any, inputs: Any) -> Any:
        return mhc(gm, inputs, options={"compiler": "eager"})

    try:
        after = run()
        drift = connections.get(config.connection).drift * sum(1 for _ in sites_in(model))
        found = _differences(before.output, after)
        limits = [TOLERANCE.get(dtype, 1e-4) + drift if allowed is True else float(allowed) for _, dtype in found]
        beyond = {i: found[i] for i, limit in enumerate(limits) if not found[i][0] <= limit}
        if beyond and not (allowed is True and _is_rounding(model, run, after, beyond, config)):
            first = min(beyond)
            raise VerificationError(
                f"the rewritten model differs from the original by {found[first][0]:.2e} of the largest output (allowed"
                f" {limits[first]:.0e}); the model is as it was. Report this with the model, or leave sites out with"
                " Config(exclude=...) to find the one that does it; verify=<number> sets another tolerance"
            )
        return max((error for error, _ in found), default=0.0)
    except BaseException:
        detach_sites(model)
        raise


def _is_rounding(
    model: nn.Module, run: Callable[[], Any], output: Any, beyond: dict[int, tuple[float, torch.dtype]], config: Config
) -> bool:
    """Tell whether a rounding or two of what sites read changes outputs of the rewritten model as much; then warn.

    So it is where a model magnifies them, as by batch norm in training over few values. One of several processes does
    not ask, since it would run the model without the others.
    """
    dist: Any = torch.distributed
    if dist.is_available() and dist.is_initialized():
        return False
    eps = 2 * max(torch.finfo(dtype).eps for _, dtype in beyond.values())
    with _nudged(model, config.streams, eps):
        moved = [change for change, _ in _differences(output, run())]
    if not all(error <= 10 * moved[i] < math.inf for i, (error, _) in beyond.items()):
        return False
    worst = max(beyond, key=lambda i: beyond[i][0])
    warn(
        f"the model magnifies rounding: {eps:.0e} of what its sites read changes {moved[worst]:.0e} of its largest"
        f" output, and the rewriting {beyond[worst][0]:.0e}. So upgrade cannot check it more closely with these"
        " arguments: more of a batch does, or evaluation, where batch norm does not divide by the spread of few values"
    )
    return True


@contextlib.contextmanager
@torch.no_grad()
def _nudged(model: nn.Module, n: int, by: float) -> Iterator[None]:
    """Let every site read with other biases for a while, which scales what it reads."""
    biases = [(site.bias, site.bias.clone()) for _, site in sites_in(model)]
    for bias, _ in biases:
        bias[:n] += by
    try:
        yield
    finally:
        for bias, kept in biases:
            bias.copy_(kept)


def _differences(before: Any, after: Any) -> list[tuple[float, torch.dtype]]:
    """Return how far the float tensors of two outputs are apart, with their dtypes."""
    pairs = zip(_floats(before), _floats(after), strict=True)
    return [(difference(new, old), old.dtype) for old, new in pairs if not old.is_meta and old.numel()]


def difference(new: Tensor, old: Tensor) -> float:
    """Return max|new - old| / max|old|; 0 where both are equal, infinities and NaNs included."""
    new, old = new.detach().double(), old.detach().double()
    if torch.equal(new, old):
        return 0.0
    gap = torch.where((new == old) | (new.isnan() & old.isnan()), 0.0, (new - old).abs()).max()
    size = old[old.isfinite()].abs().max() if old.isfinite().any() else torch.tensor(1.0)
    error = float(gap / size.clamp_min(1e-30))
    return math.inf if math.isnan(error) else error


def _floats(output: Any) -> list[Tensor]:
    """Return the float tensors of a model's output, dataclass-like outputs included; DTensors whole.

    So all processes come to the same verdict, and none waits for one that has failed.
    """
    leaves = tree_leaves(output)
    found: list[Tensor] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            found += [whole(leaf)] if leaf.is_floating_point() else []
        elif isinstance(leaf, Mapping):
            found += _floats(list(leaf.values()))
    return found
