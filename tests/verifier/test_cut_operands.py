"""Products whose operands tensor cores cut off to TF32 are right; narrower ones are not, whatever the inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from verifier import numerics
from verifier.interpreter.precise import cut_to_tf32
from verifier.loader import parse_problem
from verifier.problem import Precision
from verifier.reference import Expected, Reference

PROBLEM = """
import torch
import torch.nn as nn
N = 256
WORKLOADS = [{"name": "main", "roles": ["timed"]}]
class Model(nn.Module):
    def forward(self, a, b):
        return torch.relu(a @ b)
def get_inputs(): return [torch.rand(N, N), torch.rand(N, N)]
def get_init_inputs(): return []
"""
FP16 = Precision.FP16


@pytest.fixture(scope="module")
def reference() -> Reference:
    problem = parse_problem(PROBLEM, file="p.py", name="p")
    return Reference.create(problem, problem.workloads[0], 3)


def passes(made: Expected, output: Tensor, precision: Precision = Precision.TF32) -> tuple[bool, bool]:
    """By PyTorch's own result in the contract's precision, and by the second yardstick."""
    first, second = (
        numerics.compare(output, made.expected, made.native, precision, yardstick=ruler, margin=margin).passed
        for ruler, margin in ((made.ruler, numerics.MARGIN), (made.cut, made.cut_margin))
    )
    return first, second


def product(made: Expected, scale: float = 1.0) -> Tensor:
    a, b = (cut_to_tf32(t) for t in made.inputs)
    return torch.relu(a @ b) * scale


def test_cut_operands_of_one_sign_pass_by_the_second_yardstick_only(reference: Reference) -> None:
    made = reference.draw("task")
    assert passes(made, product(made)) == (False, True)
    assert passes(made, product(made, 1 - 5e-4)) == (False, False)


def test_cut_operands_pass_on_a_nearly_constant_output() -> None:
    """Of both errors the same is forgiven there, which is much of them."""
    problem = parse_problem(PROBLEM.replace("torch.relu(a @ b)", "a @ b + 3400"), file="p.py", name="p")
    made = Reference.create(problem, problem.workloads[0], 3).draw("task")
    assert passes(made, product(made) + 3400) == (False, True)
    assert passes(made, product(made, 1 - 5e-4) + 3400) == (False, False)


def test_bf16_fails_where_signs_are_mixed(reference: Reference) -> None:
    made = reference.draw("normal")
    assert passes(made, product(made)) == (True, True)
    a, b = (t.bfloat16().float() for t in made.inputs)
    assert passes(made, torch.relu(a @ b)) == (False, False)


def test_other_contracts_and_references_without_products_have_no_second_yardstick() -> None:
    for text in (PROBLEM + "PRECISION = 'fp32'\n", PROBLEM.replace("a @ b", "a + b")):
        problem = parse_problem(text, file="p.py", name="p")
        assert Reference.create(problem, problem.workloads[0], 3).draw("task").cut is None


def test_cutting_keeps_what_is_not_finite() -> None:
    special = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1.0, 1 + 2.0**-11, -1 - 2.0**-10])
    kept = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, 1.0, 1.0, -1 - 2.0**-10])
    assert torch.equal(cut_to_tf32(special).nan_to_num(7.0), kept.nan_to_num(7.0))


def test_fused_attention_is_a_product_too() -> None:
    text = PROBLEM.replace("torch.relu(a @ b)", "torch.nn.functional.scaled_dot_product_attention(a, b, b)")
    text = text.replace("torch.rand(N, N)", "torch.rand(1, 2, N, 32)")
    problem = parse_problem(text, file="p.py", name="p")
    made = Reference.create(problem, problem.workloads[0], 3).draw("task")
    assert made.yardstick is not None
    a, b = (cut_to_tf32(t) for t in made.inputs)
    assert passes(made, torch.nn.functional.scaled_dot_product_attention(a, b, b))[1]


ATTENTION = """
import math, torch, torch.nn as nn
PRECISION = "fp16"
WORKLOADS = [{"name": "main", "roles": ["timed"]}]
class Model(nn.Module):
    def forward(self, q, k, v):
        scores = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
        return (torch.softmax(scores, -1).to(v.dtype) @ v)
def get_inputs(): return [torch.randn(1, 4, 512, 128).bfloat16() for _ in range(3)]
def get_init_inputs(): return []
"""


def attention(made: Expected, scale: Callable[[Tensor], Tensor]) -> Tensor:
    q, k, v = made.inputs
    q = scale(q.float() / 128**0.5)
    return torch.softmax(q @ k.float().mT, -1).to(v.dtype) @ v


def test_queries_scaled_in_16_bits_pass_where_scores_are_large_and_8_bits_do_not() -> None:
    problem = parse_problem(ATTENTION, file="p.py", name="p")
    reference = Reference.create(problem, problem.workloads[0], 3)
    heavy, task = reference.draw("heavy_tailed"), reference.draw("task")
    assert passes(heavy, attention(heavy, lambda q: q), FP16) == (True, True)
    assert passes(heavy, attention(heavy, lambda q: q.bfloat16().float()), FP16) == (False, True)
    assert passes(task, attention(task, lambda q: q.to(torch.float8_e4m3fn).float()), FP16) == (False, False)
