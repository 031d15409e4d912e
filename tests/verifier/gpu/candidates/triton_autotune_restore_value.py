"""Triton: restore_value keeps an in-place kernel honest while it is tuned."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.autotune([triton.Config({"B": b}) for b in (256, 512)], key=["n"], restore_value=["y"])
@triton.jit
def double(y, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(y + r, tl.load(y + r, r < n) * 2, r < n)


class Model(nn.Module):
    def forward(self, x):
        return x * 2


class ModelNew(nn.Module):
    def forward(self, x):
        y = x.clone()
        double[lambda m: (triton.cdiv(x.numel(), m["B"]),)](y, x.numel())
        return y


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
