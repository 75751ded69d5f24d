"""How a family runs: in evaluation, or in training with what only training does switched on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

MODES = {
    "eval": "evaluation",
    "train": "training: every rate of dropout is at least 0.1, every drop path drops a fifth of its branches",
    "layerdrop": "training, planned in evaluation; then every layer that LayerDrop may leave out is, half of the time",
    "checkpoint": "training, with the library's own activation checkpointing",
}
DROPOUT, DROP_PATH, LAYER_DROP = 0.1, 0.2, 0.5
RATES = frozenset(
    {"dropout", "attention_dropout", "activation_dropout", "hidden_dropout", "attn_dropout", "attn_pdrop"}
)


class UnknownSwitchError(Exception):
    """The library cannot run the family in this mode."""


class DropPath(nn.Module):
    """Leaves the branch out for some of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch, scaled where it is kept."""
        if not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - DROP_PATH)
        return x * keep / (1 - DROP_PATH)


def prepare(model: nn.Module, mode: str) -> None:
    """Put a model that was built in evaluation into a mode.

    Raises:
        UnknownSwitchError: the library has no switch for it.
    """
    if mode == "eval":
        return
    model.train()
    _drop(model)
    _drop_layers(model, 0.0)
    if mode == "layerdrop" and not _drop_layers(model, LAYER_DROP):
        raise UnknownSwitchError("no LayerDrop")
    if mode == "checkpoint":
        _checkpoint(model)


@contextlib.contextmanager
def planning(model: nn.Module, mode: str) -> Iterator[None]:
    """Have a model in the mode in which it is planned: what LayerDrop leaves out is in the plan."""
    if mode != "layerdrop":
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def _drop(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = max(module.p, DROPOUT)
        for name in RATES & module.__dict__.keys():
            if isinstance(rate := getattr(module, name), float):
                setattr(module, name, max(rate, DROPOUT))
        for name, child in module.named_children():
            if name.startswith("drop_path") and isinstance(child, nn.Identity):
                setattr(module, name, DropPath().train())


def _drop_layers(model: nn.Module, rate: float) -> bool:
    """Set every rate of LayerDrop, on modules and in configs; return whether there is one."""
    places: list[Any] = [*model.modules(), *(m.config for m in model.modules() if hasattr(m, "config"))]
    found = False
    for place in {id(place): place for place in places}.values():
        for name in [name for name in vars(place) if name in ("layerdrop", "encoder_layerdrop", "decoder_layerdrop")]:
            setattr(place, name, rate)
            found = True
    return found


def _checkpoint(model: Any) -> None:
    switches: list[tuple[str, Callable[[], Any]]] = [
        ("supports_gradient_checkpointing", lambda: model.gradient_checkpointing_enable({"use_reentrant": False})),
        ("set_grad_checkpointing", lambda: model.set_grad_checkpointing(True)),
        ("_supports_gradient_checkpointing", lambda: model.enable_gradient_checkpointing()),
    ]
    for name, switch in switches:
        if getattr(model, name, False):
            try:
                switch()
            except (ValueError, AssertionError, NotImplementedError) as error:
                raise UnknownSwitchError(f"no checkpointing: {error}") from error
            return
    raise UnknownSwitchError("no checkpointing")
