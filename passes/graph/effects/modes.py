"""In which mode each node of a program runs: with gradients or without, under autocast, under anything else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from mhc_compile.passes.graph import optable
from mhc_compile.passes.graph.walk import VALUES

_SET_NOTHING = ("_log_api_usage", "_assert", "_check", "sym_constrain")  # how statements begin that set no mode


class Modes:
    """The modes that the statements of a program set; a new node gets those of the node that it stands beside."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        """Run through the nodes, in program order."""
        self._gradients: dict[fx.Node, Any] = {}
        self._all: dict[fx.Node, Any] = {}
        switches = [node for node in nodes if optable.name(node) == "_set_grad_enabled"]
        grad = switches[-1].args[0] if switches else None  # what a graph changes, it restores at its end
        entered: tuple[fx.Node, ...] = ()
        others = 0
        for node in nodes:
            op = optable.name(node)
            if op == "_set_grad_enabled":
                grad = node.args[0]
            elif op.startswith("_enter_"):
                entered += (node,)
            elif op.startswith("_exit_"):
                entered = tuple(enter for enter in entered if enter not in node.args)
            else:
                others += _is_statement(node)
            inference = tuple(enter for enter in entered if "inference" in optable.name(enter))
            self._gradients[node] = grad, inference
            self._all[node] = grad, entered, others

    def autocast(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """Return the nodes that enter the autocast regions around a node, the innermost last."""
        return tuple(enter for enter in self._all[node][1] if "autocast" in optable.name(enter))

    def place_beside(self, node: fx.Node, beside: fx.Node) -> None:
        """Give a node the modes of another."""
        self._gradients[node], self._all[node] = self._gradients[beside], self._all[beside]

    def same_gradients(self, a: fx.Node, b: fx.Node) -> bool:
        """Tell whether two nodes run with gradients, or both without."""
        return bool(self._gradients[a] == self._gradients[b])

    def with_gradients(self, node: fx.Node) -> bool:
        """Tell whether the program itself has gradients on at a node; where it switches nothing, it does not say."""
        return bool(self._gradients[node] == (True, ()))

    def records(self, node: fx.Node, at_start: bool) -> bool:
        """Tell whether autograd records a node, if it does so where the program starts."""
        grad, inference = self._gradients[node]
        return bool(at_start if grad is None else grad) and not any(enter.args and enter.args[0] for enter in inference)

    def same(self, a: fx.Node, b: fx.Node) -> bool:
        """Tell whether two nodes run under the same of everything that the program switches."""
        return bool(self._all[a] == self._all[b])


def _is_statement(node: fx.Node) -> bool:
    """Tell whether a node is there for its effect alone, such as the choice of attention's kernels."""
    holds = not node.meta.keys().isdisjoint(VALUES)
    if node.op != "call_function" or node.users or holds or optable.is_inplace(node):
        return False
    return not optable.name(node).startswith(_SET_NOTHING)
