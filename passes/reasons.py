"""Every "no", in one table: why an add is no site, why a region or a connection is cut, why a kernel leaves one out."""

from __future__ import annotations

from typing import NamedTuple

from mhc_compile.passes.base import Rejection, Spot


class Reason(NamedTuple):
    """What is said of an add that becomes no site.

    Attributes:
        residual: True where it is a residual connection all the same.
        text: a sentence for the user; `{other}` is the source of another add, `{site}` a site's name,
            `{function}` a function and `{why}` what Dynamo says of it.
    """

    residual: bool
    text: str


ADDS = {
    # found by find-residuals: no residual connection
    "no-skip": Reason(False, "neither operand is computed from the other"),
    "pointwise-branch": Reason(False, "one operand is computed from the other without any layer in between"),
    "branch-sum": Reason(False, "sums branches of the connection that is completed at {other}"),
    "inside-branch": Reason(
        False, "lies inside the branch of the connection at {other}, which starts from the same tensor"
    ),
    "gated-inside-branch": Reason(
        False, "adds what gates scale, a weighted sum inside the branch of the connection at {other}"
    ),
    "added-again": Reason(False, "adds to a tensor that is itself carried on at {other}, such as positions to queries"),
    "shared-branch": Reason(
        False, "what is subtracted is used elsewhere too: the rest that a quantiser or a trend leaves"
    ),
    "skip-scaled": Reason(False, "a parameter scales the skip inside another branch, as in state-space layers"),
    "skip-scaled-alone": Reason(False, "a parameter scales the skip, and no other connection carries the sum on"),
    "multi-stream": Reason(False, "mixes several streams already, as hyper-connections do"),
    "recurrence": Reason(
        False,
        "updates the state of a recurrence or an iteration: the same step again, for the next part of a sequence or"
        " a better approximation",
    ),
    "parameters": Reason(False, "is made from parameters alone, so there is no data for streams to carry"),
    "integer": Reason(False, "adds integers"),
    "complex": Reason(False, "adds complex numbers, which real streams do not hold"),
    "inside-op": Reason(
        False,
        "is not looked at: {function} runs the graph that it is in as one op (torch.cond, scan,"
        " torch.compiler.nested_compile_region)",
    ),
    # found by find-residuals: a residual connection that is left alone
    "broadcast": Reason(True, "the branch has fewer entries than the skip; write x + f(x).expand_as(x)"),
    "broadcast-skip": Reason(True, "the skip has fewer entries than the branch; write x.expand_as(f) + f"),
    "projection-shortcut": Reason(True, "the skip passes through a layer of its own, so no stream continues"),
    "gated-skip": Reason(
        True, "a gate that is computed from data scales the skip; streams pass through it, each gated alike"
    ),
    "skip-reshaped": Reason(
        True, "the skip is a slice, view, pool, detached copy or concatenation of what the branch reads"
    ),
    "reversible": Reason(True, "one half of a reversible pair: its branch reads the other half of the features only"),
    "nested-tensor": Reason(True, "adds nested tensors, which streams cannot be made of; pad them, or give one by one"),
    "in-place": Reason(
        True, "overwrites a tensor that is read again or that belongs to the caller; write x = x + f(x)"
    ),
    "nested": Reason(
        True, "wraps connections that start from the same tensor, such as {other}; the inner ones are widened"
    ),
    "feature-axis": Reason(True, "no norm, linear or convolution in the branch tells which axis holds the features"),
    # decided by plan-streams and by the plan of the model
    "overwritten-dtensor": Reason(True, "adds a DTensor that is overwritten: write x = x + f(x), not x += f(x)"),
    "order": Reason(
        True,
        "its skip is made behind its branch, or in another mode, so that what no_grad, autocast, an overwriting or a"
        " random number may tell apart would change places; make the skip first, where the sum is made",
    ),
    "excluded": Reason(True, "{site} is left out by include, exclude or every"),
    "single-site-region": Reason(True, "stands alone: streams that start and end around one connection cannot mix"),
    "broken-forward": Reason(
        True, "a graph break cuts the forward that it stands in, where its site's parameters do not follow"
    ),
    # seen by explain
    "not-compiled": Reason(
        False, "adds in {function} are not looked at: Dynamo runs it without compiling it, because of {why}"
    ),
    "hidden-by-autograd": Reason(
        True, "in one graph only without gradients; with them Dynamo breaks it, as it does at a torch.autograd.Function"
    ),
}
_SHOWN_AS = {
    "skip-scaled-alone": "skip-scaled",
    "broadcast-skip": "broadcast",
    "gated-inside-branch": "inside-branch",
}  # one word, said of two cases

# why streams do not cross from one graph to the next, beside what Dynamo says of the break
CUTS = {
    "axis": "the features lie on another axis",
    "anew": "the tensor between them is made anew",
    "split": "Config(split=...) starts a region here",
    "apart": "these parts are compiled apart, since the code around them is not compiled",
}

# what a generated kernel could do and does not: the norm that a branch begins with, the pointwise ops that it ends with
LEFT_OUT = {
    "norm-axes": "it normalises other axes than the features alone",
    "norm-dtype": "it computes, or returns, in another dtype than a kernel would",
    "norm-kind": "there are kernels for LayerNorm and RMSNorm only",
    "norm-place": "a checkpoint, a change of the gradient mode or an operand that is made later stands in between",
    "norm-shared": "something else reads its input, or what is inside of it",
    "norm-spelling": "it is written out in a way that is not known; F.rms_norm and F.layer_norm are",
    "norm-weight": "its weight or bias is not a vector of the features in the norm's dtype",
    "tail-dropout": "its random numbers are the plain graph's",
    "tail-op": "a kernel takes in products, sums, changes of sign and casts only",
    "tail-operand": "it takes a tensor that is not one number for each feature",
    "tail-order": "a kernel adds first, then scales, each once",
    "tail-place": "a checkpoint, a change of the gradient mode or an overwritten tensor stands in between",
    "tail-shared": "its result is read by others, too",
}


def reject(
    reason: str, *, owner: str, source: str, node: str = "", spot: Spot | None = None, **words: str
) -> Rejection:
    """Return the rejection of an add.

    Args:
        reason: a key of ADDS.
        owner: path of the module whose forward contains the add.
        source: "file.py:line" of the add.
        node: name of the add node in the graph.
        spot: where in its owner it stands, if another run may take it for a connection.
        words: what the text names.
    """
    residual, text = ADDS[reason]
    return Rejection(
        reason=_SHOWN_AS.get(reason, reason),
        residual=residual,
        message=text.format(**words),
        owner=owner,
        source=source,
        node=node,
        spot=spot,
        site=words.get("site", ""),
    )
