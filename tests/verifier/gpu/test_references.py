"""References that a judge keeps: which draws are new, which are kept, and that what is dropped leaves nothing."""

from __future__ import annotations

import gc
import linecache
import sys

import pytest
import torch

from verifier.gpu.host_device import HostDevice
from verifier.gpu.references import REFERENCES, References, Stochastic
from verifier.loader import parse_problem
from verifier.problem import Problem, Workload
from verifier.reference import Expected

TEXT = """
import torch
from torch import nn

WORKLOADS = [{"name": "w", "roles": ["timed"], "constants": {}}]


class Model(nn.Module):
    def forward(self, x, y):
        y += 1
        return x @ x.T


def get_inputs():
    return [torch.randn(20, 40), torch.zeros(3)]


def get_init_inputs():
    return []
"""


def parsed(text: str = TEXT) -> tuple[Problem, Workload]:
    problem = parse_problem(text, file="p.py", name="p")
    return problem, problem.workloads[0]


def made(references: References, name: str, salt: str, seed: int = 1) -> Expected:
    found = references.draw(references.get(*parsed(), seed), name, salt)
    assert isinstance(found, Expected)
    return found


def test_the_tasks_own_values_are_new_for_each_visit_and_the_others_are_kept() -> None:
    references = References(torch.device("cpu"))
    one, two = (made(references, "task", salt) for salt in "ab")
    assert not torch.equal(one.inputs[0], two.inputs[0])
    assert made(references, "task", "b") is two
    assert made(references, "normal", "a") is made(references, "normal", "b")
    assert made(references, "normal", "a", seed=2) is not made(references, "normal", "a")


def test_what_a_reference_writes_is_known_and_made_anew() -> None:
    found = made(References(torch.device("cpu")), "task", "")
    assert found.mutated == [1]
    assert torch.equal(found.inputs[1], torch.zeros(3))
    assert torch.equal(found.expected, found.inputs[0].double() @ found.inputs[0].double().T)


def test_costly_values_are_made_when_they_are_asked_for_and_count_then() -> None:
    found = made(References(torch.device("cpu")), "task", "")
    before = found.nbytes
    assert "expected" not in vars(found)
    assert found.expected.dtype == torch.float64
    assert found.nbytes == before + 20 * 20 * 8


def test_draws_beyond_the_limit_are_dropped() -> None:
    references = References(torch.device("cpu"), most=40_000)
    first = made(references, "normal", "")
    for seed in range(2, 12):
        made(references, "normal", "", seed)
    assert made(references, "normal", "") is not first


def test_references_whose_weights_are_beyond_the_limit_are_dropped() -> None:
    weighted = "class Model(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    weighted += "        self.w = nn.Parameter(torch.zeros(1000))\n\n"
    problem, workload = parsed(TEXT.replace("class Model(nn.Module):\n", weighted))
    references = References(torch.device("cpu"), most=40_000)  # a quarter for weights: two references
    first, second, third = (references.get(problem, workload, seed) for seed in (1, 2, 3))
    assert references.get(problem, workload, 3) is third
    assert references.get(problem, workload, 2) is second
    assert references.get(problem, workload, 1) is not first


def test_dropped_references_leave_no_module_behind() -> None:
    def modules() -> tuple[int, int]:
        gc.collect()
        return len(sys.modules), len(linecache.cache)

    references = References(torch.device("cpu"))
    for seed in range(REFERENCES):
        made(references, "task", "", seed)
    before = modules()
    for seed in range(REFERENCES, 3 * REFERENCES):
        made(references, "task", "", seed)
    assert modules() == before


def test_a_random_reference_is_refused_for_every_seed() -> None:
    problem, workload = parsed(TEXT.replace("x @ x.T", "x * torch.rand(())"))
    references = References(torch.device("cpu"))
    for seed in (1, 2):
        with pytest.raises(Stochastic):
            references.get(problem, workload, seed)


def test_draws_give_way_to_what_a_visit_needs() -> None:
    class Full(HostDevice):
        def free_bytes(self) -> int:
            return 1000 if len(references._draws) < 2 else 10

    references = References(torch.device("cpu"))
    for seed in (1, 2, 3):
        made(references, "normal", "", seed)
    references.make_room(Full(), 500)
    assert [key[0][2] for key in references._draws] == [3]
