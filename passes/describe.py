"""What a residual connection is called, what kind it is, and along which axis its features lie."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from torch import fx

from mhc_compile.passes import optable
from mhc_compile.passes.base import Namer, value

_SHUFFLES = frozenset("transpose permute movedim swapaxes t reshape view flatten unflatten".split())


def between(root: fx.Node, ends: tuple[fx.Node, ...], order: dict[fx.Node, int]) -> set[fx.Node]:
    """Return the nodes on the way from root to the ends, both excluded from nothing but root itself.

    What stands before root in the program cannot depend on it, so the walk stays local.
    """
    seen: set[fx.Node] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node in seen or node is root or order[node] <= order[root]:
            continue
        seen.add(node)
        stack += node.all_input_nodes
    return seen


def _forward(root: fx.Node, inside: set[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Walk (node, the input it was reached from) breadth first, up to ops that move the axes."""
    queue = deque((user, root) for user in root.users if user in inside)
    seen = set(queue)
    while queue:
        node, source = queue.popleft()
        yield node, source
        if optable.name(node) not in _SHUFFLES:
            fresh = [(user, node) for user in node.users if user in inside and (user, node) not in seen]
            seen.update(fresh)
            queue.extend(fresh)


def feature_axis(root: fx.Node, branches: tuple[fx.Node, ...], order: dict[fx.Node, int]) -> int | None:
    """Return the axis, negative, on which the branch's first norm, linear or convolution works."""
    tensor = value(root)
    if tensor is None:
        return None
    rank = tensor.dim()
    for node, source in _forward(root, between(root, branches, order)):
        axis = _axis(node, source, rank)
        if axis is not None:
            return axis
    return None


def _axis(node: fx.Node, source: fx.Node | None, rank: int) -> int | None:
    op = optable.name(node)
    if op in ("layer_norm", "rms_norm"):
        return -1 if len(optable.argument(node, 1, "normalized_shape", ())) == 1 else None
    if op in optable.CONV:
        return 1 - rank if node.args[0] is source else None
    if op in ("batch_norm", "group_norm", "instance_norm"):
        return 1 - rank if rank > 2 else -1
    if op in ("linear", "matmul", "addmm", "mm", "einsum") or optable.reduces_last(node, rank):
        return -1
    return None


def label(branch: fx.Node, owner: str, namer: Namer) -> str | None:
    """Return the name of the owner's submodule that does the branch's work: the last real work before the add."""
    seen: set[fx.Node] = set()
    queue = deque([branch])
    first: str | None = None
    while queue and len(seen) < 64:
        node = queue.popleft()
        if node in seen:
            continue
        seen.add(node)
        child = namer.child(node, owner)
        first = first or child
        if optable.works(node):
            return child or first
        queue.extend(node.all_input_nodes)
    return first


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
