"""The launch ABI of a Triton kernel: parameters in the order of the cubin, and arguments as plan JSON."""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from verifier.plan.abi_sizes import FLOATS, param_accesses, param_size
from verifier.plan.record import Recorder, Untraceable
from verifier.specs import dtype_name


def flatten_signature(signature: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """(name, type) of every parameter, tuples opened, constexprs included."""
    if isinstance(signature, tuple | list):
        for i, item in enumerate(signature):
            yield from flatten_signature(item, f"{name}.{i}")
    else:
        yield name, str(signature)


def flatten(src: Any, args: Sequence[Any]) -> Iterator[tuple[str, str, Any]]:
    """(name, type, value) of every argument of a launch, tuples opened, constexprs included."""
    for (name, kind), value in zip(src.signature.items(), args, strict=True):
        yield from _flatten_one(str(name), kind, value)


def _flatten_one(name: str, kind: Any, value: Any) -> Iterator[tuple[str, str, Any]]:
    if isinstance(kind, tuple | list):
        for i, (k, v) in enumerate(zip(kind, value, strict=True)):
            yield from _flatten_one(f"{name}.{i}", k, v)
    else:
        yield name, str(kind), value


def image(
    src: Any, metadata: Any, cubin: str, ttir: str, ptx: str, arguments: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """KernelImage JSON. `arguments` are (type, access) of the TTIR function, as `ttir.accesses` reads
    them."""
    pairs = [
        p for name, kind in src.signature.items() for p in flatten_signature(kind, str(name)) if p[1] != "constexpr"
    ]
    kinds = param_accesses([k for _, k in pairs], arguments)
    params = [
        {"name": n, "type": k, "size": param_size(k), "access": a} for (n, k), a in zip(pairs, kinds, strict=True)
    ]
    return {
        "language": "triton", "block": None, "cluster": None,
        "name": metadata.name, "cubin": cubin, "ttir": ttir, "ptx": ptx, "source": None,
        "num_warps": metadata.num_warps,
        "num_stages": metadata.num_stages, "num_ctas": metadata.num_ctas, "shared": metadata.shared,
        "global_bytes": 0,
        "global_scratch": {"size": metadata.global_scratch_size, "align": metadata.global_scratch_align},
        "profile_scratch": {"size": metadata.profile_scratch_size, "align": metadata.profile_scratch_align},
        "cooperative": bool(metadata.launch_cooperative_grid), "pdl": bool(metadata.launch_pdl),
        "params": params,
        "tensor_descriptors": [_layout(m) for m in (getattr(metadata, "tensordesc_meta", None) or [])],
        "line": getattr(getattr(src, "fn", None), "starting_line_number", None),
    }  # fmt: skip


def _layout(meta: dict[str, Any]) -> dict[str, Any]:
    """DescriptorMeta JSON."""
    return {
        "swizzle": meta["swizzle"], "elem_size": meta["elem_size"], "elem_type": meta["elem_type"],
        "block_size": list(meta["block_size"]), "fp4_padded": bool(meta["fp4_padded"]),
        "is_im2col": bool(meta.get("is_im2col", False)),
    }  # fmt: skip


def encode(recorder: Recorder, name: str, kind: str, value: Any, position: int) -> dict[str, Any]:
    """Tagged JSON of one launch argument. Raises as the real launcher would for an argument it cannot
    take."""
    if kind == "constexpr":
        return {"t": "constexpr", "name": name, "v": str(value)[:200]}
    if kind.startswith("*"):
        return {"name": name, "type": kind, **_pointer(recorder, value, position)}
    if kind.startswith("tensordesc"):
        return {"name": name, "type": kind, **_descriptor(recorder, value, position)}
    if isinstance(value, torch.Tensor):
        raise recorder.value_read(f"kernel argument `{name}`")
    if kind in FLOATS:
        return {"t": "float", "name": name, "type": kind, "v": _float(kind, name, value)}
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"argument `{name}` of type {kind} is a {type(value).__name__}, not an integer") from None
    if kind in ("i64", "u64") and recorder.space.contains(number):
        return {"name": name, "type": kind, **_address(recorder, number, position)}
    bits = 8 * param_size(kind)
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise OverflowError(f"argument `{name}` = {number} does not fit {kind}")
    return {"t": "int", "name": name, "type": kind, "v": number}


def _float(kind: str, name: str, value: Any) -> float | str:
    """The number as JSON. Half precision that overflows is refused, as the launcher does."""
    if isinstance(value, str | bytes):
        raise TypeError(f"argument `{name}` of type {kind} is a {type(value).__name__}, not a number")
    number = float(value)
    if kind == "fp16":
        struct.pack("<e", number)
    return number if math.isfinite(number) else str(number)


def _pointer(recorder: Recorder, value: Any, position: int) -> dict[str, Any]:
    if value is None:
        return {"t": "null"}
    if isinstance(value, int):
        return {"t": "null"} if value == 0 else _address(recorder, value, position)
    base = value if isinstance(value, torch.Tensor) else getattr(value, "base", None)
    if isinstance(base, torch.Tensor) and base.device.type != "cuda":
        raise ValueError(f"Pointer argument (at {position}) cannot be accessed from Triton (cpu tensor?)")
    address = value.data_ptr()
    if address == 0:
        return {"t": "null"}
    found = _address(recorder, address, position)
    return {**found, "value": recorder.value(base)} if isinstance(base, torch.Tensor) else found


def _address(recorder: Recorder, address: int, position: int) -> dict[str, Any]:
    found = recorder.space.resolve(address)
    if found is None:
        raise ValueError(f"Pointer argument (at {position}) points outside every tensor")
    record, offset = found
    if record.device != "cuda":
        raise ValueError(f"Pointer argument (at {position}) cannot be accessed from Triton (cpu tensor?)")
    return {"t": "pointer", "storage": record.id, "offset": offset, "value": None}


def _descriptor(recorder: Recorder, value: Any, position: int) -> dict[str, Any]:
    """A host-side TMA descriptor: what cuTensorMapEncodeTiled needs besides the kernel's own metadata."""
    if hasattr(value, "pixel_box_lower_corner"):
        recorder.block("im2col-descriptor", "an im2col tensor descriptor; only tiled ones can be part of a plan")
        raise Untraceable("im2col descriptor")
    pointer = _pointer(recorder, value.base, position)
    return {
        **pointer, "t": "descriptor", "shape": [int(n) for n in value.shape],
        "strides": [int(n) for n in value.strides],
        "block": [int(n) for n in value.block_shape], "dtype": dtype_name(value.base.dtype),
        "padding": str(getattr(value, "padding", "zero")),
        "round_f32_to_tf32": bool(getattr(value, "round_f32_to_tf32", False)),
    }  # fmt: skip
