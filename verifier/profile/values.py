"""Integer arithmetic of TTIR on abstract values, one function per operation.

A value is a Python number (scalar), an integer or boolean array (tensor), a `Pointer`, a `Descriptor`, or
None for unknown. Arrays keep size 1 along an axis on which they do not vary (`tt.splat` and `tt.broadcast`
copy nothing); numpy broadcasting does the rest. Floats are followed as scalars only. An operation that is not
listed gives unknown.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from verifier.profile.ttir import Op, Type

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Pointer:
    """Address inside the buffer behind a kernel parameter. `offset` counts elements, None when unknown."""

    parameter: str
    offset: int | Array | None


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A tensor descriptor (TMA): the parameter behind it and the tensor's shape, None where unknown."""

    parameter: str
    shape: tuple[int | None, ...] = ()


Value = int | float | bool | Array | Pointer | Descriptor | None
Evaluator = Callable[[Op, tuple[Any, ...]], Value]

_INTEGERS = (int, np.ndarray)

MAX_ELEMENTS = 1 << 18
"""Arrays above this become unknown."""


def wrap(value: Any, kind: Type) -> Any:
    """Reduce a scalar to the width of its integer type, two's complement. Arrays are 64 bits wide and left
    alone."""
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    bits = int(kind.element[1:]) if re.fullmatch(r"i\d{1,3}", kind.element) else 64
    if bits == 1:
        return bool(value & 1)
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def _truncated_division(a: Any, b: Any) -> Any:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        if np.any(np.asarray(b) == 0):
            return None
        return np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
    if b == 0:
        return None
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def _truncated_remainder(a: Any, b: Any) -> Any:
    quotient = _truncated_division(a, b)
    return None if quotient is None else a - quotient * b


def _ceil_division(a: Any, b: Any) -> Any:
    return None if np.any(np.asarray(b) == 0) else -((-a) // b)


def _floor_division(a: Any, b: Any) -> Any:
    return None if np.any(np.asarray(b) == 0) else a // b


def _unsigned(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        return None if np.any(np.asarray(a) < 0) or np.any(np.asarray(b) < 0) else function(a, b)

    return apply


def _shift(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        outside = np.any(np.asarray(b) < 0) or np.any(np.asarray(b) > 63)
        return None if outside else function(a, b)

    return apply


def _either(scalar: Callable[[Any, Any], Any], array: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def apply(a: Any, b: Any) -> Any:
        return array(a, b) if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) else scalar(a, b)

    return apply


_MINIMUM, _MAXIMUM = _either(min, np.minimum), _either(max, np.maximum)

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "addi": operator.add,
    "subi": operator.sub,
    "muli": operator.mul,
    "divsi": _truncated_division,
    "remsi": _truncated_remainder,
    "divui": _unsigned(_truncated_division),
    "remui": _unsigned(_truncated_remainder),
    "ceildivsi": _ceil_division,
    "ceildivui": _unsigned(_ceil_division),
    "floordivsi": _floor_division,
    "minsi": _MINIMUM,
    "maxsi": _MAXIMUM,
    "minui": _unsigned(_MINIMUM),
    "maxui": _unsigned(_MAXIMUM),
    "andi": operator.and_,
    "ori": operator.or_,
    "xori": operator.xor,
    "shli": _shift(operator.lshift),
    "shrsi": _shift(operator.rshift),
    "shrui": _unsigned(_shift(operator.rshift)),
}
_FLOAT_BINARY: dict[str, Callable[[float, float], float]] = {
    "addf": operator.add,
    "subf": operator.sub,
    "mulf": operator.mul,
    "divf": lambda a, b: a / b if b else math.nan,
}
_PREDICATES: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "slt": operator.lt,
    "sle": operator.le,
    "sgt": operator.gt,
    "sge": operator.ge,
    "ult": _unsigned(operator.lt),
    "ule": _unsigned(operator.le),
    "ugt": _unsigned(operator.gt),
    "uge": _unsigned(operator.ge),
}
_PREDICATE_NAMES = tuple(_PREDICATES)


def _binary(function: Callable[[Any, Any], Any]) -> Evaluator:
    def evaluate(op: Op, values: tuple[Any, ...]) -> Value:
        a, b = values
        if not isinstance(a, _INTEGERS) or not isinstance(b, _INTEGERS) or _too_large(a, b):
            return None
        result: Value = wrap(function(a, b), op.type)
        return result

    return evaluate


def _too_large(a: Any, b: Any) -> bool:
    if not (isinstance(a, np.ndarray) and isinstance(b, np.ndarray)) or a.shape == b.shape:
        return False
    return bool(math.prod(max(x, y) for x, y in zip(a.shape, b.shape, strict=False)) > MAX_ELEMENTS)


def _float_binary(function: Callable[[float, float], float]) -> Evaluator:
    def evaluate(op: Op, values: tuple[Any, ...]) -> Value:
        if not all(isinstance(v, (int, float)) for v in values):
            return None
        return function(float(values[0]), float(values[1]))

    return evaluate


def _compare(op: Op, values: tuple[Any, ...]) -> Value:
    a, b = values
    if not isinstance(a, _INTEGERS) or not isinstance(b, _INTEGERS) or _too_large(a, b):
        return None
    found = re.search(r"\b(eq|ne|[su][lg][te])\b", op.attributes)
    coded = re.search(r"predicate = (\d+)", op.attributes)
    if coded is not None and int(coded.group(1)) < len(_PREDICATE_NAMES):
        name = _PREDICATE_NAMES[int(coded.group(1))]
    elif found is not None:
        name = found.group(1)
    else:
        return None
    result: Value = _PREDICATES[name](a, b)
    return result


def _select(op: Op, values: tuple[Any, ...]) -> Value:
    condition, yes, no = values
    if condition is None or yes is None or no is None:
        same = isinstance(yes, Pointer) and isinstance(no, Pointer) and yes.parameter == no.parameter
        return Pointer(yes.parameter, None) if same else None
    if not isinstance(condition, np.ndarray):
        chosen: Value = yes if condition else no
        return chosen
    if isinstance(yes, np.ndarray) and isinstance(no, np.ndarray):
        return np.where(condition, yes, no)
    return None


def _constant(op: Op, values: tuple[Any, ...]) -> Value:
    text = re.sub(r"^\s*(?:\(\)\s*)?(?:<\{)?\s*(?:value = )?", "", op.attributes).strip()
    kind = op.types[-1] if op.types else Type((), "i1")  # `arith.constant true` has no type
    splat = re.match(r"dense<([^>\[]*)>", text)
    if splat is not None:
        text = splat.group(1).strip()
    word = re.split(r"[\s}>:]", text, maxsplit=1)[0]
    number: int | float | bool
    if word in ("true", "false"):
        number = word == "true"
    elif re.fullmatch(r"-?\d+", word):
        number = int(word)
    elif kind.shape == () and re.fullmatch(r"-?\d+\.\d+(?:[eE][+-]?\d+)?", word):
        return float(word)
    else:
        return None
    if kind.shape == ():
        return number
    if kind.floating:
        return None
    return np.full((1,) * len(kind.shape), number, dtype=bool if isinstance(number, bool) else np.int64)


def _same(op: Op, values: tuple[Any, ...]) -> Value:
    result: Value = values[0]
    return result


def _narrow(op: Op, values: tuple[Any, ...]) -> Value:
    result: Value = wrap(values[0], op.type)
    return result


def _extend_unsigned(op: Op, values: tuple[Any, ...]) -> Value:
    value = values[0]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, np.ndarray):
        return value.astype(np.int64) if value.dtype == bool else (None if np.any(value < 0) else value)
    return None if isinstance(value, int) and value < 0 else value


def _extend_signed(op: Op, values: tuple[Any, ...]) -> Value:
    value = values[0]
    if isinstance(value, np.ndarray) and value.dtype == bool:
        return -value.astype(np.int64)
    return -int(value) if isinstance(value, bool) else value


def _to_integer(op: Op, values: tuple[Any, ...]) -> Value:
    value = values[0]
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _to_float(op: Op, values: tuple[Any, ...]) -> Value:
    return float(values[0]) if isinstance(values[0], int) and abs(values[0]) < 1 << 62 else None


def _float_unary(function: Callable[[float], float]) -> Evaluator:
    def evaluate(op: Op, values: tuple[Any, ...]) -> Value:
        value = values[0]
        return float(function(value)) if isinstance(value, float) and math.isfinite(value) else None

    return evaluate


def _range(op: Op, values: tuple[Any, ...]) -> Value:
    start, end = (re.search(rf"\b{k} = (-?\d+)", op.attributes) for k in ("start", "end"))
    if start is None or end is None or not 0 <= int(end.group(1)) - int(start.group(1)) <= MAX_ELEMENTS:
        return None
    return np.arange(int(start.group(1)), int(end.group(1)), dtype=np.int64)


def _reshaping(function: Callable[[Op, Array], Array | None]) -> Evaluator:
    """Apply a change of shape to an array or to the offsets of a pointer."""

    def evaluate(op: Op, values: tuple[Any, ...]) -> Value:
        value = values[0]
        if isinstance(value, Pointer):
            inner = value.offset
            return Pointer(value.parameter, None if inner is None else function(op, np.asarray(inner)))
        if value is None or isinstance(value, (Descriptor, float)):
            return None
        return function(op, np.asarray(value))

    return evaluate


def _splat(op: Op, value: Array) -> Array | None:
    return value.reshape((1,) * len(op.type.shape)) if value.size == 1 else None


def _expand(op: Op, value: Array) -> Array | None:
    axis = re.search(r"axis = (\d+)", op.attributes)
    return np.expand_dims(value, int(axis.group(1))) if axis and int(axis.group(1)) <= value.ndim else None


def _broadcast(op: Op, value: Array) -> Array | None:
    return value


def _full(value: Array, shape: tuple[int, ...]) -> Array | None:
    if math.prod(shape) > MAX_ELEMENTS or len(value.shape) != len(shape):
        return None
    return np.broadcast_to(value, shape)


def _reshape(op: Op, value: Array) -> Array | None:
    full = _full(value, op.types[0].shape) if op.types else None
    return full.reshape(op.type.shape) if full is not None and full.size == op.type.size else None


def _transpose(op: Op, value: Array) -> Array | None:
    order = [int(d) for d in re.findall(r"\d+", op.attributes.split("order", 1)[-1].split("i32", 1)[-1])]
    return value.transpose(order) if sorted(order) == list(range(value.ndim)) else None


def _add_pointer(op: Op, values: tuple[Any, ...]) -> Value:
    base, step = values
    if not isinstance(base, Pointer):
        return None
    known = base.offset is not None and isinstance(step, (int, np.ndarray))
    if not known or _too_large(base.offset, step):
        return Pointer(base.parameter, None)
    return Pointer(base.parameter, base.offset + step)


EVALUATORS: dict[str, Evaluator] = {
    **{f"arith.{name}": _binary(function) for name, function in _BINARY.items()},
    **{f"arith.{name}": _float_binary(function) for name, function in _FLOAT_BINARY.items()},
    "arith.constant": _constant,
    "arith.cmpi": _compare,
    "arith.select": _select,
    "arith.extsi": _extend_signed,
    "arith.extui": _extend_unsigned,
    "arith.trunci": _narrow,
    "arith.index_cast": _same,
    "arith.sitofp": _to_float,
    "arith.fptosi": _to_integer,
    "arith.extf": _same,
    "arith.truncf": _same,
    "math.ceil": _float_unary(math.ceil),
    "math.floor": _float_unary(math.floor),
    "tt.make_range": _range,
    "tt.splat": _reshaping(_splat),
    "tt.expand_dims": _reshaping(_expand),
    "tt.broadcast": _reshaping(_broadcast),
    "tt.reshape": _reshaping(_reshape),
    "tt.trans": _reshaping(_transpose),
    "tt.addptr": _add_pointer,
    "tt.bitcast": _same,
}
"""Operation name to its evaluator; one result each."""

KEEPS_UNKNOWN = frozenset({"tt.addptr", "arith.select"})
"""Operations whose result may be partly known although an operand is not."""
