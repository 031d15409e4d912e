"""What a cubin of CUDA C++ says about a kernel, and host values as its launch arguments.

The cubin is the authority on sizes (EIATTR_KPARAM_INFO), registers, shared memory and launch bounds; the PTX
beside it adds types and accesses. `parameters` joins both and is used by the recorder and by the plan's reader
alike.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from verifier.plan import elf, ptx

_KPARAM_INFO, _MAX_THREADS, _REQUIRED_THREADS = 0x17, 0x05, 0x10
_SIZED = 4
"""Format byte of an attribute that carries its own length; the others carry two bytes."""
RESERVED_SHARED = 1024
"""Bytes that the driver takes of every block's shared memory from sm_90 on; they are part of the section."""


class CubinError(ValueError):
    """A cubin that lacks the kernel or contradicts its PTX. One sentence."""


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """One kernel of a cubin."""

    sizes: tuple[int, ...]
    """Bytes of each parameter."""
    registers: int
    shared: int
    """Static, bytes, without the driver's share."""
    max_threads: int | None
    """Largest block that __launch_bounds__ or __block_size__ allows."""


def kernels(cubin: bytes) -> tuple[str, ...]:
    """Names of the kernels in the file."""
    prefix = ".nv.info."
    found = [name.removeprefix(prefix) for name, _, _ in elf.sections(cubin) if name.startswith(prefix)]
    return tuple(dict.fromkeys(found))


def read_facts(cubin: bytes, kernel: str) -> KernelFacts:
    """Facts of one kernel. Raises CubinError when the file has no such kernel."""
    sections = {name: (size, content) for name, size, content in elf.sections(cubin)}
    info = sections.get(f".nv.info.{kernel}")
    if info is None:
        raise CubinError(f"the cubin has no kernel {kernel!r}; it has {list(kernels(cubin))[:8]}")
    sizes: dict[int, int] = {}
    threads: list[int] = []
    for attribute, data in _attributes(info[1]):
        if attribute == _KPARAM_INFO and len(data) >= 12:
            _, ordinal, _, packed = struct.unpack_from("<IHHI", data)
            sizes[ordinal] = packed >> 18
        elif attribute in (_MAX_THREADS, _REQUIRED_THREADS) and len(data) >= 12:
            x, y, z = struct.unpack_from("<III", data)
            threads.append(x * y * z)
    shared = sections.get(f".nv.shared.{kernel}", (0, b""))[0]
    reserved = RESERVED_SHARED if ".nv.shared.reserved.0" in sections else 0
    registers = elf.section_info(cubin).get(f".text.{kernel}", 0) >> 24
    ordered = tuple(sizes[i] for i in sorted(sizes))
    return KernelFacts(ordered, registers, max(0, shared - reserved), min(threads, default=None))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(attribute, value) pairs of a `.nv.info` section; stops at anything malformed."""
    at = 0
    while at + 4 <= len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, at)
        at += 4
        if form != _SIZED:
            yield attribute, struct.pack("<H", length)
            continue
        yield attribute, data[at : at + length]
        at += length


def parameters(cubin: bytes, text: str, kernel: str) -> tuple[ptx.PtxParam, ...]:
    """Type, size and access of every parameter. Without readable PTX, 8-byte parameters may be anything."""
    sizes = read_facts(cubin, kernel).sizes
    found = ptx.parameters(text, kernel)
    if found is None:
        return tuple(_unknown(size) for size in sizes)
    if tuple(p.size for p in found) != sizes:
        raise CubinError(f"kernel {kernel!r}: its PTX and its cubin differ in their parameters")
    return found


def _unknown(size: int) -> ptx.PtxParam:
    kind = {1: "u8", 2: "u16", 4: "u32", 8: "i64"}.get(size, "bytes")
    return ptx.PtxParam(kind, size, "both" if size == 8 else "none")


# -- host values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HostValue:
    """A scalar as the launch would copy it. `kind` decides how its bits are read."""

    kind: Literal["int", "float", "half"]
    value: int | float
    size: int
    described: str


def host_value(arg: object) -> HostValue | None:
    """The scalar that a launch makes of a Python object, by the rules that cuda.core and CuPy share: a Python int
    takes 8 bytes, a Python float is a double. None for anything else."""
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


def fit(value: HostValue, param: ptx.PtxParam) -> int | float:
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
