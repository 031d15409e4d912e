"""What a cubin of CUDA C++ says about a kernel.

The cubin is the authority on sizes (EIATTR_KPARAM_INFO), registers, shared memory and launch bounds; the PTX
beside it adds types and accesses. `parameters` joins both and is used by the recorder and by the plan's reader
alike. Loads neither torch nor Triton.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from verifier.plan import elf, ptx

_KPARAM_INFO, _MAX_THREADS, _REQUIRED_THREADS, _REGISTERS = 0x17, 0x05, 0x10, 0x2F
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
    registers = _registers(cubin, sections.get(".nv.info", (0, b""))[1], kernel)
    ordered = tuple(sizes[i] for i in sorted(sizes))
    return KernelFacts(ordered, registers, max(0, shared - reserved), min(threads, default=None))


def _registers(cubin: bytes, info: bytes, kernel: str) -> int:
    """Registers per thread. Raises CubinError where the file does not say."""
    names = elf.symbols(cubin)
    for attribute, data in _attributes(info):
        if attribute == _REGISTERS and len(data) >= 8:
            symbol, count = struct.unpack_from("<II", data)
            if symbol < len(names) and names[symbol] == kernel:
                return int(count)
    raise CubinError(f"the cubin does not say how many registers {kernel!r} takes")


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
