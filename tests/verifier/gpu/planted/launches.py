"""One launch for each step of a chain that one kernel could run."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, tl.load(x + at, mask=at < n) * 0.99 + 0.01, mask=at < n)


class ModelNew(nn.Module):
    def forward(self, x):
        for _ in range(40):
            out = torch.empty_like(x)
            kernel[(triton.cdiv(x.numel(), 1024),)](x, out, x.numel(), BLOCK=1024)
            x = out
        return x
