"""accelerate's list of torch.compile backends, which is closed: `mhc` joins it."""

from __future__ import annotations

from typing import Any

from mhc_compile.errors import import_extra

_NAME = "MHC"


def register_backend() -> None:
    """Let accelerate take the backend's name.

    Afterwards `Accelerator(dynamo_backend="mhc")`, `TorchDynamoPlugin(backend="mhc")` and, in Hugging Face's Trainer,
    `TrainingArguments(torch_compile_backend="mhc")` work. Options come from the `Config` given to `upgrade`, or from
    the plugin's `options`.

    Raises:
        MissingDependencyError: accelerate is not installed.
    """
    backends = _backends()
    if _NAME in backends.__members__:
        return
    member = str.__new__(backends, _NAME)
    member._name_ = member._value_ = _NAME
    backends._member_names_.append(_NAME)
    backends._member_map_[_NAME] = backends._value2member_map_[_NAME] = member
    type.__setattr__(backends, _NAME, member)


def _backends() -> Any:
    remedy = "this needs accelerate: pip install 'mhc_compile[hugging-face]'"
    return import_extra("accelerate.utils", remedy).DynamoBackend
