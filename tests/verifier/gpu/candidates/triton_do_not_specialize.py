"""Triton: do_not_specialize, global constants, an assert that is compiled away."""

import torch
import triton
import triton.language as tl
from torch import nn

FACTOR = tl.constexpr(2)


@triton.jit(do_not_specialize=["n", "one"])
def scale(x, o, n, one, B: tl.constexpr):
    tl.device_assert(n > 0, "no elements")
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + r, tl.load(x + r, r < n) * FACTOR * one, r < n)


class Model(nn.Module):
    def forward(self, x):
        return x * 2


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        scale[(64,)](x, o, x.numel(), 1, B=1024)
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
