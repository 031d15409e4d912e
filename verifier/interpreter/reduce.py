"""Reductions and scans of the interpreter, vectorised.

Triton's interpreter calls the combine function once per element (a second for a 128 x 64 tile) and adds raw
bits for bf16. Here the function is applied to whole halves, log2(n) times, in an order that keeps neighbours
together: it needs associativity only, as `tl.reduce` and `tl.associative_scan` do on a GPU. Sums of 16-bit
floats round at each step, as they do there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as ti

from verifier.interpreter.repair import is_bf16, widen

Tensor = Any
Array = Any


def install() -> None:
    """Replaces the slow paths of `ReduceOps` and `ScanOps` in this process."""
    original_reduce, original_scan = ti.ReduceOps.apply_impl, ti.ScanOps.apply_impl

    def reduce(self: Any, tensors: tuple[Tensor, ...]) -> Any:
        standard = tl.standard
        if self.combine_fn in (standard._elementwise_max, standard._elementwise_min):
            extreme = np.fmax if self.combine_fn is standard._elementwise_max else np.fmin
            return _extreme(self, tensors[0], extreme)
        if self.combine_fn is standard._sum_combine and not _small_float(tensors[0]):
            return original_reduce(self, tensors)
        if _is_arg_reduction(self.combine_fn) and not is_bf16(tensors[0].handle):
            return original_reduce(self, tensors)
        return _tree(self, tensors)

    def scan(self: Any, tensors: tuple[Tensor, ...]) -> Any:
        known = self.combine_fn in (tl.standard._sum_combine, tl.standard._prod_combine)
        if known and not _small_float(tensors[0]):
            return original_scan(self, tensors)
        return _doubling(self, tensors)

    ti.ReduceOps.apply_impl = reduce
    ti.ScanOps.apply_impl = scan


def _is_arg_reduction(combine: object) -> bool:
    standard = tl.standard
    return combine in (
        standard._argmin_combine_tie_break_left,
        standard._argmin_combine_tie_break_fast,
        standard._argmax_combine_tie_break_left,
        standard._argmax_combine_tie_break_fast,
    )


def _small_float(tensor: Tensor) -> bool:
    return bool(is_bf16(tensor.handle) or tensor.handle.data.dtype == np.float16)


def _extreme(op: Any, tensor: Tensor, function: Any) -> Tensor:
    """Maximum or minimum that ignores NaN, as `max.f32` does."""
    floats = widen(tensor.handle).data
    result = function.reduce(floats, axis=op.axis, keepdims=op.keep_dims)
    if not is_bf16(tensor.handle):
        return op.to_tensor(result, tensor.dtype)
    bits = (np.asarray(result, dtype=np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return op.to_tensor(bits if bits.shape else bits[()], tensor.dtype)


def _tree(op: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    axis = 0 if op.axis is None else op.axis
    arrays = [np.asarray(t.handle.data) for t in tensors]
    rank = arrays[0].ndim
    if op.axis is None:
        arrays = [a.reshape(-1) for a in arrays]
    dtypes = [t.dtype for t in tensors]
    while arrays[0].shape[axis] > 1:
        even, odd = ([_every_second(a, axis, start) for a in arrays] for start in (0, 1))
        arrays = _combine(op, even, odd, dtypes)
    if op.keep_dims:
        arrays = [a.reshape((1,) * rank) if op.axis is None else a for a in arrays]
    else:
        arrays = [np.squeeze(a, axis=axis) for a in arrays]
    return [op.to_tensor(a if a.shape else a[()], d) for a, d in zip(arrays, dtypes, strict=True)]


def _every_second(array: Array, axis: int, start: int) -> Array:
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, None, 2)
    return array[tuple(index)]


def _combine(op: Any, left: list[Array], right: list[Array], dtypes: list[Any]) -> list[Array]:
    operands = [op.to_tensor(a, d) for side in (left, right) for a, d in zip(side, dtypes, strict=True)]
    function: Callable[..., Any] = op.combine_fn.rewrite()
    results = function(*operands)
    results = results if isinstance(results, tuple) else (results,)
    arrays = [r.handle.data if isinstance(r, tl.core.tensor) else np.asarray(r) for r in results]
    return [np.broadcast_to(a, x.shape).astype(x.dtype, copy=False) for a, x in zip(arrays, left, strict=True)]


def _doubling(op: Any, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    """Inclusive scan: after step k each element holds the combination of the 2^k elements up to it."""
    arrays = [np.asarray(t.handle.data) for t in tensors]
    if op.reverse:
        arrays = [np.flip(a, axis=op.axis) for a in arrays]
    dtypes = [t.dtype for t in tensors]
    length, distance = arrays[0].shape[op.axis], 1
    position = np.arange(length).reshape([-1 if i == op.axis % arrays[0].ndim else 1 for i in range(arrays[0].ndim)])
    while distance < length:
        shifted = [np.roll(a, distance, axis=op.axis) for a in arrays]
        combined = _combine(op, shifted, arrays, dtypes)
        arrays = [np.where(position >= distance, c, a) for c, a in zip(combined, arrays, strict=True)]
        distance *= 2
    if op.reverse:
        arrays = [np.ascontiguousarray(np.flip(a, axis=op.axis)) for a in arrays]
    return [op.to_tensor(a, d) for a, d in zip(arrays, dtypes, strict=True)]
