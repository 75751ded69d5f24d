"""An upgraded model, or any FX graph, as one self-contained graph of torch's own ops with its parameters inside."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import ConstraintViolationError
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from mhc_compile.api.dynamic_shapes import marked, names_of
from mhc_compile.api.upgrade import upgrade
from mhc_compile.backend.planned import Planned
from mhc_compile.backend.rewriting import config_of_markers, rewrite_graph
from mhc_compile.capture.frames import clean_errors, frame_root
from mhc_compile.capture.model_run import run_captured
from mhc_compile.config import Config
from mhc_compile.errors import CaptureError, NotUpgradedError
from mhc_compile.model.sites import OwnerSites
from mhc_compile.passes.graph.walk import value

_CACHES = (
    "for Hugging Face models pass use_cache=False, or call"
    " transformers.integrations.executorch.register_dynamic_cache_export_support() first"
)


def export(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> fx.GraphModule:
    """Return an upgraded model as one GraphModule that runs, trains and exports without this package.

    Its parameters and arguments are the model's own, under their names; sizes are those of the arguments, except where
    `dynamic_shapes`, or `torch._dynamo.mark_dynamic(tensor, dim)`, says otherwise. Hand the result to
    `torch.export.export(graph, args, kwargs, dynamic_shapes=dynamic_shapes)` for AOTInductor or ONNX.

    Args:
        model: a model that was upgraded.
        args: positional arguments of a typical call.
        kwargs: keyword arguments of that call.
        dynamic_shapes: which sizes may change, as `torch.export.export` takes it, such as
            `{"input_ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}}`.

    Raises:
        NotUpgradedError: the model holds no mHC parameters.
        ConfigError: dynamic_shapes does not fit the arguments.
        CaptureError: the model does not run with these arguments, breaks into several graphs, or returns what a graph
            cannot return.
    """
    if not any(isinstance(module, OwnerSites) for module in model.modules()):
        raise NotUpgradedError(
            "the model holds no mHC parameters; call mhc_compile.upgrade first, or export it with torch"
        )
    args, kwargs = tuple(args), dict(kwargs or {})
    if dynamic_shapes is None:
        return _as_graph(model, args, kwargs)
    args, kwargs = marked(model, args, kwargs, dynamic_shapes)
    try:
        return _as_graph(model, args, kwargs)
    except CaptureError as error:
        if not isinstance(error.__cause__, ConstraintViolationError):
            raise
        said = " ".join(str(error.__cause__).split()).partition(" User stack:")[0]
        raise CaptureError(
            "the model fixes a size that dynamic_shapes frees; leave it out, or give torch.export.Dim.AUTO. torch says:"
            f" {said}"
        ) from error


def rewrite(
    gm: fx.GraphModule,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    config: Config | None = None,
) -> fx.GraphModule:
    """Rewrite any FX graph: one from `torch.fx.symbolic_trace`, `torch.export(...).module()` or Dynamo.

    Args:
        gm: the graph module, left as it is.
        args: positional arguments of a typical call.
        kwargs: keyword arguments of that call.
        config: what to build; by default `Config()`.

    Returns:
        A GraphModule of torch's own ops with parameters of its own; it computes what `gm` computes until it is trained.

    Raises:
        MHCError: as `upgrade` and `export`.
    """
    with torch.inference_mode(False):  # tensors that are made in inference mode can never be trained
        copied = copy.deepcopy(gm)
    module = _as_module(copied)
    upgrade(module, args, kwargs, config=config)
    if not any(isinstance(child, OwnerSites) for child in module.modules()):
        return copied  # nothing found, and upgrade said so
    return _as_graph(module, tuple(args), dict(kwargs or {}))


def _as_module(gm: fx.GraphModule) -> nn.Module:
    """Return a module with the graph module's code and state, whose class stays as it is."""
    cls = type(type(gm).__name__, (nn.Module,), {"forward": type(gm).forward, "__module__": __name__})
    module: nn.Module = cls()
    module.__dict__.update({name: value for name, value in vars(gm).items() if name != "_graph"})
    return module


class _Recorder:
    """A backend that rewrites the model's one graph, and remembers what went in and came out.

    Dynamo keeps every backend until it is reset, so `taken` lets go of what was seen.
    """

    def __init__(self) -> None:
        self.seen: list[_Seen] = []

    def __call__(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        with clean_errors():
            if self.seen:
                raise CaptureError("the model breaks into several graphs, and an exported graph must be one;"
                                   " TORCH_LOGS=graph_breaks shows where")  # fmt: skip
            config = config_of_markers(gm, None)
            if config is None:
                raise CaptureError("the captured graph holds no site of the model; is it inside mhc.plain(model)?")
            self.seen.append(_Seen(rewrite_graph(gm, config, Planned.of(gm, frame_root()), inline=True).gm))

        def run(*inputs: Any) -> Any:
            seen = self.seen[0]
            seen.inputs, seen.outputs = inputs, seen.gm.forward(*inputs)
            return seen.outputs

        return run

    def taken(self) -> _Seen | None:
        """Return the graph and its run, if there was one, and forget it."""
        return self.seen.pop() if self.seen else None


@dataclasses.dataclass
class _Seen:
    """A rewritten graph, and what went in and came out when it ran."""

    gm: fx.GraphModule
    inputs: Sequence[Any] = ()
    outputs: Sequence[Any] = ()


def _as_graph(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    recorder = _Recorder()
    leaves, in_spec = pytree.tree_flatten((args, kwargs))
    try:
        captured = run_captured(model, args, kwargs, recorder, copied=False)
    finally:
        seen = recorder.taken()
    if seen is None:
        raise CaptureError("the model ran without a graph, so there is nothing to export")
    gm = seen.gm
    results, out_spec = pytree.tree_flatten(captured.output)
    placeholders = gm.graph.find_nodes(op="placeholder")
    output = gm.graph.find_nodes(op="output")[0]
    by_id = {id(t): node for t, node in zip(seen.outputs, output.args[0], strict=True) if isinstance(t, Tensor)}
    by_id |= {id(t): node for t, node in zip(seen.inputs, placeholders, strict=True) if id(t) not in by_id}
    output.args = ([_returned(result, by_id) for result in results],)
    _bind(gm, model, seen.inputs, placeholders, leaves)
    info = _PyTreeInfo([*names_of(model, args), *kwargs], in_spec, out_spec)
    gm.graph.set_codegen(_PyTreeCodeGen(info))
    for node in gm.graph.nodes:  # sites stand between modules' calls, which torch.export would nest by these again
        node.meta.pop("nn_module_stack", None)
    gm.graph.lint()
    gm.recompile()
    return gm


def _returned(result: Any, by_id: Mapping[int, fx.Node]) -> Any:
    if id(result) in by_id:
        return by_id[id(result)]
    if result is None or isinstance(result, (bool, int, float, str)):
        return result
    raise CaptureError(
        f"the model returns a {type(result).__name__} that a graph cannot; return tensors only, or what torch's pytree"
        f" knows: {_CACHES}"
    )


def _bind(
    gm: fx.GraphModule, model: nn.Module, inputs: Sequence[Any], placeholders: Sequence[fx.Node], leaves: Sequence[Any]
) -> None:
    """Turn inputs that are the model's tensors into attributes, and keep one input per leaf of the arguments."""
    parameters = {id(p): name for name, p in model.named_parameters()}
    buffers = {id(b): name for name, b in model.named_buffers()}
    position = {id(leaf): i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
    arguments: dict[int, fx.Node] = {}
    for tensor, node in zip(inputs, placeholders, strict=True):
        name = parameters.get(id(tensor)) or buffers.get(id(tensor))
        if name is not None:
            _hold(gm, name, tensor, id(tensor) in parameters)
            with gm.graph.inserting_before(node):
                attribute = gm.graph.get_attr(name)
            attribute.meta = dict(node.meta)
            node.replace_all_uses_with(attribute)
            gm.graph.erase_node(node)
        elif id(tensor) in position:
            arguments[position[id(tensor)]] = node
        elif isinstance(tensor, int):
            _read_number(gm, node, placeholders)
        elif not isinstance(tensor, Tensor):
            raise CaptureError(
                f"the graph takes a {type(tensor).__name__}, which no exported graph can hold; of a model on several"
                " processes, export what it was before parallelize_module or distribute_module"
            )
        else:
            raise CaptureError(
                f"graph input {node.name} is neither a tensor of the model nor an argument; pass it as an argument, in"
                f" what torch's pytree knows: {_CACHES}"
            )
    with gm.graph.inserting_before(next(iter(gm.graph.nodes))):
        fresh = [gm.graph.placeholder(f"leaf_{i}") for i in range(len(leaves))]
    for i, node in arguments.items():
        fresh[i].meta = dict(node.meta)
        node.replace_all_uses_with(fresh[i])
        gm.graph.erase_node(node)


def _read_number(gm: fx.GraphModule, node: fx.Node, placeholders: Sequence[fx.Node]) -> None:
    """Turn the input that is a size, or a stride, which the user marked as dynamic, into a look at its tensor."""
    if node.users:
        read = _number_of(gm, str(node.meta.get("example_value")), placeholders)
        if read is None:
            raise CaptureError(
                f"graph input {node.name} is a number that no argument has as a size; pass it as an argument"
            )
        with gm.graph.inserting_before(next(n for n in gm.graph.nodes if n.op != "placeholder")):
            number = gm.graph.call_function(*read)
        number.meta = dict(node.meta)
        node.replace_all_uses_with(number)
    gm.graph.erase_node(node)


def _number_of(gm: fx.GraphModule, symbol: str, placeholders: Sequence[fx.Node]) -> tuple[Any, tuple[Any, ...]] | None:
    """Return the op, and its arguments, that reads the number with this symbol off an input: a size, a stride."""
    aten = torch.ops.aten
    held = [(node, tensor) for node in placeholders if node in gm.graph.nodes and (tensor := value(node)) is not None]
    for op, layout in ((aten.sym_size.int, Tensor.size), (aten.sym_stride.int, Tensor.stride)):
        for node, tensor in held:
            if symbol in (numbers := [str(number) for number in layout(tensor)]):
                return op, (node, numbers.index(symbol))
    return next(
        ((aten.sym_storage_offset, (node,)) for node, tensor in held if str(tensor.storage_offset()) == symbol), None
    )


def _hold(gm: fx.GraphModule, name: str, tensor: Tensor, parameter: bool) -> None:
    """Give the graph module a parameter or buffer under a dotted name."""
    path, _, leaf = name.rpartition(".")
    module: nn.Module = gm
    for step in path.split(".") if path else ():
        child = module._modules.get(step)
        if child is None:
            child = nn.Module()
            module.add_module(step, child)
        module = child
    if parameter:
        module.register_parameter(leaf, tensor)  # type: ignore[arg-type]  # found among the parameters
    else:
        module.register_buffer(leaf, tensor)
