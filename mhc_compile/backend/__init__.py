"""torch.compile(model, backend="mhc"): a graph of Dynamo's in, compiled code out.

`planned`: what a graph runs of a model with a plan, of which nothing may run plain unasked.
`first_call`: a model without a plan gets one from its first compiled call.
`rewriting`: one graph of a model with a plan goes through the passes.
`kernels`: generated kernels for its sites, where they can run.
`compilers`: who compiles the rewritten graph.
`gradient_buckets`: what Dynamo would cut for DistributedDataParallel stays whole.
`causal_flags`: attention whose flag depends on sizes does not break the graph.
`torch_transformers`: nor does torch's own transformer that is given a mask, and it shows its adds in evaluation.
`carry`: streams go from one compiled graph to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from mhc_compile.backend import carry, causal_flags, first_call, gradient_buckets, torch_transformers, uncompiled
from mhc_compile.backend.compilers import Compiled, compile_with
from mhc_compile.backend.planned import Planned
from mhc_compile.backend.rewriting import check_without_markers, config_of_markers, rewrite_graph
from mhc_compile.capture.frames import allow_parts, clean_errors, frame_root
from mhc_compile.capture.graphs import without_markers
from mhc_compile.config import Config
from mhc_compile.model.phase import close_first_call, phase_of
from mhc_compile.ops import connections


def mhc(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Compile one graph of Dynamo's; found by torch.compile under the name "mhc".

    Args:
        gm: the graph, left as it is.
        example_inputs: its inputs.
        options: fields of `mhc_compile.Config`.
        mode: torch.compile's mode, handed on to Inductor.

    Raises:
        MHCError: options, plan and graph do not fit together; the text says what to do.
    """
    with clean_errors():
        config = Config.from_options(options)
        connections.check(config)
        made_with = config_of_markers(gm, options)
        root = frame_root()
        planned = Planned.of(gm, root)
        if made_with is not None or planned.any:
            allow_parts(gm)
        if made_with is not None:
            close_first_call(root)
            rewritten = rewrite_graph(gm, made_with, planned)
            inner = compile_with(rewritten.gm, [*example_inputs, *rewritten.examples], made_with, mode)
            return carry.connect_graphs(inner, rewritten.takes, rewritten.gives, rewritten.starts, made_with.streams)
        if planned.any:
            check_without_markers(gm, config, planned)
        elif config.rewrites and phase_of(root).plans_graphs:
            draft = first_call.draft_frame(gm, root, config)
            if root is not None and draft.plan.sites:
                return first_call.first_call(gm, root, draft.plan)  # exact at the start; the next call has its sites
            first_call.warn_nothing_found(gm, root, draft)
        return compile_with(without_markers(gm), example_inputs, config, mode)


uncompiled.use(mhc)
gradient_buckets.keep_whole()
causal_flags.decide()
torch_transformers.stay_whole()
