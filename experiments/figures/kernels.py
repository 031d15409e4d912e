"""Small problems with a candidate each, as text: what the figures judge where no suite has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from verifier.loader import parse_problem
from verifier.problem import Problem

_HEAD = """\
import torch
from torch import nn

N = 4096
TITLE = "{title}"
PRECISION = "{precision}"
LIBRARY = "forbidden"
WORKLOADS = [
    {{"name": "small", "roles": ["small"], "constants": {{"N": 64}}}},
    {{"name": "full", "roles": ["timed"], "constants": {{"N": {n}}}}},
]


class Model(nn.Module):
    def forward(self, {inputs}):
        return {result}


def get_inputs():
    return [{values}]


def get_init_inputs():
    return []
"""

_IMPORTS = """\
import torch
import triton
import triton.language as tl
from torch import nn


"""

RELU = (
    _IMPORTS
    + """\
@triton.jit
def relu_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside)
    tl.store(out + at, tl.maximum(value, 0.0), mask=inside)


class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        n = x.numel()
        relu_kernel[(triton.cdiv(n, 4096),)](x, out, n, BLOCK=4096, num_warps=8)
        return out
"""
)

SOFTMAX = (
    _IMPORTS
    + """\
@triton.jit
def softmax_kernel(x, out, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * n
    value = tl.load(x + row + at, mask=at < n, other=float("-inf"))
    value = tl.exp(value - tl.max(value, 0))
    tl.store(out + row + at, value / tl.sum(value, 0), mask=at < n)


class ModelNew(nn.Module):
    def forward(self, x):
        out = torch.empty_like(x)
        n = x.shape[1]
        softmax_kernel[(x.shape[0],)](x, out, n, BLOCK=triton.next_power_of_2(n), num_warps=8)
        return out
"""
)

MATMUL = (
    _IMPORTS
    + """\
@triton.jit
def matmul_kernel(a, b, c, n, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr):
    across, down = tl.cdiv(n, N), tl.cdiv(n, M)
    first = tl.program_id(0) // (GROUP * across) * GROUP
    height = tl.minimum(down - first, GROUP)
    inside = tl.program_id(0) % (GROUP * across)
    rows = (first + inside % height) * M + tl.arange(0, M)
    columns = inside // height * N + tl.arange(0, N)
    steps = tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for start in range(0, n, K):
        k = start + steps
        left = tl.load(a + rows[:, None] * n + k[None, :], mask=(rows < n)[:, None] & (k < n)[None, :], other=0.0)
        inner = (k < n)[:, None] & (columns < n)[None, :]
        right = tl.load(b + k[:, None] * n + columns[None, :], mask=inner, other=0.0)
        total = tl.dot(left, right, total)
    kept = (rows < n)[:, None] & (columns < n)[None, :]
    tl.store(c + rows[:, None] * n + columns[None, :], total.to(tl.float16), mask=kept)


class ModelNew(nn.Module):
    def forward(self, a, b):
        c = torch.empty_like(a)
        n = a.shape[0]
        grid = (triton.cdiv(n, 128) * triton.cdiv(n, 128),)
        matmul_kernel[grid](a, b, c, n, M=128, N=128, K=64, GROUP=8, num_warps=8, num_stages=3)
        return c
"""
)

HANG = (
    RELU.replace("(x, out, n, BLOCK", "(x, out, flag, n, BLOCK")
    .replace("(x, out, n, BLOCK=", "(x, out, flag, n, BLOCK=")
    .replace(
        "        out = torch.empty_like(x)\n",
        "        out = torch.empty_like(x)\n        flag = torch.zeros(1, dtype=torch.int32, device=x.device)\n",
    )
    .replace(
        "    tl.store(",
        "    turn = tl.atomic_add(flag, 0)\n    while turn == 0:\n        turn = tl.atomic_add(flag, 0)\n    tl.store(",
        1,
    )
    .replace("relu_kernel", "hang_kernel")
)
"""ReLU that never ends: it waits for a flag that nobody sets."""

WRONG = RELU.replace("tl.maximum(value, 0.0)", "tl.maximum(value, 0.01)").replace("relu_kernel", "wrong_kernel")


@dataclass(frozen=True, slots=True)
class Family:
    """A problem, its right candidate, and changes of the text: harmless ones and mistakes."""

    title: str
    precision: str
    inputs: str
    result: str
    values: str
    size: int
    """N of the timed workload."""
    source: str
    choices: Sequence[Sequence[tuple[str, str]]]
    """Independent choices; each is a list of replacements of which one is made."""
    mistakes: Sequence[tuple[str, str]]

    def problem(self, name: str, n: int | None = None) -> Problem:
        """With N = `n` in place of its own size."""
        text = _HEAD.format(
            title=self.title, precision=self.precision, inputs=self.inputs, result=self.result, values=self.values,
            n=n or self.size,
        )  # fmt: skip
        return parse_problem(text, file=f"{name}.py", name=name)


_WARPS = [("num_warps=8", f"num_warps={n}") for n in (8, 4, 16, 2)]

FAMILIES: dict[str, Family] = {
    "relu": Family(
        "ReLU", "fp32", "x", "torch.relu(x)", "torch.randn(N)", 1 << 27, RELU,
        [[("4096", str(n)) for n in (512, 1024, 2048, 4096, 8192, 16384, 32768)], _WARPS],
        [("0.0)", "0.01)"), ("at < n", "at < n - 1"), ("triton.cdiv(n, 4096)", "n // 4096 - 1"),
         ("tl.maximum(value, 0.0)", "tl.abs(value)")],
    ),
    "softmax": Family(
        "Softmax over rows", "fp32", "x", "torch.softmax(x, dim=1)", "torch.randn(2 * N, N)", 8192, SOFTMAX,
        [_WARPS, [("tl.exp(value - tl.max(value, 0))", text) for text in
                  ("tl.exp(value - tl.max(value, 0))",
                   "tl.math.exp2((value - tl.max(value, 0)) * 1.4426950408889634)")]],
        [(" / tl.sum(value, 0)", ""), ("tl.exp(value -", "tl.exp(0.99 * value -"),
         ("mask=at < n)", "mask=at < n - 1)"), ("(x.shape[0],)", "(x.shape[0] // 2,)")],
    ),
    "matmul": Family(
        "Matrix product", "fp16", "a, b", "torch.matmul(a, b)",
        "torch.randn(N, N, dtype=torch.float16), torch.randn(N, N, dtype=torch.float16)", 4096, MATMUL,
        [[("K=64", f"K={n}") for n in (32, 64)], [("GROUP=8", f"GROUP={n}") for n in (1, 4, 8)],
         [("num_stages=3", f"num_stages={n}") for n in (2, 3, 4)], _WARPS[:2]],
        [("range(0, n, K)", "range(0, n - K, K)"), ("total.to(tl.float16)", "(total * 1.02).to(tl.float16)"),
         ("total = tl.dot(left, right, total)", "total = tl.dot(left, right)"),
         ("b + k[:, None] * n + columns[None, :]", "b + k[:, None] + columns[None, :] * n")],
    ),
}  # fmt: skip
"""Each has at most 1 GiB of inputs and outputs."""
