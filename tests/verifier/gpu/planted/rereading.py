"""Five passes over rows that no cache holds, where two would do."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(x, out, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * n
    lane = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        total += tl.load(x + row + start + lane, mask=start + lane < n, other=0.0)
    mean = tl.sum(total) / n
    squares = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, n, BLOCK):
        d = tl.load(x + row + start + lane, mask=start + lane < n, other=mean) - mean
        squares += d * d
    deviation = tl.sqrt(tl.sum(squares) / n)
    high = tl.full((BLOCK,), -float("inf"), tl.float32)
    for start in range(0, n, BLOCK):
        high = tl.maximum(high, tl.load(x + row + start + lane, mask=start + lane < n, other=-float("inf")))
    low = tl.full((BLOCK,), float("inf"), tl.float32)
    for start in range(0, n, BLOCK):
        low = tl.minimum(low, tl.load(x + row + start + lane, mask=start + lane < n, other=float("inf")))
    scale = (tl.max(high) - tl.min(low)) / (deviation + 1e-5)
    for start in range(0, n, BLOCK):
        inside = start + lane < n
        tl.store(out + row + start + lane, (tl.load(x + row + start + lane, mask=inside) - mean) * scale, mask=inside)


class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        kernel[(x.shape[0],)](x, out, x.shape[1], BLOCK=4096, num_warps=8)
        return out
