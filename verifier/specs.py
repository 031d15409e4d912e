"""Argument specs: the JSON description of one argument of a constructor or of `forward`, without its data.

    {"kind": "tensor", "shape": [..], "dtype": "float16", "stride": [..]}
    {"kind": "value", "value": int | float | bool | str | null}      plus "float": true where JSON lacks the
    float
    {"kind": "dtype", "value": "float16"}
    {"kind": "list" | "tuple", "items": [SPEC..]}
    {"kind": "dict", "items": {name: SPEC}}

`leaves` and `rebuild` use one order (depth first, as written), so tensors can travel apart from their spec.
Imports torch: use it inside jobs only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

Spec = dict[str, Any]
MakeTensor = Callable[[tuple[int, ...], torch.dtype, tuple[int, ...]], torch.Tensor]

MAX_DEPTH = 8
MAX_ITEMS = 4096
MAX_BYTES = 1 << 40
"""Largest tensor that a spec may describe, bytes. Fake tensors cost nothing, so this only stops nonsense."""


class SpecError(ValueError):
    """A spec that is malformed, or an argument that no spec can describe. One sentence."""


DTYPES: dict[str, torch.dtype] = {
    str(d).removeprefix("torch."): d
    for d in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.bool,
        torch.uint8, torch.uint16, torch.uint32, torch.uint64,
        torch.complex64, torch.complex128,
    )
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """`torch.float16` -> `float16`."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """`float16` -> `torch.float16`; SpecError on a name that no plan knows."""
    try:
        return DTYPES[name]
    except (KeyError, TypeError):
        raise SpecError(f"unknown dtype {name!r}") from None


def encode(value: object, depth: int = 0) -> Spec:
    """Spec of one live argument. Raises SpecError for a type that no spec can describe."""
    if depth > MAX_DEPTH:
        raise SpecError("an argument is nested too deeply")
    if isinstance(value, torch.Tensor):
        return {"kind": "tensor", "shape": [int(n) for n in value.shape], "dtype": dtype_name(value.dtype),
                "stride": [int(n) for n in value.stride()]}  # fmt: skip
    if isinstance(value, torch.dtype):
        return {"kind": "dtype", "value": dtype_name(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return {"kind": "value", "value": str(float(value)), "float": True}
    if value is None or isinstance(value, bool | int | float | str):
        return {"kind": "value", "value": value}
    if isinstance(value, list | tuple):  # torch.Size and named tuples become plain tuples
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [encode(v, depth + 1) for v in value]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"kind": "dict", "items": {k: encode(v, depth + 1) for k, v in value.items()}}
    raise SpecError(f"an argument of type {type(value).__name__} cannot be described")


def build(spec: object, tensor: MakeTensor, depth: int = 0) -> Any:
    """The argument that `spec` describes; `tensor(shape, dtype, stride)` makes each tensor. SpecError if
    malformed."""
    if not isinstance(spec, dict) or depth > MAX_DEPTH:
        raise SpecError("a spec is an object, nested at most 8 deep")
    kind = spec.get("kind")
    if kind == "tensor":
        return tensor(*_tensor_fields(spec))
    if kind == "dtype":
        return dtype_of(spec.get("value", ""))
    if kind == "value":
        return _plain_value(spec)
    items = spec.get("items")
    if kind in ("list", "tuple") and isinstance(items, list) and len(items) <= MAX_ITEMS:
        made = [build(s, tensor, depth + 1) for s in items]
        return made if kind == "list" else tuple(made)
    if kind == "dict" and isinstance(items, dict) and len(items) <= MAX_ITEMS:
        return {str(k): build(s, tensor, depth + 1) for k, s in items.items()}
    raise SpecError(f"unknown or malformed spec kind {kind!r}")


def _plain_value(spec: Spec) -> int | float | bool | str | None:
    value = spec.get("value")
    if spec.get("float") is True:
        if value not in ("inf", "-inf", "nan"):
            raise SpecError(f"{value!r} is not a float that JSON lacks")
        return float(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise SpecError("a value is a number, a string, a bool or null")


def _tensor_fields(spec: Spec) -> tuple[tuple[int, ...], torch.dtype, tuple[int, ...]]:
    shape = _ints(spec.get("shape"))
    dtype = dtype_of(spec.get("dtype", ""))
    stride = _ints(spec["stride"]) if spec.get("stride") is not None else contiguous_stride(shape)
    if len(stride) != len(shape):
        raise SpecError("shape and stride differ in length")
    if span(shape, stride) * dtype.itemsize > MAX_BYTES:
        raise SpecError("a tensor is larger than 1 TiB")
    return shape, dtype, stride


def _ints(value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) > 16:
        raise SpecError("a shape or stride is a list of at most 16 integers")
    if any(isinstance(n, bool) or not isinstance(n, int) or not 0 <= n <= MAX_BYTES for n in value):
        raise SpecError("a shape or stride holds integers from 0 to 2^40")
    return tuple(value)


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements."""
    stride: list[int] = []
    step = 1
    for n in reversed(shape):
        stride.append(step)
        step *= max(n, 1)
    return tuple(reversed(stride))


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements from the first to the last one inclusive, 0 for an empty tensor."""
    if any(n == 0 for n in shape):
        return 0
    return 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))


def elements(t: torch.Tensor) -> torch.Tensor:
    """All elements from the first to the last, with those between that no index reaches, each once."""
    return t.as_strided((span(tuple(t.shape), t.stride()),), (1,), t.storage_offset())


def empty(spec: Spec, device: torch.device | str = "cpu") -> Any:
    """The argument with uninitialised tensors on `device`; under FakeTensorMode the tensors are fake."""
    return build(spec, lambda shape, dtype, stride: torch.empty_strided(shape, stride, dtype=dtype, device=device))


def leaves(value: object) -> Iterator[torch.Tensor]:
    """Tensors of a live argument in the order of its spec."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)


def rebuild(spec: Spec, tensors: Iterator[torch.Tensor]) -> Any:
    """The argument that `spec` describes around the given tensors, taken in the order of `leaves`."""

    def take(shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
        tensor = next(tensors, None)
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise SpecError(f"a tensor of shape {list(shape)} and dtype {dtype_name(dtype)} is missing")
        return tensor

    return build(spec, take)
