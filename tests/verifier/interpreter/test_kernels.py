"""What the interpreter runs after its repairs: one honest candidate per feature must pass."""

from __future__ import annotations

import pytest
import triton

from verifier.interpreter.gate import Zygotes, run_gate
from verifier.loader import parse_problem
from verifier.verdict import TestReport

HEAD = """
import math, torch, torch.nn as nn, triton, triton.language as tl
from triton.language.extra import libdevice
"""

ROWS = (
    HEAD
    + """
@triton.jit
def k(x, y, o, n, B: tl.constexpr):
    r = tl.program_id(0); c = tl.arange(0, B); m = c < n
    v = tl.load(x + r * n + c, mask=m, other=0.0)
    w = tl.load(y + r * n + c, mask=m, other=0.0)
    tl.store(o + r * n + c, (@BODY@).to(o.dtype.element_ty), mask=m)

class ModelNew(nn.Module):
    def forward(self, x, y):
        o = torch.empty_like(x)
        k[(x.shape[0],)](x, y, o, x.shape[1], B=64)
        return o
"""
)


def problem(forward: str, dtype: str = "float32", shape: str = "(3, 50)", inputs: int = 2) -> str:
    names = ", ".join("xyz"[:inputs])
    return f"""
import torch, torch.nn as nn
import torch.nn.functional as F
WORKLOADS = [{{"name": "small", "roles": ["small"]}}]
class Model(nn.Module):
    def forward(self, {names}):
        {forward}
def get_inputs():
    return [torch.randn{shape}.to(torch.{dtype}) for _ in range({inputs})]
def get_init_inputs():
    return []
"""


def gate(zygotes: Zygotes, reference: str, candidate: str) -> TestReport:
    loaded = parse_problem(reference, file="problem.py", name="test")
    return run_gate(loaded, candidate, zygotes, seed=11)


@pytest.mark.parametrize(
    ("dtype", "forward", "body"),
    [
        ("bfloat16", "return x * y - x / (1 + y.abs())", "v * w - v / (1 + tl.abs(w))"),
        ("float16", "return x * y - x / (1 + y.abs())", "v * w - v / (1 + tl.abs(w))"),
        ("bfloat16", "return torch.where(x > y, -x, y) + torch.softmax(x.float(), -1).to(x.dtype)",
         "tl.where(v > w, -v, w) + tl.softmax(tl.where(m, v.to(tl.float32), float('-inf')), 0).to(v.dtype)"),
    ],
    ids=["bf16", "fp16", "bf16 select and softmax"],
)  # fmt: skip
def test_small_floats_compute_as_on_a_gpu(zygotes: Zygotes, dtype: str, forward: str, body: str) -> None:
    report = gate(zygotes, problem(forward, dtype), ROWS.replace("@BODY@", body))
    assert report.outcome == "passed", report.reason
    assert len(report.checks) == 6


@pytest.mark.parametrize(
    ("forward", "body"),
    [
        (
            "return F.gelu(x) + torch.tanh(y)",
            "v * (1 + tl.math.erf(v * 0.70710678)) / 2 + libdevice.tanh(w)",
        ),
        (
            "return torch.cumsum(x, -1) + y.amax(-1, keepdim=True)",
            "tl.cumsum(v, 0) + tl.max(tl.where(m, w, float('-inf')), 0)",
        ),
        (
            "return torch.flip(x, (-1,)) + y.sum(-1, keepdim=True)",
            "tl.load(x + r * n + (n - 1 - c), mask=m, other=0.0) + tl.sum(w)",
        ),
    ],
    ids=["erf and libdevice", "cumsum and max", "flip and sum over everything"],
)
def test_functions(zygotes: Zygotes, forward: str, body: str) -> None:
    report = gate(zygotes, problem(forward), ROWS.replace("@BODY@", body))
    assert report.outcome == "passed", report.reason


@pytest.mark.parametrize(
    ("forward", "body"),
    [
        ("return torch.where((x > 0) & (y > 0) & (x > y), x, y)", "tl.where(v > 0 and w > 0 and v > w, v, w)"),
        ("return torch.where((x > 0) | (y > 0), x, y)", "tl.where(v > 0 or w > 0, v, w)"),
        ("return torch.where(x > 0, y, x)", "tl.where(not (v > 0 and r >= 0), v, w)"),
        ("return y", "tl.where(v > 0 and r < 0, v, w)"),
        ("return torch.maximum(x, y) + x.clamp(max=0)", "max(v, w) + min(v, 0.0)"),
        ("return x + 3 * y", "v + max(3, 2) * w if B is None or o.dtype.element_ty == x.dtype.element_ty else v"),
        ("return torch.where(x > 0, x, y)", "tl.where(v > 0 and (0 if B is None else n) > 0, v, w)"),
        ("return y + 0 * x", "tl.where(v > 0 and B - 64, v, w)"),
        ("return x + 0 * y", "v if (m and None) is None else w"),
        ("return torch.where((x > 0) & (y > 0), x, y)", "tl.where((q := v > 0) and w > 0, v, w)"),
        ("return torch.full_like(x, 50.0)", "tl.sum((r >= 0 or w > 0).to(tl.float32) + (c < n) - 1 + 0 * v, 0)"),
        ("return x", "v * (not (r > 2)).to(tl.float32)"),
        ("return x.amax(-1, keepdim=True) + 0 * x", "tl.reduce(tl.where(m, v, float('-inf')), 0, larger) + 0 * v"),
        ("return torch.cummax(x, -1).values + 0 * y", "tl.associative_scan(v, 0, larger) + 0 * w"),
    ],
    ids=[
        "and", "or", "not", "a scalar decides", "min and max", "constants", "a scalar and a block", "a number decides",
        "None decides", "walrus", "a scalar is broadcast", "not of a scalar", "reduce", "scan",
    ],
)  # fmt: skip
def test_blocks_are_combined_as_compiled_code_does(zygotes: Zygotes, forward: str, body: str) -> None:
    larger = "@triton.jit\ndef larger(a, b):\n    return max(a, b)\n\n@triton.jit\ndef k("
    report = gate(zygotes, problem(forward), ROWS.replace("@triton.jit\ndef k(", larger).replace("@BODY@", body))
    assert report.outcome == "passed", report.reason


def test_a_block_of_one_element_is_no_scalar(zygotes: Zygotes) -> None:
    body = "tl.sum(tl.sum((tl.arange(0, 1)[:, None] < 1 or c[None, :] < 0).to(tl.float32), 1), 0) + 0 * v"
    report = gate(zygotes, problem("return torch.full_like(x, 64.0)"), ROWS.replace("@BODY@", body))
    assert report.outcome == "passed", report.reason


def test_both_sides_of_truth_values_are_loaded(zygotes: Zygotes) -> None:
    body = "v if r < 0 and tl.load(x + 1000000) > 0 else v"
    report = gate(zygotes, problem("return x"), ROWS.replace("@BODY@", body))
    assert report.outcome == "failed"
    assert "out-of-bounds load" in report.reason


def test_a_mask_of_two_conditions_keeps_both(zygotes: Zygotes) -> None:
    """With the second alone the loads of the last rows are out of bounds."""
    candidate = (
        HEAD
        + """
@triton.jit
def k(x, y, o, rows, n, R: tl.constexpr, B: tl.constexpr):
    r = tl.program_id(0) * R + tl.arange(0, R); c = tl.arange(0, B)
    max = r[:, None] < rows and c[None, :] < n
    at = r[:, None] * n + c[None, :]
    tl.store(o + at, tl.load(x + at, mask=max) + tl.load(y + at, mask=max), mask=max)

class ModelNew(nn.Module):
    def forward(self, x, y):
        o = torch.empty_like(x)
        k[(1,)](x, y, o, *x.shape, R=4, B=64)
        return o
"""
    )
    report = gate(zygotes, problem("return x + y"), candidate)
    assert report.outcome == "passed", report.reason


def test_custom_reduction_and_scan(zygotes: Zygotes) -> None:
    candidate = (
        HEAD
        + """
@triton.jit
def welford(m1, s1, n1, m2, s2, n2):
    n = n1 + n2
    d = m2 - m1
    safe = tl.where(n == 0, 1.0, n)
    return m1 + d * n2 / safe, s1 + s2 + d * d * n1 * n2 / safe, n

@triton.jit
def decay(a1, b1, a2, b2):
    return a1 * a2, b1 * a2 + b2

@triton.jit
def k(x, y, o, n, B: tl.constexpr):
    r = tl.program_id(0); c = tl.arange(0, B); m = c < n
    v = tl.load(x + r * n + c, mask=m, other=0.0)
    w = tl.load(y + r * n + c, mask=m, other=0.0)
    mean, square, count = tl.reduce((v, tl.zeros_like(v), m.to(tl.float32)), 0, welford)
    z = (v - mean) / tl.sqrt(square / count + 1e-5)
    a, b = tl.associative_scan((tl.sigmoid(w), z), 0, decay)
    tl.store(o + r * n + c, b, mask=m)

class ModelNew(nn.Module):
    def forward(self, x, y):
        o = torch.empty_like(x)
        k[(x.shape[0],)](x, y, o, x.shape[1], B=64)
        return o
"""
    )
    forward = """z = F.layer_norm(x, x.shape[-1:]); a = torch.sigmoid(y)
        s = torch.zeros_like(x[:, 0]); out = []
        for i in range(x.shape[1]):
            s = s * a[:, i] + z[:, i]; out.append(s)
        return torch.stack(out, -1)"""
    report = gate(zygotes, problem(forward), candidate)
    assert report.outcome == "passed", report.reason


MATMUL = (
    HEAD
    + """
CONFIGS = [triton.Config({"BM": 16, "BN": 32}), triton.Config({"BM": 32, "BN": 16})]
@triton.autotune(configs=CONFIGS, key=["M"])
@triton.heuristics({"EVEN": lambda a: a["K"] % 16 == 0})
@triton.jit
def mm(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, EVEN: tl.constexpr):
    rm = tl.program_id(0) * BM + tl.arange(0, BM); rn = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), tl.float32)
    for k in range(0, K, 16):
        rk = k + tl.arange(0, 16)
        mk = rk < K
        x = tl.load(a + rm[:, None] * K + rk[None], mask=(rm < M)[:, None] & mk[None], other=0.0)
        y = tl.load(b + rk[:, None] * N + rn[None], mask=mk[:, None] & (rn < N)[None], other=0.0)
        acc = tl.dot(x@CAST@, y@CAST@, acc@PRECISION@)
    inside = (rm < M)[:, None] & (rn < N)[None]
    tl.store(c + rm[:, None] * N + rn[None], acc.to(c.dtype.element_ty), mask=inside)

class ModelNew(nn.Module):
    def forward(self, x, y):
        (M, K), N = x.shape, y.shape[1]
        c = torch.empty((M, N), device=x.device, dtype=x.dtype)
        mm[lambda m: (triton.cdiv(M, m["BM"]), triton.cdiv(N, m["BN"]))](x, y, c, M, N, K)
        return c
"""
)


@pytest.mark.parametrize(
    ("dtype", "cast", "precision", "outcome", "label"),
    [
        ("float32", "", "", "passed", "tf32"),
        ("float32", "", ", input_precision='ieee'", "passed", "fp32"),
        ("float32", ".to(tl.float16)", "", "passed", "fp16"),
        ("float32", ".to(tl.bfloat16)", "", "failed", "bf16"),
        ("float32", ".to(tl.float8e4nv)", "", "failed", "fp8"),
        ("bfloat16", "", "", "passed", "bf16"),
        ("bfloat16", ".to(tl.float8e4nv)", "", "failed", "fp8"),
    ],
)
def test_matmul_precision(
    zygotes: Zygotes, dtype: str, cast: str, precision: str, outcome: str, label: str
) -> None:  # fmt: skip
    source = MATMUL.replace("@CAST@", cast).replace("@PRECISION@", precision)
    declared = "" if dtype == "float32" else 'PRECISION = "bf16"\n'
    report = gate(zygotes, declared + problem("return x @ y", dtype, "(32, 32)"), source)
    assert (report.outcome, report.precision) == (outcome, label), report.reason


def test_atomics_and_float_arguments(zygotes: Zygotes) -> None:
    """A float argument is an fp32 scalar: fp16 * argument is not rounded to fp16."""
    candidate = (
        HEAD
        + """
@triton.jit
def k(x, o, n, scale, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=0.0)
    tl.atomic_add(o + i % 32, v * scale, mask=i < n)

class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.zeros(32, device="cuda", dtype=torch.float32)
        k[(triton.cdiv(x.numel(), 64),)](x, o, x.numel(), 0.1, B=64)
        return o
"""
    )
    text = problem("return (x.float() * 0.1).view(-1, 32).sum(0)", "float16", "(8, 32)", 1)
    report = gate(zygotes, text, candidate)
    assert report.outcome == "passed", report.reason
    assert not report.findings


def test_tensor_descriptor(zygotes: Zygotes) -> None:
    candidate = (
        HEAD
        + """
@triton.jit
def k(x, o, M, N, B: tl.constexpr):
    a = tl.make_tensor_descriptor(x, shape=[M, N], strides=[N, 1], block_shape=[B, B])
    b = tl.make_tensor_descriptor(o, shape=[M, N], strides=[N, 1], block_shape=[B, B])
    i, j = tl.program_id(0) * B, tl.program_id(1) * B
    b.store([i, j], a.load([i, j]) * 2.0)

class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        k[(triton.cdiv(x.shape[0], 16), triton.cdiv(x.shape[1], 16))](x, o, x.shape[0], x.shape[1], B=16)
        return o
"""
    )
    report = gate(zygotes, problem("return x * 2", shape="(20, 40)", inputs=1), candidate)
    assert report.outcome == "passed", report.reason


@pytest.mark.skipif(not hasattr(triton.language, "make_block_ptr"), reason="this Triton has no block pointers")
def test_block_pointer(zygotes: Zygotes) -> None:
    candidate = (
        HEAD
        + """
@triton.jit
def k(x, o, M, N, B: tl.constexpr):
    i, j = tl.program_id(0) * B, tl.program_id(1) * B
    a = tl.make_block_ptr(x, (M, N), (N, 1), (i, j), (B, B), (1, 0))
    b = tl.make_block_ptr(o, (M, N), (N, 1), (i, j), (B, B), (1, 0))
    tl.store(b, tl.load(a, boundary_check=(0, 1)) * 2.0, boundary_check=(0, 1))

class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        k[(triton.cdiv(x.shape[0], 16), triton.cdiv(x.shape[1], 16))](x, o, x.shape[0], x.shape[1], B=16)
        return o
"""
    )
    report = gate(zygotes, problem("return x * 2", shape="(20, 40)", inputs=1), candidate)
    if "removed" in report.reason:
        pytest.skip("this Triton has no block pointers")
    assert report.outcome == "passed", report.reason


def test_constants_and_types_are_unwrapped(zygotes: Zygotes) -> None:
    candidate = (
        HEAD
        + """
@triton.jit
def least(dtype: tl.constexpr, bits: tl.constexpr):
    kind = dtype.value
    if kind.is_floating():
        value: tl.constexpr = float("-inf")
    else:
        value: tl.constexpr = -1 * 2 ** (bits.value - 1)
    return value

@triton.jit
def k(x, o, n, B: tl.constexpr):
    r = tl.program_id(0); c = tl.arange(0, B)
    v = tl.load(x + r * n + c, mask=c < n, other=least(x.type.element_ty, 32))
    tl.store(o + r, tl.max(v, 0))

class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty(x.shape[0], device=x.device, dtype=x.dtype)
        k[(x.shape[0],)](x, o, x.shape[1], B=64)
        return o
"""
    )
    report = gate(zygotes, problem("return x.amax(1)", inputs=1), candidate)
    assert report.outcome == "passed", report.reason


def test_a_file_that_imports_no_language_as_a_whole(zygotes: Zygotes) -> None:
    candidate = """
import torch, torch.nn as nn, triton
from triton.language import arange, constexpr, load, program_id, range as counted, store
from triton.language.math import exp as power

@triton.jit
def twice(v):
    return power(v) + power(v)

@triton.jit
def k(x, o, n, B: constexpr):
    c = arange(0, B)
    for r in counted(program_id(0), program_id(0) + 1):
        store(o + r * n + c, twice(load(x + r * n + c, mask=c < n)), mask=c < n)

class ModelNew(nn.Module):
    def forward(self, x):
        o = torch.empty_like(x)
        k[(x.shape[0],)](x, o, x.shape[1], B=64)
        return o
"""
    report = gate(zygotes, problem("return 2 * torch.exp(x)", inputs=1), candidate)
    assert report.outcome == "passed", report.reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("tl.inline_asm_elementwise('mov.b32 $0, $1;', '=r,r', [v], dtype=tl.float32, is_pure=True, pack=1)",
         "inline assembly"),
        ("libdevice.cyl_bessel_i0(v)", "__nv_cyl_bessel_i0f"),
    ],
)  # fmt: skip
def test_what_the_interpreter_lacks_is_not_a_failure(zygotes: Zygotes, body: str, reason: str) -> None:
    report = gate(zygotes, problem("return x"), ROWS.replace("@BODY@", body))
    assert report.outcome == "not_applicable"
    assert reason in report.reason
