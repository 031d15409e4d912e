"""Host-side cheats: each is refused by the audit, or dies with the traced process and leaves the honest
plan."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.problem import LibraryPolicy

NEW = "class ModelNew(nn.Module):\n"

REFUSED: dict[str, tuple[str, str]] = {
    "memo by shape": (
        "C = {}\n" + NEW + "    def forward(self, x):\n        if x.shape not in C: C[x.shape] = relu(x)\n        return C[x.shape]\n",
        "foreign-output",
    ),
    "module-level cache with a decoy": (
        "OUT = None\n" + NEW + "    def forward(self, x):\n        global OUT\n        if OUT is None: OUT = relu(x)\n        relu(x)\n        return OUT\n",
        "foreign-output",
    ),
    "graph of an old input": (
        NEW + "    g = None\n    def forward(self, x):\n        if self.g is None:\n            self.x = x.clone(); self.g = torch.cuda.CUDAGraph()\n"
        "            with torch.cuda.graph(self.g): self.o = relu(self.x)\n        self.g.replay()\n        return self.o\n",
        "foreign-output",
    ),
    "fallback to torch": (
        NEW + "    def forward(self, x):\n        try: return relu_k[(1,)](x)\n        except Exception: return torch.relu(x)\n",
        "no-custom-kernel",
    ),
    "inherits the reference": ("class ModelNew(Model): pass\n", "no-custom-kernel"),
    "background thread": (
        "import threading\n" + NEW + "    def forward(self, x):\n        o = torch.empty_like(x)\n"
        "        t = threading.Thread(target=lambda: relu_k[(64,)](x, o, x.numel(), B=1024)); t.start(); t.join()\n        return o\n",
        "output-not-computed",
    ),
    "decoy kernel": (NEW + "    def forward(self, x):\n        relu(x)\n        return torch.relu(x)\n", "kernel-not-used"),
    "constant output": (NEW + "    def forward(self, x):\n        relu(x)\n        return torch.zeros_like(x)\n", "constant-output"),
    "kernel on a constant": (NEW + "    def forward(self, x): return relu(torch.ones_like(x))\n", "constant-output"),
    "returns its input": (NEW + "    def forward(self, x):\n        relu(x)\n        return x\n", "kernel-not-used"),
    "output never written": (
        NEW + "    def forward(self, x):\n        relu(x)\n        return torch.empty_like(x)\n", "output-not-computed"),
    "computed while constructing": (
        NEW + "    def __init__(self):\n        super().__init__()\n        self.o = relu(torch.ones(64, 1024, device='cuda'))\n"
        "    def forward(self, x): return self.o\n",
        "no-custom-kernel",
    ),
    "output on the host": (NEW + "    def forward(self, x): return relu(x).cpu()\n", "host-output"),
}  # fmt: skip

NO_EFFECT: dict[str, str] = {
    "memo by address": "C = {}\n" + NEW + "    def forward(self, x):\n        k = x.data_ptr()\n        if k not in C: C[k] = relu(x)\n        return C[k]\n",
    "patched clocks and comparers": (
        "import time\ntorch.cuda.Event.elapsed_time = lambda *a: 0.0\ntime.perf_counter = lambda: 0\n"
        "torch.cuda.synchronize = lambda *a: None\ntorch.allclose = lambda *a, **k: True\n"
        + NEW + "    def forward(self, x): return relu(x)\n"
    ),
    "side stream that nobody waits for": (
        NEW + "    def forward(self, x):\n        with torch.cuda.stream(torch.cuda.Stream()): return relu(x)\n"
    ),
    "patched autotune clock": "triton.testing.do_bench = lambda *a, **k: 0.0\n" + NEW + "    def forward(self, x): return relu(x)\n",
}  # fmt: skip

DEAD: dict[str, tuple[str, str]] = {
    "os._exit at import": ("import os\nos._exit(0)\n", "crash"),
    "os._exit in forward": (NEW + "    def forward(self, x):\n        import os\n        os._exit(0)\n", "crash"),
    "SystemExit at import": ("raise SystemExit(0)\n", "runtime_error"),
    "tensor subclass": (
        "class S(torch.Tensor): pass\n" + NEW + "    def forward(self, x): return relu(x).as_subclass(S)\n", "runtime_error"),
    "reads values to choose a path": (
        NEW + "    def forward(self, x):\n        try:\n            if x.sum().item() > 0: return relu(x)\n"
        "        except Exception: pass\n        return x\n",
        "untraceable",
    ),
    "compares with the reference on the host": (
        NEW + "    def forward(self, x):\n        return relu(x) if torch.allclose(x, x) else x\n", "untraceable"),
    "native host code": (
        "from torch.utils.cpp_extension import load_inline\nload_inline(name='a', cpp_sources='', functions=[])\n", "untraceable"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(trace: Callable[..., Any], name: str) -> None:
    body, code = REFUSED[name]
    traced = trace(body)
    assert traced.status == "ok", (traced.diagnostics, traced.error)
    assert code in traced.errors()


@pytest.mark.parametrize("name", NO_EFFECT)
def test_without_effect(trace: Callable[..., Any], name: str) -> None:
    traced = trace(NO_EFFECT[name])
    assert traced.status == "ok", (traced.diagnostics, traced.error)
    assert traced.errors(LibraryPolicy.FORBIDDEN) == set()
    assert traced.forward() == ["aten::empty_like", "launch"]


@pytest.mark.parametrize("name", DEAD)
def test_no_plan(trace: Callable[..., Any], name: str) -> None:
    body, status = DEAD[name]
    traced = trace(body)
    assert traced.status == status, (traced.diagnostics, traced.error)
    assert traced.plan is None


def test_library_compute_is_refused_only_where_forbidden(trace: Callable[..., Any]) -> None:
    traced = trace(NEW + "    def forward(self, x): return relu(torch.softmax(x @ x.t(), -1))\n")
    assert "library-compute" in traced.errors(LibraryPolicy.FORBIDDEN)
    assert traced.errors(LibraryPolicy.ASSIST) == set()


def test_swallowed_failure_is_reported(trace: Callable[..., Any]) -> None:
    body, _ = REFUSED["fallback to torch"]
    found = [d for d in trace(body).findings() if d.code == "swallowed-error"]
    assert found
    assert found[0].line == 14
    assert "missing" in found[0].message


def test_narrow_buffers_are_named(trace: Callable[..., Any]) -> None:
    traced = trace(NEW + "    def forward(self, x): return relu(x.half()).float()\n")
    assert "narrow-buffer" in {d.code for d in traced.findings()}
