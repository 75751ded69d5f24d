"""`scaled_dot_product_attention(q, k, v, is_causal=T > 1)` stays in one graph where T varies.

Dynamo hands the op a symbolic flag, which the op refuses: the graph breaks, in every layer, and the adds behind the
attention are cut off from their sites. Decided at tracing time, with a guard, the flag serves as many sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch._dynamo.variables.constant import ConstantVariable
from torch._dynamo.variables.tensor import SymNodeVariable
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable


def decide() -> None:
    """Have Dynamo decide symbolic flags of attention, where it knows nothing better itself."""
    handlers: dict[Callable[..., Any], Callable[..., Any]] = TorchInGraphFunctionVariable._get_handlers()
    handlers.setdefault(F.scaled_dot_product_attention, _decided)


def _decided(function: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
    """Trace the call with the flags that these sizes give; None where Dynamo can trace it as it is."""
    if not any(map(_is_flag, (*args, *kwargs.values()))):
        return None

    def known(given: Any) -> Any:
        return ConstantVariable.create(given.evaluate_expr(tx.output)) if _is_flag(given) else given

    return function.call_function(tx, [known(arg) for arg in args], {key: known(arg) for key, arg in kwargs.items()})


def _is_flag(given: Any) -> bool:
    """Tell whether it is a symbolic flag that sizes decide, not values of tensors."""
    return isinstance(given, SymNodeVariable) and given.python_type() is bool and given.sym_num.node.has_hint()
