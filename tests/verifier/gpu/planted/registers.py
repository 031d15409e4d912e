"""A recurrence whose state fills the registers, so that few warps are there to hide its waits."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(q, k, v, out, T, D: tl.constexpr):
    base = tl.program_id(0).to(tl.int64) * T * D
    d = tl.arange(0, D)
    state = tl.zeros((D, D), tl.float32)
    for t in range(0, T):
        at = base + t * D + d
        state += tl.load(k + at)[:, None] * tl.load(v + at)[None, :]
        tl.store(out + at, tl.sum(state * tl.load(q + at)[:, None], 0))


class ModelNew(nn.Module):
    def forward(self, q, k, v):
        out = torch.empty_like(q)
        kernel[(q.shape[0],)](q, k, v, out, q.shape[1], D=128, num_warps=4)
        return out
