"""CuPy: a RawKernel on torch's memory and the default stream."""

import cupy
import torch
from torch import nn

CODE = r"""
extern "C" __global__ void cube(const float* x, float* y, const int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i] * x[i] * x[i];
}
"""
cube = cupy.RawKernel(CODE, "cube")


class Model(nn.Module):
    def forward(self, x):
        return x**3


class ModelNew(nn.Module):
    def forward(self, x):
        y = torch.empty_like(x)
        n = x.numel()
        cube(((n + 255) // 256,), (256,), (x.data_ptr(), y.data_ptr(), cupy.int32(n)))
        return y


def get_inputs():
    return [torch.randn(513, 129)]


def get_init_inputs():
    return []
