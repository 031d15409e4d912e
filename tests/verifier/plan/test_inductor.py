"""What `torch.compile` makes of a trusted file is in its plan: Inductor's kernels and its library calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from verifier.baseline import BASELINE_JOB, TRACE_JOB
from verifier.interpreter.gate import Zygotes
from verifier.plan.reader import read_plan
from verifier.plan.schema import AtenStep, LaunchStep, Plan
from verifier.sandbox.zygote import JobResult

Traced = Callable[..., JobResult]

FILE = """\
import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 128)
        self.register_buffer("calls", torch.zeros(()))

    def compute(self, x):
        self.calls += 1
        return torch.relu(self.linear(x)) * self.calls, x.sum(1)


class Compiled(Model):
    def __init__(self):
        super().__init__()
        self.run = torch.compile(self.compute, mode="max-autotune-no-cudagraphs")

    def forward(self, x):
        return self.run(x)


class Doubled(nn.Module):
    def forward(self, x):
        return torch.compile(lambda y: y * 2)(x)


class Broken(Compiled):
    def compute(self, x):
        torch._dynamo.graph_break()
        return x
"""


@pytest.fixture(scope="module")
def traced(zygotes: Zygotes) -> Traced:
    def trace(owner: str, job: str = BASELINE_JOB, **more: Any) -> JobResult:
        tensor = {"kind": "tensor", "shape": [32, 64], "dtype": "float32", "stride": None}
        workload = {"name": "w", "init": [], "init_kwargs": {}, "inputs": [tensor]}
        payload = {"source": FILE, "filename": "f.py", "class": owner, "target": "h100-sxm", "workloads": [workload]}
        result = zygotes.compile.run(job, payload | more)
        assert result.outcome == "ok", result.error
        return result

    return trace


def plan_of(result: JobResult) -> Plan:
    assert result.value["status"] == "ok", result.value["diagnostics"]
    return read_plan(result.value["plan"], result.blobs)


def test_the_plan_has_inductors_kernels_and_its_library_calls(traced: Traced) -> None:
    """And the state that forward changes, which is inside of the compiled graph."""
    plan = plan_of(traced("Compiled"))
    program = plan.programs[0]
    launches = [plan.kernels[s.kernel].name for s in program.forward if isinstance(s, LaunchStep)]
    library = {s.op for s in program.forward if isinstance(s, AtenStep) and s.role != "alloc"}
    assert launches
    assert all(name.startswith("triton_") for name in launches)
    assert library & {"aten::mm.out", "aten::addmm.out"}
    assert set(program.parameters) == {"linear.weight", "linear.bias", "calls"}
    (counted,) = program.restore
    assert program.storages[counted].bytes == 4
    assert len(program.output_values()) == 2


def test_what_a_device_tuned_stands_for_what_rules_choose(traced: Traced) -> None:
    """A module with another name for a kernel, and another number of warps for it, come back in the plan."""
    text = """\
import torch
from torch._inductor.async_compile import AsyncCompile

async_compile = AsyncCompile()
empty_strided_cuda = torch._C._dynamo.guards._empty_strided_cuda
tuned_kernel = async_compile.triton('tuned_kernel', '''
import triton
import triton.language as tl

from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.hints import DeviceProperties
triton_helpers.set_driver_to_gpu()

@triton_heuristics.pointwise(
    size_hints={'x': 4096},
    filename=__file__,
    triton_meta={'signature': {'in_ptr0': '*fp32', 'out_ptr0': '*fp32', 'xnumel': 'i32', 'XBLOCK': 'constexpr'}, 'device': DeviceProperties(type='cuda', index=0, multi_processor_count=132, cc=90, major=9, regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, warp_size=32), 'constants': {}, 'configs': [{(0,): [['tt.divisibility', 16]], (1,): [['tt.divisibility', 16]]}]},
    inductor_meta={'grid_type': 'Grid1D', 'kernel_name': 'tuned_kernel', 'mutated_arg_names': [], 'backend_hash': '', 'coordinate_descent_tuning': True},
    min_elem_per_thread=0
)
@triton.jit
def tuned_kernel(in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    xindex = tl.program_id(0) * XBLOCK + tl.arange(0, XBLOCK)[:]
    tl.store(out_ptr0 + xindex, tl.load(in_ptr0 + xindex, xindex < xnumel), xindex < xnumel)
''', device_str='cuda')
async_compile.wait(globals())


def call(args):
    x, = args
    y = empty_strided_cuda((32, 64), (64, 1), torch.float32)
    tuned_kernel.run(x, y, 2048, stream=0)
    return (y,)
"""  # noqa: E501 - as Inductor writes it
    choices = {"tuned_kernel": {"kwargs": {"XBLOCK": 256}, "num_warps": 8, "num_stages": 1}}
    plan = plan_of(traced("Doubled", tuned={"modules": [text], "choices": choices}))
    (launch,) = plan.programs[0].launches()
    image = plan.kernels[launch.kernel]
    assert (image.name, image.num_warps, launch.alternatives[0].grid) == ("tuned_kernel", 8, (8, 1, 1))


def test_a_second_graph_is_refused_by_name(traced: Traced) -> None:
    result = traced("Broken")
    assert result.value["status"] != "ok"
    assert "graph" in result.value["diagnostics"][0]["message"].lower()


def test_a_candidates_compile_is_still_seen_through(traced: Traced) -> None:
    plan = plan_of(traced("Compiled", job=TRACE_JOB))
    assert not any(isinstance(step, LaunchStep) for step in plan.programs[0].forward)
