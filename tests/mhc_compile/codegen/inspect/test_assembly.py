from __future__ import annotations

import pytest

from mhc_compile.codegen.inspect.assembly import amd_move, ptx_move


def in_short(value: str | tuple[str, int] | None) -> str:
    """An instruction without its operands, or what it moves."""
    if isinstance(value, str):
        return next(word for word in value.split() if not word.startswith("@"))
    return "none" if value is None else f"{value[0]} {value[1]}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("\t@%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];", ("load", 16)),
        ("\tld.global.L1::evict_last.v2.b64 {%rd1, %rd2}, [%rd3];", ("load", 16)),
        ("\t@%p2 ld.global.b16 { %rs1 }, [ %rd4 + 0 ];", ("load", 2)),
        ("\tst.global.v4.b32 [ %rd1 + 0 ], { %r1, %r2, %r3, %r4 };", ("store", 16)),
        ("\tst.global.f32 [%rd1], %f1;", ("store", 4)),
        ("\tcp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r2;", ("load", 16)),
        ("\tcp.async.ca.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x4, %r2;", ("load", 4)),
        ("\tld.shared.b32 %r1, [%r2];", None),
        ("\tld.param.b64 %rd1, [p];", None),
        ("\tadd.f32 %f1, %f2, %f3;", None),
    ],
    ids=in_short,
)
def test_accesses_in_ptx(line: str, found: tuple[str, int] | None) -> None:
    assert ptx_move(line) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("\tglobal_load_dwordx4 v[2:5], v[0:1], off", ("load", 16)),
        ("\tbuffer_store_dwordx2 v[2:3], v0, s[0:3], 0 offen", ("store", 8)),
        ("\tglobal_load_dword v1, v0, s[2:3]", ("load", 4)),
        ("\tbuffer_load_ushort v1, v0, s[0:3], 0 offen", ("load", 2)),
        ("\tglobal_store_short_d16_hi v[0:1], v2, off", ("store", 2)),
        ("\tds_read_b128 v[0:3], v4", None),
        ("\ts_load_dwordx4 s[0:3], s[4:5], 0x0", None),
    ],
    ids=in_short,
)
def test_accesses_in_amds_assembly(line: str, found: tuple[str, int] | None) -> None:
    assert amd_move(line) == found
