"""Sizes of launch parameters and the accesses of each, from type names alone. Loads neither torch nor
Triton."""

from __future__ import annotations

from collections.abc import Sequence

SIZES = {
    "i1": 1, "u1": 1, "i8": 1, "u8": 1, "i16": 2, "u16": 2, "i32": 4, "u32": 4, "i64": 8, "u64": 8,
    "fp16": 2, "bf16": 2, "fp32": 4, "f32": 4, "fp64": 8,
}  # fmt: skip
"""Bytes of a scalar parameter. A pointer takes 8, a tensor descriptor 128 and then its shape (i32) and
strides (i64)."""

FLOATS = {"fp16", "bf16", "fp32", "f32", "fp64"}


def param_size(kind: str) -> int:
    """Bytes of one parameter; 0 for a type that no kernel has."""
    if kind.startswith("*"):
        return 8
    return 128 if kind.startswith("tensordesc") else SIZES.get(kind, 0)


def _width(kind: str) -> int:
    """TTIR arguments of one parameter: a descriptor `tensordesc<fp16[128, 64]>` brings its shape and strides
    along."""
    if not kind.startswith("tensordesc"):
        return 1
    shape = kind.partition("[")[2].partition("]")[0]
    return 1 + 2 * (shape.count(",") + 1)


def param_accesses(kinds: Sequence[str], arguments: Sequence[tuple[str, str]]) -> list[str]:
    """Access of each parameter. A descriptor is one parameter and 1 + 2 x rank TTIR arguments; a mismatch
    means `both`."""
    widths = [_width(k) for k in kinds]
    if sum(widths) != len(arguments):
        return ["both" if k.startswith(("*", "tensordesc", "i64", "u64")) else "none" for k in kinds]
    found, at = [], 0
    for width in widths:
        found.append(arguments[at][1])
        at += width
    return found
