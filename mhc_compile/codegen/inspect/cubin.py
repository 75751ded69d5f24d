"""Generated kernels compiled for GPUs that are not there, and what the machine code says of them.

Registers, stack and shared memory come from the binary; instructions from its disassembly (NVIDIA) or assembly (AMD);
the width of each access to global memory, and the line of the source it stems from, from PTX.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from mhc_compile.codegen.inspect import assembly, subprocess_call
from mhc_compile.codegen.inspect.assembly import Anatomy
from mhc_compile.codegen.inspect.record import Launch, record
from mhc_compile.codegen.runtime import build
from mhc_compile.codegen.spec import Spec


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a multiprocessor has; sizes in bytes."""

    block_shared: int  # most that one block may have
    shared: int
    warps: int
    blocks: int
    registers: int = 65536


KIB = 1024
LIMITS = {
    "sm_80": Limits(163 * KIB, 164 * KIB, 64, 32),
    "sm_86": Limits(99 * KIB, 100 * KIB, 48, 16),
    "sm_89": Limits(99 * KIB, 100 * KIB, 48, 24),
    "sm_90": Limits(227 * KIB, 228 * KIB, 64, 32),
    "sm_100": Limits(227 * KIB, 228 * KIB, 64, 32),
    "sm_120": Limits(99 * KIB, 100 * KIB, 48, 24),
    "gfx942": Limits(64 * KIB, 64 * KIB, 32, 32, 4 * 512 * 64),  # warps of 64
}


@dataclasses.dataclass(frozen=True)
class Binary:
    """One kernel, compiled.

    Attributes:
        kernel: its name.
        target: "sm_90", "gfx942", ...
        warps: per block.
        shared: bytes of shared memory per block.
        anatomy: registers, stack, accesses of global memory, instructions.
    """

    kernel: str
    target: str
    warps: int
    shared: int
    anatomy: Anatomy

    def count(self, pattern: str) -> int:
        """Return how many instructions have a mnemonic that the regular expression matches from its start."""
        return sum(number for name, number in self.anatomy.instructions.items() if re.match(pattern, name))

    @property
    def float_atomics(self) -> int:
        """Return how many instructions add floats atomically, in an order that no run repeats."""
        return self.count(r"(RED|ATOM)\w*\..*F(16|32|64)|(global|buffer|flat)_atomic_\w*(f16|f32|f64)")

    @property
    def occupancy(self) -> int:
        """Return how many blocks fit on a multiprocessor at once; 0 where not even one does."""
        return occupancy(self.anatomy.registers, self.shared, self.warps, self.target)


def occupancy(registers: int, shared: int, warps: int, target: str) -> int:
    """Return how many blocks fit on a multiprocessor, by registers per thread, shared bytes and warps per block."""
    limits = LIMITS[target]
    if shared > limits.block_shared:
        return 0
    amd = target.startswith("gfx")
    per_warp = -(-registers * (64 if amd else 32) // 256) * 256  # registers are handed out in such portions
    reserved = 0 if amd else KIB  # of shared memory, per block
    return min(
        limits.blocks,
        limits.warps // warps,
        limits.registers // (per_warp * warps),
        limits.shared // (shared + reserved) if shared + reserved else limits.blocks,
    )


@functools.cache
def inspect(text: str, spec: Spec, direction: str, target: str, tokens: int = 4096) -> tuple[Binary, ...]:
    """Compile what a module launches in its `forward` or `backward` and return it, kernel by kernel.

    Args:
        text: of the module.
        spec: what it was generated for.
        direction: "forward" or "backward".
        target: a key of LIMITS.
        tokens: how many there are; kernels do not depend on it, but the default tiles may.
    """
    return subprocess_call.call(False, _inspected, text, spec, direction, target, tokens)


def _inspected(text: str, spec: Spec, direction: str, target: str, tokens: int) -> tuple[Binary, ...]:
    launches = record(build.load(text, spec.name), spec, direction, tokens)
    return tuple(compiled(launch, target) for launch in launches)


def compiled(launch: Launch, target: str) -> Binary:
    """Compile the kernel of a launch as Triton's launcher would, with its alignments, and take the result apart."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    amd = target.startswith("gfx")
    gpu = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    backend, kernel = make_backend(gpu), launch.kernel
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, special, options = bind(**launch.arguments, **launch.options)
    options, signature, constants, attributes = kernel._pack_args(backend, dict(options), bound, special, options)
    done = triton.compile(ASTSource(kernel, signature, constants, attributes), target=gpu, options=vars(options))
    anatomy = assembly.amd(done.asm) if amd else assembly.nvidia(done.asm)
    return Binary(launch.name, target, done.metadata.num_warps, done.metadata.shared, anatomy)
