"""Triton: warmup, a compiled kernel launched directly, triton.compile of a source, a partial."""

import functools

import torch
import triton
import triton.language as tl
from torch import nn
from triton.compiler import ASTSource


@triton.jit
def scale(x, o, n, B: tl.constexpr):
    r = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + r, tl.load(x + r, r < n) * 2, r < n)


class Model(nn.Module):
    def forward(self, x):
        return x * 32


class ModelNew(nn.Module):
    def forward(self, x):
        a, o = torch.empty_like(x), torch.empty_like(x)
        n = x.numel()
        made = scale.warmup(x, a, n, B=1024, grid=(64,))
        made[(64, 1, 1)](x, a, n, 1024)
        scale.run(a, o, n, grid=(64,), warmup=False, B=1024)
        functools.partial(scale[(64,)], B=1024)(o, a, n)
        kinds = {"x": "*fp32", "o": "*fp32", "n": "i32", "B": "constexpr"}
        made = triton.compile(ASTSource(fn=scale, signature=kinds, constexprs={"B": 512}))
        made[(128, 1, 1)](a, o, n, 512)
        scale[(64,)](o, a, n, B=1024)
        return a


def get_inputs():
    return [torch.randn(64, 1024)]


def get_init_inputs():
    return []
