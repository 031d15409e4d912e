"""Triton: reset_to_zero guards a sum while tuning; forward clears it itself."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.autotune([triton.Config({"B": b}) for b in (256, 512, 1024)], key=["n"], reset_to_zero=["o"])
@triton.jit
def count(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_add(o, tl.sum((tl.load(x + r, r < n, other=0.0) > 0).to(tl.int32)))


class Model(nn.Module):
    def forward(self, x):
        return (x > 0).sum().to(torch.int32)[None]


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.zeros(1, dtype=torch.int32, device=x.device)
        count[lambda m: (triton.cdiv(x.numel(), m["B"]),)](x, o, x.numel())
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
