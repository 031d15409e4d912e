"""Operations of TTIR without memory or control flow, on torch tensors: a scalar is a tensor of no dimensions.

Integers are signless in TTIR, so they are torch's signed ones, of which unsigned operations make what they need.
Pointers are int64 (see `tile_memory.py`). Products round their operands to TF32 where the text says so; sums are in
float32. What is not here is `Unsupported`. Last bits differ from a GPU's: its fast exponential, the order of its sums.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifier.interpreter import arithmetic
from verifier.interpreter.libdevice import lookup
from verifier.interpreter.limits import Unsupported
from verifier.profile.ttir import Op, Type

Evaluator = Callable[..., Any]
"""Of an operation's operands; gives its result, or a tuple of several."""

_DTYPES = {
    "i1": torch.bool, "i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
    "index": torch.int64, "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
    "f8E4M3FN": torch.float8_e4m3fn, "f8E5M2": torch.float8_e5m2,
}  # fmt: skip
_BITS = {torch.bool: 1, torch.int8: 8, torch.int16: 16, torch.int32: 32, torch.int64: 64}
_SHORT = (torch.float16, torch.bfloat16)
_LARGEST = dict(arithmetic.FP8.values())


def dtype_of(element: str) -> torch.dtype:
    """torch's dtype of MLIR's element type. Raises Unsupported."""
    if element.startswith("!tt.ptr"):
        return torch.int64
    if element not in _DTYPES:
        raise Unsupported(f"elements of type {element[:40]}")
    return _DTYPES[element]


def number(op: Op, name: str, default: int | None = None) -> int:
    """An integer attribute such as `axis = 1`. Raises Unsupported where there is none."""
    found = re.search(rf"\b{name} = (-?\d+)", op.attributes)
    if found is None and default is None:
        raise Unsupported(f"`{op.name}` without `{name}`")
    return int(found.group(1)) if found else int(default or 0)


def evaluator(op: Op) -> Evaluator | None:
    """What computes an operation, None where it is not one of these. Raises Unsupported."""
    if op.name in _PLAIN:
        return _PLAIN[op.name]
    make = _MADE.get(op.name)
    return None if make is None else make(op)


# -- integers --------------------------------------------------------------------------------------


def unsigned(x: Tensor) -> Tensor:
    """The same bits as a number from 0, in int64; 64 bits stay as they are."""
    if x.dtype in (torch.int64, torch.bool):
        return x.long()
    return x.long() & ((1 << _BITS[x.dtype]) - 1)


def _order(x: Tensor) -> Tensor:
    """Numbers whose signed order is the unsigned order of the bits."""
    return x ^ torch.iinfo(torch.int64).min if x.dtype == torch.int64 else unsigned(x)


def _whole(function: Evaluator) -> Evaluator:
    """Arithmetic of i1 in int8, then its last bit."""

    def apply(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype == torch.bool:
            made: Tensor = (function(a.to(torch.int8), b.to(torch.int8)) & 1).bool()
            return made
        return function(a, b).to(a.dtype)  # type: ignore[no-any-return]

    return apply


def _divided(a: Tensor, b: Tensor, *, remainder: bool) -> Tensor:
    """Towards zero; a division by nothing, which a mask hides, gives anything."""
    safe = torch.where((b == 0) | (b == -1), torch.ones_like(b), b)
    if remainder:
        return torch.where(b == -1, torch.zeros_like(a), torch.fmod(a, safe))
    return torch.where(b == -1, -a, torch.div(a, safe, rounding_mode="trunc"))


def _divided_unsigned(a: Tensor, b: Tensor, *, remainder: bool) -> Tensor:
    if a.dtype == torch.int64:
        one, other = (np.ascontiguousarray(t.numpy()).view(np.uint64).reshape(t.shape) for t in (a, b))
        safe = np.where(other == 0, np.uint64(1), other)
        made = np.array(one % safe if remainder else one // safe)
        return torch.from_numpy(made.view(np.int64))
    return _divided(unsigned(a), unsigned(b), remainder=remainder).to(a.dtype)


def _shifted_right(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype == torch.int64:
        kept = torch.where(b > 0, torch.iinfo(torch.int64).max >> (b - 1).clamp_min(0), torch.full_like(b, -1))
        return (a >> b) & kept
    return (unsigned(a) >> unsigned(b)).to(a.dtype)


def _high_half(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype != torch.int32:
        raise Unsupported(f"the high half of a product of {a.dtype}")
    one, other = (unsigned(t).numpy().astype(np.uint64) for t in (a, b))
    high = np.array((one * other) >> np.uint64(32), dtype=np.int64)
    return torch.from_numpy(high).to(torch.int32)


def _picked(function: Evaluator) -> Evaluator:
    """A minimum or maximum of unsigned numbers; `function` says where the first is taken."""
    return lambda a, b: torch.where(function(_order(a), _order(b)), a, b)


_PREDICATES: dict[str, Evaluator] = {
    "eq": torch.eq, "ne": torch.ne,
    "slt": lambda a, b: _signed(a) < _signed(b), "sle": lambda a, b: _signed(a) <= _signed(b),
    "sgt": lambda a, b: _signed(a) > _signed(b), "sge": lambda a, b: _signed(a) >= _signed(b),
    "ult": lambda a, b: _order(a) < _order(b), "ule": lambda a, b: _order(a) <= _order(b),
    "ugt": lambda a, b: _order(a) > _order(b), "uge": lambda a, b: _order(a) >= _order(b),
}  # fmt: skip


def _signed(x: Tensor) -> Tensor:
    return -x.to(torch.int8) if x.dtype == torch.bool else x


def _compared(table: dict[str, Evaluator]) -> Callable[[Op], Evaluator]:
    def make(op: Op) -> Evaluator:
        predicate = op.attributes.strip().split(",")[0].strip()
        if predicate not in table:
            raise Unsupported(f"the comparison `{predicate[:20]}`")
        return table[predicate]

    return make


# -- floats ----------------------------------------------------------------------------------------


def _ordered(function: Evaluator) -> Evaluator:
    return lambda a, b: function(a, b) & ~(a.isnan() | b.isnan())


def _unordered(function: Evaluator) -> Evaluator:
    return lambda a, b: function(a, b) | a.isnan() | b.isnan()


_COMPARISONS = {"eq": torch.eq, "gt": torch.gt, "ge": torch.ge, "lt": torch.lt, "le": torch.le, "ne": torch.ne}
_FLOAT_PREDICATES: dict[str, Evaluator] = {
    **{f"o{name}": _ordered(function) for name, function in _COMPARISONS.items()},
    **{f"u{name}": _unordered(function) for name, function in _COMPARISONS.items()},
    "ord": lambda a, b: ~(a.isnan() | b.isnan()), "uno": lambda a, b: a.isnan() | b.isnan(),
}  # fmt: skip


def _wide(function: Evaluator) -> Evaluator:
    """In float32 where the operands have 16 bits."""

    def apply(*args: Tensor) -> Tensor:
        kind = args[0].dtype
        if kind in _SHORT:
            args = tuple(a.float() for a in args)
        return function(*args).to(kind)  # type: ignore[no-any-return]

    return apply


def _clamped(op: Op) -> Evaluator:
    if "propagateNan = all" in op.attributes:
        return lambda x, low, high: torch.minimum(torch.maximum(x, low), high)
    return lambda x, low, high: torch.fmin(torch.fmax(x, low), high)


def to_float(x: Tensor, dtype: torch.dtype, *, truncate: bool = False) -> Tensor:
    """A cast between floating dtypes: to nearest even, fp8 saturates; `truncate` towards zero, to bf16 only."""
    if dtype in _LARGEST:
        most = _LARGEST[dtype]
        return x.float().clamp(-most, most).to(dtype)
    if truncate:
        if dtype != torch.bfloat16 or x.dtype != torch.float32:
            raise Unsupported(f"a cast from {x.dtype} to {dtype} towards zero")
        return (x.contiguous().view(torch.int32) & -0x10000).view(torch.float32).to(dtype)
    return x.float().to(dtype) if x.dtype in _LARGEST else x.to(dtype)


def _cast(op: Op) -> Evaluator:
    dtype, truncate = dtype_of(op.type.element), "rtz" in op.attributes
    return lambda x: to_float(x, dtype, truncate=truncate)


def _to_integer(op: Op) -> Evaluator:
    """Saturating, NaN to zero, as `cvt` does."""
    dtype, positive = dtype_of(op.type.element), op.name == "arith.fptoui"
    bits = _BITS[dtype]
    low, high = (0, (1 << bits) - 1) if positive else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    def apply(x: Tensor) -> Tensor:
        wide = x.double().nan_to_num(0.0, posinf=float(high), neginf=float(low)).trunc()
        top = wide >= float(1 << 63)
        made = torch.where(top, torch.zeros_like(wide), wide.clamp(float(low), float(high))).long()
        return torch.where(top, torch.full_like(made, min(high, (1 << 63) - 1)), made).to(dtype)

    return apply


def _from_integer(op: Op) -> Evaluator:
    dtype = dtype_of(op.type.element)
    if op.name == "arith.uitofp":
        return lambda x: unsigned(x).to(dtype)
    return lambda x: _signed(x).to(dtype)


def _bits(op: Op) -> Evaluator:
    """Another name for the same bits; a pointer to another type is the same address."""
    dtype = dtype_of(op.type.element)

    def apply(x: Tensor) -> Tensor:
        if x.dtype == dtype:
            return x
        if torch.bool in (x.dtype, dtype) or x.element_size() != dtype.itemsize:
            raise Unsupported(f"the bits of {x.dtype} as {dtype}")
        return x.contiguous().view(dtype)

    return apply


def round_to_tf32(x: Tensor) -> Tensor:
    """`arithmetic.round_to_tf32` of a tensor."""
    return torch.from_numpy(arithmetic.round_to_tf32(x.numpy()))


def _dot(op: Op) -> Evaluator:
    if re.search(r"tf32x3|bf16x|ieee", op.attributes) or "tf32" not in op.attributes:
        round_f32: Evaluator = lambda x: x  # noqa: E731
    else:
        round_f32 = round_to_tf32

    def operand(x: Tensor) -> Tensor:
        return round_f32(x) if x.dtype == torch.float32 else x.float()

    def apply(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        if c.dtype == torch.float64:
            return a @ b + c
        if not c.dtype.is_floating_point:
            return (a.double() @ b.double()).long().to(c.dtype) + c
        return (operand(a) @ operand(b) + c.float()).to(c.dtype)

    return apply


def _extern(op: Op) -> Evaluator:
    found = re.search(r'symbol = "([^"]*)"', op.attributes)
    function, dtype = lookup(found.group(1) if found else ""), dtype_of(op.type.element)

    def apply(*args: Tensor) -> Tensor:
        with np.errstate(all="ignore"):
            made = np.asarray(function(*(t.numpy() for t in args)))
        return torch.from_numpy(np.array(made)).to(dtype)

    return apply


# -- constants and shapes --------------------------------------------------------------------------


def _constant(op: Op) -> Evaluator:
    text = op.attributes.split("{")[0].strip() if "dense" not in op.attributes else op.attributes.strip()
    text = text.removeprefix("{value = ").strip()
    dense = re.match(r"dense<(.*)>", text)
    inner = dense.group(1) if dense else text.split(" : ")[0].strip("{} ")
    kind = op.types[-1] if op.types else Type((), "i1")  # `true` is printed without its type
    dtype = dtype_of(kind.element)
    if inner.startswith('"0x'):
        data = bytearray.fromhex(inner.strip('"')[2:])
        made = torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(kind.shape).clone()
    else:
        listed = [t for t in re.split(r"[\[\],\s]+", inner) if t]
        made = torch.stack([_literal(t, dtype) for t in listed])
        made = made.reshape(kind.shape) if len(listed) > 1 else made.reshape(()).expand(kind.shape)
    return lambda: made


def _literal(text: str, dtype: torch.dtype) -> Tensor:
    if text in ("true", "false"):
        return torch.tensor(text == "true", dtype=dtype)
    if text.startswith("0x") and dtype.is_floating_point:
        data = bytearray(int(text, 16).to_bytes(dtype.itemsize, "little"))
        return torch.frombuffer(data, dtype=dtype).clone().reshape(())
    if dtype.is_floating_point:
        return torch.tensor(float(text), dtype=torch.float64).to(dtype)
    if dtype == torch.bool:
        return torch.tensor(bool(int(text)))
    bits = 8 * dtype.itemsize
    value = int(text, 0) & ((1 << bits) - 1)
    return torch.tensor(value - (1 << bits) if value >> (bits - 1) else value, dtype=dtype)


def scalar(value: float | int | bool, kind: Type) -> Tensor:
    """A launch argument as the kernel gets it: floats as the launcher rounds them."""
    dtype = dtype_of(kind.element)
    if not dtype.is_floating_point:
        return _literal(str(int(value)), dtype)
    if dtype == torch.bfloat16:  # Triton's launcher cuts it off
        (bits,) = struct.unpack("<i", struct.pack("<f", value))
        return torch.tensor(bits & -0x10000, dtype=torch.int32).view(torch.float32).to(dtype)
    return torch.tensor(float(value), dtype=torch.float64).to(dtype)


def _range(op: Op) -> Evaluator:
    made = torch.arange(number(op, "start"), number(op, "end"), dtype=torch.int32)
    return lambda: made


def _to(function: Evaluator) -> Callable[[Op], Evaluator]:
    """Of the result's dtype and the operands."""
    return lambda op: functools.partial(function, dtype_of(op.type.element))


def _shaped(function: Evaluator) -> Callable[[Op], Evaluator]:
    """Of the result's shape and the operands."""
    return lambda op: functools.partial(function, op.type.shape)


def _along(function: Evaluator) -> Callable[[Op], Evaluator]:
    """Of the axis and the operands."""
    return lambda op: functools.partial(function, number(op, "axis"))


def _histogram(op: Op) -> Evaluator:
    (bins,) = op.type.shape

    def apply(x: Tensor, mask: Tensor | None = None) -> Tensor:
        kept = x if mask is None else x[mask]
        kept = unsigned(kept)
        return torch.bincount(kept[kept < bins], minlength=bins).to(torch.int32)

    return apply


def _turned(op: Op) -> Evaluator:
    found = re.search(r"order = array<i32: ([\d, ]+)>", op.attributes)
    if found is None:
        raise Unsupported("a transposition without an order")
    order = [int(n) for n in found.group(1).split(",")]
    return lambda x: x.permute(order)


def _poison(op: Op) -> Evaluator:
    dtype = dtype_of(op.type.element)
    made = torch.full(op.type.shape, float("nan") if dtype.is_floating_point else 0).to(dtype)
    return lambda: made


_PLAIN: dict[str, Evaluator] = {
    "arith.addi": _whole(torch.add), "arith.subi": _whole(torch.sub), "arith.muli": _whole(torch.mul),
    "arith.divsi": lambda a, b: _divided(a, b, remainder=False),
    "arith.remsi": lambda a, b: _divided(a, b, remainder=True),
    "arith.divui": lambda a, b: _divided_unsigned(a, b, remainder=False),
    "arith.remui": lambda a, b: _divided_unsigned(a, b, remainder=True),
    "arith.ceildivsi": lambda a, b: -_divided(-a, b, remainder=False) if bool((a <= 0).all()) else
    _divided(a + b - 1, b, remainder=False),
    "arith.andi": torch.bitwise_and, "arith.ori": torch.bitwise_or, "arith.xori": torch.bitwise_xor,
    "arith.shli": lambda a, b: a << b, "arith.shrsi": lambda a, b: a >> b, "arith.shrui": _shifted_right,
    "arith.minsi": lambda a, b: torch.where(_signed(a) < _signed(b), a, b),
    "arith.maxsi": lambda a, b: torch.where(_signed(a) > _signed(b), a, b),
    "arith.minui": _picked(torch.lt), "arith.maxui": _picked(torch.gt),
    "arith.addf": _wide(torch.add), "arith.subf": _wide(torch.sub), "arith.mulf": _wide(torch.mul),
    "arith.divf": _wide(torch.div), "arith.remf": _wide(torch.fmod), "arith.negf": torch.neg,
    "arith.maxnumf": torch.fmax, "arith.minnumf": torch.fmin,
    "arith.maximumf": torch.maximum, "arith.minimumf": torch.minimum,
    "arith.select": lambda c, a, b: torch.where(c, a, b),
    "math.absi": torch.abs, "math.absf": torch.abs, "math.floor": torch.floor, "math.ceil": torch.ceil,
    "math.round": _wide(lambda x: torch.copysign(torch.floor(x.abs() + 0.5), x)),
    "math.roundeven": torch.round, "math.trunc": torch.trunc,
    "math.copysign": torch.copysign, "math.powf": _wide(torch.pow), "math.atan2": _wide(torch.atan2),
    "math.fma": lambda a, b, c: (a.double() * b.double() + c.double()).to(c.dtype),
    **{f"math.{name}": _wide(getattr(torch, name)) for name in (
        "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
        "cosh", "tanh", "sqrt", "rsqrt", "erf")},
    "tt.precise_sqrt": _wide(torch.sqrt), "tt.precise_divf": _wide(torch.div), "tt.mulhiui": _high_half,
    "tt.ptr_to_int": lambda x: x, "tt.int_to_ptr": lambda x: x, "tt.join": lambda a, b: torch.stack((a, b), -1),
    "tt.split": lambda x: tuple(x.unbind(-1)), "tt.unsplat": lambda x: x.reshape(()),
    "tt.cat": lambda a, b: torch.cat((a, b)),
}  # fmt: skip

_MADE: dict[str, Callable[[Op], Evaluator]] = {
    "arith.constant": _constant, "ub.poison": _poison, "tt.make_range": _range,
    "arith.cmpi": _compared(_PREDICATES), "arith.cmpf": _compared(_FLOAT_PREDICATES),
    "arith.extsi": _to(lambda d, x: _signed(x).to(d)), "arith.extui": _to(lambda d, x: unsigned(x).to(d)),
    "arith.trunci": _to(lambda d, x: (x & 1).bool() if d == torch.bool else x.to(d)),
    "arith.index_cast": _to(lambda d, x: x.to(d)), "arith.index_castui": _to(lambda d, x: unsigned(x).to(d)),
    "arith.extf": _cast, "arith.truncf": _cast, "tt.fp_to_fp": _cast,
    "arith.fptosi": _to_integer, "arith.fptoui": _to_integer,
    "arith.sitofp": _from_integer, "arith.uitofp": _from_integer,
    "arith.bitcast": _bits, "tt.bitcast": _bits,
    "tt.clampf": _clamped, "tt.dot": _dot, "tt.extern_elementwise": _extern,
    "tt.splat": _shaped(lambda s, x: x.expand(s)), "tt.broadcast": _shaped(lambda s, x: x.expand(s)),
    "tt.reshape": _shaped(lambda s, x: x.reshape(s)),
    "tt.expand_dims": _along(lambda axis, x: x.unsqueeze(axis)),
    "tt.gather": _along(lambda axis, x, index: torch.gather(x, axis, index.long())),
    "tt.trans": _turned, "tt.histogram": _histogram,
}  # fmt: skip
