"""torch's own `nn.TransformerEncoder` and `nn.TransformerDecoder` stay in one graph that holds their residual adds.

Given a mask they read its numbers, to see whether it is causal and a quicker kernel serves: the graph breaks. In
evaluation without gradients each layer runs as one fused op. Where this backend compiles, both are decided at tracing
time: for the path that is right for every mask, and for the one that shows the adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.eval_frame import innermost_backend
from torch._dynamo.trace_rules import get_torch_obj_rule_map, manual_torch_name_rule_map
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.functions import UserFunctionVariable
from torch.nn.modules import transformer

_LAYERS = {  # by who asks: layers that heed any mask, unless they are told that it is causal
    nn.TransformerEncoder.forward.__code__: nn.TransformerEncoderLayer,
    nn.TransformerDecoder.forward.__code__: nn.TransformerDecoderLayer,
}


def stay_whole() -> None:
    """Have Dynamo trace torch's transformers so, where this backend compiles."""
    _trace(transformer._detect_is_causal_mask, _IsCausal)
    _trace(torch.backends.mha.get_fastpath_enabled, _FastPath)


def _trace(function: Callable[..., Any], traced: type[UserFunctionVariable]) -> None:
    manual_torch_name_rule_map[f"{function.__module__}.{function.__name__}"] = traced
    get_torch_obj_rule_map()[function] = traced  # made of the former once, and again for every process group


class _IsCausal(UserFunctionVariable):
    """Whether a mask is causal, where the caller was not told: no, if its layers heed any mask."""

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        if _compiled_here(tx) and _has_own_layers(tx):
            mask, told, _ = args
            if told.is_constant_none() and not mask.is_constant_none():
                return ConstantVariable.create(False)
        return super().call_function(tx, args, kwargs)


class _FastPath(UserFunctionVariable):
    """Whether layers may run as one fused op: not where this backend compiles."""

    def call_function(self, tx: Any, args: Any, kwargs: Any) -> Any:
        return ConstantVariable.create(False) if _compiled_here(tx) else super().call_function(tx, args, kwargs)


def _compiled_here(tx: Any) -> bool:
    backend = innermost_backend(tx.output.compiler_fn)
    called = getattr(backend, "compiler_fn", backend)  # torch.compile keeps it with its mode and options
    return called.__module__.partition(".")[0] == __name__.partition(".")[0]


def _has_own_layers(tx: Any) -> bool:
    """Tell whether the caller is torch's transformer, and so are its layers; a user's might trust the answer alone."""
    layer = _LAYERS.get(tx.f_code)
    return layer is not None and all(type(each) is layer for each in tx.symbolic_locals["self"].value.layers)
