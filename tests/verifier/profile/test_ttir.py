from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifier.profile import ttir, work
from verifier.profile.slices import walk

Load = Callable[[str], ttir.Module]
TEXT = (Path(__file__).parent / "ttir" / "triton36" / "matmul.ttir").read_text()
CONTROL = (Path(__file__).parent / "ttir" / "triton36" / "control.ttir").read_text()

GENERIC = """
"builtin.module"() ({
  "tt.func"() <{function_type = (!tt.ptr<f32>, i32) -> (), sym_name = "k", sym_visibility = "public"}> ({
  ^bb0(%arg0: !tt.ptr<f32>, %arg1: i32):
    %0 = "arith.constant"() <{value = 0 : i32}> : () -> i32
    %1 = "arith.constant"() <{value = 64 : i32}> : () -> i32
    %2 = "tt.make_range"() <{end = 64 : i32, start = 0 : i32}> : () -> tensor<64xi32>
    "scf.for"(%0, %arg1, %1) ({
    ^bb0(%arg2: i32):
      %3 = "tt.splat"(%arg0) : (!tt.ptr<f32>) -> tensor<64x!tt.ptr<f32>>
      %4 = "tt.splat"(%arg2) : (i32) -> tensor<64xi32>
      %5 = "arith.addi"(%4, %2) <{overflowFlags = #arith.overflow<none>}> : (tensor<64xi32>, tensor<64xi32>) -> tensor<64xi32>
      %6 = "tt.addptr"(%3, %5) : (tensor<64x!tt.ptr<f32>>, tensor<64xi32>) -> tensor<64x!tt.ptr<f32>>
      %7 = "tt.splat"(%arg1) : (i32) -> tensor<64xi32>
      %8 = "arith.cmpi"(%5, %7) <{predicate = 2 : i64}> : (tensor<64xi32>, tensor<64xi32>) -> tensor<64xi1>
      %9 = "tt.load"(%6, %8) <{operandSegmentSizes = array<i32: 1, 1, 0>}> : (tensor<64x!tt.ptr<f32>>, tensor<64xi1>) -> tensor<64xf32>
      %10 = "math.exp2"(%9) : (tensor<64xf32>) -> tensor<64xf32>
      "tt.store"(%6, %10, %8) : (tensor<64x!tt.ptr<f32>>, tensor<64xf32>, tensor<64xi1>) -> ()
      "scf.yield"() : () -> ()
    }) : (i32, i32, i32) -> ()
    "tt.return"() : () -> ()
  }) : () -> ()
}) : () -> ()
"""  # noqa: E501


def test_reads_parameters_and_types(load: Load) -> None:
    kernel = load("attention").kernel
    assert kernel.name == "attention"
    assert [n for n, _ in kernel.parameters] == ["%q", "%k", "%v", "%o", "%scale", "%T"]
    assert kernel.parameters[0][1].pointee == "f16"
    assert kernel.parameters[4][1] == ttir.Type((), "f32")


def test_lines_point_into_the_users_file(load: Load) -> None:
    module = load("matmul")
    source = (Path(__file__).parent / "kernels.py").read_text().splitlines()
    dots = [op for op in walk(module.kernel.blocks) if op.name == "tt.dot"]
    lines = [module.line(op.location) for op in dots]
    assert len(lines) == 1
    assert lines[0] is not None
    assert "tl.dot" in source[lines[0] - 1]


def test_loop_results_and_carried_values(load: Load) -> None:
    loop = next(op for op in walk(load("matmul").kernel.blocks) if op.name == "scf.for")
    assert len(loop.results) == 3
    assert len(loop.operands) == 6
    assert len(loop.regions[0][0].arguments) == 4


def test_generic_form_counts_like_the_pretty_one() -> None:
    done = work.count_work(ttir.parse(GENERIC), [None, 100], (3, 1, 1))
    assert done.loaded == done.stored == 3 * 100 * 4
    assert done.masked == 2 * 3 * 28 * 4
    assert done.sfu == 3 * 2 * 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "module {",
        "module {\n}",
        TEXT[: len(TEXT) // 2],
        TEXT.replace("scf.for %k = %c0_i32 to %1 step", "scf.for broken"),
        "module {\n tt.func public @k() {\n %0 = }\n tt.return\n }\n}",
        "{\n" * 500,
        "module {\n" * 500,
        TEXT.replace("tensor<128x64xf16>", "tensor<99999999999x64xf16>"),
    ],
)
def test_malformed_text_is_a_typed_error(text: str) -> None:
    with pytest.raises(ttir.TtirError):
        work.count_work(ttir.parse(text), [], (1, 1, 1))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_text_never_escapes_as_another_error(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from([TEXT, CONTROL, GENERIC])).splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        kind = data.draw(st.sampled_from(["drop", "cut", "swap", "numbers", "operands"]))
        if kind == "drop":
            lines[at] = ""
        elif kind == "cut":
            lines[at] = lines[at][: data.draw(st.integers(0, max(0, len(lines[at]))))]
        elif kind == "swap":
            lines[at], lines[0] = lines[0], lines[at]
        elif kind == "numbers":
            lines[at] = lines[at].replace("1", "-").replace("64", str(data.draw(st.integers(-5, 10**30))))
        else:
            lines[at] = lines[at].replace("%", "", 1)
    try:
        module = ttir.parse("\n".join(lines))
        work.count_work(module, [None, None, 7, 3, 5, 5, 5], (2, 2, 1), budget=2000)
    except ttir.TtirError:
        pass


SNIPPET = """
module {{
  tt.func public @k(%x: !tt.ptr<f32>, %n: i32) {{
    %c2 = arith.constant 2 : i32
    %c0 = arith.constant 0 : i32
    %c1 = arith.constant 1 : i32
    %true = arith.constant true
    %cst = arith.constant dense<0.000000e+00> : tensor<16x16xf32>
    {body}
    tt.return
  }}
  tt.func private @"far__(1,)c"(%a: i32) -> i32 attributes {{noinline = true}} {{
    %c3 = arith.constant 3 : i32
    %0 = arith.muli %a, %c3 : i32
    tt.return %0 : i32
  }}
}}
"""


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        ("", {"fp32 fp32": 8192}),  # the default, ieee, is not printed
        (", inputPrecision = ieee", {"fp32 fp32": 8192}),
        (", inputPrecision = tf32", {"tf32 fp32": 8192}),
        (", inputPrecision = tf32x3", {"tf32 fp32": 3 * 8192}),
        (", inputPrecision = bf16x6", {"bf16 fp32": 6 * 8192}),
    ],
)
def test_precision_of_float_products(precision: str, expected: dict[str, int]) -> None:
    tensor = "tensor<16x16xf32>"
    body = f"%d = tt.dot %cst, %cst, %cst{precision} : {tensor} * {tensor} -> {tensor}"
    assert work.count_work(ttir.parse(SNIPPET.format(body=body)), [], (1, 1, 1)).dots == expected


def test_calls_of_quoted_names_and_untyped_constants() -> None:
    body = """
    %t = tt.call @"far__(1,)c"(%n) : (i32) -> i32
    scf.for %i = %c0 to %t step %c1  : i32 {
      scf.if %true {
        tt.store %x, %y : !tt.ptr<f32>
      }
    }"""
    done = work.count_work(ttir.parse(SNIPPET.format(body=body)), [None, 5], (2, 1, 1))
    assert done.stored == 2 * 15 * 4
    assert not done.unknown_branches


def test_calls_without_end_are_cut() -> None:
    text = SNIPPET.format(body="%t = tt.call @k(%x, %n) : (!tt.ptr<f32>, i32) -> i32")
    with pytest.raises(ttir.TtirError, match="nest"):
        work.count_work(ttir.parse(text), [None, 5], (1, 1, 1))


def test_branches_between_blocks() -> None:
    body = """
    %p = tt.get_program_id x : i32
    %c = arith.cmpi slt, %p, %c2 : i32
    cf.cond_br %c, ^bb1(%p : i32), ^bb2
  ^bb1(%i: i32):  // 2 preds: ^bb0, ^bb1
    tt.store %x, %y : !tt.ptr<f32>
    %j = arith.addi %i, %c1 : i32
    %more = arith.cmpi slt, %j, %n : i32
    cf.cond_br %more, ^bb1(%j : i32), ^bb2
  ^bb2:  // 2 preds: ^bb0, ^bb1"""
    done = work.count_work(ttir.parse(SNIPPET.format(body=body)), [None, 6], (4, 1, 1))
    assert done.stored == (6 + 5) * 4  # program 0 stores 6 times, program 1 five times
