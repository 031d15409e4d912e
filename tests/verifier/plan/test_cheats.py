"""Host-side cheats: each is refused by the audit, or dies with the traced process and leaves the honest
plan."""

# ruff: noqa: E501 - candidates are quoted line by line
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.plan.audit import Reference
from verifier.plan.products import products
from verifier.problem import LibraryPolicy, Precision

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
    assert all(d.line and d.message for d in traced.findings() if d.severity == "error")


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


@pytest.mark.parametrize("policy", [LibraryPolicy.FORBIDDEN, LibraryPolicy.ASSIST])
def test_library_compute_names_its_share(trace: Callable[..., Any], policy: LibraryPolicy) -> None:
    """Of 64x1024 times 1024x64 and a softmax of the result; the reference also computes the ReLU."""
    traced = trace(
        NEW + "    def forward(self, x):\n        y = x @ x.t()\n        return relu(torch.softmax(y, -1))\n"
    )
    product, rows = 2 * 64 * 64 * 1024, 64 * 64
    found = traced.findings(policy, reference={"w0": Reference(flop=product + 2 * rows)})
    said = {d.message.split("`")[1]: d.message for d in found if d.code == "library-compute"}
    assert "99.9% of the reference's FLOP" in said["aten::matmul"]
    assert "0.0488% of the reference's FLOP" in said["aten::softmax.int"]
    assert [d.line for d in found if d.code == "library-compute"] == [14, 15]


def test_swallowed_failure_is_reported(trace: Callable[..., Any]) -> None:
    body, _ = REFUSED["fallback to torch"]
    found = [d for d in trace(body).findings() if d.code == "swallowed-error"]
    assert found
    assert found[0].line == 14
    assert "missing" in found[0].message


def test_narrow_buffers_are_named(trace: Callable[..., Any]) -> None:
    traced = trace(NEW + "    def forward(self, x): return relu(x.half()).float()\n")
    assert "narrow-buffer" in {d.code for d in traced.findings()}


DOT = """
@triton.jit
def dot_k(x, o, T: tl.constexpr, A: tl.constexpr):
    r = tl.arange(0, 64)
    a = tl.load(x + r[:, None] * 64 + r[None, :]).to(T)
    tl.store(o + r[:, None] * 64 + r[None, :], tl.dot(a, a, out_dtype=A).to(tl.float32))
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        dot_k[(1,)](x, o, T=%s, A=%s)
        return o
"""


@pytest.mark.parametrize(
    ("types", "precision", "inputs", "said"),
    [
        (("tl.float32", "tl.float32"), Precision.TF32, "float32", ""),
        (("tl.float32", "tl.float32"), Precision.FP32, "float32", "in tf32"),
        (("tl.bfloat16", "tl.float32"), Precision.TF32, "float32", "in bf16"),
        (("tl.float16", "tl.float32"), Precision.FP16, "float32", ""),
        (("tl.float16", "tl.float16"), Precision.TF32, "float32", "in f16"),
        (("tl.float16", "tl.float32"), Precision.TF32, "float16", ""),
        (("tl.float8e4nv", "tl.float32"), Precision.FP16, "float16", "in e4m3"),
    ],
)
def test_narrow_products_are_named(
    trace: Callable[..., Any], types: tuple[str, str], precision: Precision, inputs: str, said: str
) -> None:
    """By what the machine multiplies in, whatever the buffers' dtypes are."""
    matrix = {"kind": "tensor", "shape": [64, 64], "dtype": inputs, "stride": None}
    traced = trace(DOT % types, [matrix])
    found = [d for d in traced.findings(precision=precision) if d.code == "narrow-products"]
    assert [(said in d.message, d.line) for d in found] == ([(True, 13)] if said else [])


def test_kinds_of_matrix_instructions() -> None:
    text = """
    wgmma.mma_async.sync.aligned.m64n64k8.f32.tf32.tf32 {%f1}, %rd1, %rd2, p, 1, 1;
    mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r1}, {%r2}, {%r3}, {%r4};
    wmma.mma.sync.aligned.row.col.m16n16k16.f32.f32 {%f1}, {%r1}, {%r2}, {%f2};
    wmma.mma.sync.aligned.row.col.m16n16k16.f32.bf16.bf16.f32 {%f1}, {%r1}, {%r2}, {%f2};
    tcgen05.mma.cta_group::1.kind::tf32 [%r1], %rd1, %rd2, %r2, p;
    // no instruction: mma
    """
    assert products(text) == {("tf32", "f32"), ("f16", "f16"), ("f16", "f32"), ("bf16", "f32"), ("tf32", "")}
