"""What the driver's management library says about a GPU. No CUDA context is made, no process holds the device after."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

LIBRARY = "libnvidia-ml.so.1"
_TEXT = 96


class Gpu(NamedTuple):
    """One device."""

    name: str
    capability: int
    """10 x major + minor of the compute capability."""
    memory: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability // 10}.{self.capability % 10})"


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Refused(Exception):
    """A call of the library gave an error."""


def describe(device: str) -> Gpu | None:
    """The GPU of one entry of CUDA_VISIBLE_DEVICES: an index in the order of the PCI bus, or a UUID. None where the
    driver does not tell.
    """
    with suppress(OSError, AttributeError, _Refused, ValueError), _library() as nvml:
        handle = ctypes.c_void_p()
        if device.isdecimal():
            _ask(nvml.nvmlDeviceGetHandleByIndex_v2, ctypes.c_uint(int(device)), ctypes.byref(handle))
        else:
            _ask(nvml.nvmlDeviceGetHandleByUUID, device.encode(), ctypes.byref(handle))
        name, memory = ctypes.create_string_buffer(_TEXT), _Memory()
        major, minor = ctypes.c_int(), ctypes.c_int()
        _ask(nvml.nvmlDeviceGetName, handle, name, ctypes.c_uint(_TEXT))
        _ask(nvml.nvmlDeviceGetMemoryInfo, handle, ctypes.byref(memory))
        _ask(nvml.nvmlDeviceGetCudaComputeCapability, handle, ctypes.byref(major), ctypes.byref(minor))
        return Gpu(name.value.decode(errors="replace"), 10 * major.value + minor.value, int(memory.total))
    return None


@contextmanager
def _library() -> Iterator[Any]:
    nvml = ctypes.CDLL(LIBRARY)
    _ask(nvml.nvmlInit_v2)
    try:
        yield nvml
    finally:
        nvml.nvmlShutdown()


def _ask(call: Any, *arguments: Any) -> None:
    if code := call(*arguments):
        raise _Refused(str(code))
