"""A model of transformers by its config alone: hf:CONFIG.json, with no weights to download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhc_compile.errors import FactoryError, import_extra

PREFIX = "hf:"
_TOKENS = 16


def load(target: str, device: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """Build the model that a config describes, with random weights, and inputs for it.

    Args:
        target: hf: and the path of a config.json, or of the folder that holds one.
        device: where to build it; "meta" takes no memory.

    Raises:
        FactoryError: there is no such file, it is no config of transformers, or there are no inputs known for its kind.
        MissingDependencyError: transformers is not installed.
    """
    path = Path(target.removeprefix(PREFIX))
    transformers = import_extra("transformers", f"{target} needs transformers; install with: pip install transformers")
    config = _config(path / "config.json" if path.is_dir() else path, transformers)
    for part in (config, config.get_text_config()):
        part.use_cache = False  # a plan is of the layers; caches are no part of it
    with torch.device(device):
        model: nn.Module = _class_of(config, transformers)(config)
        return model.eval(), (), _inputs(model, config, path)


def _config(path: Path, transformers: Any) -> Any:
    try:
        told = json.loads(path.read_text("utf-8"))
    except OSError:
        raise FactoryError(f"there is no file {str(path)!r}; give a model's config.json, as hf:config.json") from None
    except ValueError as error:
        raise FactoryError(f"{path} is no JSON ({error}); give a model's config.json") from None
    kind = told.get("model_type") if isinstance(told, dict) else None
    if kind not in transformers.CONFIG_MAPPING:
        raise FactoryError(
            f"{path} says model_type {kind!r}, which transformers {transformers.__version__} does not know; write"
            " FILE.py:FACTORY, a function that returns the model and its inputs"
        )
    return transformers.AutoConfig.for_model(**told)


def _class_of(config: Any, transformers: Any) -> Any:
    """Return the class that the config names, or the bare model of its kind."""
    named = [name for name in config.architectures or () if hasattr(transformers, name)]
    if named:
        return getattr(transformers, named[0])
    if type(config) in transformers.MODEL_MAPPING:
        return transformers.AutoModel.from_config
    raise FactoryError(
        f"transformers has no model for {type(config).__name__} by itself; write FILE.py:FACTORY, a function that"
        " returns the model and its inputs"
    )


def _inputs(model: Any, config: Any, path: Path) -> dict[str, Tensor]:
    """Return inputs by the name of the model's main one."""
    name = model.main_input_name
    if name == "input_ids":
        ids = torch.zeros(1, _TOKENS, dtype=torch.long)
        return {name: ids, "decoder_input_ids": ids} if config.is_encoder_decoder else {name: ids}
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None)
    if name == "pixel_values" and size is not None:
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        return {name: torch.zeros(1, getattr(vision, "num_channels", 3), height, width)}
    raise FactoryError(
        f"{path} is of a model that takes {name}, of a shape that its config does not tell; write FILE.py:FACTORY, a"
        " function that returns the model and its inputs"
    )
