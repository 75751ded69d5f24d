"""Generated Triton kernels: a Spec becomes the text of a file, the file a module, the module an op's kernel."""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.triton.generate import generate

__all__ = ["Spec", "generate"]
