from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mhc_compile.codegen import Spec, generate
from mhc_compile.codegen.spec import blocks
from mhc_compile.codegen.triton.generate import bytes_per_token
from mhc_compile.codegen.triton.sinkhorn import segments
from mhc_compile.errors import ConfigError

SPECS = [
    Spec("seam", 4, 4096, norm="layer", weight=True, shift=True, offset=True, scale=True, multiplier=0.5),
    Spec("seam", 3, 40, "fp32", "bf16", equal_streams=True, projection="identity"),
    Spec("enter", 8, 128, "fp16", norm="rms_cast", weight=True),
    Spec("leave", 2, 5129),
    Spec("coefficients", 16, 64, iters=7),
]
specs = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.name)


@specs
def test_the_text_is_a_file_to_read(spec: Spec) -> None:
    text = generate(spec)
    tree = ast.parse(text)
    assert text.startswith('"""' + spec.op)
    assert str(bytes_per_token(spec)[0][0]) in ast.get_docstring(tree)  # type: ignore[operator]  # it has one
    imports = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imports == {"torch", "triton", "triton.language"}
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert {"forward", "backward"} <= {function.name for function in functions}
    assert all(ast.get_docstring(function) for function in functions if function.name != "gated")
    assert "$" not in text
    assert "\n\n\n\n" not in text


@pytest.mark.core(1)
@specs
def test_it_runs_alone(spec: Spec, tmp_path: Path) -> None:
    """With torch and triton, where this package cannot be imported."""
    (tmp_path / "kernel.py").write_text(generate(spec))
    code = "import sys; sys.modules['mhc_compile'] = None; import kernel; print(kernel.SPEC['op'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == spec.op


@specs
def test_no_float_atomics_and_no_constexpr_tokens(spec: Spec) -> None:
    text = generate(spec)
    assert not re.search(r"\bT: tl\.constexpr", text)
    atomics = set(re.findall(r"tl\.atomic_\w+\((\w+)", text))
    assert atomics <= {"counters", "counter"}  # of tasks, integers
    for kernel in re.findall(r"@triton\.jit\((.*)\)\ndef (\w+)", text):
        assert '"T"' in kernel[0], kernel


def test_the_same_spec_gives_the_same_text_and_another_one_another() -> None:
    assert len({generate(spec) for spec in SPECS}) == len(SPECS)
    generate.cache_clear()
    first = generate(SPECS[0])
    generate.cache_clear()
    assert generate(SPECS[0]) == first


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"op": "expand"}, "op='expand'"),
        ({"norm": "batch"}, "norm='batch'"),
        ({"dtype": "fp64"}, "dtype='fp64'"),
        ({"projection": "birkhoff"}, "projection='birkhoff'"),
        ({"n": 17}, "17 streams of 64 features: 1 to 16.*kernels='reference'"),
        ({"channels": 0}, "0 features"),
    ],
    ids=["op", "norm", "dtype", "projection", "streams", "channels"],
)
def test_what_cannot_be_generated_is_refused(wrong: dict[str, object], named: str) -> None:
    given = {"op": "seam", "n": 4, "channels": 64, **wrong}
    with pytest.raises(ConfigError, match=named):
        Spec(**given)  # type: ignore[arg-type]  # of several types


@pytest.mark.parametrize("columns", [1, 3, 8, 15, 16, 24, 35, 48, 80, 99, 288])
def test_blocks_cover_the_columns_with_little_beyond(columns: int) -> None:
    found = blocks(columns)
    assert [start for start, _ in found] == [sum(w for _, w in found[:i]) for i in range(len(found))]
    assert columns <= sum(width for _, width in found) <= max(16, 1.5 * columns)
    assert all(width >= 16 and width & (width - 1) == 0 for _, width in found)


def test_segments_add_up() -> None:
    assert segments(20) == [5, 5, 5, 5]
    assert segments(7) == [5, 2]
    assert segments(1) == [1]


def test_names_are_fit_for_files() -> None:
    assert SPECS[0].name == "seam_n4_c4096_bf16_layer_offset_scale"
    assert SPECS[1].name == "seam_n3_c40_fp32_bf16_plain"
