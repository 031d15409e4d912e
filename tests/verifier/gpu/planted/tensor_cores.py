"""A matrix product that asks for IEEE arithmetic and so misses the tensor cores."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(a, b, c, n, B: tl.constexpr, K: tl.constexpr):
    rows = tl.program_id(0) * B + tl.arange(0, B)
    columns = tl.program_id(1) * B + tl.arange(0, B)
    deep = tl.arange(0, K)
    total = tl.zeros((B, B), tl.float32)
    for k in range(0, n, K):
        left = tl.load(a + rows[:, None] * n + k + deep[None, :])
        right = tl.load(b + (k + deep)[:, None] * n + columns[None, :])
        total = tl.dot(left, right, total, input_precision="ieee")
    tl.store(c + rows[:, None] * n + columns[None, :], total)


class ModelNew(nn.Module):
    def forward(self, a, b):
        n = a.shape[0]
        c = torch.empty_like(a)
        kernel[(n // 64, n // 64)](a, b, c, n, B=64, K=32, num_warps=4)
        return c
