"""A plan as a module that runs from its folder, without the project."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from verifier.gpu.host_device import HostLauncher, tensor_at
from verifier.gpu.memory import ReplayError
from verifier.gpu.plan_module import PlanModule
from verifier.gpu.replay_folder import Replay, write_folder
from verifier.gpu.ship import write_launcher
from verifier.interpreter.gate import Zygotes
from verifier.loader import parse_problem

LINEAR = """\
import torch
from torch import nn

N = 64


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N, 8)

    def forward(self, x):
        return torch.relu(self.linear(x))


def get_inputs():
    return [torch.randn(16, N)]


def get_init_inputs():
    return []
"""


@pytest.fixture(scope="module")
def folder(zygotes: Zygotes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan of library steps with its launcher."""
    problem = parse_problem(LINEAR, file="linear.py", name="linear")
    name = problem.workloads[0].name
    workload = {"name": name, "init": [], "init_kwargs": {},
                "inputs": [{"kind": "tensor", "shape": [16, 64], "dtype": "float32", "stride": None}]}  # fmt: skip
    payload = {"source": LINEAR, "filename": "f.py", "class": "Model", "target": "sm_90a", "workloads": [workload]}
    job = zygotes.compile.run("verifier.plan.trace:trace_job", payload)
    assert job.value["status"] == "ok", job.value
    made = tmp_path_factory.mktemp("best")
    write_folder(made / "plan", job.value["plan"], job.blobs, Replay(problem=problem, workload=name, seed=1))
    write_launcher(made)
    return made


def test_the_folder_runs_without_the_project(folder: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import kernel, torch, verifier
assert verifier.__file__.startswith(sys.argv[1]), verifier.__file__
model = kernel.ModelNew(device="cpu")
linear = torch.nn.Linear(64, 8)
model.load_weights({"linear.weight": linear.weight.detach(), "linear.bias": linear.bias.detach()})
for x in (torch.randn(16, 64), torch.randn(64, 16).T):
    assert torch.allclose(model(x), torch.relu(linear(x)), atol=1e-5)
import verifier.gpu.replay_once
print("same")
"""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-P", "-c", code, str(folder)], capture_output=True, text=True, env=environ, cwd="/"
    )
    assert said.stdout == "same\n", said.stderr


def test_without_weights_it_has_those_of_its_seed(folder: Path) -> None:
    x = torch.randn(16, 64)
    one, same, other = (PlanModule(folder / "plan", seed=s, device="cpu")(x) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_other_shapes_are_refused(folder: Path) -> None:
    with pytest.raises(ReplayError, match="no program of the plan takes"):
        PlanModule(folder / "plan", device="cpu")(torch.randn(3, 64))


def test_kernels_go_through_the_launcher(planted: Any, tmp_path: Path) -> None:
    _, plan, blobs = planted
    text = (Path(__file__).parent / "planted" / "at_roof_problem.py").read_text()
    problem = parse_problem(text, file="at_roof.py", name="at_roof")
    write_folder(tmp_path, plan, blobs, Replay(problem=problem, workload="small", seed=3))

    def kernel(launch: Any, addresses: Any) -> None:
        x, y, out = (tensor_at(a, 3000, torch.float32) for a in addresses[:3])
        torch.add(y, x, alpha=2.0, out=out)

    x, y = torch.randn(3000), torch.randn(3000)
    model = PlanModule(tmp_path, device="cpu", launcher=HostLauncher({"kernel": kernel}))
    assert torch.equal(model(x, y), torch.add(y, x, alpha=2.0))
