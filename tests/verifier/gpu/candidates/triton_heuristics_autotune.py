"""Triton: heuristics above and below an autotuner with eight configurations."""

import torch
import triton
import triton.language as tl
from torch import nn


@triton.heuristics({"EVEN": lambda a: a["n"] % 1024 == 0})
@triton.autotune([triton.Config({"B": b}, num_warps=w) for b in (256, 512, 1024, 2048) for w in (4, 8)], key=["n"])
@triton.heuristics({"HALF": lambda a: a["B"] // 2})
@triton.jit
def scale(x, o, n, B: tl.constexpr, HALF: tl.constexpr, EVEN: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    mask = r < (n if EVEN else n + 0 * HALF)
    tl.store(o + r, tl.load(x + r, mask) * 2, mask)


class Model(nn.Module):
    def forward(self, x):
        return x * 2


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        scale[lambda m: (triton.cdiv(x.numel(), m["B"]),)](x, o, x.numel())
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
