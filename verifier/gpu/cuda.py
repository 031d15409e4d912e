"""The few calls of the CUDA driver API that the replayer needs, over `cuda.bindings`.

Every call raises `CudaError`. After an error of a kernel (illegal address, assert, launch failure) the context is lost
and the process has to end; `CudaError.sticky` says so.
"""

from __future__ import annotations

from typing import Any

_LOST = frozenset({214, 226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721})
"""Codes that lose the context: errors of the hardware and every failure of a running kernel. Not those of a launch that
did not come about (701, 720)."""


class CudaError(RuntimeError):
    """A call of the driver that failed. `code` is the CUresult, `name` its name without the prefix."""

    def __init__(self, what: str, code: int, name: str, text: str) -> None:
        super().__init__(f"{what}: {name}: {text}")
        self.code, self.name = code, name

    @property
    def sticky(self) -> bool:
        return self.code in _LOST


def driver() -> Any:
    """The module `cuda.bindings.driver`, loaded on first use."""
    import cuda.bindings.driver as found

    return found


def check(what: str, result: tuple[Any, ...]) -> Any:
    """The value of a driver call (None, one, or a tuple). Raises CudaError."""
    status, *values = result
    if int(status):
        api = driver()
        text = api.cuGetErrorString(status)[1]
        name = api.cuGetErrorName(status)[1]
        raise CudaError(
            what, int(status), (name or b"?").decode().removeprefix("CUDA_ERROR_"), (text or b"unknown").decode()
        )
    if len(values) <= 1:
        return values[0] if values else None
    return tuple(values)


def function(module: Any, name: str) -> Any:
    """The kernel `name` of a loaded module."""
    return check(f"kernel {name}", driver().cuModuleGetFunction(module, name.encode()))


def load(cubin: bytes) -> Any:
    """Loads a cubin into the current context and gives the module; the primary context of device 0 where none is."""
    api = driver()
    check("starting the driver", api.cuInit(0))
    if not int(check("current context", api.cuCtxGetCurrent())):
        context = check("primary context", api.cuDevicePrimaryCtxRetain(check("device 0", api.cuDeviceGet(0))))
        check("making the context current", api.cuCtxSetCurrent(context))
    return check("loading the cubin", driver().cuModuleLoadData(cubin))


def unload(module: Any) -> None:
    check("unloading a module", driver().cuModuleUnload(module))


def device_attribute(name: str) -> int:
    """Attribute `CU_DEVICE_ATTRIBUTE_<name>` of the current device."""
    api = driver()
    device = check("current device", api.cuCtxGetDevice())
    attribute = getattr(api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
    return int(check(name, api.cuDeviceGetAttribute(attribute, device)))


def function_attribute(kernel: Any, name: str) -> int:
    """Attribute `CU_FUNC_ATTRIBUTE_<name>` of a kernel."""
    api = driver()
    attribute = getattr(api.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
    return int(check(name, api.cuFuncGetAttribute(attribute, kernel)))


def set_function_attribute(kernel: Any, name: str, value: int) -> None:
    """Sets attribute `CU_FUNC_ATTRIBUTE_<name>` of a kernel."""
    api = driver()
    attribute = getattr(api.CUfunction_attribute, f"CU_FUNC_ATTRIBUTE_{name}")
    check(name, api.cuFuncSetAttribute(kernel, attribute, value))
