"""A function plus example inputs makes a problem."""

from __future__ import annotations

import functools
import math
from math import sqrt as root

import numpy
import pytest
import torch
import torch.nn.functional as F

from experiments.function_problem import problem_from_function
from verifier.errors import UsageError
from verifier.loader import inspect_arguments, materialize
from verifier.problem import Precision, Role

SLOPE = 0.5
SIZES = (2, 3)
WIDE = torch.float64
TENSOR = torch.ones(2)


def helper(x: torch.Tensor) -> torch.Tensor:
    return other(x) * SLOPE


def other(x: torch.Tensor, depth: int = SIZES[0]) -> torch.Tensor:
    return helper(x) if depth < 0 else x + depth


def reference(x: torch.Tensor, index: torch.Tensor, scale: float, flag: bool = True) -> torch.Tensor:
    """Uses a helper, modules under other names, a constant and a dtype."""
    parts = [F.relu(helper(x)).to(WIDE) for _ in range(SIZES[0])]
    return (sum(parts) * scale * root(4.0) * math.pi)[index] if flag else x


def test_a_function_becomes_a_problem_that_computes_the_same() -> None:
    x, index = torch.randn(4, 3), torch.tensor([3, 1])
    problem = problem_from_function(reference, [x, index, float("inf")])
    assert (problem.name, problem.precision) == ("function:reference", Precision.TF32)
    (workload,) = problem.workloads
    assert workload.roles == {Role.CHECK, Role.TIMED}
    module = materialize(problem, workload)
    assert torch.equal(module.Model()(x, index, 2.0), reference(x, index, 2.0))
    assert module.get_inputs()[2] == float("inf")
    drawn = module.get_inputs()[1]
    assert drawn.dtype == torch.int64
    assert 1 <= int(drawn.min()) <= int(drawn.max()) <= 3


def first(*, x: torch.Tensor) -> torch.Tensor:
    return x


def several(*xs: torch.Tensor) -> torch.Tensor:
    return xs[0]


def pair(x: object, y: object) -> object:
    return x


def uses_tensor(x: torch.Tensor) -> torch.Tensor:
    return x + TENSOR


def test_inputs_keep_shape_dtype_and_stride() -> None:
    x = torch.zeros(4, 6, dtype=torch.bfloat16).t()
    y = [torch.zeros(3, dtype=torch.bool), None, "text", (1, 2.5), torch.zeros(0, 2, dtype=torch.int32)]
    problem = problem_from_function(pair, [x, y], name="mine")
    assert (problem.name, problem.precision) == ("mine", Precision.BF16)
    got, rest = inspect_arguments(problem, problem.workloads[0])["inputs"]
    assert got == {"kind": "tensor", "shape": [6, 4], "dtype": "bfloat16", "stride": [1, 6]}
    boolean, nothing, text, numbers, empty = rest["items"]
    assert (boolean["dtype"], nothing["value"], text["value"]) == ("bool", None, "text")
    assert [item["value"] for item in numbers["items"]] == [1, 2.5]
    assert (empty["shape"], empty["dtype"]) == ([0, 2], "int32")


def test_what_cannot_be_written_down_is_refused() -> None:
    alpha = 2.0

    def closure(x: torch.Tensor) -> torch.Tensor:
        return alpha * x

    @functools.wraps(pair)
    def wrapped(x: object, y: object) -> object:
        return pair(x, y)

    x = torch.zeros(2)
    cases = [
        (closure, [x], "`closure` uses `alpha` of an enclosing function"),
        (lambda x: x, [x], "a lambda has no source"),
        (torch.nn.ReLU(), [x], "`ReLU` is a ReLU; wrap it"),
        (torch.relu, [x], "wrap it in a function"),
        (wrapped, [x, x], "is decorated"),
        (uses_tensor, [x], "`uses_tensor` uses `TENSOR`, a Tensor that no problem file can hold"),
        (pair, [x], "do not fit `pair`"),
        (first, [x], "do not fit `first`"),
        (several, [x], "name its parameters one by one"),
        (pair, [x, numpy.zeros(2)], "an example input is a ndarray"),
    ]
    for function, examples, message in cases:
        with pytest.raises(UsageError) as caught:
            problem_from_function(function, examples)
        assert message in str(caught.value)
