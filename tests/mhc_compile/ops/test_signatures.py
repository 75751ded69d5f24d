"""Signatures of the ops: torch has them as they are written, and nobody else counts arguments."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mhc_compile.ops import registration, signatures
from mhc_compile.ops.signatures import NO_HISTORY, OPS, History, Options, Seam, SeamResult, Tail, Written
from mhc_compile.ops.signatures.fields import filled, flat, named, names, position, schema, take
from tests.project.rules import Source, sources

ops = pytest.mark.parametrize("op", OPS)


class Inner(NamedTuple):
    b: Tensor | None
    c: float


class Outer(NamedTuple):
    a: Tensor
    inner: Inner
    d: str
    e: int = 7


# -- flat and named ---------------------------------------------------------------------------------------------------


def test_flat_values_get_their_names_and_lose_them() -> None:
    made = named(Outer, [1, 2, 3, 4, 5])
    assert [made.a, made.inner.b, made.inner.c, made.d, made.e] == [1, 2, 3, 4, 5]
    assert flat(made) == [1, 2, 3, 4, 5]
    assert names(Outer) == ("a", "b", "c", "d", "e")
    assert [position(Outer, name) for name in names(Outer)] == [0, 1, 2, 3, 4]


def test_a_default_at_the_end_may_be_missing() -> None:
    assert named(Outer, [1, 2, 3, 4]).e == 7


@pytest.mark.parametrize(
    ("values", "trouble"), [([1, 2, 3], "missing 1 .* 'd'"), ([1, 2, 3, 4, 5, 6], "6 were given")], ids=["3", "6"]
)
def test_another_number_of_values_is_refused(values: list[int], trouble: str) -> None:
    with pytest.raises(TypeError, match=rf"Outer\(\) .*{trouble}"):
        named(Outer, values)


def test_values_behind_are_left() -> None:
    values = iter(range(9))
    assert take(Outer, values).e == 4
    assert list(take(Inner, values)) == [5, 6]
    assert list(values) == [7, 8]
    with pytest.raises(TypeError, match=r"Inner\(\) missing 1 .* 'c'"):
        take(Inner, iter([1]))


def test_values_go_to_the_places_of_their_names() -> None:
    assert filled(Outer, c=1, a=2) == (2, None, 1, None, None)
    with pytest.raises(TypeError, match=r"Outer\(\) .* 'inner'"):
        filled(Outer, inner=1)
    with pytest.raises(ValueError, match="not in tuple"):
        position(Outer, "inner")


def test_annotations_become_a_schema() -> None:
    assert schema("f", Outer, Inner) == "f(Tensor a, Tensor? b, float c, str d, int e=7) -> Tensor[]"
    assert schema("f", Inner, Tensor) == "f(Tensor? b, float c) -> Tensor"
    assert schema("f", Inner, None) == "f(Tensor? b, float c) -> ()"


def test_a_history_is_its_writes() -> None:
    one, two = (named(Written, [torch.ones(1), torch.ones(2), torch.ones(3), None, None, i]) for i in (1.0, 2.0))
    history = History.of([one, two], equal_head=True)
    assert history.fs == [one.f, two.f]
    assert history.multipliers == [1, 2]
    assert history.equal_head
    assert all(a.f is b.f and a.h_res is b.h_res for a, b in zip(history.writes(), (one, two), strict=True))
    assert [write.tail for write in history.writes()] == [Tail(None, None, 1.0), Tail(None, None, 2.0)]
    assert History.of([], equal_head=False) == NO_HISTORY
    assert NO_HISTORY.writes() == []


# -- what torch has ---------------------------------------------------------------------------------------------------


@ops
def test_torch_has_the_ops_schema(op: str) -> None:
    found = getattr(torch.ops.mhc, op).default._schema
    assert f"mhc::{schema(op, *OPS[op])}" == str(found)
    assert [argument.name for argument in found.arguments] == list(names(OPS[op].arguments))


@ops
def test_an_op_is_all_there(op: str) -> None:
    """An op decomposes or has a meaning, a fake and a gradient of its own."""
    keys = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")
    has = [torch._C._dispatch_has_kernel_for_dispatch_key(f"mhc::{op}", key) for key in keys]
    assert sum(has) == 1
    assert (op in registration.MEANINGS) == (has[1] and OPS[op].results is not None)


def test_every_signature_is_of_an_op() -> None:
    """And a table that lists them twice, or not at all, is found out."""
    taken = [op.arguments for op in OPS.values()]
    assert len(set(taken)) == len(taken)
    parts = {"History", "Kept", "MapOptions", "Op", "Options", "Parameters", "SavedSite", "SiteInputs", "SiteUpstream",
             "Tail", "Written"}  # fmt: skip
    results = {op.results.__name__ for op in OPS.values() if isinstance(op.results, type)} - {"Tensor"}
    known = {name for name in signatures.__all__ if isinstance(getattr(signatures, name), type)}
    assert known == {kind.__name__ for kind in taken} | results | parts | {"SiteGradients"}


def test_example() -> None:
    """Names reach through the parts."""
    given: Any = named(Seam, range(22))
    assert (given.x, given.written.f, given.written.tail.multiplier, given.site.parameters.phi) == (0, 1, 6, 7)
    assert (given.site.shift, given.options.n, given.options.equal_streams) == (12, 13, 21)
    assert names(Options)[-1] == "equal_streams"
    assert position(SeamResult, "u") == 1


# -- nobody else counts -----------------------------------------------------------------------------------------------

HANDED_OVER = {"args", "inputs", "output", "outputs", "grads", "rest", "saved", "saved_tensors"}
SCHEMAS = "mhc_compile/ops/registration.py"  # where torch is told
STRICT = ("mhc_compile/ops/", "mhc_compile/codegen/runtime/dispatch.py", "mhc_compile/codegen/runtime/spec_of_call.py")
READERS = ("passes/", "mhc_compile/backend/", "mhc_compile/codegen/", "mhc_compile/model/", "mhc_compile/capture/")
HOME = "mhc_compile/ops/signatures/"


def counted(source: Source) -> Iterator[str]:
    """Complain where a file takes the arguments or results of an op of the mhc IR by their place.

    Passes index the arguments of torch's own ops, so the rule on nodes is for files that know ops of the mhc IR.
    """
    strict, knows = source.path.startswith(STRICT), "ops.mhc" in source.text or "ops.signatures" in source.text
    if source.path.startswith(HOME) or not (strict or (knows and source.path.startswith(READERS))):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Subscript) and _is_place(node.slice) and _is_handed_over(node.value, source, strict):
            yield f"{source.at(node)}: {ast.unparse(node)}; read it by name, `named(Seam, node.args).x`"
        elif isinstance(node, ast.Call) and "operator.getitem" in map(ast.unparse, node.args):
            if any(_is_place(arg) for arg in node.args):
                yield f"{source.at(node)}: {ast.unparse(node)}; ask for the place, `position(SeamResult, 'u')`"
        elif isinstance(node, ast.Attribute) and node.attr == "define" and source.path != SCHEMAS:
            yield f"{source.at(node)}: a schema of its own; `OPS` has them all"


def _is_handed_over(value: ast.expr, source: Source, strict: bool) -> bool:
    """Tell whether these are a node's arguments or, in a strict file, what torch calls a function with."""
    if isinstance(value, ast.Attribute):
        return value.attr in ("args", "saved_tensors")
    return strict and isinstance(value, ast.Name) and value.id in HANDED_OVER | _starred(source)


def _is_place(index: ast.expr) -> bool:
    """Tell whether an index is a number, a slice or what is computed of numbers."""
    if isinstance(index, ast.Slice):
        return True
    return any(isinstance(n, ast.Constant) and isinstance(n.value, int) for n in ast.walk(index))


def _starred(source: Source) -> set[str]:
    """The names of starred parameters and of starred targets, such as `*rest`."""
    found = {n.args.vararg.arg for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef) and n.args.vararg}
    targets = (n.value for n in ast.walk(source.tree) if isinstance(n, ast.Starred) and isinstance(n.ctx, ast.Store))
    return found | {t.id for t in targets if isinstance(t, ast.Name)}


def test_nobody_counts_arguments() -> None:
    assert [complaint for source in sources() for complaint in counted(source)] == []


def test_the_rule_sees_the_files_that_it_is_for() -> None:
    paths = {source.path for source in sources()}
    assert {path for path in STRICT if path.endswith(".py")} <= paths
    assert all(any(path.startswith(folder) for path in paths) for folder in (*STRICT, *READERS, HOME))


IR = "import torch\nSEAM = torch.ops.mhc.seam.default\n"


def last_line(text: str) -> str:
    """A path, or the last line of a file."""
    return text.split("\n")[-1].strip()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("passes/fuse_seams/__init__.py", IR + "x = node.args[0]"),
        ("passes/fuse_seams/__init__.py", IR + "site = arrival.coefficients.args[5:]"),
        ("passes/plan_recompute/__init__.py", IR + "columns = [write.args[i + 1] for i in range(6)]"),
        ("passes/plan_recompute/__init__.py", IR + "plain = bool(node.args[-1])"),
        ("passes/plan_recompute/__init__.py", "from mhc_compile.ops.signatures import Seam\nx = seam.args[0]"),
        ("passes/widen/widener.py", IR + "pre = emit(at, operator.getitem, made, 0)"),
        ("passes/fuse_seams/__init__.py", IR + "post = emit(operator.getitem, (made, first + 1), at)"),
        ("mhc_compile/backend/kernels.py", IR + "site = node.args[1]"),
        ("mhc_compile/ops/fused.py", "def enter(x, *rest):\n    return rest[6:]"),
        ("mhc_compile/ops/seams.py", "def save(ctx, inputs, output):\n    ctx.options = inputs[13:]"),
        ("mhc_compile/ops/replay.py", "def f(ctx):\n    return ctx.saved_tensors[:6]"),
        ("mhc_compile/ops/library.py", "def f(x):\n    first, *others = x\n    return others[-1]"),
        ("mhc_compile/codegen/runtime/dispatch.py", "def leave(x, *tensors):\n    return tensors[2]"),
        ("mhc_compile/ops/library.py", "_LIBRARY.define('seam(Tensor x) -> Tensor')"),
    ],
    ids=last_line,
)  # fmt: skip
def test_the_rule_bites(path: str, text: str) -> None:
    assert len(list(counted(Source(path, text)))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("passes/canonicalize/__init__.py", "x = node.args[0]"),  # of torch's ops
        ("passes/fuse_seams/__init__.py", IR + "x = named(Seam, node.args).x\nfirst, *_ = node.args\ny = parts['u']"),
        ("mhc_compile/ops/norms.py", "def f(x):\n    return x.shape[-1], x[..., 0]"),
        ("mhc_compile/ops/signatures/fields.py", "def f(*args):\n    return args[0]"),
        ("mhc_compile/codegen/inspect/traffic.py", "def f(*args):\n    return args[0]"),
    ],
    ids=last_line,
)  # fmt: skip
def test_the_rule_lets_other_code_pass(path: str, text: str) -> None:
    assert list(counted(Source(path, text))) == []


def test_parts_keep_their_order_wherever_they_are() -> None:
    """A part that several ops share lies in all of them as it is."""
    for op in OPS.values():
        fields = list(names(op.arguments))
        for part in (signatures.MapOptions, signatures.Parameters, Tail, signatures.Kept, History):
            inside = [field for field in fields if field in names(part)]
            if len(inside) == len(names(part)):
                at = fields.index(inside[0])
                assert fields[at : at + len(inside)] == list(names(part))
