"""Loads kernels and launches them through the driver API, with the attributes that Triton and cuda.core would set."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verifier.gpu import cuda
from verifier.gpu.packing import pack
from verifier.plan.cuda_abi import read_facts
from verifier.plan.schema import Alternative, KernelImage

_PLAIN_SHARED = 48 << 10
"""Dynamic shared memory that needs no opt-in, bytes."""
_PORTABLE_CLUSTER = 8


class Launcher(Protocol):
    """Loads the kernels of a plan and launches them."""

    def load(self, image: KernelImage, cubin: bytes) -> Any:
        """A handle of the kernel. Raises CudaError."""
        ...

    def launch(
        self, kernel: Any, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        """Puts one launch into `stream`; `addresses` as `packing.pack` takes them. Raises CudaError, ValueError."""
        ...

    def close(self) -> None:
        """Unloads every kernel."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """A kernel of a loaded module; `sizes` are the bytes of its parameters."""

    function: Any
    sizes: tuple[int, ...]


class CudaLauncher:
    """The launcher of the current CUDA context. Equal cubins are loaded once."""

    def __init__(self) -> None:
        self._modules: dict[str, Any] = {}

    def load(self, image: KernelImage, cubin: bytes) -> LoadedKernel:
        sha = hashlib.sha256(cubin).hexdigest()
        if sha not in self._modules:
            self._modules[sha] = cuda.load(cubin)
        kernel = cuda.function(self._modules[sha], image.name)
        if image.shared > _PLAIN_SHARED:
            most = cuda.device_attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN")
            static = cuda.function_attribute(kernel, "SHARED_SIZE_BYTES")
            cuda.set_function_attribute(kernel, "MAX_DYNAMIC_SHARED_SIZE_BYTES", most - static)
        if _cluster(image)[0] * _cluster(image)[1] * _cluster(image)[2] > _PORTABLE_CLUSTER:
            cuda.set_function_attribute(kernel, "NON_PORTABLE_CLUSTER_SIZE_ALLOWED", 1)
        return LoadedKernel(kernel, read_facts(cubin, image.name).sizes)

    def launch(
        self, kernel: LoadedKernel, image: KernelImage, launch: Alternative, addresses: Sequence[int], stream: int
    ) -> None:
        api = cuda.driver()
        config = api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = launch.grid[0] * image.num_ctas, *launch.grid[1:]
        config.blockDimX, config.blockDimY, config.blockDimZ = image.block or (32 * image.num_warps, 1, 1)
        config.sharedMemBytes = image.shared
        config.hStream = stream
        attributes = _attributes(api, image)
        config.attrs = attributes
        config.numAttrs = len(attributes)
        # The driver copies the parameters before the call returns.
        buffers = [
            ctypes.create_string_buffer(data, len(data)) for data in pack(image, launch, addresses, kernel.sizes)
        ]
        table = (ctypes.c_void_p * max(len(buffers), 1))(*(ctypes.addressof(b) for b in buffers))
        cuda.check(
            f"launch of {image.title}", api.cuLaunchKernelEx(config, kernel.function, ctypes.addressof(table), 0)
        )

    def close(self) -> None:
        for module in self._modules.values():
            cuda.unload(module)
        self._modules.clear()


def _cluster(image: KernelImage) -> tuple[int, int, int]:
    return image.cluster or (image.num_ctas, 1, 1)


def _attributes(api: Any, image: KernelImage) -> list[Any]:
    made = []
    ids = api.CUlaunchAttributeID
    if image.pdl:
        made.append(_attribute(api, ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION))
        made[-1].value.programmaticStreamSerializationAllowed = 1
    if image.cooperative:
        made.append(_attribute(api, ids.CU_LAUNCH_ATTRIBUTE_COOPERATIVE))
        made[-1].value.cooperative = 1
    cluster = _cluster(image)
    if cluster != (1, 1, 1):
        made.append(_attribute(api, ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION))
        shape = made[-1].value.clusterDim
        shape.x, shape.y, shape.z = cluster
        if image.language == "triton":
            made.append(_attribute(api, ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE))
            spread = api.CUclusterSchedulingPolicy.CU_CLUSTER_SCHEDULING_POLICY_SPREAD
            made[-1].value.clusterSchedulingPolicyPreference = spread
    return made


def _attribute(api: Any, kind: Any) -> Any:
    made = api.CUlaunchAttribute()
    made.id = kind
    return made
