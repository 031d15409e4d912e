"""Triton: host-side descriptors of a slice and of a rank-3 view, and one that no kernel reads."""

import torch
import triton
import triton.language as tl
from torch import nn
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def move(unread, d, t, o, M: tl.constexpr):
    row = tl.program_id(0) * M
    v = d.load([row, 0])
    w = t.load([0, row, 0])
    o.store([row, 0], v + tl.reshape(w, (M, 64)))


class Model(nn.Module):
    def forward(self, x):
        return x[:, 64:128] + x.view(64, 16, 64)[:, 2]


class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(64, 64, device=x.device)
        d = TensorDescriptor.from_tensor(x[:, 64:128], [32, 64])
        t = TensorDescriptor.from_tensor(x.view(64, 16, 64).transpose(0, 1)[2:], [1, 32, 64])
        out = TensorDescriptor.from_tensor(o, [32, 64])
        move[(2,)](TensorDescriptor.from_tensor(x, [8, 16]), d, t, out, M=32)
        return o


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
