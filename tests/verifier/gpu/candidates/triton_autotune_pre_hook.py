"""Triton: a configuration's pre_hook clears the sum that its kernel adds to."""

import torch
import triton
import triton.language as tl
from torch import nn


def clear(args):
    args["o"].zero_()


@triton.autotune([triton.Config({"B": b}, pre_hook=clear) for b in (256, 1024)], key=["n"])
@triton.jit
def count(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.atomic_add(o, tl.sum((tl.load(x + r, r < n, other=0.0) > 0).to(tl.int32)))


class Model(nn.Module):
    def forward(self, x):
        return (x > 0).sum().to(torch.int32)[None]


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(1, dtype=torch.int32, device=x.device)
        count[lambda m: (triton.cdiv(x.numel(), m["B"]),)](x, o, x.numel())
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
