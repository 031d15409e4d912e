"""The gate from problem and source to a report: honest, broken and hostile candidates in the real sandbox."""

from __future__ import annotations

import pytest

from verifier.errors import ProblemError
from verifier.interpreter import gate as gate_module
from verifier.interpreter.gate import Zygotes, run_gate
from verifier.loader import parse_problem
from verifier.sandbox.limits import Limits
from verifier.verdict import TestReport

ATTENTION = """
import math, torch, torch.nn as nn
HEADS, SEQ = 16, 4096
WORKLOADS = [{"name": "small", "roles": ["small"], "constants": {"HEADS": 2, "SEQ": 80}},
             {"name": "big", "roles": ["check", "timed"]}]
PRECISION = "fp16"
class Model(nn.Module):
    def forward(self, q, k, v):
        s = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        n = s.shape[-1]
        m = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()
        return torch.softmax(s.masked_fill(~m, float("-inf")).float(), -1).to(q.dtype) @ v
def get_inputs(): return [torch.randn(1, HEADS, SEQ, 32, dtype=torch.float16) for _ in range(3)]
def get_init_inputs(): return []
"""

FLASH = """
import math, torch, torch.nn as nn, triton, triton.language as tl
@triton.jit
def attend(Q, K, V, O, sh, ss, S, scale, BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM); rd = tl.arange(0, D); rn = tl.arange(0, BN)
    base = tl.program_id(1) * sh
    q = tl.load(Q + base + rm[:, None] * ss + rd[None], mask=rm[:, None] < S, other=0.0)
    m = tl.full([BM], float("-inf"), tl.float32)
    l = tl.zeros([BM], tl.float32); acc = tl.zeros([BM, D], tl.float32)
    for n in range(0, S, BN):
        inside = (n + rn) < S
        k = tl.load(K + base + (n + rn)[None] * ss + rd[:, None], mask=inside[None], other=0.0)
        s = tl.dot(q, k) * scale
        s = tl.where(((n + rn)[None] <= rm[:, None]) & inside[None], s, float("-inf"))
        mn = tl.maximum(m, tl.max(s, 1)); p = tl.exp(s - mn[:, None]); a = tl.exp(m - mn)
        l = l * a + tl.sum(p, 1)
        v = tl.load(V + base + (n + rn)[:, None] * ss + rd[None], mask=inside[:, None], other=0.0)
        acc = tl.dot(p.to(v.dtype), v, acc * a[:, None]); m = mn
    out = (acc / l[:, None]).to(O.dtype.element_ty)
    tl.store(O + base + rm[:, None] * ss + rd[None], out, mask=rm[:, None] < S)
class ModelNew(nn.Module):
    def forward(self, q, k, v):
        B, H, S, D = q.shape
        o = torch.empty_like(q)
        grid, scale = (triton.cdiv(S, 64), B * H), 1 / math.sqrt(D)
        attend[grid](q, k, v, o, q.stride(1), q.stride(2), S, scale, BM=64, BN=32, D=D)
        return o
"""

RELU_PROBLEM = """
import torch, torch.nn as nn
ROWS = 256
class Model(nn.Module):
    def forward(self, x): return torch.relu(x)
def get_inputs(): return [torch.randn(ROWS, 3000)]
def get_init_inputs(): return []
"""

RELU = """
import torch, torch.nn as nn, triton, triton.language as tl
@triton.jit
def relu(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.maximum(tl.load(x + i, mask=i < n), 0.0), mask=i < n)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        relu[(triton.cdiv(x.numel(), 1024),)](x, o, x.numel(), B=1024)
        return o
"""
SMALL_RELU = RELU_PROBLEM.replace("ROWS = 256", 'ROWS = 2\nWORKLOADS = [{"name": "s", "roles": ["small"]}]')


GLUON = """
import torch, torch.nn as nn, triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
@gluon.jit
def relu(x, o, n, B: gl.constexpr, layout: gl.constexpr):
    i = gl.program_id(0) * B + gl.arange(0, B, layout=layout)
    gl.store(o + i, gl.maximum(gl.load(x + i, mask=i < n), 0.0), mask=i < n)
class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        relu[(triton.cdiv(x.numel(), 512),)](x, o, x.numel(), B=512, layout=gl.BlockedLayout([4], [32], [4], [0]))
        return o
"""
ASKS = RELU.replace(
    "return o", "k = relu.warmup(x, o, 1, B=1024, grid=(1,))\n        return o if k.n_regs == 24 else -o"
)


def gate(zygotes: Zygotes, reference: str, candidate: str) -> TestReport:
    return run_gate(parse_problem(reference, file="problem.py", name="test"), candidate, zygotes, seed=5)


def codes(report: TestReport) -> set[str]:
    return {f.code for f in report.findings}


def test_what_only_a_compiler_knows(zygotes: Zygotes) -> None:
    """A Gluon kernel, and figures of a compiled kernel: the plan's where there are some, else no test."""
    report = gate(zygotes, SMALL_RELU, GLUON)
    assert report.outcome == "not_applicable"
    assert "does without kernels of Gluon, as `relu` is one" in report.reason
    asked = gate(zygotes, SMALL_RELU, ASKS)
    assert asked.outcome == "not_applicable"
    assert "does without figures of kernel `relu`, which the plan does not launch" in asked.reason
    problem = parse_problem(SMALL_RELU, file="problem.py", name="test")
    figures = {"n_regs": 24, "shared": 0, "num_warps": 4, "num_stages": 3, "num_ctas": 1}
    assert run_gate(problem, ASKS, zygotes, seed=5, compiled={"relu": [figures]}).outcome == "passed"


def test_a_reference_whose_results_are_too_many_says_so(zygotes: Zygotes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate_module, "TRUSTED", Limits(result_bytes=64 << 10))
    report = gate(zygotes, SMALL_RELU.replace("ROWS = 2", "ROWS = 3"), RELU)  # no sizes that are known already
    assert report.outcome == "not_applicable"
    assert "inputs and results of all distributions take" in report.reason


def test_a_reference_that_takes_more_memory_than_there_is_is_not_the_problems_fault(zygotes: Zygotes) -> None:
    report = gate(zygotes, SMALL_RELU.replace("torch.relu(x)", "torch.relu(x) + torch.ones(1 << 44).sum()"), RELU)
    assert (report.outcome, report.reason) == ("not_applicable", "the reference takes too much memory on a CPU")


def test_what_passes_on_few_distributions_is_tried_on_no_more(zygotes: Zygotes) -> None:
    problem = parse_problem(SMALL_RELU, file="problem.py", name="test")
    passed = run_gate(problem, RELU, zygotes, seed=5, few=True)
    assert (passed.outcome, {c.draw for c in passed.checks}) == ("passed", {"task", "heavy_tailed"})
    wrong = RELU.replace(", 0.0), mask=i < n)", ", 0.0) * 1.1, mask=i < n)")
    assert wrong != RELU
    failed = run_gate(problem, wrong, zygotes, seed=5, few=True)
    assert failed.outcome == "failed"
    assert "wrong on 6 of 6 input distributions" in failed.reason


# attention


def test_correct_attention(zygotes: Zygotes) -> None:
    report = gate(zygotes, ATTENTION, FLASH)
    assert report.outcome == "passed", report.reason
    assert (report.workloads, report.scaling, report.precision) == (("small",), "small workload", "fp16")
    assert {c.draw for c in report.checks} >= {"task", "normal", "sparse", "scaled", "integers"}
    stored = [t for t in report.traffic if t.stored]
    assert [(t.stored, t.line) for t in stored] == [(2 * 80 * 32 * 2, 20)]
    assert report.findings == ()


@pytest.mark.parametrize(
    ("old", "new", "code", "line"),
    [
        ("<= rm[:, None])", "<= rm[:, None] + 1)", "wrong-value", None),
        ("mask=inside[:, None], other=0.0", "other=0.0", "out-of-bounds", None),
        ("acc * a[:, None])", "acc)", "wrong-value", None),
        ("mask=rm[:, None] < S)\nclass", "mask=rm[:, None] < S - 1)\nclass", "wrong-value", None),
        ("return o", "return o.float()", "wrong-value", None),
        ("B, H, S, D = q.shape", "B, H, S, D = q.shape; assert S % 64 == 0", "runtime-error", 23),
    ],
    ids=[
        "mask off by one",
        "load past the end",
        "no rescale",
        "last row",
        "dtype",
        "raises",
    ],
)
def test_broken_attention(zygotes: Zygotes, old: str, new: str, code: str, line: int | None) -> None:
    assert old in FLASH
    source = FLASH.replace(old, new)
    if code == "out-of-bounds":
        source = source.replace(", other=0.0)\n        acc", ")\n        acc")
    report = gate(zygotes, ATTENTION, source)
    assert report.outcome == "failed", report.reason
    assert code in codes(report)
    found = next(f for f in report.findings if f.code == code)
    assert found.severity == "error"
    if line:
        assert found.line == line
    if code == "out-of-bounds":
        assert "`V`" in found.message
        assert "past the end" in found.message
        assert "tl.load(V" in found.excerpt


# memory


def test_a_race_is_advice(zygotes: Zygotes) -> None:
    source = RELU.replace("* B + tl", "* (B // 2) + tl").replace("cdiv(x.numel(), 1024)", "cdiv(x.numel(), 512)")
    report = gate(zygotes, SMALL_RELU, source)
    assert report.outcome == "passed"
    assert "write-write-race" in codes(report)
    assert {f.severity for f in report.findings} == {"advice"}


def test_rows_that_are_never_written_are_named(zygotes: Zygotes) -> None:
    report = gate(zygotes, SMALL_RELU, RELU.replace("cdiv(x.numel(), 1024)", "cdiv(x.numel(), 1024) - 1"))
    assert report.outcome == "failed"
    assert "NaN instead of a finite value" in report.reason
    assert "torch.empty" in report.reason


# sizes


def test_constants_are_scaled_where_there_is_no_small_workload(zygotes: Zygotes) -> None:
    report = gate(zygotes, RELU_PROBLEM, RELU)
    assert report.outcome == "passed", report.reason
    assert report.scaling == "scaled constants: ROWS=16"
    wrong = gate(zygotes, RELU_PROBLEM, RELU.replace(", 0.0)", ", 0.1)"))
    assert wrong.outcome == "failed"


@pytest.mark.parametrize(
    "change",
    [("x.numel(), B=", "256 * 3000, B="), ("o = ", "assert x.shape[0] > 200; o = ")],
    ids=["names the size", "asserts the size"],
)
def test_a_candidate_made_for_the_full_size_is_not_blamed(zygotes: Zygotes, change: tuple[str, str]) -> None:
    report = gate(zygotes, RELU_PROBLEM, RELU.replace(*change))
    assert report.outcome == "passed", report.reason
    assert report.scaling == "own sizes, 24 of 750 programs sampled"


# state


def test_weights_are_loaded_and_mutated_buffers_restored(zygotes: Zygotes) -> None:
    problem = """
import torch, torch.nn as nn
WORKLOADS = [{"name": "s", "roles": ["small"]}]
class Model(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n))
        self.register_buffer("calls", torch.zeros(()))
    def forward(self, x):
        self.calls += 1
        return torch.relu(x * self.weight + self.calls)
def get_inputs(): return [torch.randn(4, 64)]
def get_init_inputs(): return [64]
"""
    candidate = RELU.replace(
        "    def forward(self, x):\n",
        "    def __init__(self, n):\n        super().__init__()\n"
        "        self.weight = nn.Parameter(torch.zeros(n))\n"
        '        self.register_buffer("calls", torch.zeros(()))\n'
        "    def forward(self, x):\n        self.calls += 1\n        x = x * self.weight + self.calls\n",
    )
    report = gate(zygotes, problem, candidate)
    assert report.outcome == "passed", report.reason


def test_scratch_beyond_host_memory_is_left_to_the_gpu(zygotes: Zygotes) -> None:
    scratch = "        scratch = torch.zeros(1 << 45, device=x.device)\n"
    source = RELU.replace("        return o", f"{scratch}        return o")
    report = gate(zygotes, SMALL_RELU, source)
    assert report.outcome == "not_applicable"
    assert "allocate memory" in report.reason


def test_a_stochastic_reference_is_named(zygotes: Zygotes) -> None:
    report = gate(zygotes, SMALL_RELU.replace("torch.relu(x)", "torch.dropout(x, 0.5, True)"), RELU)
    assert report.outcome == "not_applicable"
    assert "random" in report.reason


@pytest.mark.parametrize("forward", ["torch.softmax(x, -1).sum(-1, keepdim=True) + 0 * x", "(x > 1e9).to(x.dtype)"])
def test_a_reference_that_gives_one_output_for_all_inputs_is_said_to(zygotes: Zygotes, forward: str) -> None:
    value = "1.0" if "softmax" in forward else "0.0"
    kernel = RELU.replace("tl.maximum(tl.load(x + i, mask=i < n), 0.0)", f"0 * tl.load(x + i, mask=i < n) + {value}")
    report = gate(zygotes, SMALL_RELU.replace("torch.relu(x)", forward), kernel)
    assert report.outcome == "passed", report.reason
    assert [f.severity for f in report.findings if f.code == "constant-reference"] == ["warning"]


def test_a_reference_that_depends_on_its_inputs_is_not_said_to_be_constant(zygotes: Zygotes) -> None:
    assert "constant-reference" not in {f.code for f in gate(zygotes, SMALL_RELU, RELU).findings}


def test_a_distribution_that_the_reference_cannot_take_is_skipped_by_name(zygotes: Zygotes) -> None:
    problem = SMALL_RELU.replace("torch.relu(x)", "torch.log(x)").replace("torch.randn", "torch.rand")
    report = gate(
        zygotes,
        problem,
        RELU.replace("tl.maximum(tl.load(x + i, mask=i < n), 0.0)", "tl.log(tl.load(x + i))"),
    )
    assert report.skipped_draws.keys() >= {"normal", "sparse", "integers"}
    assert "not finite" in report.skipped_draws["normal"]
    assert [c.draw for c in report.checks] == ["task"]


def test_a_broken_reference_is_the_problems_fault(zygotes: Zygotes) -> None:
    with pytest.raises(ProblemError, match="no attribute"):
        gate(zygotes, SMALL_RELU.replace("torch.relu(x)", "torch.rilu(x)"), RELU)


# hostile candidates

BODY = "        relu[(triton"
HOSTILE = {
    "patches the comparer": """
        torch.allclose = torch.equal = lambda *a, **k: True
        return torch.zeros_like(x)
""",
    "looks for the answer": """
        import gc, sys, os
        words = ("expected", "native", "yardstick")
        keys = [k for o in gc.get_objects() if isinstance(o, dict) for k in list(o) if isinstance(k, str)]
        found = [k for k in keys if k.split("/")[1:2] and k.split("/")[1] in words]
        found += [f for f in os.listdir(".") if f != "candidate.py"]
        if found: raise RuntimeError(found[:9])
        return torch.zeros_like(x)
""",
    "writes to every descriptor": """
        import os
        for fd in range(3, 64):
            try: os.write(fd, b'{"outcome": "ok", "value": {"status": "ok"}}' * 9)
            except OSError: pass
        return torch.zeros_like(x)
""",
    "ends the process": "        import os; os._exit(0)\n",
    "remembers the first answer": """
        if not hasattr(self, "memo"):
            self.memo = torch.relu(x)
        o = torch.empty_like(x)
        relu[(1,)](x, o, x.numel(), B=1024)
        return self.memo
""",
    "returns a lazy subclass": """
        class Lazy(torch.Tensor): pass
        return torch.relu(x).as_subclass(Lazy)
""",
    "changes its input": """
        o = torch.relu(x); relu[(1,)](x, o, x.numel(), B=1024); x.zero_(); return o
""",
    "returns garbage": "        return {'a': [x] * 9}\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(zygotes: Zygotes, name: str) -> None:
    start = RELU.index("        o = torch.empty_like(x)")
    source = RELU[:start] + HOSTILE[name]
    launch = "        relu[(1,)](x, torch.empty_like(x), x.numel(), B=1024)\n"
    report = gate(
        zygotes,
        SMALL_RELU,
        source.replace("    def forward(self, x):\n", "    def forward(self, x):\n" + launch),
    )
    assert report.outcome == "failed", report
    if name == "looks for the answer":
        assert codes(report) == {"wrong-value"}  # it raises when it finds something
    if name == "returns a lazy subclass":
        assert codes(report) == {"foreign-output"}
    if name == "changes its input":
        assert "input-mutated" in codes(report)


def test_a_forged_report_is_malformed(zygotes: Zygotes) -> None:
    """The candidate shares its process with the job: what it sends instead of the answer is checked."""
    source = (
        RELU
        + """
import verifier.interpreter.run as job
job._Run.value = lambda self: {"status": "ok", "outputs": 7}
"""
    )
    report = gate(zygotes, SMALL_RELU, source)
    assert report.outcome == "failed"
    assert codes(report) == {"malformed-answer"}


def test_a_kernel_error_behind_a_fallback_is_not_a_pass(zygotes: Zygotes) -> None:
    source = RELU.replace("        return o", "        return o").replace(
        "        relu[(triton.cdiv(x.numel(), 1024),)](x, o, x.numel(), B=1024)\n",
        "        try: relu[(1,)](x, o, x.numel(), B='no')\n        except Exception: o = torch.relu(x)\n",
    )
    report = gate(zygotes, SMALL_RELU, source)
    assert report.outcome == "not_applicable"


def test_no_launch_is_not_a_pass(zygotes: Zygotes) -> None:
    source = "import torch\nclass ModelNew(torch.nn.Module):\n    def forward(self, x): return x.relu()\n"
    report = gate(zygotes, SMALL_RELU, source)
    assert report.outcome == "not_applicable"
    assert "no Triton kernel ran" in report.reason
