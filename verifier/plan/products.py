"""Which types a kernel's matrix instructions multiply and add up in, read from its PTX. Pure text in, records out."""

from __future__ import annotations

import re
from typing import NamedTuple

_MMA = re.compile(
    r"\b(?:wgmma\.mma_async|mma(?:\.sp\S*)?\.sync)\.\S*?\.(?P<result>f16|f32|f64|s32)\.(?P<left>\w+)\.(?P<right>\w+)"
)
"""`...m16n8k16.row.col.f32.f16.f16.f32` (result, operands, what is added) and `...m64n64k16.f32.bf16.bf16`."""
_WMMA = re.compile(
    r"\bwmma\.mma\.\S*?\.m\d+n\d+k\d+\.(?P<result>f16|f32|f64|s32)\.(?P<second>\w+)(?:\.(?P<third>\w+)\.\w+)?"
)
"""Half operands are not named: `.f32.f32`; others are: `.f32.bf16.bf16.f32`."""
_TCGEN = re.compile(r"\btcgen05\.mma\S*\.kind::(?P<kind>\w+)")
_KINDS = {"f16": "f16", "tf32": "tf32", "i8": "s8", "f8f6f4": "e4m3"}


class Product(NamedTuple):
    """`operand` as PTX names it: f64, tf32, f16, bf16, e4m3, s8, ...; `result` is empty where the text does not say."""

    operand: str
    result: str


def products(ptx: str) -> frozenset[Product]:
    """All kinds of matrix instructions in a PTX text."""
    found = {Product(m["left"], m["result"]) for m in _MMA.finditer(ptx)}
    found |= {Product(m["second"] if m["third"] else "f16", m["result"]) for m in _WMMA.finditer(ptx)}
    found |= {Product(_KINDS.get(m["kind"], "e4m3"), "") for m in _TCGEN.finditer(ptx)}
    return frozenset(found)
