"""Small floats on numpy arrays: bf16 and TF32 rounding by bits, fp8 through torch.

Triton's interpreter keeps bf16 as uint16 and fp8 as uint8. A value travels as float32 while it is computed
on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]

FP8 = {"fp8e4nv": (torch.float8_e4m3fn, 448.0), "fp8e5": (torch.float8_e5m2, 57344.0)}
"""Triton's name to torch dtype and largest finite value."""


def bf16_to_float(bits: Array) -> Floats:
    """bf16 bit patterns (uint16) as float32, exact."""
    wide = np.ascontiguousarray(bits, dtype=np.uint16).astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32).reshape(np.shape(bits))


def float_to_bf16(values: Array, *, truncate: bool = False) -> Array:
    """float32 to bf16 bit patterns (uint16), round to nearest even; NaN stays NaN."""
    floats = np.ascontiguousarray(values, dtype=np.float32)
    bits = floats.view(np.uint32)
    bias = np.uint32(0) if truncate else np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + bias) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(floats), np.uint16(0x7FC0), rounded).reshape(np.shape(values))


def round_to_tf32(values: Array) -> Floats:
    """float32 rounded to 10 mantissa bits, half away from zero, as `cvt.rna.tf32.f32`; inf and NaN stay."""
    floats = np.ascontiguousarray(values, dtype=np.float32)
    rounded = ((floats.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(floats), rounded, floats).reshape(np.shape(values))


def float_to_fp8(values: Array, name: str) -> Array:
    """float32 to fp8 bit patterns (uint8), round to nearest even, saturating as `cvt.rn.satfinite`."""
    dtype, largest = FP8[name]
    floats = torch.from_numpy(np.array(values, dtype=np.float32))
    return np.asarray(floats.clamp(-largest, largest).to(dtype).view(torch.uint8).numpy())


def fp8_to_float(bits: Array, name: str) -> Floats:
    """fp8 bit patterns (uint8) as float32, exact."""
    dtype, _ = FP8[name]
    raw = torch.from_numpy(np.array(bits, dtype=np.uint8))
    return np.asarray(raw.view(dtype).float().numpy())
