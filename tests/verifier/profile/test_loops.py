"""Natural loops of machine code, on hand-written control flow."""

from __future__ import annotations

from verifier.profile.cubin import group_of
from verifier.profile.loops import Loop, Row, find_loops


def rows(*lines: str) -> list[Row]:
    """One instruction a line, 16 bytes each: `[@P0 ]OPCODE operands`."""
    made = []
    for number, line in enumerate(lines):
        predicate, _, rest = line.partition(" ") if line.startswith("@") else ("", "", line)
        opcode, _, operands = rest.partition(" ")
        made.append(Row(16 * number, predicate, opcode, operands))
    return made


def loops(*lines: str) -> tuple[Loop, ...]:
    return find_loops(rows(*lines), group_of)


def test_a_loop_and_what_it_holds() -> None:
    (loop,) = loops("MOV R0", "FFMA R1", "FFMA R2", "@P0 BRA 0x10", "EXIT ")
    assert (loop.start, loop.end, loop.depth) == (0x10, 0x30, 1)
    assert loop.instructions == {"fp32": 2, "branch": 1}


def test_an_inner_loop_is_one_deeper() -> None:
    outer, inner = loops("MOV R0", "FFMA R1", "MUFU.EX2 R2", "@P0 BRA 0x20", "@P1 BRA 0x10", "EXIT ")
    assert (outer.start, outer.depth, outer.total) == (0x10, 1, 4)
    assert (inner.start, inner.depth, inner.total) == (0x20, 2, 2)


def test_a_jump_back_from_the_slow_path_of_a_wait_is_no_loop() -> None:
    found = loops(
        "SYNCS.PHASECHK P0",  # 0x00
        "@!P0 BRA 0x60",  # 0x10: to the slow path
        "FFMA R1",  # 0x20: the slow path comes back here
        "HGMMA.64x64x16.F32 R2",  # 0x30
        "@P1 BRA 0x20",  # 0x40: the real loop
        "EXIT ",  # 0x50
        "SYNCS.PHASECHK P0",  # 0x60: slow path: wait, then back
        "@!P0 BRA 0x60",  # 0x70
        "BRA 0x20",  # 0x80
    )
    assert [(loop.start, loop.end) for loop in found] == [(0x20, 0x40)]
    assert found[0].instructions == {"fp32": 1, "tensor HGMMA": 1, "branch": 1}


def test_code_without_a_branch_has_no_loop() -> None:
    assert loops("FFMA R1", "EXIT ") == ()


def test_a_final_branch_to_itself_is_padding() -> None:
    assert loops("FFMA R1", "EXIT ", "BRA 0x20") == ()
