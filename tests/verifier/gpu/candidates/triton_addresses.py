"""Triton: addresses as integers, objects with data_ptr, a reinterpreted tensor, an unaligned view."""

import torch
import triton
import triton.language as tl
from torch import nn


class Box:
    def __init__(self, tensor):
        self.tensor, self.dtype = tensor, tensor.dtype

    def data_ptr(self):
        return self.tensor.data_ptr()


@triton.jit
def add(x, y, z, o, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    p = x.to(tl.pointer_type(tl.float32))
    tl.store(o + r, tl.load(p + r) + tl.load(y + r) + tl.load(z + r).to(tl.float32, bitcast=True))


class Model(nn.Module):
    def forward(self, x):
        f = x.flatten()
        return f[1:1025] + f[2:1026] + f[3:1027]


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(1024, device=x.device)
        f = x.flatten()
        add[(8,)](x.data_ptr() + 4, Box(f[2:]), triton.reinterpret(f[3:], tl.int32), o, B=128)
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
