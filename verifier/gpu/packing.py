"""The parameter block of a launch: the bytes behind each pointer that cuLaunchKernelEx takes.

Triton's cubins take their parameters in the order of the signature, constexprs left out, and then two scratch
addresses (global, profile). A host-side tensor descriptor becomes a 128-byte CUtensorMap, its shape (i32) and its
strides (i64); where the compiler lowered it to plain pointers, the base address, shape and strides (i64), one flag
(3.6) or two (3.9: padding, rounding to TF32), and shape and strides again. Kernels of CUDA C++ take exactly the
parameters of their PTX. The cubin knows the size of every parameter; a block that differs is refused.
Source: `make_launcher` and `make_tensordesc_arg` in Triton's NVIDIA driver, versions 3.6 to 3.9.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence

from verifier.gpu.tensormap import encode_tiled
from verifier.plan.arguments import ConstexprArg, DescriptorArg, LaunchArg, NullArg, PointerArg, ScalarFloatArg
from verifier.plan.schema import Alternative, DescriptorMeta, KernelImage

_BITS = {"i1": 8, "u1": 8, "i8": 8, "u8": 8, "i16": 16, "u16": 16, "i32": 32, "u32": 32, "i64": 64, "u64": 64}


def passed(launch: Alternative) -> list[LaunchArg]:
    """The arguments that take room in the launch, in order."""
    return [a for a in launch.args if not isinstance(a, ConstexprArg)]


def pack(image: KernelImage, launch: Alternative, addresses: Sequence[int], sizes: Sequence[int]) -> list[bytes]:
    """One entry per kernel parameter.

    `addresses` has one device address for each argument of `passed(launch)` (0 for scalars) and, for Triton, the two of
    the scratch memory; `sizes` are the bytes of the cubin's parameters. Raises ValueError where they do not fit.
    """
    for flags in (1, 2):
        packed = _packed(image, launch, addresses, flags)
        if [len(p) for p in packed] == list(sizes):
            return packed
    given = [len(p) for p in _packed(image, launch, addresses, 1)]
    raise ValueError(f"{image.title}: the plan gives parameters of {given} bytes, the cubin takes {list(sizes)}")


def _packed(image: KernelImage, launch: Alternative, addresses: Sequence[int], flags: int) -> list[bytes]:
    args = passed(launch)
    metas: Iterator[DescriptorMeta] = iter(image.tensor_descriptors)
    packed: list[bytes] = []
    for arg, address in zip(args, addresses[: len(args)], strict=True):
        if isinstance(arg, DescriptorArg):
            packed += _descriptor(arg, address, next(metas, None), flags)
        else:
            packed.append(_plain(arg, address))
    return packed + [struct.pack("<Q", a) for a in addresses[len(args) :]]


def _plain(arg: LaunchArg, address: int) -> bytes:
    if isinstance(arg, PointerArg | NullArg):
        return struct.pack("<Q", address)
    if isinstance(arg, ScalarFloatArg):
        return _float(arg.type, float(arg.v))
    assert arg.t == "int"
    bits = _BITS[arg.type]
    return (arg.v & ((1 << bits) - 1)).to_bytes(bits // 8, "little")


def _float(kind: str, value: float) -> bytes:
    if kind == "fp64":
        return struct.pack("<d", value)
    if kind == "fp16":
        return struct.pack("<e", value)
    single = _single(value)
    return single[2:] if kind == "bf16" else single  # Triton's launcher truncates to bf16


def _single(value: float) -> bytes:
    """IEEE single precision; what is too large becomes infinite, as a C cast does."""
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _descriptor(arg: DescriptorArg, address: int, meta: DescriptorMeta | None, flags: int) -> list[bytes]:
    shape = [struct.pack("<i", n) for n in arg.shape]
    strides = [struct.pack("<q", n) for n in arg.strides]
    if meta is None:
        wide = [struct.pack("<q", n) for n in arg.shape]
        said = [bytes([arg.padding == "nan"]), bytes([arg.round_f32_to_tf32])][:flags]
        return [struct.pack("<Q", address), *wide, *strides, *said, *shape, *strides]
    return [encode_tiled(arg, address, meta), *shape, *strides]
