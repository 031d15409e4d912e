"""Every byte once, in wide loads: at the memory roof."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside) * 2.0 + tl.load(y + at, mask=inside)
    tl.store(out + at, value, mask=inside)


class ModelNew(nn.Module):
    def forward(self, x, y):
        out = torch.empty_like(x)
        kernel[(triton.cdiv(x.numel(), 2048),)](x, y, out, x.numel(), BLOCK=2048)
        return out
