"""What several packages of tests share: one warm pair of sandbox servers, and a small problem with candidates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from verifier.interpreter.gate import Zygotes

PROBLEM = '''\
"""Scaled sum."""
import torch
from torch import nn

N = 4096
TITLE = "Scaled sum"
LIBRARY = "forbidden"
WORKLOADS = [{"name": "small", "roles": ["small", "timed"], "constants": {"N": 300}}]


class Model(nn.Module):
    def forward(self, x, y):
        return x * 2.0 + y


def get_inputs():
    return [torch.randn(N), torch.randn(N)]


def get_init_inputs():
    return []
'''

CORRECT = """\
import torch
import triton
import triton.language as tl
from torch import nn


@triton.jit
def kernel(x, y, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside) * 2.0 + tl.load(y + at, mask=inside)
    tl.store(out + at, value, mask=inside)


def run(x, y):
    out = torch.empty_like(x)
    kernel[(triton.cdiv(x.numel(), 128),)](x, y, out, x.numel(), BLOCK=128)
    return out


class ModelNew(nn.Module):
    def forward(self, x, y):
        return run(x, y)
"""


@pytest.fixture(scope="session")
def zygotes() -> Iterator[Zygotes]:
    """Started on first use, alive to the end of the session."""
    from verifier.judge import open_zygotes

    with open_zygotes() as servers:
        yield servers


@pytest.fixture(scope="session")
def problem_text() -> str:
    """x * 2 + y, elementwise."""
    return PROBLEM


@pytest.fixture(scope="session")
def correct() -> str:
    """A candidate for `problem_file`; its forward is the one line `return run(x, y)`."""
    return CORRECT


@pytest.fixture
def problem_file(tmp_path: Path) -> Path:
    """`problem_text` on disk."""
    path = tmp_path / "scaled_sum.py"
    path.write_text(PROBLEM)
    return path
