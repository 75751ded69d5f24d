"""The note in a Hugging Face config that the model has hyper-connections; config.json keeps it beside the weights.

The library's own `from_pretrained` knows nothing of sites: it drops their parameters and the model runs plain. The note
tells that this has happened, before new parameters take the place of those that were trained.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from mhc_compile.errors import NotRestoredError
from mhc_compile.plan.model_plan import VERSION, ModelPlan

KEY = "mhc_compile"


class Note(dict[str, Any]):
    """The note of a model that has its sites; one from a file is a dict like any other."""


def write(model: nn.Module, plan: ModelPlan) -> None:
    """Note in a model's config, where it has one of Hugging Face's, that it has sites."""
    config = _config(model)
    if config is not None:
        note = {"format": VERSION, "sites": len(plan.sites), **plan.config.function()}
        setattr(config, KEY, Note(note))


def erase(model: nn.Module) -> None:
    """Take the note of `write` away again."""
    config = _config(model)
    if isinstance(vars(config or object).get(KEY), Note):
        delattr(config, KEY)


def check(model: nn.Module) -> None:
    """Refuse a model that was saved with sites and loaded without them.

    Raises:
        NotRestoredError: its config says so.
    """
    config = _config(model)
    note = getattr(config, KEY, None)
    if isinstance(note, dict) and not isinstance(note, Note):
        raise NotRestoredError(
            f"{type(model).__name__} was saved with {note.get('sites')} hyper-connections, but loaded without them, so"
            " new ones would take the place of those that were trained. Load it by mhc_compile.from_pretrained("
            f"{type(model).__name__}, folder), or a state_dict by mhc_compile.restore; to start anew on purpose,"
            f" `del model.config.{KEY}` first"
        )


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return config if hasattr(config, "to_diff_dict") else None  # transformers' configs
