"""The candidate that the end-to-end tests trace: an autotuned matmul that spills in one configuration,
softmax, a library step.
"""

import torch
import torch.nn as nn
import triton
import triton.language as tl


@triton.jit
def softmax_kernel(x, o, n, B: tl.constexpr):
    row = tl.program_id(0)
    c = tl.arange(0, B)
    v = tl.load(x + row * n + c, mask=c < n, other=-float("inf")).to(tl.float32)
    v = tl.exp(v - tl.max(v, 0))
    tl.store(o + row * n + c, (v / tl.sum(v, 0)).to(o.dtype.element_ty), mask=c < n)


@triton.autotune(
    configs=[
        triton.Config({"BM": 16, "BN": 16, "BK": 32}, num_warps=4, num_stages=2),
        triton.Config({"BM": 128, "BN": 128, "BK": 64}, num_warps=8, num_stages=3),
    ],
    key=["M", "N", "K"],
)
@triton.jit
def matmul_kernel(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM)
    rn = tl.program_id(1) * BN + tl.arange(0, BN)
    rk = tl.arange(0, BK)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, BK):
        x = tl.load(a + rm[:, None] * K + (k + rk)[None, :])
        y = tl.load(b + (k + rk)[:, None] * N + rn[None, :])
        acc = tl.dot(x, y, acc)
    tl.store(c + rm[:, None] * N + rn[None, :], acc.to(c.dtype.element_ty))


class ModelNew(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n, n, dtype=torch.float16))

    def forward(self, x):
        m, k = x.shape
        n = self.w.shape[1]
        y = torch.empty((m, n), device=x.device, dtype=x.dtype)

        def grid(meta):
            return triton.cdiv(m, meta["BM"]), triton.cdiv(n, meta["BN"])

        matmul_kernel[grid](x, self.w, y, m, n, k)
        out = torch.empty_like(y)
        softmax_kernel[(m,)](y, out, n, B=triton.next_power_of_2(n))
        return torch.relu(out)


class Reference(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.w = nn.Parameter(torch.randn(n, n, dtype=torch.float16))

    def forward(self, x):
        return torch.relu(torch.softmax(x @ self.w, -1))
