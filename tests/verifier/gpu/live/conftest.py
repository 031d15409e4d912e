"""Live visits on the host's memory: real processes, real confinement, no GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from verifier.gpu.supervisor import GpuWorker, Plans
from verifier.gpu.visit import Request, Visit
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem
from verifier.problem import Problem
from verifier.timing import Rules

N = 300
HONEST = """\
import torch
from torch import nn


class ModelNew(nn.Module):
    def forward(self, x, y):
        return torch.add(y, x, alpha=2.0)
"""
HEAD = HONEST.partition("\n\nclass")[0]
NATIVE = """\
import os, torch
from pathlib import Path
from torch import nn
from torch.utils import cpp_extension

Path("plain.cpp").write_text('''
#include <Python.h>
static PyObject* twice(PyObject*, PyObject* x) { return PyFloat_FromDouble(2 * PyFloat_AsDouble(x)); }
static PyMethodDef methods[] = {{"twice", twice, METH_O, ""}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef plain = {PyModuleDef_HEAD_INIT, "plain", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_plain() { return PyModule_Create(&plain); }
''')
plain = cpp_extension.load("plain", ["plain.cpp"])


class ModelNew(nn.Module):
    def forward(self, x, y):
        if os.path.getmtime(plain.__file__) > os.path.getmtime("candidate.py"):
            raise RuntimeError("built again")
        return x * plain.twice(1.0) + y
"""
"""Builds an extension, of little, and fails where that is built again after the file was loaded."""
Live = Callable[..., Visit]


def forward(body: str, head: str = "") -> str:
    """A candidate whose forward is `body`."""
    lines = "\n".join(f"        {line}" for line in body.splitlines())
    return f"{HEAD}\n{head}\n\nclass ModelNew(nn.Module):\n    def forward(self, x, y):\n{lines}\n"


@pytest.fixture(scope="session")
def problem(problem_text: str) -> Problem:
    """x * 2 + y, elementwise; workload `small` has 300 elements."""
    return parse_problem(problem_text, file="scaled_sum.py", name="scaled_sum")


@pytest.fixture(scope="session")
def base(zygotes: Zygotes, problem_text: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Plan and blobs of the reference."""
    tensor = {"kind": "tensor", "shape": [N], "dtype": "float32", "stride": None}
    workload = {"name": "small", "init": [], "init_kwargs": {}, "inputs": [tensor, tensor]}
    payload = {"source": problem_text, "filename": "f.py", "class": "Model", "target": "sm_90a",
               "workloads": [workload]}  # fmt: skip
    job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
    assert job.value["status"] == "ok", job.value
    return job.value["plan"], job.blobs


@pytest.fixture(scope="session")
def worker() -> Iterator[GpuWorker]:
    with GpuWorker("verifier.gpu.host_device:open_device") as started:
        yield started


@pytest.fixture(scope="session")
def request_of(problem: Problem) -> Callable[..., Request]:
    """A live request for workload `small`; few blocks, and no care for what else the machine does."""

    def make(**changes: Any) -> Request:
        known = {"path": "live", "problem": problem, "seed": 7, "workloads": ("small",), "command_seconds": 30.0}
        known |= {"rules": Rules(max_blocks=6, max_seconds=30, uneven=0.0), "disturbance": 1e9}
        return Request(**{**known, **changes})

    return make


@pytest.fixture(scope="session")
def live(worker: GpuWorker, base: tuple[dict[str, Any], dict[str, bytes]], request_of: Callable[..., Request]) -> Live:
    """The visit of a candidate's source; keywords change the request."""

    def judged(source: str, **changes: Any) -> Visit:
        return worker.visit(request_of(**changes), Plans(base=base[0], base_blobs=base[1], source=source))

    return judged


QUICK = {"draws": ("task",), "repeats": 2, "probe": False}
"""Little checking before what a test is about."""
