"""Outputs on the side, such as hidden states, that Hugging Face's models record by hooks."""

from __future__ import annotations

import sys

import torch


def trace_recorders() -> None:
    """Let Dynamo run, rather than trace, what installs those hooks at the first call that asks for such outputs.

    That takes a lock, where the graph breaks. The rest of the call may run outside of Dynamo then, and the layers, that
    Dynamo compiles, break at each hook: an add and its branch lie in different graphs.
    """
    library = sys.modules.get("transformers.utils.output_capturing")
    install = getattr(library, "maybe_install_capturing_hooks", None)
    if install is not None:
        torch._dynamo.assume_constant_result(install)  # of None; it installs them while Dynamo traces
