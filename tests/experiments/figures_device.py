"""A host device that knows the kernels of `experiments.figures.kernels`. Imported by judge and runner of the tests."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from verifier.gpu.host_device import HostDevice, Kernel, tensor_at
from verifier.plan.schema import Alternative


def size(launch: Alternative) -> int:
    return next(a.v for a in launch.args if a.t == "int")


def relu(launch: Alternative, addresses: Sequence[int]) -> None:
    x, out = (tensor_at(a, size(launch), torch.float32) for a in addresses[:2])
    torch.clamp(x, min=0, out=out)


def wrong(launch: Alternative, addresses: Sequence[int]) -> None:
    relu(launch, addresses)
    tensor_at(addresses[1], size(launch), torch.float32).add_(0.01)


def hang(launch: Alternative, addresses: Sequence[int]) -> None:
    time.sleep(1000)


def matmul(launch: Alternative, addresses: Sequence[int]) -> None:
    n = size(launch)
    a, b, c = (tensor_at(at, n * n, torch.float16).view(n, n) for at in addresses[:3])
    c.copy_((a.float() @ b.float()).half())


KERNELS: dict[str, Kernel] = {
    "relu_kernel": relu,
    "wrong_kernel": wrong,
    "hang_kernel": hang,
    "matmul_kernel": matmul,
}


def open_device() -> HostDevice:
    return HostDevice(KERNELS)
