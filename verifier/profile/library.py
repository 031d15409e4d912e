"""FLOP and precision of library (aten) steps, from shapes alone.

The formulas are those of `torch.utils.flop_counter` (a multiply-add is two FLOP) written on plain shapes, so
that nothing of torch is imported and a plan from another version can be read. Operators without a formula
cost their bytes only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor argument or result. `storage` tells views of one buffer apart from others."""

    shape: Shape
    dtype: str
    """torch's name without the prefix: float16, bfloat16, float32, int64, ..."""
    storage: int
    bytes: int
    """Distinct bytes behind the view; an expanded axis counts once."""


@dataclass(frozen=True, slots=True)
class LibraryCall:
    """One aten step. Arguments are `TensorView`, numbers, strings, None or lists of these."""

    op: str
    """For example `aten::mm` or `aten::add.Tensor`."""
    role: str
    """alloc, fill, move, compute or random."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[TensorView, ...] = ()
    matmul_tf32: bool = False
    conv_tf32: bool = True

    @property
    def name(self) -> str:
        """`aten::add.Tensor` -> `add`."""
        return self.op.split("::", 1)[-1].split(".", 1)[0]

    @property
    def inputs(self) -> tuple[TensorView, ...]:
        return tuple(_tensors([*self.args, *self.kwargs.values()]))


def _tensors(values: Sequence[Any]) -> list[TensorView]:
    found: list[TensorView] = []
    for value in values:
        if isinstance(value, TensorView):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


MATMULS = frozenset(
    {
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "addbmm",
        "matmul",
        "linear",
        "einsum",
        "mv",
        "dot",
        "addmv",
        "_scaled_mm",
    }
)
CONVOLUTIONS = frozenset(
    {
        "convolution",
        "_convolution",
        "conv1d",
        "conv2d",
        "conv3d",
        "cudnn_convolution",
        "convolution_overrideable",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
    }
)
ATTENTIONS = frozenset(
    {
        "scaled_dot_product_attention",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math",
    }
)


def flops(call: LibraryCall) -> int:
    """FLOP of matrix products, convolutions and attention; 0 for everything else."""
    name = call.name
    try:
        if name in MATMULS:
            return _matmul_flops(call)
        if name in CONVOLUTIONS:
            return _convolution_flops(call)
        if name in ATTENTIONS:
            return _attention_flops(call)
    except (IndexError, ZeroDivisionError, ValueError):
        return 0
    return 0


def _matmul_flops(call: LibraryCall) -> int:
    name, inputs = call.name, call.inputs
    if name == "einsum":
        return _einsum_flops(call)
    if name in ("addmm", "baddbmm", "addbmm", "addmv"):
        inputs = inputs[1:3]
    left, right = inputs[0].shape, inputs[1].shape
    if name == "linear":
        return 2 * math.prod(left) * (right[0] if len(right) > 1 else 1)
    if len(right) == 1 or len(left) == 1:
        return 2 * max(math.prod(left), math.prod(right))
    batch = math.prod(_broadcast(left[:-2], right[:-2]))
    return 2 * batch * left[-2] * left[-1] * right[-1]


def _broadcast(a: Shape, b: Shape) -> Shape:
    longest = max(len(a), len(b))
    a, b = (1,) * (longest - len(a)) + a, (1,) * (longest - len(b)) + b
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


def _einsum_flops(call: LibraryCall) -> int:
    """Product of all index sizes for two operands; more operands contract from left to right, counted as
    one product each."""
    equation = next(a for a in call.args if isinstance(a, str))
    terms = equation.replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, call.inputs, strict=True):
        if "." in term:
            return 2 * math.prod(call.outputs[0].shape) * tensor.shape[-1]
        sizes.update(zip(term, tensor.shape, strict=True))
    return 2 * max(1, len(terms) - 1) * math.prod(sizes.values()) if len(terms) > 1 else 0


def _convolution_flops(call: LibraryCall) -> int:
    source, weight = call.inputs[0].shape, call.inputs[1].shape
    out = call.outputs[0].shape
    transposed = "transpose" in call.name or (
        call.name in ("convolution", "_convolution") and len(call.args) > 6 and call.args[6] is True
    )
    per_position = math.prod(weight[1:])
    positions = source if transposed else out
    channels = weight[0]
    return 2 * positions[0] * math.prod(positions[2:]) * channels * per_position


def _attention_flops(call: LibraryCall) -> int:
    query, key, value = (t.shape for t in call.inputs[:3])
    batch = math.prod(query[:-2])
    full = 2 * batch * query[-2] * key[-2] * (query[-1] + value[-1])
    return full // 2 if causal(call) else full


def causal(call: LibraryCall) -> bool:
    """Whether an attention step skips the upper triangle."""
    position = {"scaled_dot_product_attention": 5, "_scaled_dot_product_flash_attention": 4}.get(call.name, 5)
    given = call.kwargs.get("is_causal", call.args[position] if len(call.args) > position else False)
    return given is True


def operand_class(call: LibraryCall) -> str:
    """fp16, bf16, fp8, int8, fp64, tf32 or fp32: the arithmetic of a matrix product, convolution or
    attention."""
    dtype = next((t.dtype for t in call.inputs if t.dtype.startswith(("float", "bfloat"))), "")
    if not dtype:
        return "int8" if any(t.dtype in ("int8", "uint8") for t in call.inputs) else "fp32"
    if dtype == "float32":
        allowed = call.conv_tf32 if call.name in CONVOLUTIONS else call.matmul_tf32
        return "tf32" if allowed else "fp32"
    if dtype.startswith("float8"):
        return "fp8"
    return {"float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}.get(dtype, "fp32")


def output_tiles(call: LibraryCall, side: int = 128) -> int:
    """Tiles of `side` x `side` that a matrix product's or convolution's output has: how parallel it is."""
    out = call.outputs[0].shape if call.outputs else ()
    if not out:
        return 1
    if call.name in CONVOLUTIONS:
        rows, columns, batch = out[0] * math.prod(out[2:]), out[1] if len(out) > 1 else 1, 1
    elif call.name == "linear" or len(out) < 3:
        rows, columns, batch = math.prod(out[:-1]), out[-1], 1
    else:
        rows, columns, batch = out[-2], out[-1], math.prod(out[:-2])
    return max(1, batch) * max(1, -(-rows // side)) * max(1, -(-columns // side))
