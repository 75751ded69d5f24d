"""Generated kernels: a call of an op becomes a Spec, the Spec a text, the text a module, the module the op's kernel.

    spec       Spec: all that a generated file depends on
    text       templates of source
    triton/    Spec -> the text of a file with Triton kernels (GPUs)
    cpp/       number of streams and dtype -> the text of kernels in C++ (CPUs)
    runtime/   from a call of an op to a kernel that runs: dispatch, files, tiles
    inspect/   what kernels do, seen without a GPU: traffic, launches, machine code

Each target language is a folder with a `generate` of its own: what it makes of an op is its own matter.
"""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.triton.generate import generate

__all__ = ["Spec", "generate"]
