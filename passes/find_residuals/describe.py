"""What kind a residual connection is, and along which axis its features lie."""

from __future__ import annotations

from collections import deque

from torch import fx

from mhc_compile.passes.find_residuals import axes
from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import between, value

_LAST = frozenset("linear matmul addmm mm einsum multi_head_attention_forward scaled_dot_product_attention".split())
_STEPS = 16  # that feature_axis looks ahead behind a sum


def feature_axis(root: fx.Node, branches: tuple[fx.Node, ...], total: fx.Node, order: dict[fx.Node, int]) -> int | None:
    """Return the axis, negative, on which the branch's, else the sum's, first norm, linear or convolution works."""
    inside = between(root, branches, order)
    found = _first_work(root, inside)
    return _first_work(total, None) if found is None else found


def _first_work(start: fx.Node, inside: set[fx.Node] | None) -> int | None:
    """Walk from a tensor's readers to the first that works on one of its axes; without bounds, a few steps only."""
    tensor = value(start)
    if tensor is None:
        return None
    rank = tensor.dim()
    own = axes.identity(rank)
    queue = deque((user, start, own) for user in start.users if inside is None or user in inside)
    seen: set[tuple[fx.Node, fx.Node]] = set()
    while queue and (inside is not None or len(seen) < _STEPS):
        node, source, held = queue.popleft()
        if (node, source) in seen or (inside is not None and node not in inside):
            continue
        seen.add((node, source))
        found = _axis(node, source)
        if found is not None and len(held[found]) == 1:
            return next(iter(held[found])) - rank
        after = axes.follow(node, source, held)
        if after is not None:
            queue.extend((user, node, after) for user in node.users)
    return None


def _axis(node: fx.Node, source: fx.Node) -> int | None:
    """Return the axis of its input on which a node works."""
    tensor = value(source)
    rank = tensor.dim() if tensor is not None else 0
    op = optable.name(node)
    if op in ("layer_norm", "rms_norm", "native_layer_norm"):
        return -1 if len(optable.argument(node, 1, "normalized_shape", ())) == 1 else None
    if op in optable.CONV:
        return 1 - rank if node.args[0] is source else None
    if op in ("batch_norm", "group_norm", "instance_norm"):
        return 1 - rank if rank > 2 else -1
    if op in _LAST or optable.reduces_last(node, rank):
        return -1
    return None


def kind(total: fx.Node, root: fx.Node, branches: tuple[fx.Node, ...], order: dict[fx.Node, int]) -> str:
    """Name the shape of the connection for the report."""
    tail = branches[0]
    scaled = False
    while not _is_norm(tail) and optable.name(tail) in optable.CAST | optable.DROPOUT | {"mul"}:
        scaled |= optable.name(tail) == "mul"
        tail = next((arg for arg in tail.all_input_nodes if value(arg) is not None), tail)
        if not tail.all_input_nodes:
            break
    words = ["parallel"] if len(branches) > 1 else []
    words += ["scaled"] if scaled else []
    inside = between(root, branches, order)
    if _is_norm(tail):
        words.append("sandwich")
    elif any(_is_norm(user) for user in root.users if user in inside):
        words.append("pre-norm")
    elif any(_is_norm(user) for user in total.users):
        words.append("post-norm")
    return " ".join(words) or "plain"


def _is_norm(node: fx.Node) -> bool:
    """Tell whether the node belongs to a norm, as an op or inside a module that is called one."""
    stack = node.meta.get("nn_module_stack") or {}
    classes = [str(getattr(entry[1], "__name__", entry[1])) for entry in list(stack.values())[-1:]]
    return optable.name(node) in optable.NORM or any("Norm" in cls for cls in classes)
