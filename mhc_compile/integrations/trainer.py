"""Hugging Face's Trainer with the optimizer groups of hyper-connections."""

from __future__ import annotations

import contextlib
import importlib.util
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mhc_compile.errors import MissingDependencyError, NotUpgradedError
from mhc_compile.integrations.accelerate import register_backend
from mhc_compile.model.optimizers import is_phi, named_parameters, phi_scale


class MHCTrainerMixin:
    """What a Trainer needs for an upgraded model: `class MyTrainer(MHCTrainerMixin, SFTTrainer): ...`.

    Whatever optimizer the TrainingArguments name, gates (alpha) and biases do not decay, and mHC may have a learning
    rate of its own. A model that is not compiled yet is compiled by this backend, and
    `TrainingArguments(torch_compile_backend="mhc")` works.

    Args:
        args: for the Trainer.
        mhc_lr: learning rate of mHC's parameters, by default that of the TrainingArguments; schedules scale both.
        phi_lr_scale: factor on phi's learning rate, by default 1 / alpha, or 1 where `mhc_lr` is given.
        kwargs: for the Trainer.

    Raises:
        NotUpgradedError: when the optimizer is made, the model holds no mHC parameters.
    """

    def __init__(
        self, *args: Any, mhc_lr: float | None = None, phi_lr_scale: float | None = None, **kwargs: Any
    ) -> None:
        """Set the Trainer up."""
        self.mhc_lr, self.phi_lr_scale = mhc_lr, phi_lr_scale
        with contextlib.suppress(MissingDependencyError):
            register_backend()
        super().__init__(*args, **kwargs)
        trainer: Any = self
        compiled = trainer.model._compiled_call_impl is not None
        others = trainer.args.torch_compile and trainer.args.torch_compile_backend != "mhc"
        if any(named_parameters(trainer.model)) and not compiled and not others:
            trainer.model.compile(backend="mhc")  # itself: evaluation does not call what accelerate compiles

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Create the optimizer as the Trainer does, and give mHC groups of its own; one that was given stays."""
        trainer: Any = self
        given = trainer.optimizer is not None
        made: Optimizer = super().create_optimizer(*args, **kwargs)  # type: ignore[misc]  # the Trainer's
        if not given:
            model = (*args, kwargs.get("model"), trainer.model)
            regroup(
                made,
                next(each for each in model if each is not None),
                mhc_lr=self.mhc_lr,
                phi_lr_scale=self.phi_lr_scale,
            )
        return made


def regroup(
    optimizer: Optimizer, model: nn.Module, *, mhc_lr: float | None = None, phi_lr_scale: float | None = None
) -> None:
    """Take mHC's parameters out of the groups of an optimizer that has not stepped, into groups of their own.

    Each keeps the options of the group that it was in, apart from the learning rate and, for gates and biases, decay.

    Args:
        optimizer: whatever a library has built.
        model: an upgraded model.
        mhc_lr: learning rate of mHC, by default that of the group.
        phi_lr_scale: factor on phi's learning rate, by default 1 / alpha, or 1 where `mhc_lr` is given.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
    """
    named = dict(named_parameters(model))
    if not named:
        raise NotUpgradedError("the model holds no mHC parameters; call mhc_compile.upgrade(model, args) first")
    phi = {id(p) for name, p in named.items() if is_phi(name)}
    rest = {id(p) for p in named.values()} - phi
    for group in list(optimizer.param_groups):
        options = {name: value for name, value in group.items() if name != "params"}
        rate = group["lr"] if mhc_lr is None else mhc_lr
        ours = [p for p in group["params"] if id(p) in phi], [p for p in group["params"] if id(p) in rest]
        group["params"] = [p for p in group["params"] if id(p) not in phi | rest]
        changes = {"lr": rate * phi_scale(model, phi_lr_scale, mhc_lr)}, {"lr": rate, "weight_decay": 0.0}
        for parameters, change in zip(ours, changes, strict=True):
            if parameters:
                optimizer.add_param_group({**options, **change, "params": parameters})


def __getattr__(name: str) -> Any:
    """Make MHCTrainer when it is asked for: transformers is imported then, and not before."""
    if name != "MHCTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if importlib.util.find_spec("transformers") is None:
        raise MissingDependencyError("MHCTrainer needs transformers: pip install 'mhc_compile[hugging-face]'")
    from transformers import Trainer

    made = type("MHCTrainer", (MHCTrainerMixin, Trainer), {"__module__": __name__, "__doc__": MHCTrainerMixin.__doc__})
    globals()[name] = made
    return made
