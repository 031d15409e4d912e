"""What one operation of TTIR costs, from its name and types alone.

Keys of a tally (all per program or per launch, by context):

- `dot <operands> <accumulator>`: FLOP of matrix products, 2 x M x N x K; operands are bf16, fp16, tf32, fp32,
  fp8, int8, fp64. `tf32x3`, `bf16x3` and `bf16x6` count their products.
- `fp32`, `fp16`, `fp64`: lane operations outside matrix products. An FMA written as a multiply and an add
  counts two; fp16 and bf16 arithmetic count as `fp16`.
- `sfu`: lane operations of the special function unit (exp2, log2, reciprocal, square root, sine).
- `integer`: lane operations on integer tensors, index arithmetic included.
- `dots`, `reductions`: how many of these operations ran.

A reduction of n values to one costs n - 1 times its combining region. Transcendental functions count the
instructions of their usual expansion: exp is a multiply and an exp2; a division is a reciprocal and two
multiplies.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from verifier.profile.ttir import Block, Op, Type

_SFU: dict[str, tuple[int, int]] = {
    "math.exp2": (1, 1),
    "math.exp": (1, 2),
    "math.log2": (1, 2),
    "math.log": (1, 3),
    "math.sqrt": (1, 3),
    "math.rsqrt": (1, 1),
    "math.sin": (1, 12),
    "math.cos": (1, 12),
    "math.tanh": (2, 8),
    "math.erf": (1, 20),
    "arith.divf": (1, 3),
    "tt.precise_sqrt": (1, 10),
    "tt.precise_divf": (1, 10),
    "tt.extern_elementwise": (2, 16),
}
"""Name to (special function operations, other floating operations) per element."""

_FLOAT = frozenset(
    f"arith.{n}"
    for n in (
        "addf",
        "subf",
        "mulf",
        "negf",
        "maxnumf",
        "minnumf",
        "maximumf",
        "minimumf",
        "cmpf",
        "extf",
        "truncf",
        "remf",
        "sitofp",
        "uitofp",
        "fptosi",
        "fptoui",
    )
) | {"math.fma", "math.absf", "math.floor", "math.ceil", "tt.clampf", "tt.fp_to_fp"}

_INTEGER = frozenset(
    f"arith.{n}"
    for n in (
        "addi",
        "subi",
        "muli",
        "divsi",
        "divui",
        "remsi",
        "remui",
        "andi",
        "ori",
        "xori",
        "shli",
        "shrsi",
        "shrui",
        "cmpi",
        "minsi",
        "maxsi",
        "minui",
        "maxui",
        "extsi",
        "extui",
        "trunci",
    )
) | {"tt.addptr", "math.absi"}

_F32_PRODUCTS = {
    **dict.fromkeys(("tf32", "0"), ("tf32", 1)),
    **dict.fromkeys(("tf32x3", "1"), ("tf32", 3)),
    **dict.fromkeys(("bf16x3", "3"), ("bf16", 3)),
    **dict.fromkeys(("bf16x6", "4"), ("bf16", 6)),
}
"""inputPrecision, by name or by number in the generic form, to class and number of products."""

_OPERANDS = {"f16": "fp16", "bf16": "bf16", "f64": "fp64", "i8": "int8", "ui8": "int8"}


def operand_class(element: str, precision: str) -> tuple[str, int]:
    """Class of a matrix product's operands, and how many products of that class it takes.

    `precision` is Triton's inputPrecision, which counts for f32 only; TTIR leaves it out when it is ieee.
    """
    if element.startswith(("f8", "f4", "f6")):
        return "fp8", 1
    if element == "f32":
        return _F32_PRODUCTS.get(precision, ("fp32", 1))
    return _OPERANDS.get(element, "fp32"), 1


def op_cost(op: Op) -> Counter[str]:
    """Cost of `op` itself, bodies of loops and branches left out, bodies of reductions counted per
    element."""
    cost: Counter[str] = Counter()
    if op.name in ("tt.dot", "tt.dot_scaled", "tt.sparse_dot"):
        _add_dot(op, cost)
    elif op.name in ("tt.reduce", "tt.scan"):
        _add_reduction(op, cost)
    elif op.name in _SFU:
        sfu, other = _SFU[op.name]
        cost["sfu"] = sfu * op.type.size
        cost[_float_class(op.type)] = other * op.type.size
    elif op.name in _FLOAT or (op.name == "arith.select" and op.type.floating):
        cost[_float_class(op.types[0] if op.name.endswith("cmpf") else op.type)] = op.type.size
    elif (op.name in _INTEGER or op.name == "arith.select") and op.types and op.type.shape:
        cost["integer"] = op.type.size
    elif op.name == "tt.elementwise_inline_asm" and op.types:
        cost["fp32"] = op.type.size
    return +cost


def _float_class(kind: Type) -> str:
    return {"f16": "fp16", "bf16": "fp16", "f64": "fp64"}.get(kind.element, "fp32")


def _add_dot(op: Op, cost: Counter[str]) -> None:
    if len(op.types) < 3:
        return
    left, result = op.types[0], op.types[-1]
    found = re.search(r"inputPrecision = (\w+)", op.attributes)
    operands, products = operand_class(left.element, found.group(1) if found else "ieee")
    if op.name == "tt.dot_scaled":
        operands, products = "fp8", 1
    accumulator = {"f32": "fp32", "f16": "fp16", "f64": "fp64", "i32": "int32"}.get(result.element, "fp32")
    depth = left.shape[-1] if left.shape else 0
    cost[f"dot {operands} {accumulator}"] = 2 * result.size * depth * products
    cost["dots"] = 1


def _add_reduction(op: Op, cost: Counter[str]) -> None:
    inputs = max((t.size for t in op.types), default=0)
    outputs = op.type.size if op.types else 0
    steps = inputs - outputs if op.name == "tt.reduce" else inputs
    for region in op.regions:
        for inner in region_cost(region).items():
            cost[inner[0]] += inner[1] * max(0, steps)
    cost["reductions"] = 1


def region_cost(region: list[Block]) -> Counter[str]:
    """Sum over the operations of a reduction's body (scalars)."""
    total: Counter[str] = Counter()
    for block in region:
        for op in block.ops:
            if op.name in _INTEGER or (op.name == "arith.select" and op.types and not op.type.floating):
                total["integer"] += 1
            else:
                total.update(op_cost(op))
    return total


def dot_shape(op: Op) -> tuple[int, int, int] | None:
    """(M, N, K) of a matrix product, batch left out."""
    if op.name not in ("tt.dot", "tt.dot_scaled") or len(op.types) < 3:
        return None
    left, result = op.types[0].shape, op.types[-1].shape
    if len(left) < 2 or len(result) < 2 or not math.prod(result):
        return None
    return result[-2], result[-1], left[-1]
