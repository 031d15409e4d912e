"""Tensors between processes: a spec (see `verifier/specs.py`) in JSON and one raw blob per tensor, never
pickle.

Blobs may come from a candidate, so every length is checked against the spec before a byte is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from verifier.specs import Spec, SpecError, build, contiguous_stride, encode, leaves, span

MAX_TENSORS = 4096
MAX_BYTES = 1 << 30
"""Of one tensor of which only chosen elements travel."""


def pack(value: object, prefix: str) -> tuple[Spec, dict[str, bytes]]:
    """Spec of `value` and its tensors as blobs `prefix/0`, `prefix/1`, ... in row-major order of the
    elements.
    """
    blobs = {f"{prefix}/{i}": to_bytes(t) for i, t in enumerate(leaves(value))}
    return encode(value), blobs


def unpack(spec: object, blobs: Mapping[str, bytes], prefix: str) -> Any:
    """The value that `pack` took. Strides are kept unless elements overlap. SpecError on a mismatch."""
    count = 0

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
        nonlocal count
        name, count = f"{prefix}/{count}", count + 1
        if count > MAX_TENSORS:
            raise SpecError(f"more than {MAX_TENSORS} tensors")
        return from_bytes(blobs.get(name), shape, dtype, stride)

    return build(spec, tensor)


def to_bytes(tensor: torch.Tensor) -> bytes:
    """Elements of `tensor` in row-major order."""
    flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    data: bytes = flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""
    return data


def chosen_bytes(tensor: torch.Tensor, chosen: npt.NDArray[np.bool_]) -> bytes:
    """The elements that `chosen` (row-major) names, as bytes."""
    flat = np.frombuffer(to_bytes(tensor), dtype=np.uint8).reshape(-1, tensor.element_size())
    return flat[chosen].tobytes()


def unpack_chosen(spec: object, blobs: Mapping[str, bytes], prefix: str) -> tuple[Any, list[torch.Tensor]]:
    """The value whose chosen elements are `prefix/out/0`, ..., zero elsewhere, and for each tensor the bool
    tensor of what was chosen, from the bits in `prefix/mask/0`, .... SpecError on a mismatch.
    """
    masks: list[torch.Tensor] = []

    def tensor(shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...]) -> torch.Tensor:
        name, count = str(len(masks)), span(shape, contiguous_stride(shape))
        bits = blobs.get(f"{prefix}/mask/{name}", b"")
        if len(masks) >= MAX_TENSORS or count * dtype.itemsize > MAX_BYTES or len(bits) != (count + 7) // 8:
            raise SpecError(f"the mask of a tensor of shape {list(shape)} has {len(bits)} bytes")
        chosen = np.unpackbits(np.frombuffer(bits, dtype=np.uint8), count=count).astype(bool)
        data = blobs.get(f"{prefix}/out/{name}", b"")
        if len(data) != int(chosen.sum()) * dtype.itemsize:
            raise SpecError(f"{int(chosen.sum())} stored elements have {len(data)} bytes")
        flat = np.zeros((count, dtype.itemsize), dtype=np.uint8)
        flat[chosen] = np.frombuffer(data, dtype=np.uint8).reshape(-1, dtype.itemsize)
        masks.append(torch.from_numpy(chosen).reshape(shape))
        return torch.from_numpy(flat.reshape(-1)).view(dtype).reshape(shape)

    return build(spec, tensor), masks


def from_bytes(
    data: bytes | None, shape: tuple[int, ...], dtype: torch.dtype, stride: tuple[int, ...] | None = None
) -> torch.Tensor:
    """A writable tensor that owns its memory. SpecError when `data` is missing or has another length."""
    contiguous = contiguous_stride(shape)
    expected = span(shape, contiguous) * dtype.itemsize
    if data is None or len(data) != expected:
        found = "is missing" if data is None else f"has {len(data)} bytes"
        raise SpecError(f"a tensor of shape {list(shape)} needs {expected} bytes, its blob {found}")
    strided = stride is not None and not _overlaps(shape, stride) and span(shape, stride) <= 8 * max(expected, 1)
    result = torch.empty_strided(shape, stride if strided and stride else contiguous, dtype=dtype)
    if expected:
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        result.copy_(flat.clone().view(dtype).reshape(shape))
    return result


def _overlaps(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether two indices may share an element. Conservative: a dimension must step past all smaller ones."""
    reach = 1
    for step, n in sorted((s, n) for s, n in zip(stride, shape, strict=True) if n > 1):
        if step < reach:
            return True
        reach = step * (n - 1) + reach
    return False
