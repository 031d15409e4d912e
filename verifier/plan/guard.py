"""A CUDA device guard for a torch that has none, without a compiler.

A CPU build of torch aborts whenever eager code meets a tensor on `cuda:0` (indexing, `.contiguous()`,
autograd), because no device guard is registered for CUDA. The guard of the `meta` device, which does nothing,
is always there. This module copies its virtual table, replaces the three entries that name a device (type,
exchange, get) and registers the copy for CUDA through libc10's exported registrar. On a CUDA build the same
call replaces the real guard, so no CUDA context is started.

The layout is checked before it is used: the copied entries must answer as the meta guard does.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

_REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"
_REGISTRAR = "_ZN3c104impl24DeviceGuardImplRegistrarC1ENS_10DeviceTypeEPKNS0_24DeviceGuardImplInterfaceE"
_CUDA, _META = 1, 14
"""c10::DeviceType values, fixed in libtorch's ABI."""
_SLOTS = 28
"""Entries copied; the interface has fewer than this many virtual functions in every supported torch."""
_CUDA0 = _CUDA
"""c10::Device{CUDA, 0} as the two bytes that the x86-64 and AArch64 ABIs return in a register."""

_Type = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)
_Get = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p)
_Exchange = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p, ctypes.c_uint16)

_alive: list[object] = []


class GuardError(RuntimeError):
    """This torch does not have the layout that the guard needs. Names what differs."""


def install() -> None:
    """Registers the guard in this process; later calls do nothing. Raises GuardError on an unknown torch."""
    if _alive:
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    try:
        registry = (ctypes.c_void_p * 24).in_dll(library, _REGISTRY)
        register = getattr(library, _REGISTRAR)
    except (ValueError, AttributeError) as missing:
        raise GuardError(f"torch {torch.__version__} has no device guard registry: {missing}") from None
    meta = registry[_META]
    if not meta:
        raise GuardError(f"torch {torch.__version__} registers no guard for the meta device")
    guard = _patched_copy(meta)
    register.argtypes = [ctypes.c_void_p, ctypes.c_int8, ctypes.c_void_p]
    register.restype = None
    register(None, _CUDA, ctypes.addressof(guard))


def _patched_copy(meta: int) -> ctypes.Array[ctypes.c_void_p]:
    source = ctypes.c_void_p.from_address(meta).value
    assert source is not None
    table = (ctypes.c_void_p * _SLOTS)(*(ctypes.c_void_p * _SLOTS).from_address(source))
    kind = _Type(table[0] or 0)(meta)
    device = _Get(table[2] or 0)(meta)
    if kind != _META or device & 0xFF != _META:
        raise GuardError(f"torch {torch.__version__}: the device guard's virtual table has an unknown order")
    answers = (
        _Type(lambda _this: _CUDA),
        _Exchange(lambda _this, _device: _CUDA0),
        _Get(lambda _this: _CUDA0),
    )
    for slot, answer in enumerate(answers):
        table[slot] = ctypes.cast(answer, ctypes.c_void_p).value
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    _alive.extend((table, guard, *answers))
    return guard
