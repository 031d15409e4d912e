"""The launch ABI of a Triton kernel by type names alone: what goes to cuLaunchKernelEx. Loads neither torch nor Triton.

The driver takes one pointer per kernel parameter, in this order (Triton 3.6 to 3.9, `make_launcher`, `launchKernel`):

1. The arguments of the signature from left to right, tuples opened depth first, each by its type:
   - `constexpr` takes no room. None and an integer that is 1 (unless it is in `do_not_specialize`) are constexprs too.
     A default that was not passed is an argument like any other.
   - `*T`: 8 bytes, the address; 0 for an empty tensor. A plan's `pointer` is storage plus byte offset, `null` is 0.
   - `i8 i16 i32 i64 u8 u16 u32 u64`: the low bytes of the integer, little-endian. `i64` and `u64` may hold an address
     (a plan's `pointer` of type `i64`). `i1`, `u1`: 1 byte (3.9 writes 4; the kernel reads the first).
   - `fp64`: 8 bytes. `fp32`: the double rounded to single. `fp16`: the double rounded to half; too large is an error.
     `bf16`: the upper half of the single, truncated, not rounded.
   - `tensordesc<T[blocks]>`: a 128-byte CUtensorMap by value (64-byte aligned), then rank x `i32` shape, then rank x
     `i64` strides in elements. The n-th descriptor of the signature, opened, has the n-th entry of
     `tensor_descriptors`, also when the kernel never reads it. Without entries (no TMA, sm_80) the compiler took the
     descriptor apart: address, rank x `i64` shape, rank x `i64` strides, `i1` padding is nan, in 3.9 one more `i1`
     round to TF32, and then rank x `i32` shape and rank x `i64` strides once more.
2. Two addresses, always: global scratch and profile scratch, 0 where the size is 0. A launch needs
   size x programs x num_ctas bytes, aligned as the image says; the content before the launch is not defined.

The parameter block lies in constant memory at natural alignment; the cubin (EIATTR_KPARAM_INFO) has the sizes.

A CUtensorMap is encoded by cuTensorMapEncodeTiled with: data type `elem_type` (8, 9, 10 become 10, 8, 9; 11, TF32,
where the argument says round_f32_to_tf32, 3.9 only); rank; address; the dims `shape` innermost first; the byte strides
`elem_size` x stride of all axes but the innermost, innermost first; the box `block_size` innermost first (the
compiler's, which may be smaller than the argument's `block`); element strides 1; interleave none; `swizzle`; L2
promotion 128 B; fill NAN_REQUEST_ZERO_FMA for padding `nan`, else NONE. With `fp4_padded` the innermost dim of the map
is twice the shape's; 3.6 passes the doubled shape to the kernel too, 3.9 does not. 3.9 clears bit 21 of the map's
second 8-byte word where the driver is 13.1 or older and the tensor ends within 128 KiB of its start; 3.6 does not.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = {
    "i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8,
    "fp16": 2, "bf16": 2, "fp32": 4, "f32": 4, "fp64": 8,
}  # fmt: skip
"""Bytes of a scalar parameter."""

FLOATS = {"fp16", "bf16", "fp32", "f32", "fp64"}
SCRATCH = (8, 8)
"""The two addresses at the end."""


def param_size(kind: str) -> int:
    """Bytes of one parameter, of the map alone for a descriptor; 0 for a type that no kernel has."""
    if kind.startswith("*"):
        return 8
    return 128 if kind.startswith("tensordesc") else SIZES.get(kind, 0)


def rank_of(kind: str) -> int:
    """Axes of a descriptor type `tensordesc<fp16[128, 64]>`."""
    return kind.partition("[")[2].partition("]")[0].count(",") + 1


def _taken_apart(rank: int, flags: int) -> list[int]:
    return [8, *[8] * (2 * rank), *[1] * flags, *[4] * rank, *[8] * rank]


def block_sizes(kinds: Sequence[str], maps: bool, flags: int) -> list[int]:
    """Bytes of every parameter of the cubin. `maps`: descriptors are CUtensorMaps; else they are taken apart, with
    `flags` bytes of padding and rounding (1 in Triton 3.6, 2 in 3.9)."""
    sizes: list[int] = []
    for kind in kinds:
        if not kind.startswith("tensordesc"):
            sizes.append(param_size(kind))
        elif maps:
            sizes += [128, *[4] * rank_of(kind), *[8] * rank_of(kind)]
        else:
            sizes += _taken_apart(rank_of(kind), flags)
    return [*sizes, *SCRATCH]


def _width(kind: str, flags: int | None) -> int:
    """TTIR arguments of one parameter; `flags` is None where descriptors are maps."""
    if not kind.startswith("tensordesc"):
        return 1
    rank = rank_of(kind)
    return 1 + 2 * rank if flags is None else len(_taken_apart(rank, flags))


def param_accesses(kinds: Sequence[str], arguments: Sequence[tuple[str, str]]) -> list[str]:
    """Access of each parameter, of a descriptor its first TTIR argument's. A mismatch means `both`."""
    for flags in (None, 1, 2):
        widths = [_width(k, flags) for k in kinds]
        if sum(widths) == len(arguments):
            return [arguments[sum(widths[:i])][1] for i in range(len(kinds))]
    return ["both" if k.startswith(("*", "tensordesc", "i64", "u64")) else "none" for k in kinds]
