"""Kernels run from their TTIR: operations against what numpy and torch say, loops, memory, and what is refused."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from torch import Tensor

from verifier.interpreter.limits import OutOfTime, Unsupported
from verifier.interpreter.tile_machine import Machine, Tile
from verifier.interpreter.tile_memory import OutOfBounds, TileMemory
from verifier.profile.ttir import parse

A = torch.tensor([7, -7, -1, 5, 2**31 - 1, -(2**31), 0, 12], dtype=torch.int32)
B = torch.tensor([2, 2, 3, -3, 3, 3, 5, 4], dtype=torch.int32)
U, V = (t.numpy().view(np.uint32) for t in (A, B))
X = torch.tensor([1.5, -2.5, float("nan"), 0.0, 3.0, float("inf"), 1e-3, -8.0])
Y = torch.tensor([0.5, 4.0, 1.0, float("nan"), 3.0, 2.0, -1e-3, 2.0])


def run(body: str, *tensors: Tensor, grid: tuple[int, int, int] = (1, 1, 1), seconds: float = 5.0) -> TileMemory:
    """Runs a kernel with pointers %p0, %p1, ... to the tensors."""
    kinds = {torch.int32: "i32", torch.float32: "f32", torch.float16: "f16", torch.int64: "i64"}
    given = ", ".join(f"%p{i}: !tt.ptr<{kinds[t.dtype]}>" for i, t in enumerate(tensors))
    text = f"module {{\n  tt.func public @k({given}) attributes {{noinline = false}} {{\n{body}\ntt.return\n  }}\n}}\n"
    memory = TileMemory()
    pointers = [torch.tensor(memory.add(t.reshape(-1).view(torch.uint8))) for t in tensors]
    Machine(parse(text), time.monotonic() + seconds).launch(grid, pointers, memory)
    return memory


def elementwise(line: str, kind: str, result: str, *tensors: Tensor) -> Tensor:
    """`line` makes %r of %v0, %v1, ... of eight elements."""
    dtypes = {"i32": torch.int32, "f32": torch.float32, "f16": torch.float16, "i64": torch.int64, "i1": torch.int32}
    made = torch.zeros(8, dtype=dtypes[result])
    body = ["%at = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32>"]
    for i, _ in enumerate([*tensors, made]):
        here = kind if i < len(tensors) else ("i32" if result == "i1" else result)
        body.append(f"%s{i} = tt.splat %p{i} : !tt.ptr<{here}> -> tensor<8x!tt.ptr<{here}>>")
        body.append(f"%a{i} = tt.addptr %s{i}, %at : tensor<8x!tt.ptr<{here}>>, tensor<8xi32>")
        if i < len(tensors):
            body.append(f"%v{i} = tt.load %a{i} : tensor<8x!tt.ptr<{here}>>")
    body.append(f"%r = {line}")
    last = len(tensors)
    if result == "i1":
        body.append("%w = arith.extui %r : tensor<8xi1> to tensor<8xi32>")
    body.append(f"tt.store %a{last}, {'%w' if result == 'i1' else '%r'} : tensor<8x!tt.ptr<i32>>")
    run("\n".join(body), *tensors, made)
    return made


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("arith.addi %v0, %v1", A + B),
        ("arith.muli %v0, %v1", A * B),
        ("arith.divsi %v0, %v1", torch.div(A, B, rounding_mode="trunc")),
        ("arith.remsi %v0, %v1", torch.fmod(A, B)),
        ("arith.divui %v0, %v1", torch.from_numpy((U // V).view(np.int32))),
        ("arith.remui %v0, %v1", torch.from_numpy((U % V).view(np.int32))),
        ("arith.maxui %v0, %v1", torch.from_numpy(np.maximum(U, V).view(np.int32))),
        ("arith.minsi %v0, %v1", torch.minimum(A, B)),
        ("arith.shrui %v0, %v1", torch.from_numpy((U >> (V % 32)).view(np.int32))),
        ("tt.mulhiui %v0, %v1", torch.from_numpy(((U.astype(np.uint64) * V) >> np.uint64(32)).astype(np.uint32)
                                                 .view(np.int32))),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_integers_are_those_of_the_machine(line: str, expected: Tensor) -> None:
    keep = B.abs() if "shr" in line else B
    wanted = torch.from_numpy((U >> keep.numpy().view(np.uint32)).view(np.int32)) if "shr" in line else expected
    assert torch.equal(elementwise(f"{line} : tensor<8xi32>", "i32", "i32", A, keep), wanted)


@pytest.mark.parametrize(
    ("line", "result", "expected"),
    [
        ("arith.cmpi ult, %v0, %v1 : tensor<8xi32>", "i1", torch.from_numpy((U < V).astype(np.int32))),
        ("arith.cmpi sge, %v0, %v1 : tensor<8xi32>", "i1", (A >= B).int()),
        ("arith.extui %v0 : tensor<8xi32> to tensor<8xi64>", "i64", torch.from_numpy(U.astype(np.int64))),
        ("arith.uitofp %v0 : tensor<8xi32> to tensor<8xf32>", "f32", torch.from_numpy(U.astype(np.float32))),
    ],
    ids=["ult", "sge", "extui", "uitofp"],
)
def test_unsigned_integers(line: str, result: str, expected: Tensor) -> None:
    given = (A, B) if "%v1" in line else (A,)
    assert torch.equal(elementwise(line, "i32", result, *given), expected)


@pytest.mark.parametrize(
    ("line", "result", "expected"),
    [
        ("arith.maxnumf %v0, %v1 : tensor<8xf32>", "f32", torch.fmax(X, Y)),
        ("arith.maximumf %v0, %v1 : tensor<8xf32>", "f32", torch.maximum(X, Y)),
        ("arith.cmpf olt, %v0, %v1 : tensor<8xf32>", "i1", (X < Y).int()),
        ("arith.cmpf une, %v0, %v1 : tensor<8xf32>", "i1", ((X != Y) | X.isnan() | Y.isnan()).int()),
        ("math.erf %v0 : tensor<8xf32>", "f32", torch.erf(X)),
        ('tt.extern_elementwise %v0 {pure = true, symbol = "__nv_tanhf"} : (tensor<8xf32>) -> tensor<8xf32>', "f32",
         torch.tanh(X)),
        ("arith.truncf %v0 : tensor<8xf32> to tensor<8xf16>", "f16", X.half()),
        ("arith.fptosi %v0 : tensor<8xf32> to tensor<8xi32>", "i32",
         torch.tensor([1, -2, 0, 0, 3, 2**31 - 1, 0, -8], dtype=torch.int32)),
        ("arith.constant dense<0xFF800000> : tensor<8xf32>", "f32", torch.full((8,), -float("inf"))),
        ("arith.constant dense<[0, -1, 2, 3, 4, 5, 6, 7]> : tensor<8xi32>", "i32",
         torch.tensor([0, -1, 2, 3, 4, 5, 6, 7], dtype=torch.int32)),
    ],
    ids=["maxnumf", "maximumf", "olt", "une", "erf", "extern", "truncf", "fptosi", "hex", "list"],
)  # fmt: skip
def test_floats_and_constants(line: str, result: str, expected: Tensor) -> None:
    made = elementwise(line, "f32", result, *((X, Y) if "%v1" in line else (X,)))
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_a_constant_without_a_type_is_a_bool() -> None:
    made = torch.zeros(1, dtype=torch.int32)
    run("%t = arith.constant true\n%w = arith.extui %t : i1 to i32\ntt.store %p0, %w : !tt.ptr<i32>", made)
    assert made.tolist() == [1]


REDUCE = """
%at = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32>
%s = tt.splat %p0 : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>>
%a = tt.addptr %s, %at : tensor<8x!tt.ptr<f32>>, tensor<8xi32>
%v = tt.load %a : tensor<8x!tt.ptr<f32>>
%r = "@KIND@"(%v) <{axis = 0 : i32@MORE@}> ({
^bb0(%x: f32, %y: f32):
  %z = arith.subf %y, %x : f32
  %w = arith.addf %x, %x : f32
  %q = arith.addf %z, %w : f32
  @KIND@.return %q : f32
}) : (tensor<8xf32>) -> @TYPE@
"""


def test_reductions_and_scans_combine_in_order() -> None:
    given = torch.arange(1.0, 9.0)
    total = torch.zeros(1)
    body = REDUCE.replace("@KIND@", "tt.reduce").replace("@MORE@", "").replace("@TYPE@", "f32")
    run(f"{body}tt.store %p1, %r : !tt.ptr<f32>", given, total)
    assert total.item() == 36
    for more, expected in (
        (", reverse = false", given.cumsum(0)),
        (", reverse = true", given.flip(0).cumsum(0).flip(0)),
    ):
        made = torch.zeros(8)
        body = REDUCE.replace("@KIND@", "tt.scan").replace("@MORE@", more).replace("@TYPE@", "tensor<8xf32>")
        store = "%s1 = tt.splat %p1 : !tt.ptr<f32> -> tensor<8x!tt.ptr<f32>>\n"
        store += "%a1 = tt.addptr %s1, %at : tensor<8x!tt.ptr<f32>>, tensor<8xi32>\n"
        run(f"{body}{store}tt.store %a1, %r : tensor<8x!tt.ptr<f32>>", given, made)
        assert torch.equal(made, expected)


def test_loops_branches_and_program_numbers() -> None:
    made = torch.zeros(6, dtype=torch.int32)
    body = """
%c0 = arith.constant 0 : i32
%c1 = arith.constant 1 : i32
%c3 = arith.constant 3 : i32
%x = tt.get_program_id x : i32
%y = tt.get_program_id y : i32
%row = arith.muli %y, %c3 : i32
%at = arith.addi %row, %x : i32
%sum = scf.for %i = %c0 to %at step %c1 iter_args(%s = %c0) -> (i32) : i32 {
  %n = arith.addi %s, %i : i32
  scf.yield %n : i32
}
%big = arith.cmpi sgt, %sum, %c3 : i32
%r = scf.if %big -> (i32) {
  %l:2 = scf.while (%a = %sum, %b = %c0) : (i32, i32) -> (i32, i32) {
    %more = arith.cmpi sgt, %a, %c0 : i32
    scf.condition(%more) %a, %b : i32, i32
  } do {
  ^bb0(%a: i32, %b: i32):
    %d = arith.subi %a, %c3 : i32
    %e = arith.addi %b, %c1 : i32
    scf.yield %d, %e : i32, i32
  }
  scf.yield %l#1 : i32
} else {
  scf.yield %sum : i32
}
%p = tt.addptr %p0, %at : !tt.ptr<i32>, i32
tt.store %p, %r : !tt.ptr<i32>
"""
    run(body, made, grid=(3, 2, 1))
    assert made.tolist() == [0, 0, 1, 3, 2, 4]


def test_atomics_of_equal_addresses_add_up() -> None:
    counts, made = torch.zeros(2, dtype=torch.int32), torch.zeros(8, dtype=torch.int32)
    body = """
%at = tt.make_range {end = 8 : i32, start = 0 : i32} : tensor<8xi32>
%two = arith.constant dense<2> : tensor<8xi32>
%one = arith.constant dense<1> : tensor<8xi32>
%on = arith.constant dense<true> : tensor<8xi1>
%bin = arith.remsi %at, %two : tensor<8xi32>
%s = tt.splat %p0 : !tt.ptr<i32> -> tensor<8x!tt.ptr<i32>>
%a = tt.addptr %s, %bin : tensor<8x!tt.ptr<i32>>, tensor<8xi32>
%old = tt.atomic_rmw add, acq_rel, gpu, %a, %one, %on : (tensor<8x!tt.ptr<i32>>) -> tensor<8xi32>
%s1 = tt.splat %p1 : !tt.ptr<i32> -> tensor<8x!tt.ptr<i32>>
%a1 = tt.addptr %s1, %at : tensor<8x!tt.ptr<i32>>, tensor<8xi32>
tt.store %a1, %old : tensor<8x!tt.ptr<i32>>
"""
    run(body, counts, made)
    assert counts.tolist() == [4, 4]
    assert made.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_products_round_to_tf32_where_the_text_says_so() -> None:
    body = "\n".join(
        f"%s{i} = tt.make_tensor_descriptor %p{i}, [%n, %n], [%w, %u] : <f32>, <16x16xf32>" for i in range(3)
    )
    body = f"%n = arith.constant 16 : i32\n%w = arith.constant 16 : i64\n%u = arith.constant 1 : i64\n{body}\n"
    body += "%z = arith.constant 0 : i32\n%acc = arith.constant dense<0.000000e+00> : tensor<16x16xf32>\n"
    body += "%a = tt.descriptor_load %s0[%z, %z] : !tt.tensordesc<16x16xf32> -> tensor<16x16xf32>\n"
    body += "%b = tt.descriptor_load %s1[%z, %z] : !tt.tensordesc<16x16xf32> -> tensor<16x16xf32>\n"
    kinds = "tensor<16x16xf32> * tensor<16x16xf32> -> tensor<16x16xf32>"
    store = "tt.descriptor_store %s2[%z, %z], %d : !tt.tensordesc<16x16xf32>, tensor<16x16xf32>"
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    exact, errors = a.double() @ b.double(), []
    for precision in ("inputPrecision = tf32", "inputPrecision = ieee"):
        made = torch.zeros(16, 16)
        run(f"{body}%d = tt.dot %a, %b, %acc, {precision} : {kinds}\n{store}", a, b, made)
        errors.append(float((made - exact).norm() / exact.norm()))
    assert 1e-4 < errors[0] < 1e-3
    assert errors[1] < 1e-6


def test_a_descriptor_pads_what_is_outside() -> None:
    storage, memory = torch.arange(12.0), TileMemory()
    tile = Tile(memory.add(storage.view(torch.uint8)), (3, 4), (4, 1), (2, 4), torch.float32, nan=True)
    address, inside = tile.places((2, 2))
    nan = torch.full((2, 4), float("nan"))
    made = memory.load(address, inside, nan, torch.float32)
    assert made[0, :2].tolist() == [10.0, 11.0]
    assert bool(made[0, 2:].isnan().all())
    assert bool(made[1].isnan().all())


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("%c = arith.constant 9 : i32\n%p = tt.addptr %p0, %c : !tt.ptr<i32>, i32\n%v = tt.load %p : !tt.ptr<i32>",
         OutOfBounds),
        ("%c = arith.constant -1 : i32\n%p = tt.addptr %p0, %c : !tt.ptr<i32>, i32\ntt.store %p, %c : !tt.ptr<i32>",
         OutOfBounds),
        ("%c = arith.constant 64 : i64\n%p = tt.int_to_ptr %c : i64 -> !tt.ptr<i32>\n%v = tt.load %p : !tt.ptr<i32>",
         OutOfBounds),
        ('%v = tt.elementwise_inline_asm "mov.b32 $0, $1;" {pure = true} %p0 : i32 -> i32', Unsupported),
        ("%z = arith.constant 0 : i32\n%r = scf.while (%a = %z) : (i32) -> i32 {\n  %t = arith.cmpi eq, %z, %z : i32\n"
         "  scf.condition(%t) %a : i32\n} do {\n^bb0(%a: i32):\n  scf.yield %a : i32\n}", OutOfTime),
    ],
    ids=["past the end", "before the start", "nowhere", "inline PTX", "endless"],
)  # fmt: skip
def test_what_is_no_result(body: str, error: type[BaseException]) -> None:
    given = torch.zeros(8, dtype=torch.int32)
    with pytest.raises(error):
        run(body, given, seconds=0.1)
    assert not bool(given.any())
