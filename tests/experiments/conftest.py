"""An attention problem that is judged in about a second, and a kernel that solves causal attention."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.suites import resolve

CAUSAL = """\
import math

import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def attend(Q, K, V, Out, S, scale, D: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    base = tl.program_id(1).to(tl.int64) * S * D
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    dims = tl.arange(0, D)
    at = rows[:, None] * D + dims[None, :]
    q = tl.load(Q + base + at, mask=rows[:, None] < S, other=0.0)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, D], tl.float32)
    for start in range(0, tl.minimum((tl.program_id(0) + 1) * ROWS, S), COLS):
        cols = start + tl.arange(0, COLS)
        inside = cols < S
        k = tl.load(K + base + cols[None, :] * D + dims[:, None], mask=inside[None, :], other=0.0)
        v = tl.load(V + base + cols[:, None] * D + dims[None, :], mask=inside[:, None], other=0.0)
        scores = tl.dot(q, k) * scale
        keep = (cols[None, :] <= rows[:, None]) & inside[None, :]
        scores = tl.where(keep, scores, -1.0e30)
        new = tl.maximum(top, tl.max(scores, 1))
        p = tl.exp(scores - new[:, None])
        shrink = tl.exp(top - new)
        total = total * shrink + tl.sum(p, 1)
        acc = acc * shrink[:, None] + tl.dot(p.to(v.dtype), v)
        top = new
    tl.store(Out + base + at, (acc / total[:, None]).to(Out.dtype.element_ty), mask=rows[:, None] < S)


class ModelNew(nn.Module):
    def forward(self, q, k, v):
        B, H, S, D = q.shape
        out = torch.empty_like(q)
        attend[(triton.cdiv(S, 32), B * H)](q, k, v, out, S, 1.0 / math.sqrt(D), D=D, ROWS=32, COLS=32)
        return out
"""


@pytest.fixture(scope="session")
def causal_kernel() -> str:
    return CAUSAL


@pytest.fixture
def tiny_attention(tmp_path: Path) -> Path:
    """`attention/causal` with one small workload."""
    constants = '{"batch": 1, "heads": 1, "sequence": 32, "head_dim": 16}'
    workload = f'[{{"name": "small", "roles": ["small", "timed"], "constants": {constants}}}]'
    whole = resolve("attention/causal").source
    source, count = re.subn(r"(?ms)^WORKLOADS = \[.*?^\]", f"WORKLOADS = {workload}", whole)
    assert count == 1
    path = tmp_path / "tiny_attention.py"
    path.write_text(source)
    return path
