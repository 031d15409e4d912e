"""Repairs Triton's interpreter (3.6 to 3.9) where it computes something else than the GPU.

- bf16: it adds, multiplies, compares and casts the raw 16 bits. Here: computed in float32, rounded to bf16.
- tl.dot: operands in float32 with TF32 rounding unless `input_precision` asks for more; sums in float32.
- fp8 casts: round to nearest even and saturate.
- A `float` argument is an fp32 scalar, so fp16 * argument is fp32, as in compiled code.
- 3.6 with numpy >= 2.4: a scalar of shape (1,) can be an index again; bool arguments and bf16 constants work.
- `and`, `or`, `not`, `min` and `max` on blocks: see `logic.py`.
- Functions of `triton.language` that a file imports by their names are the interpreter's too, and it need not import
  the language as a whole.
- Integer overflow wraps without a check, which took 40% of the time. erf is vectorised; assertions are
  recorded instead of raised (a GPU ignores them outside debug mode).

`install` changes Triton's classes in this process for good: call it only in a process that will be thrown
away.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import numpy as np
import torch
import triton.language as tl
import triton.runtime.interpreter as ti

from verifier.interpreter import libdevice, logic
from verifier.interpreter.arithmetic import (
    FP8,
    bf16_to_float,
    float_to_bf16,
    float_to_fp8,
    fp8_to_float,
    round_to_tf32,
)
from verifier.interpreter.limits import Unsupported

Handle = Any
Note = Callable[[str, str], None]
"""(code, message): an observation that is not an error."""

DOT_CLASSES: set[str] = set()
"""Operand classes of the matrix products that ran in this process."""


def install(note: Note) -> None:
    """Repairs the interpreter of this process. `note` receives failed device assertions."""
    builder = ti.InterpreterBuilder
    for name, count in (("binary_op", 2), ("unary_op", 1), ("create_fma", 3), ("create_clampf", 3)):
        setattr(builder, name, _in_float32(getattr(builder, name), count))
    _repair_casts(builder)
    _repair_dot(builder)
    _repair_missing(builder, note)
    _repair_scalars()
    _repair_names()
    libdevice.install(builder)
    logic.install()


def is_bf16(handle: Handle) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16 and handle.data.dtype == np.uint16)


def widen(handle: Handle) -> Handle:
    """A bf16 handle as an fp32 one; any other unchanged."""
    return ti.TensorHandle(bf16_to_float(handle.data), tl.float32) if is_bf16(handle) else handle


def narrow(handle: Handle) -> Handle:
    """An fp32 result of bf16 operands as bf16; comparisons stay bool."""
    if handle.data.dtype == np.bool_:
        return ti.TensorHandle(handle.data, tl.int1)
    if handle.dtype.scalar == tl.float32:
        return ti.TensorHandle(float_to_bf16(handle.data), tl.bfloat16)
    return handle


def _in_float32(original: Callable[..., Handle], operands: int) -> Callable[..., Handle]:
    def repaired(self: Any, *args: Any) -> Handle:
        if not any(is_bf16(h) for h in args[:operands]):
            return original(self, *args)
        return narrow(original(self, *[widen(h) for h in args[:operands]], *args[operands:]))

    return repaired


def _repair_casts(builder: Any) -> None:
    original_cast, original_float = builder.cast_impl, builder.create_fp_to_fp

    def cast(self: Any, src: Handle, dst_type: Any) -> Handle:
        special = _small_float_cast(src, dst_type.scalar, truncate=False)
        return special if special is not None else original_cast(self, src, dst_type)

    def float_cast(self: Any, src: Handle, dst_type: Any, rounding: Any) -> Handle:
        truncate = rounding == ti._ir.ROUNDING_MODE.RTZ
        special = _small_float_cast(src, dst_type.scalar, truncate=truncate)
        return special if special is not None else original_float(self, src, dst_type, rounding)

    builder.cast_impl = cast
    builder.create_fp_to_fp = float_cast


def _small_float_cast(src: Handle, target: Any, *, truncate: bool) -> Handle | None:
    """A cast from or to bf16 or fp8, None when it is neither."""
    source = src.dtype.scalar
    if source.name in FP8:
        floats = fp8_to_float(src.data, source.name)
    elif is_bf16(src):
        floats = bf16_to_float(src.data)
    elif target == tl.bfloat16 or target.name in FP8:
        floats = src.data.astype(np.float32)
    else:
        return None
    if target == tl.bfloat16:
        return ti.TensorHandle(float_to_bf16(floats, truncate=truncate), target)
    if target.name in FP8:
        return ti.TensorHandle(float_to_fp8(floats, target.name), target)
    return ti.TensorHandle(floats.astype(ti._get_np_dtype(target)), target)


def _repair_dot(builder: Any) -> None:
    def dot(self: Any, a: Handle, b: Handle, d: Handle, input_precision: Any, max_imprecise: Any) -> Handle:
        precision = getattr(input_precision, "name", str(input_precision)).upper()
        if d.data.dtype.kind in "iu":
            product = np.matmul(a.data.astype(np.float64), b.data.astype(np.float64))
            return ti.TensorHandle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)
        if d.data.dtype == np.float64:
            return ti.TensorHandle(np.matmul(a.data, b.data) + d.data, d.dtype.scalar)
        left, right = (_operand(h, tf32=precision == "TF32") for h in (a, b))
        total = np.matmul(left, right) + widen(d).data.astype(np.float32, copy=False)
        if d.dtype.scalar == tl.bfloat16:
            return ti.TensorHandle(float_to_bf16(total), tl.bfloat16)
        return ti.TensorHandle(total.astype(d.data.dtype, copy=False), d.dtype.scalar)

    builder.create_dot = dot


def _operand(handle: Handle, *, tf32: bool) -> Any:
    name = handle.dtype.scalar.name
    DOT_CLASSES.add("tf32" if name == "fp32" and tf32 else name)
    if name in FP8:
        return fp8_to_float(handle.data, name)
    if name.startswith("fp8"):
        raise Unsupported(f"tl.dot on {name}")
    floats = widen(handle).data.astype(np.float32, copy=False)
    return round_to_tf32(floats) if name == "fp32" and tf32 else floats


def _repair_missing(builder: Any, note: Note) -> None:
    original_atomic = builder.create_atomic_rmw

    def atomic(self: Any, op: Any, ptr: Handle, val: Handle, *rest: Any) -> Handle:
        if is_bf16(val):
            raise Unsupported("atomic operations on bf16")
        return original_atomic(self, op, ptr, val, *rest)

    def check(code: str) -> Callable[..., None]:
        def record(self: Any, condition: Handle, message: str = "") -> None:
            if not np.all(condition.data if hasattr(condition, "data") else condition):
                note(code, str(message) or "the condition is false")

        return record

    def erf(self: Any, arg: Handle) -> Handle:
        values = torch.from_numpy(np.array(arg.data))
        return ti.TensorHandle(np.asarray(torch.erf(values).numpy()), arg.dtype.scalar)

    def bf16_constant(self: Any, value: float) -> Handle:
        return ti.TensorHandle(float_to_bf16(np.array([value], dtype=np.float32)), tl.bfloat16)

    builder.create_atomic_rmw = atomic
    builder.create_assert = check("device-assert")
    builder.create_assume = check("false-assumption")
    builder.create_erf = erf
    builder.get_bf16 = bf16_constant
    options = ti.interpreter_builder.options
    allowed = (*options.allowed_dot_input_precisions, "bf16x3", "bf16x6")
    ti.interpreter_builder.options = dataclasses.replace(
        options, allowed_dot_input_precisions=allowed, sanitize_overflow=False
    )


def _repair_scalars() -> None:
    original_tensor, original_convert = ti._patch_lang_tensor, ti._implicit_cvt

    def patch_tensor(tensor: Any, scope: Any) -> None:
        original_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))

    def convert(arg: Any) -> Any:
        if isinstance(arg, bool):
            return tl.tensor(ti.TensorHandle(np.array([arg], dtype=np.bool_), tl.int1), tl.int1)
        if isinstance(arg, float):
            return tl.tensor(ti.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
        return original_convert(arg)

    ti._patch_lang_tensor = patch_tensor
    ti._implicit_cvt = convert


def _repair_names() -> None:
    original, modules = ti._patch_lang, (tl, tl.core, tl.math)

    def patch(function: Any) -> Any:
        space = function.__globals__
        named: list[tuple[str, Any, Any]] = [
            (name, value, module) for name, value in space.items() if isinstance(value, FunctionType | type)
            for module in modules if getattr(module, value.__name__, None) is value
        ]  # fmt: skip
        scope = original(function if languages(function) else install)  # which sees it, as everything in this module
        for name, value, module in named:
            if (patched := getattr(module, value.__name__)) is not value:
                scope.set_attr(_Space(space), name, patched)
        return scope

    ti._patch_lang = patch


def languages(function: Any) -> list[Any]:
    """Modules that Triton patches for a kernel or a device function which sees them."""
    return [v for v in function.__globals__.values() if inspect.ismodule(v) and v in (tl, tl.core)]


class _Space:
    """Globals of a module as attributes."""

    def __init__(self, space: dict[str, Any]) -> None:
        self.__dict__ = space
