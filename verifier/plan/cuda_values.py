"""Python values as launch arguments of CUDA C++, by the rules that cuda.core and CuPy share.

A Python int takes 8 bytes and a Python float is a double; numpy and ctypes scalars have their own sizes. The driver
copies as many bytes as the parameter has, so a wider integer is fine where its value fits, and a double for a float
parameter is not.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from verifier.plan.ptx import PtxParam


@dataclass(frozen=True, slots=True)
class HostValue:
    """A scalar as the launch would copy it. `kind` decides how its bits are read."""

    kind: Literal["int", "float", "half"]
    value: int | float
    size: int
    described: str


def host_value(arg: object) -> HostValue | None:
    """The scalar that a launch makes of a Python object; None for anything else."""
    name = type(arg).__name__
    if isinstance(arg, bool | np.bool_):
        return HostValue("int", int(arg), 1, name)
    if isinstance(arg, np.floating):
        return _numpy_float(arg, name)
    if isinstance(arg, np.integer):
        return HostValue("int", int(arg), arg.dtype.itemsize, name)
    if isinstance(arg, int):
        return HostValue("int", int(arg), 8, "Python int")
    if isinstance(arg, float):
        return HostValue("float", float(arg), 8, "Python float")
    if isinstance(arg, ctypes._SimpleCData):
        return _ctypes_value(arg, f"ctypes.{name}")
    return None


def _numpy_float(arg: np.floating[Any], name: str) -> HostValue | None:
    size = arg.dtype.itemsize
    if size == 2:
        return HostValue("half", int(np.asarray(arg).view(np.uint16)), 2, name)
    return HostValue("float", float(arg), size, name) if size in (4, 8) else None


def _ctypes_value(arg: Any, name: str) -> HostValue | None:
    size, value = ctypes.sizeof(arg), arg.value
    if value is None:
        value = 0
    if isinstance(value, bool | int):
        return HostValue("int", int(value), size, name)
    return HostValue("float", value, size, name) if isinstance(value, float) and size in (4, 8) else None


def fit(value: HostValue, param: PtxParam) -> int | float:
    """The value as the parameter's number. Raises TypeError where the bytes that a launch copies would mean
    something else."""
    if param.type in ("fp32", "fp64"):
        if value.kind != "float" or value.size != param.size:
            wanted = "numpy.float32 or ctypes.c_float" if param.type == "fp32" else "numpy.float64 or a Python float"
            raise TypeError(f"it takes a {param.size}-byte float: pass {wanted}, not {value.described}")
        return value.value
    if value.kind == "float":
        wanted = "raw bits" if param.type.startswith("u") else "an integer"
        raise TypeError(f"it takes {wanted} of {param.size} bytes, not {value.described}")
    number = int(value.value)
    if value.size < param.size:
        raise TypeError(f"it takes {param.size} bytes, but {value.described} has {value.size}")
    bits = 8 * param.size
    if not -(1 << (bits - 1)) <= number < 1 << bits:
        raise TypeError(f"{number} does not fit its {param.size} bytes")
    return number
