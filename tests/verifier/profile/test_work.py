"""Counts against numbers worked out by hand from the sources in kernels.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from verifier.profile import ttir
from verifier.profile.work import Traffic, count_work, sample_programs

Load = Callable[[str], ttir.Module]
HALF, FLOAT = 2, 4


def test_matmul_with_k_loop(load: Load) -> None:
    n = 4096
    tiles, trips = (n // 128) ** 2, n // 64
    work = count_work(load("matmul"), [None, None, None, n, n, n, n, 1, n, 1, n, 1], (tiles, 1, 1))
    assert work.programs == tiles
    assert work.parameters[0] == Traffic(loaded=tiles * trips * 128 * 64 * HALF)
    assert work.parameters[1] == Traffic(loaded=tiles * trips * 64 * 128 * HALF)
    assert work.parameters[2] == Traffic(stored=n * n * HALF)
    assert work.dots == {"fp16 fp32": 2 * n**3}
    assert work.dot_shapes == {"128x128x64": tiles * trips}
    assert work.loops == {0: tiles * trips}
    assert work.load_steps == tiles * trips
    assert work.masked == 0
    assert work.sectors == work.requested
    assert (work.unknown_trips, work.unknown_branches, work.truncated) == (False, False, False)


def test_matmul_with_ragged_edges(load: Load) -> None:
    m, n, k = 300, 200, 100
    work = count_work(load("matmul"), [None, None, None, m, n, k, k, 1, n, 1, n, 1], (6, 1, 1))
    assert work.parameters[0].loaded == 6 * 128 * k * HALF  # rows are not masked in this kernel, columns are
    assert work.parameters[1].loaded == 6 * k * 128 * HALF
    assert work.stored == m * n * HALF
    padded = 6 * 128 * 128
    assert work.masked == (2 * 6 * 128 * (128 - k) + padded - m * n) * HALF
    assert work.dots == {"fp16 fp32": 2 * padded * 128}


def test_a_column_major_operand_is_not_waste_but_a_strided_one_is(load: Load) -> None:
    n = 1024
    tiles = (n // 128) ** 2
    column = count_work(load("matmul"), [None, None, None, n, n, n, n, 1, 1, n, n, 1], (tiles, 1, 1))
    assert column.sectors == column.requested
    strided = count_work(load("matmul"), [None, None, None, n, n, n, 64 * n, 64, n, 1, n, 1], (tiles, 1, 1))
    by_parameter = {s.parameter: s.sector_ratio for s in strided.sites}
    assert by_parameter == {0: 16.0, 1: 1.0, 2: 1.0}  # one half-precision element per 32-byte sector


def test_softmax_with_masked_tail(load: Load) -> None:
    rows, columns = 4096, 1000
    work = count_work(load("softmax"), [None, None, columns], (rows, 1, 1))
    assert work.sampled == 1  # the program id decides addresses only
    assert work.loaded == work.stored == rows * columns * FLOAT
    assert work.masked == 2 * rows * (1024 - columns) * FLOAT
    assert work.sfu == rows * 1024 * 2  # exp and division
    assert work.fp32 == rows * (1024 * (1 + 2 + 3) + 2 * 1023)  # subtract, exp, divide, two reductions
    assert work.reduction_count == 2 * rows


def test_causal_attention_skips_by_program(load: Load) -> None:
    t, d, bm, bn, heads = 4096, 64, 128, 64, 64
    blocks = t // bm
    work = count_work(load("attention"), [None] * 4 + [1.0, t], (blocks, heads, 1))
    trips = heads * sum(-(-((m + 1) * bm) // bn) for m in range(blocks))
    assert work.sampled == blocks
    assert work.loops == {0: trips}
    assert work.parameters[0].loaded == work.parameters[3].stored == t * d * heads * HALF
    assert work.parameters[1].loaded == work.parameters[2].loaded == trips * bn * d * HALF
    assert work.dots == {"fp16 fp32": trips * 2 * (2 * bm * bn * d)}
    assert work.sfu == trips * (bm * bn + bm) + blocks * heads * bm * d  # two exp2 a trip, one division
    full = heads * blocks * (t // bn)
    assert trips / full == pytest.approx(0.5, abs=0.02)
    assert work.imbalance == pytest.approx(blocks / ((blocks + 1) / 2), rel=0.05)


def test_a_long_causal_grid_is_sampled_without_bias(load: Load) -> None:
    blocks, heads = 500, 3
    work = count_work(load("attention"), [None] * 4 + [1.0, blocks * 128], (blocks, heads, 1))
    assert work.sampled == 64
    assert work.loops[0] == pytest.approx(heads * 2 * blocks * (blocks + 1) // 2, rel=0.01)


def test_loop_tail_is_masked_exactly_when_trips_are_skipped(load: Load) -> None:
    t = 128 * 64 - 40
    work = count_work(load("attention"), [None] * 4 + [1.0, t], (64, 1, 1))
    last = -(-t // 64)
    trips = sum(min((m + 1) * 2, last) for m in range(64))
    masked_tail_programs = 1  # only the last block reaches the ragged key block
    assert work.loops == {0: trips}
    assert work.parameters[1].loaded == (trips * 64 - masked_tail_programs * (last * 64 - t)) * 64 * HALF
    assert work.parameters[0].loaded == t * 64 * HALF


def test_while_if_return_and_atomics(load: Load) -> None:
    work = count_work(load("control"), [None, None, 7, 2], (5, 1, 1))
    block = 256 * FLOAT
    assert work.loops == {0: 5 * 4}  # i = 0, 2, 4, 6
    assert work.loaded == 5 * 4 * block
    assert work.atomic == 3 * block  # programs 2, 3 and 4
    assert work.stored == 2 * block + 4 * block  # programs 0 and 1; then all but program 3
    assert work.sfu == 2 * 256


def test_trips_that_depend_on_memory_count_once_and_say_so(load: Load) -> None:
    work = count_work(load("data_dep"), [None, None, None], (5, 1, 1))
    assert work.unknown_trips
    assert work.loaded == 5 * (4 + 256 * FLOAT)
    assert work.stored == 5 * 256 * FLOAT


def test_persistent_loop_over_tiles(load: Load) -> None:
    work = count_work(load("persistent"), [None, None, 50], (20, 1, 1))
    assert work.loops == {0: 50}
    assert work.loaded == work.stored == 50 * 256 * FLOAT


def test_descriptor_loads_are_clipped_at_the_tensor(load: Load) -> None:
    m, n = 40, 100
    work = count_work(load("tma"), [None, None, m, n], (3, 1, 1))
    assert work.loaded == work.stored == m * n * FLOAT
    assert work.masked == 2 * (48 * 128 - m * n) * FLOAT


def test_block_pointers_of_triton_36() -> None:
    text = (Path(__file__).parent / "ttir" / "triton36" / "block_pointer.ttir").read_text()
    work = count_work(ttir.parse(text), [None, None, 40, 100], (3, 1, 1))
    assert work.loaded == work.stored == 40 * 100 * FLOAT


def test_unknown_scalar_arguments_do_not_fail(load: Load) -> None:
    assert count_work(load("matmul"), [], (4, 1, 1)).unknown_trips


def test_budget_cuts_and_says_so(load: Load) -> None:
    work = count_work(load("control"), [None, None, 10**9, 2], (5, 1, 1), budget=5000)
    assert work.truncated
    assert work.loaded > 0


def test_every_prefix_of_the_sample_is_in_the_grid() -> None:
    places = sample_programs((1000, 7, 3), (True, True, False))
    assert len(places) == len(set(places)) <= 64
    assert {z for _, _, z in places} == {1}
    assert {y for _, y, _ in places} == set(range(7))
    assert all(0 <= x < 1000 for x, _, _ in places)


CHOOSES = """module {
  tt.func public @one_of_two(%a: !tt.ptr<f32>, %b: !tt.ptr<f32>, %n: i32) attributes {noinline = false} {
    %five = arith.constant 5 : i32
    %one = arith.constant 1 : i32
    %value = arith.constant dense<0.0> : tensor<128xf32>
    %p = tt.get_program_id x : i32
    %r = arith.remsi %p, %five : i32
    %c = arith.cmpi slt, %r, %one : i32
    %o = arith.select %c, %b, %a : !tt.ptr<f32>
    %i = tt.make_range {end = 128 : i32, start = 0 : i32} : tensor<128xi32>
    %s = tt.splat %o : !tt.ptr<f32> -> tensor<128x!tt.ptr<f32>>
    %t = tt.addptr %s, %i : tensor<128x!tt.ptr<f32>>, tensor<128xi32>
    tt.store %t, %value : tensor<128x!tt.ptr<f32>>
    tt.return
  }
}
"""


def test_programs_that_choose_their_buffer_are_told_apart() -> None:
    """The program id decides nothing but which buffer is written: every fifth program writes `b`."""
    few = count_work(ttir.parse(CHOOSES), [None, None, 1], (20, 1, 1))
    assert (few.sampled, few.parameters[0].stored, few.parameters[1].stored) == (20, 16 * 512, 4 * 512)
    assert few.parameters[0].slack == few.parameters[1].slack == 0
    many = count_work(ttir.parse(CHOOSES), [None, None, 1], (50_000, 1, 1))
    for position, exact in ((0, 40_000 * 512), (1, 10_000 * 512)):
        counted = many.parameters[position]
        assert abs(counted.stored - exact) <= counted.slack < exact
