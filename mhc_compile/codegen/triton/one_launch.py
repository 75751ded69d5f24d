"""One launch instead of two: what one half of the programs makes, the other half finds in the cache.

Programs draw tickets, and tickets stand for tasks in the order A0 A1 .. B0 A2 B1 .. A reader waits for makers whose
tickets were drawn before its own, and makers never wait, so every wait ends, whatever programs run at once. Counters
only count; sums stay in places of their own, so that two runs agree to the bit.
"""

from __future__ import annotations

from mhc_compile.codegen.spec import Spec
from mhc_compile.codegen.text import fill
from mhc_compile.codegen.triton import forward, grad_logits, grad_streams

COUNTERS = '''
@triton.jit
def done(counter):
    """Counts a task that is done: all that its program stored is there before."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release")


@triton.jit
def wait(counter, count):
    """Waits until so many tasks are done."""
    while tl.atomic_add(counter, 0, sem="acquire") < count:
        pass
    tl.debug_barrier()
'''

_FORWARD = '''
@triton.jit(do_not_specialize=["T", "groups"])
def both(
    $both, counters, T, groups,
    BT: tl.constexpr, BC: tl.constexpr, BR: tl.constexpr, BCR: tl.constexpr, SPLITS: tl.constexpr, LAG: tl.constexpr,
):
    """Per step, a group of BT tokens is made and projected, and the group LAG steps before is read, BR at a time."""
    ticket = tl.atomic_add(counters, 1)
    tasks: tl.constexpr = SPLITS + BT // BR + 1
    step, task = (ticket // tasks).to(tl.int64), ticket % tasks
    if task < SPLITS:
        if step < groups:
            project_tokens($project, T, step * BT + tl.arange(0, BT), task, BT, BC, SPLITS)
            done(counters + 1 + step)
    elif step >= LAG:
        group = step - LAG
        wait(counters + 1 + group, SPLITS)
        if task == SPLITS:
            mix_tokens($mix, T, group * BT + tl.arange(0, BT), BT, SPLITS)
        else:
            token = group * BT + (task - SPLITS - 1) * BR + tl.arange(0, BR)
            read_tokens($read, T, token, BR, BCR, SPLITS)
'''

_BACKWARD = '''
@triton.jit(do_not_specialize=["T", "share", "pieces"])
def back(
    $all, counters, T, share, pieces,
    BT: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr, BS: tl.constexpr, BCS: tl.constexpr, BP: tl.constexpr,
    SPLITS: tl.constexpr, LAG: tl.constexpr,
):
    """Per step, a share of the tokens gets its coefficients' gradients, and the share LAG steps before the streams'."""
    ticket = tl.atomic_add(counters, 1)
    mixers, programs = share // BM, share // BT
    makers = mixers + programs
    tasks = makers + pieces * $roles
    step, task = (ticket // tasks).to(tl.int64), ticket % tasks
    if task < makers:
        if step < SPLITS:
            if task < mixers:
                token = step * share + task * BM + tl.arange(0, BM)
                mix_back($mix, T, token, step * mixers + task, BM)
            else:
                number = task - mixers
                gates_back($gates, T, step * share + number * BT + tl.arange(0, BT), step * programs + number, BT, BC)
            done(counters + 1 + step)
    elif step >= LAG:
        split = step - LAG
        wait(counters + 1 + split, makers)
        piece, role = (task - makers) // $roles, (task - makers) % $roles
        begin, end = split * share, tl.minimum(T, (split + 1) * share)
        slice_back($slice, T, begin, end, role, piece, split, BS, BCS, BP)
'''


def both(spec: Spec) -> str:
    """Write the forward's one launch."""
    return fill(_FORWARD, **forward.arguments(spec))


def back_arguments(spec: Spec) -> list[str]:
    """Return the tensors of the backward's one launch."""
    return forward.union(grad_logits.coefs_arguments(spec), grad_streams.streams_arguments(spec))


def back(spec: Spec) -> str:
    """Write the backward's one launch."""
    return fill(
        _BACKWARD,
        all=", ".join(back_arguments(spec)),
        mix=", ".join(grad_logits.MIX),
        gates=", ".join(grad_logits.gates_arguments(spec)),
        slice=", ".join(grad_streams.streams_arguments(spec)),
        roles=1 + len(grad_streams.phi_groups(spec)),
    )
