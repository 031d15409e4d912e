"""Triton: libdevice, inline PTX that computes and inline PTX that loads, a device function."""

import torch
import triton
import triton.language as tl
from torch import nn
from triton.language.extra import libdevice


@triton.jit
def twice(v):
    return v + v


@triton.jit(noinline=True)
def first(p, i):
    return tl.load(p + i)


@triton.jit
def mix(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + r)
    s = tl.inline_asm_elementwise("add.f32 $0, $1, $2;", "=f,f,f", [v, v], dtype=tl.float32, is_pure=True, pack=1)
    w = tl.inline_asm_elementwise("ld.global.nc.f32 $0, [$1];", "=f,l", [x + r], dtype=tl.float32, is_pure=True, pack=1)
    tl.store(o + r, libdevice.tanh(s) + twice(w) + first(x, tl.program_id(0) * B))


class Model(nn.Module):
    def forward(self, x):
        return torch.tanh(x * 2) + x * 2 + x[:, :1]


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        mix[(64,)](x, o, x.numel(), B=1024)
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
