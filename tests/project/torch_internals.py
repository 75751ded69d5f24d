"""Which private names of torch and Triton the code uses, and why: the list behind docs/listings/torch-internals.md.

A private name has a step that begins with an underscore (`torch._dynamo.config`, `tensor._version`). USES has an entry
for each. Which files use a name is found by reading them, so nothing is to be kept up when code moves.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.project.rules import PACKAGE, Source, sources

LIBRARIES = ("torch", "triton")
OF_PYTHON = frozenset("_asdict _field_defaults _fields _make _replace _getframe".split())  # of a NamedTuple, of sys
OF_PYTHON |= frozenset("_member_map_ _member_names_ _name_ _value2member_map_ _value_".split())  # of an Enum
OURS = re.compile(r"_mhc_\w+|_in_block")  # attributes that we add to what is torch's, and ends of our ops' names
TOLD_BY_TEXT = frozenset("_param_name_to_source _source_to_user_stacks _graph".split())  # attributes, by getattr


class Use(NamedTuple):
    """What a private name is used for, and the test function that fails when torch changes it."""

    why: str
    test: str


USES = {
    "torch._C._autograd._top_saved_tensors_default_hooks": Use(
        "tells whether a non-reentrant checkpoint keeps what backward needs: then streams must be kept as well",
        "test_non_reentrant_checkpointing_hands_streams_on",
    ),
    "torch._C._dynamo.eval_frame.reset_code": Use(
        "forgets one compiled function, so that benchmarks warm up again",
        "test_what_cold_caches_compiled_outlives_them",
    ),
    "torch._dynamo.backends.registry.lookup_backend": Use('compiler="aot_eager"', "test_compilers_agree"),
    "torch._dynamo.config.patch": Use("lifts limits", "test_captured_run_passes_the_limits_of_training_loops"),
    "torch._dynamo.config": Use("lets Dynamo compile every part", "test_dynamo_leaves_no_part_uncompiled"),
    "torch.utils._python_dispatch._disable_current_modes": Use("lets Dynamo compile where modes hold", "test_flops"),
    "torch.utils._python_dispatch.is_in_torch_dispatch_mode": Use("tells whether there are some", "test_flops"),
    "torch.nn.modules.module._global_forward_hooks": Use("by which FlopCounterMode follows modules", "test_flops"),
    "torch.nn.modules.module._global_forward_pre_hooks": Use("the same", "test_flops"),
    "torch._dynamo.variables.nn_module": Use("counts modules traced", "test_a_terminal_sees_how_far_it_is"),
    "torch._dynamo.assume_constant_result": Use("runs at tracing time", "test_hidden_states_in_one_graph"),
    "torch._dynamo.utils.get_compilation_metrics": Use(
        "Dynamo's records of frames it gave up, with the user's line", "test_records_are_read_once"
    ),
    "torch._dynamo.exc.ShortenTraceback": Use("lets our errors leave Dynamo", "test_errors_leave_dynamo_as_they_are"),
    "torch._dynamo.guards.GuardBuilder": Use("the guard that code serves one module only", "test_serve_only"),
    "torch._dynamo.guards.install_guard": Use("the same", "test_serve_only"),
    "torch._dynamo.source.LocalSource": Use("the same", "test_serve_only"),
    "torch._dynamo.mark_dynamic": Use("frees a size, as the user's own call would", "test_other_sizes"),
    "torch._dynamo.maybe_mark_dynamic": Use("the same, where the model does not fix it", "test_other_sizes"),
    "torch._dynamo.OptimizedModule": Use("what torch.compile makes of a module", "test_model_that_was_compiled_before"),
    "._orig_mod": Use("the module inside of it", "test_model_that_was_compiled_before"),
    "torch._dynamo.pgo": Use(
        "the sizes that each forward has seen, which a captured run neither heeds nor changes",
        "test_sizes_seen_before_make_none_dynamic_and_a_captured_run_none_later",
    ),
    "._CODE_STATE": Use("the same", "test_sizes_seen_before_make_none_dynamic_and_a_captured_run_none_later"),
    "torch._subclasses.fake_tensor.fake_tensor_tls": Use(
        'lets Dynamo trace `torch.tensor(..., device="meta")`, of which torch makes no fake tensor',
        "test_meta_with_a_cache_says_nothing_of_kernels",
    ),
    "torch._C._are_functorch_transforms_active": Use(
        "tells that a transform of torch.func is why nothing was compiled",
        "test_a_transform_around_compiled_code_is_refused",
    ),
    "torch.fx.experimental._config": Use("sizes that are equal by chance are not one", "test_every_size"),
    "torch._C._get_tracing_state": Use("tells that torch.jit traces", "test_one_that_is_being_captured_does_not"),
    '"_detect_is_causal_mask"': Use("torch's transformer, breaking", "test_a_mask_that_torchs_transformer_reads"),
    '"_hf_hook"': Use("accelerate's: what its hooks leave on a module", "test_offloaded_weights_are_refused"),
    '"_keep_in_fp32_modules_strict"': Use("transformers': what it always loads in fp32", "test_sites_stay_fp32"),
    '"_keys_to_ignore_on_load_missing"': Use("transformers': what it does not report", "test_a_body_and_a_head"),
    '"_keys_to_ignore_on_load_unexpected"': Use("the same", "test_a_body_and_a_head"),
    '"_model_mapping"': Use("transformers': what Auto classes have", "test_one_call_loads_it_upgraded"),
    '"_set_tensor_requires_grad"': Use(
        "the node from which on a transform records a tensor",
        "test_settled_graphs_can_be_computed_with_and_read_what_is_recorded",
    ),
    "torch._C._functorch.is_functorch_wrapped_tensor": Use(
        "tells example values of a transform that is over from those that can be computed with",
        "test_settled_graphs_can_be_computed_with_and_read_what_is_recorded",
    ),
    "torch._C._functorch.maybe_current_level": Use(
        "tells that ops of the IR run under a transform of torch.func, when gains looks at them",
        "test_streams_are_seen_within_transforms",
    ),
    "torch._C._functorch": Use("the same", "test_streams_are_seen_within_transforms"),
    "torch._dynamo.reset": Use("benchmarks start without compiled code", "test_bench_measures_plain_and_mhc"),
    "torch._dynamo.resume_execution.TORCH_DYNAMO_RESUME_IN_PREFIX": Use(
        "the name of a function that goes on behind a graph break",
        "test_a_forward_with_a_break_is_left_alone_with_a_reason",
    ),
    "torch._dynamo.source.AttrSource": Use(
        "gives a graph input that we add a source, without which AOTAutograd refuses it",
        "test_many_blocks_equal_the_whole",
    ),
    "._dynamo_source": Use("where Dynamo keeps the source of a graph input", "test_what_dynamo_says_of_inputs"),
    "torch._dynamo.symbolic_convert.InstructionTranslator": Use(
        "`current_tx()` is the frame whose graph a backend is given; its `output.root_tx.f_locals` hold the module",
        "test_current_frame_is_known_while_a_backend_runs",
    ),
    "torch._dynamo.utils.counters": Use("breaks that Dynamo only counts", "test_graph_breaks_are_listed"),
    "torch._dynamo.utils.graph_break_reasons": Use("breaks, with the user's lines", "test_graph_breaks_are_listed"),
    "._torchdynamo_orig_callable": Use("what torch.compile was given", "test_a_captured_run_leaves_them"),
    "torch._dynamo.eval_frame.OptimizeContext": Use("how it compiles that", "test_compiled_after_upgrade"),
    "torch._dynamo.eval_frame.innermost_backend": Use("who compiles", "test_other_backends_trace_what_they_traced"),
    "torch._dynamo.trace_rules.get_torch_obj_rule_map": Use("how calls are traced", "test_every_mask_in_every_mode"),
    "torch._dynamo.trace_rules.manual_torch_name_rule_map": Use(
        "where it is made of", "test_a_process_group_makes_torch_read_its_rules_again"
    ),
    "torch._dynamo.variables.functions.UserFunctionVariable": Use("calls traced", "test_who_trusts_the_answer_gets_it"),
    "torch.nn.parallel.DistributedDataParallel._get_active_ddp_module": Use("finds what wraps a model", "test_in_ddp"),
    "torch.nn.modules.transformer._detect_is_causal_mask": Use("reads a mask", "test_every_mask_in_every_mode"),
    "torch._dynamo.variables.constant.ConstantVariable": Use("a flag that is decided", "test_other_models_too"),
    "torch._dynamo.variables.tensor.SymNodeVariable": Use("a flag that sizes decide", "test_other_models_too"),
    "torch._dynamo.variables.torch.TorchInGraphFunctionVariable": Use(
        "holds Dynamo's handlers of ops, to which one of attention is added", "test_other_models_too"
    ),
    '"_comp_type_to_function_map"': Use("pairs of a pipeline that others run", "test_pairs_that_others_run_stay"),
    "torch._functorch.config.donated_buffer": Use("zero bubbles run a backward twice", "test_schedules"),
    "torch._inductor.compile_fx": Use('compiler="inductor"', "test_inductor"),
    "torch._inductor.config": Use(
        "its `aot_inductor.metadata` is hashed into the keys of all caches",
        "test_caches_hold_rewritten_graphs_until_the_source_changes",
    ),
    "torch._inductor.list_mode_options": Use("torch.compile's `mode`", "test_mode_is_handed_on"),
    "torch._inductor.utils.fresh_cache": Use("cold caches of benchmarks", "test_cold_caches_are_empty_and_restored"),
    "torch._logging._internal.trace_structured": Use(
        "graphs after every pass in TORCH_TRACE and tlparse", "test_graphs_are_dumped_at_debug_level"
    ),
    "torch._ops.OpOverload": Use("the class of an ATen op in a graph", "test_one_name_for_every_spelling"),
    "torch._ops.OpOverloadPacket": Use("an op of which no overload is chosen yet", "test_what_is_changed"),
    "torch._ops.HigherOrderOperator": Use("an op that runs graphs of its own", "test_what_an_op_changes_inside"),
    "._schema": Use("its name, and whether it writes to its arguments", "test_in_place"),
    "torch.fx.graph._PyTreeCodeGen": Use(
        "an exported graph takes and returns structures", "test_arguments_and_results_keep_their_structure"
    ),
    "torch.fx.graph._PyTreeInfo": Use("the same", "test_arguments_and_results_keep_their_structure"),
    "torch._dynamo.backends.distributed.DDPOptimizer": Use("cuts what has no sites", "test_gradient_buckets"),
    "torch.utils._pytree": Use("flattens arguments and outputs", "test_arguments_and_results_keep_their_structure"),
    "torch.utils._pytree.tree_leaves": Use("the same", "test_arguments_and_results_keep_their_structure"),
    "torch.utils._pytree.tree_map": Use("moves arguments to the meta device", "test_meta"),
    "triton.runtime.interpreter._patch_lang_tensor": Use("mends its loops", "test_bf16_products_loops_and_rounding"),
    "._pack_args": Use("compiles a kernel for a GPU that is not there", "test_four_streams_on_every_gpu"),
    "._apply": Use(
        "overridden, so that no cast of the model makes mHC parameters narrower than fp32",
        "test_no_cast_narrows_below_fp32",
    ),
    "._backward_hooks": Use("whose gradient somebody watches", "test_between_blocks"),
    "._base": Use(
        "memory that a view shares is counted once",
        "test_saved_bytes_counts_each_storage_once_and_no_parameter_or_input",
    ),
    "._compiled_call_impl": Use("`module.compile()`", "test_captured_run_leaves_settings_and_compiled_code_alone"),
    "._graph": Use("what a plain module made of a GraphModule must not have", "test_rewrite_any_graph"),
    "._modules": Use("children of a module by name", "test_export_equals_the_compiled_model"),
    "._param_name_to_source": Use("what Dynamo hangs on a graph, for AOTAutograd", "test_what_dynamo_hangs_on_a_graph"),
    "._source_to_user_stacks": Use("the same, for its messages", "test_what_dynamo_hangs_on_a_graph"),
    "._version": Use("counts in-place changes of a tensor that carries streams", "test_an_in_place_change_is_noticed"),
    '"_call_impl"': Use("leads to forward, if named", "test_a_class_with_a_call_of_its_own_has_its_sites"),
    '"_wrapped_call_impl"': Use("the same", "test_a_class_with_a_call_of_its_own_has_its_sites"),
    '"_checkpoint_wrapped_module"': Use("what wrappers put into the names of a checkpoint", "test_names_of_wrappers"),
    '"_fsdp_wrapped_module"': Use("the same", "test_names_of_wrappers"),
    '"_orig_mod"': Use("the same", "test_names_of_wrappers"),
    '"_dynamo"': Use("the folder whose frames are not the user's", "test_the_way_leads_from_the_forward_to_the_node"),
    '"_dynamo_source"': Use(
        "where Dynamo keeps the source of a graph input",
        "test_the_owners_own_work_is_called_after_its_parameter_or_op",
    ),
    '"_hooks"': Use("a module's tables of hooks", "test_hooks_that_a_run_registers_are_not_registered_twice"),
    '"_extra_state"': Use("the last step of the name under which state_dict has a plan", "test_names_of_wrappers"),
    "._buffers": Use("the table of a module's buffers", "test_buffers_and_attributes_are_put_back"),
    "._parameters": Use("the table of a module's parameters", "test_a_taken_name_is_refused"),
    "._load_from_state_dict": Use("reads names of older releases", "test_checkpoints_of_older_releases_are_read"),
    "torch._dynamo.source.GetItemSource": Use("a module among `*args`", "test_a_decorated_forward_has_a_root"),
    "torch._guards.ChainedSource": Use("what a guarded attribute is one of, by its `base`", "test_serve_alike"),
    "torch._guards.Source": Use("the class of sources", "test_serve_only"),
    '"_buffers_"': Use("part of the name of an input that is a buffer", "test_what_dynamo_says_of_inputs"),
    '"_checkpoint_context_fn"': Use("a policy chooses what is recomputed", "test_selective_is_refused"),
    '"_assert"': Use("how Dynamo's ops begin that check and set no mode", "test_modes_are_told_apart"),
    '"_check"': Use("the same", "test_modes_are_told_apart"),
    '"_log_api_usage"': Use("the same, of one that counts calls", "test_real_models"),
    '"_enter_"': Use("how the ops begin that Dynamo makes of inference_mode and autocast", "test_modes_are_told_apart"),
    '"_exit_"': Use("the same, where it ends", "test_modes_are_told_apart"),
    '"_operator"': Use("the home of Python's operators", "test_what_torch_knows"),
    '"_fused_rms_norm"': Use("ATen's rms_norm with by-products", "test_a_norm_goes_in"),
    '"_set_grad_enabled"': Use("what no_grad becomes", "test_nodes_fit_in_one_gradient_mode_and_checkpoint"),
    '"_to_copy"': Use("ATen's cast", "test_every_entry_is_an_op"),
    '"_unsafe_view"': Use("ATen's view of a result", "test_every_entry_is_an_op"),
}


def parsed() -> list[Source]:
    """Return the files of the package and of the passes."""
    return [source for source in sources() if source.module.split(".")[0] == PACKAGE]


def found(files: Iterable[Source]) -> dict[str, list[str]]:
    """Map each private name to the files that use it."""
    uses: defaultdict[str, list[str]] = defaultdict(list)
    for source in files:
        for name in dict.fromkeys(private(source.tree)):
            uses[name].append(source.path)
    return dict(sorted(uses.items(), key=lambda item: item[0].casefold()))


def files_with_test(name: str) -> list[str]:
    """Return where a test function of that name stands, as "path"."""
    files = [source for source in sources() if source.path.startswith("tests/")]
    return [source.path for source in files if f"\ndef {name}(" in source.text]


def table() -> list[str]:
    """Return the table of the document: names, files, reasons, tests."""
    rows = ["| name | used in | for | noticed by |", "| --- | --- | --- | --- |"]
    for name, paths in found(parsed()).items():
        use = USES.get(name, Use("**unlisted**", ""))
        files = ", ".join(f"`{path.removeprefix(PACKAGE + '/')}`" for path in paths)
        rows.append(f"| `{name}` | {files} | {use.why} | `{use.test}` |")
    return rows


def private(tree: ast.Module) -> Iterator[str]:
    """Iterate over the private names in a file: imported, reached by attributes, or spelt in a text.

    A name that was imported is not followed further, and an attribute is told by its own name only, as `._version`.
    """
    known, own = dict(_imports(tree)), set(_defined(tree))
    yield from (name for name in known.values() if _is_private(name))
    nodes = list(ast.walk(tree))
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            start, name = _dotted(node, known)
            if start is not None:
                yield from [name] if id(node) not in inner and _is_private(name) and not _is_private(start) else []
            elif _is_foreign(node, own):
                yield f".{node.attr}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            for word in _words(node.value):
                yield f".{word}" if word in attributes or word in TOLD_BY_TEXT else f'"{word}"'


def _imports(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Iterate over the names that a file imports from the libraries, with what they stand for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in (each for each in node.names if each.name.split(".")[0] in LIBRARIES):
                first = alias.name.split(".")[0]
                yield (alias.asname, alias.name) if alias.asname else (first, first)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def _dotted(node: ast.Attribute, known: dict[str, str]) -> tuple[str | None, str]:
    """Return the imported name that a chain of attributes starts with, None for another, and the whole chain."""
    steps: list[str] = []
    inner: ast.expr = node
    while isinstance(inner, ast.Attribute):
        steps.append(inner.attr)
        inner = inner.value
    start = known.get(inner.id) if isinstance(inner, ast.Name) else None
    return start, ".".join([start or "", *reversed(steps)])


def _is_private(name: str) -> bool:
    return any(step.startswith("_") and not step.startswith("__") for step in name.split("."))


def _is_foreign(node: ast.Attribute, own: set[str]) -> bool:
    """Tell whether an attribute is private and not the file's own; what is asked of `super()` is never its own."""
    above = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
    foreign = above or node.attr not in own
    return foreign and _is_private(node.attr) and node.attr not in OF_PYTHON and not OURS.fullmatch(node.attr)


def _words(text: str) -> Iterator[str]:
    """Iterate over the private names in a text that is a name, or a list of names."""
    words = text.split()
    if all(re.fullmatch(r"\w+", word) for word in words):
        yield from (word for word in words if re.fullmatch(r"_[a-z]\w*", word) and not OURS.fullmatch(word))


def _defined(tree: ast.Module) -> Iterator[str]:
    """Iterate over the private names that are a file's own: functions, classes, variables, attributes of `self`."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr
