"""One table of op families. An op that is not in it counts as a contraction: real work, never lifted, never crossed."""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch
from torch import fx

from mhc_compile.passes.graph.walk import graph_of, value

POINTWISE = frozenset(
    "abs add ceil clamp cos div elu erf exp expm1 floor gelu hardsigmoid hardswish hardtanh leaky_relu log log1p "
    "masked_fill maximum minimum mish mul neg pow reciprocal relu relu6 round rsqrt rsub selu sigmoid "
    "logsigmoid silu sin softplus sqrt square sub tanh truediv true_divide where addcmul addcdiv lerp".split()
)
CAST = frozenset("to float half bfloat16 double type type_as _to_copy".split())
VIEW = frozenset(
    "view reshape flatten unflatten transpose permute movedim swapaxes t squeeze unsqueeze expand expand_as reshape_as "
    "contiguous clone view_as chunk split split_with_sizes getitem select narrow slice unbind repeat repeat_interleave "
    "roll flip cat stack pad detach alias _unsafe_view".split()
)
RESHAPE = frozenset("view reshape _unsafe_view".split())
SHUFFLE = RESHAPE | frozenset(  # views that keep every element
    "flatten unflatten transpose permute movedim swapaxes t squeeze unsqueeze contiguous clone".split()
)
POOL = frozenset(
    f"{adaptive}{kind}_pool{d}d" for adaptive in ("", "adaptive_") for kind in ("avg", "max") for d in (1, 2, 3)
)
NORM = frozenset("layer_norm rms_norm group_norm batch_norm instance_norm native_layer_norm".split())
DROPOUT = frozenset(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout native_dropout bernoulli rand".split()
)
RANDOM = DROPOUT | frozenset(
    "randn randint randperm rand_like randn_like randint_like normal uniform exponential random multinomial empty "
    "empty_like new_empty".split()
)  # values that are not the same again
REDUCE = frozenset("mean sum var std amax amin norm linalg_vector_norm linalg_norm".split())
META = frozenset("size dim getattr numel is_floating_point sym_size stride shape".split())
SPREAD = frozenset("redistribute to_local from_local local_part of_parts".split())  # a DTensor, or its part, elsewhere
LIGHT = POINTWISE | CAST | VIEW | NORM | DROPOUT | REDUCE | META | SPREAD
# ops that look at a tensor's shape and dtype, not at its values
SHAPE_ONLY = META | frozenset(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full "
    "new_tensor".split()
)
NEW = RANDOM | SHAPE_ONLY | frozenset("zeros ones full arange eye tensor".split())  # no work done on what is given
CONV = frozenset((*(f"{kind}{d}d" for kind in ("conv", "conv_transpose") for d in (1, 2, 3)), "convolution"))
CONTRACTION = CONV | frozenset("linear matmul mm bmm addmm baddbmm einsum tensordot".split())
# ops that keep sums: what they make of x + y they make of x, plus what they make of y
_LINEAR = CONTRACTION | VIEW | CAST | DROPOUT | META | SPREAD
_LINEAR |= frozenset("add sub neg mul div truediv mean sum".split())
_PARTS = ("real", "imag", "T", "mT", "H", "mH", "data")  # attributes that hold a tensor's values
INPLACE_AT = {  # the position of `inplace` among the arguments of torch.nn.functional
    **dict.fromkeys("relu relu6 silu mish selu hardswish hardsigmoid".split(), 1),
    **dict.fromkeys("leaky_relu elu celu".split(), 2),
    **dict.fromkeys("hardtanh dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout".split(), 3),
}
_INPLACE_OPERATORS = {
    getattr(operator, f"i{op}"): op for op in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
}


def name(node: fx.Node) -> str:
    """Return the bare name of the op of a call node ("" for other nodes); in-place forms lose their underscore."""
    return _name(node.op, node.target)


@functools.lru_cache(1024)
def _name(kind: str, target: Any) -> str:
    if kind == "call_method":
        called = str(target)
        return called.strip("_")[1:] if _is_inplace_operator(called) else called.rstrip("_")
    if kind != "call_function":
        return ""
    if target in _INPLACE_OPERATORS:
        return _INPLACE_OPERATORS[target]
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.split("::")[1].rstrip("_")
    return str(getattr(target, "__name__", target)).rstrip("_")


def is_inplace(node: fx.Node) -> bool:
    """Tell whether a call node changes one of its arguments, mostly the first; `out=` aside.

    `requires_grad_` changes no value: Hugging Face's `enable_input_require_grads` calls it on what layers get.
    """
    if node.op == "call_method":
        return _ends_in_place(str(node.target)) and node.target != "requires_grad_"
    if node.op != "call_function":
        return False
    if isinstance(node.target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return any(overload._schema.is_mutable for overload in overloads(node.target))
    if node.target in _INPLACE_OPERATORS or node.target is operator.setitem:
        return True
    return _ends_in_place(getattr(node.target, "__name__", "")) or inplace_flag(node) is True


def overloads(target: torch._ops.OpOverload | torch._ops.OpOverloadPacket) -> list[torch._ops.OpOverload]:
    """Return the overload that is called, or those among which the dispatcher chooses; of these none with `out=`."""
    if isinstance(target, torch._ops.OpOverload):
        return [target]
    found = [getattr(target, name) for name in target.overloads()]
    return [each for each in found if not any(argument.is_out for argument in each._schema.arguments)]


def _ends_in_place(called: str) -> bool:
    """Tell whether a function's name says that it works in place: `add_`, `__iadd__`."""
    if called.endswith("__"):
        return called == "__setitem__" or _is_inplace_operator(called)
    return called.endswith("_")


def _is_inplace_operator(called: str) -> bool:
    return called.startswith("__i") and called.strip("_")[1:] in _INPLACE_OPERATORS.values()


def inplace_flag(node: fx.Node) -> Any:
    """Return the argument `inplace` of a function of torch.nn.functional."""
    position = INPLACE_AT.get(name(node)) if node.op == "call_function" else None
    return None if position is None else argument(node, position, "inplace")


def works(node: fx.Node) -> bool:
    """Tell whether the node does real work: a contraction, or an op that the table does not know."""
    if node.target is torch.ops.higher_order.autograd_function_apply:  # without gradients Dynamo looks into it
        body = graph_of(node.args[0])
        return body is None or any(works(inner) and inner.users for inner in body.graph.nodes)
    return node.op in ("call_function", "call_method", "call_module") and name(node) not in LIGHT


def is_linear(node: fx.Node, static: set[fx.Node]) -> bool:
    """Tell whether the op is linear in what it reads, products of two tensors that are no parameters excluded."""
    op = name(node)
    if op not in ("mul", "div", "truediv"):
        return op in _LINEAR
    return len([arg for arg in node.all_input_nodes if arg not in static and value(arg) is not None]) < 2


def is_discrete(node: fx.Node) -> bool:
    """Tell whether the node holds integers or booleans."""
    tensor = value(node)
    return tensor is not None and not (tensor.is_floating_point() or tensor.is_complex())


def is_nested(node: fx.Node) -> bool:
    """Tell whether the node holds a nested tensor, of rows that are not equally long."""
    tensor = value(node)
    return tensor is not None and tensor.is_nested


def is_copy(node: fx.Node) -> bool:
    """Tell whether the node holds what its input holds, perhaps in other memory."""
    return name(node) in ("clone", "contiguous")


def is_resize(node: fx.Node) -> bool:
    """Tell whether the op changes the resolution, as where a feature pyramid's levels meet."""
    return name(node).startswith(("interpolate", "upsample", "pixel_shuffle", "grid_sample"))


def sources(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values the node is computed from."""
    op = name(node)
    if op in SHAPE_ONLY and not (op == "getattr" and node.args[1] in _PARTS):
        return []
    if op in ("expand_as", "view_as", "reshape_as", "type_as"):
        return [arg for arg in node.args[:1] if isinstance(arg, fx.Node)]
    return node.all_input_nodes


def is_add(node: fx.Node) -> bool:
    """Tell whether the node adds two floating tensors of one shape, without a factor."""
    return name(node) == "add" and bool(node.kwargs.get("alpha", 1) == 1) and terms_alike(node) is not None


def is_difference(node: fx.Node) -> bool:
    """Tell whether the node subtracts two floating tensors of one shape, without a factor."""
    return name(node) == "sub" and bool(node.kwargs.get("alpha", 1) == 1) and terms_alike(node) is not None


def terms_alike(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the operands of an add or difference of two floating tensors of one shape and at least two axes."""
    a, b = operand_values(node)
    if a is None or b is None or a.dim() < 2 or not (a.is_floating_point() and b.is_floating_point()):
        return None
    return node.args[:2] if a.shape == b.shape else None  # type: ignore[return-value]  # both have values


def operand_values(node: fx.Node) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the tensors of the first two arguments."""
    args = node.args[:2]
    if len(args) < 2 or not all(isinstance(arg, fx.Node) for arg in args):
        return None, None
    return value(args[0]), value(args[1])  # type: ignore[arg-type]  # both are nodes


def argument(node: fx.Node, position: int, keyword: str, default: Any = None) -> Any:
    """Return an argument given by position or keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(keyword, default)


def drops_nothing(node: fx.Node) -> bool:
    """Tell whether the node is a dropout that hands its input on, since it does not train or its rate is zero."""
    if "dropout" not in name(node):
        return False
    return argument(node, 2, "training", True) is not True or argument(node, 1, "p", 0.5) == 0


def is_liftable(node: fx.Node, rank: int) -> bool:
    """Tell whether the op acts on each token alone, features last, so that it can be applied to every stream.

    Dropout is none: streams need one mask. Neither is what updates running statistics.
    """
    op = name(node)
    if is_inplace(node):
        return False
    if op in CAST or op in POINTWISE:
        return True
    if op in ("layer_norm", "rms_norm"):
        return len(argument(node, 1, "normalized_shape", ())) == 1
    if op in REDUCE:
        return reduces_last(node, rank) and argument(node, _dim_at(node) + 1, "keepdim", False) is True
    return False


def reduces_last(node: fx.Node, rank: int) -> bool:
    """Tell whether the op reduces the last axis and no other."""
    dim = argument(node, _dim_at(node), "dim", ()) if name(node) in REDUCE else ()
    dims = (dim,) if isinstance(dim, int) else tuple(dim or ())
    return dims in ((-1,), (rank - 1,))


def count_from_the_end(node: fx.Node) -> None:
    """Let a reduction of the last axis name it by -1, so that it holds for one axis more."""
    position = _dim_at(node)
    if len(node.args) > position:
        node.update_arg(position, -1)
    else:
        node.update_kwarg("dim", -1)


def _dim_at(node: fx.Node) -> int:
    """Return the position of `dim` among a reduction's arguments."""
    return 2 if "norm" in name(node) else 1


def is_cast(node: fx.Node) -> bool:
    """Tell whether a node gives its first argument another float dtype, or the same again, and does nothing else."""
    if name(node) not in CAST or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    made, given = value(node), value(node.args[0])
    if made is None or given is None or made.shape != given.shape or made.device != given.device:
        return False
    return made.is_floating_point() and given.is_floating_point()
