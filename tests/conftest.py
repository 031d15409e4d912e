"""What several packages of tests share: one warm pair of sandbox servers, a small problem with candidates, and how a
parallel run is spread over its workers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from verifier.interpreter.gate import Zygotes

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read once by PyTorch: threads of workers that share cores only spin

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


SLOW = (
    "verifier/exploits/test_exploits.py",
    "verifier/exploits/test_device.py",
    "experiments/test_runs.py",
    "experiments/test_figures.py",
    "experiments/test_verify.py",
    "verifier/gpu/processes",
    "verifier/gpu/live",
)
"""Files and folders that take longest. Begun first, none of them keeps one worker busy while the others are done."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones first; all else stays in order."""

    def rank(item: pytest.Item) -> int:
        return next((i for i, slow in enumerate(SLOW) if item.nodeid.startswith(f"tests/{slow}")), len(SLOW))

    items.sort(key=rank)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object | None:
    """In place of `--dist loadfile`."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class InFolders(LoadFileScheduling):
        """A work unit is a file; or a slow folder, whose files share a fixture that takes seconds to start."""

        def _split_scope(self, nodeid: str) -> str:
            path = super()._split_scope(nodeid)
            return next((slow for slow in SLOW if path.startswith(f"tests/{slow}/")), path)

    return InFolders(config, log)


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
