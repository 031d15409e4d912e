from __future__ import annotations

from pathlib import Path

import pytest

from verifier.errors import UsageError
from verifier.profile import cubin
from verifier.profile.cubin import CubinError, group_of, occupancy, parse_listing, parse_resources, summary
from verifier.target import TARGETS, get_target

H200, A100 = get_target("sm_90a"), get_target("sm_80")

SASS = """
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;     /* 0x00000a00ff017b82 */
                                                              /* 0x000e300000000800 */
        /*0010*/              @!P0 LDG.E.128 R4, [R2.64] ;
        /*0020*/                   LDGSTS.E.BYPASS.128 [R5], [R6.64] ;
        /*0030*/             @!PT  LDG.E.U16 R4, [R2.64] ;
        /*0040*/                   HGMMA.64x128x16.F32 R24, gdesc[UR8], R24, gsb0 ;
        /*0050*/              @UP1 UTMALDG.2D [UR4], [UR6] ;
        /*0060*/                   MUFU.EX2 R9, R9 ;
        /*0070*/                   FFMA R1, R2, R3, R4 ;
        /*0080*/                   FADD R1, R2, R3 ;
        /*0090*/                   IADD3 R1, R2, R3, RZ ;
        /*00a0*/                   IADD3 R1, R2, R3, RZ ;
        /*00b0*/                   IADD3 R1, R2, R3, RZ ;
        /*00c0*/               @P1 BRA 0x60 ;
        /*00d0*/               @P0 BRA 0x30 ;
        /*00e0*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R3 ;
        /*00f0*/              @!P0 BRA 0xe0 ;
        /*0100*/                   STL [R1], R2 ;
        /*0110*/                   EXIT ;
        /*0120*/                   BRA 0x120;
        /*0130*/                   NOP;
"""


@pytest.mark.parametrize(
    ("warps", "registers", "shared", "blocks", "limiter"),
    [
        (8, 32, 0, 8, "warps"),
        (8, 64, 0, 4, "registers"),
        (4, 255, 0, 2, "registers"),
        (12, 168, 0, 1, "registers"),
        (4, 40, 0, 12, "registers"),
        (4, 32, 100 * 1024, 2, "shared memory"),
        (8, 128, 232448, 1, "shared memory"),
        (8, 128, 232449, 0, "shared memory"),
        (1, 16, 0, 32, "blocks"),
        (32, 64, 0, 1, "registers"),
        (32, 65, 0, 0, "registers"),
    ],
)
def test_occupancy_of_the_cuda_calculator_on_compute_capability_9(
    warps: int, registers: int, shared: int, blocks: int, limiter: str
) -> None:
    found = occupancy(H200, registers=registers, shared=shared, warps=warps)
    assert (found.blocks, found.limiter) == (blocks, limiter)
    assert found.fraction == blocks * warps / 64


def test_occupancy_of_an_a100_block_with_48_kb() -> None:
    assert occupancy(A100, registers=32, shared=48 * 1024, warps=4).blocks == 3


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(UsageError) as raised:
        get_target("sm_12")
    assert all(name in raised.value.next_step for name in TARGETS)


def test_resource_lines() -> None:
    text = """
Resource usage:
 Common:
  GLOBAL:11 CONSTANT[4]:8
 Function a:
  REG:18 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:564 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function b:
  REG:255 STACK:800 SHARED:0 LOCAL:16 CONSTANT[0]:564 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
    assert parse_resources(text, "b") == cubin.Resources(registers=255, stack=816, shared=0)
    with pytest.raises(CubinError, match="no kernel 'c'"):
        parse_resources(text, "c")
    with pytest.raises(CubinError, match="no field"):
        parse_resources(text.replace("STACK:800", ""), "b")


def test_groups_and_loops_of_a_listing() -> None:
    sass = summary(parse_listing(SASS))
    assert sass.instructions["load global 128"] == 1
    assert sass.instructions["load global 16"] == 1
    assert sass.instructions["async copy 128"] == 1
    assert sass.instructions["tma"] == 1
    assert sass.instructions["sfu"] == 1
    assert sass.instructions["fp32"] == 2
    assert sass.instructions["local"] == 1
    assert sass.tensor == {"HGMMA": 1}
    assert sass.total == 19  # without NOP
    outer, inner = sass.loops  # the wait on the barrier and the self-branch at the end are none
    assert (outer.start, outer.end, outer.depth) == (0x30, 0xD0, 1)
    assert (inner.start, inner.end, inner.depth) == (0x60, 0xC0, 2)
    assert outer.total == 11
    assert inner.total == 7


@pytest.mark.parametrize(
    ("opcode", "group"),
    [
        ("LDG.E", "load global 32"),
        ("LDG.E.64.CONSTANT", "load global 64"),
        ("LDG.E.U8", "load global 8"),
        ("STG.E.U16", "store global 16"),
        ("HMMA.16816.F32", "tensor HMMA"),
        ("REDG.E.ADD.F32", "atomic"),
        ("LDSM.16.M88.4", "load shared"),
        ("IMAD.WIDE", "integer and other"),
        ("UTCHMMA", "tensor UTCHMMA"),
        ("LDTM.x32", "tensor memory"),
        ("FFMA2", "fp32"),
        ("UTMALDG.2D", "tma"),
    ],
)
def test_group_of(opcode: str, group: str) -> None:
    assert group_of(opcode) == group


@pytest.mark.parametrize("text", ["", "Function : kernel\n", "        /*0000*/                   NOP ;\n"])
def test_empty_listings_are_typed_errors(text: str) -> None:
    with pytest.raises(CubinError):
        summary(parse_listing(text))


@pytest.mark.parametrize("data", [b"", b"hello", b"\x7fELF", b"\x7fELF" + bytes(500)])
def test_bytes_that_are_no_cubin_are_typed_errors(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(CubinError):
        cubin.read_resources(cubin.write_cubin(data, tmp_path, "bad"), "kernel")
