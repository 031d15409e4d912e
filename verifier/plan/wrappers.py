"""What host code reaches below torch's own functions, of which alone a fake device and one in host memory hear: the
calls that Inductor writes, for files that were made from them, what marks a kernel for PyTorch's compiler, and the
handle of cuBLAS that a Triton tutorial makes.
"""

from __future__ import annotations

from typing import Any

import torch
from triton._C.libtriton import nvidia


def install(stream: int = 0) -> None:
    """Puts torch's own functions in their places; `stream` is the handle of the current one. Only for a process that is
    thrown away.
    """
    c: Any = torch._C
    operators: Any = torch.ops.inductor
    c._dynamo.guards._empty_strided_cuda = empty_strided
    operators._reinterpret_tensor = reinterpreted
    c._cuda_getCurrentRawStream = lambda _device: stream
    torch.library.wrap_triton = unwrapped
    nvidia.cublas.CublasLt = CublasLt


class CublasLt:
    """Stands for Triton's class of this name: it can be made where there is no GPU."""

    def __init__(self, _workspace: torch.Tensor) -> None: ...

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"`{name}` of Triton's handle of cuBLAS cannot be in a plan; torch.matmul can")


def unwrapped(kernel: Any) -> Any:
    """`wrap_triton`, which only says to a compiler of PyTorch that a kernel is one."""
    return kernel


def empty_strided(size: Any, stride: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cuda")


def reinterpreted(tensor: torch.Tensor, size: Any, stride: Any, offset: int = 0) -> torch.Tensor:
    return torch.as_strided(tensor, size, stride, int(tensor.storage_offset()) + offset)
