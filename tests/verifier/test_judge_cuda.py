"""The judge on CUDA C++, compiled inside the sandbox: traced and profiled, and honest about what it cannot test."""

from __future__ import annotations

from pathlib import Path

import pytest

from verifier.candidate import Candidate
from verifier.interpreter.gate import Zygotes
from verifier.judge import Judge
from verifier.loader import load_problem
from verifier.plan import nvrtc
from verifier.verdict import Stage, Status

pytestmark = pytest.mark.skipif(not nvrtc.present(), reason=nvrtc.MISSING)

CUDA_CORE = '''import torch
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
from torch import nn

CODE = r"""
extern "C" __global__ void scaled_sum(const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * 2.0f + y[i];
}
"""
Device().set_current()
kernel = Program(CODE, code_type="c++", options=ProgramOptions(arch="sm_90a")).compile("cubin").get_kernel("scaled_sum")


class ModelNew(nn.Module):
    def forward(self, x, y):
        out = torch.empty_like(x)
        config = LaunchConfig(grid=(x.numel() + 95) // 96, block=96)
        args = (x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel())
        launch(torch.cuda.current_stream(), config, kernel, *args)
        return out
'''

EXTENSION = '''import torch
from torch import nn
from torch.utils.cpp_extension import load_inline

SOURCE = r"""
#include <torch/extension.h>
__global__ void scaled_sum(const float* x, const float* y, float* out, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) out[i] = x[i] * 2.0f + y[i];
}
torch::Tensor run(torch::Tensor x, torch::Tensor y) {
    auto out = torch::empty_like(x);
    auto p = out.data_ptr<float>();
    scaled_sum<<<(x.numel() + 95) / 96, 96>>>(x.data_ptr<float>(), y.data_ptr<float>(), p, x.numel());
    return out;
}
"""
extension = load_inline("scaled_sum", "torch::Tensor run(torch::Tensor x, torch::Tensor y);", SOURCE, functions=["run"])


class ModelNew(nn.Module):
    def forward(self, x, y):
        return extension.run(x, y)
'''


@pytest.fixture
def judge(zygotes: Zygotes, problem_file: Path) -> Judge:
    return Judge(load_problem(problem_file), zygotes, seed=1)


def test_a_launch_through_cuda_core_is_traced_profiled_and_untested(judge: Judge) -> None:
    verdict = judge.judge(Candidate(source=CUDA_CORE))
    assert (verdict.status, verdict.stage, verdict.basis) == (Status.UNTESTED, Stage.INTERPRET, "none")
    assert "CUDA C++" in verdict.reason
    assert verdict.compile is not None
    (kernel,), (launch,) = verdict.compile.kernels, verdict.compile.launches
    assert (kernel.name, kernel.num_warps, kernel.spill_bytes) == ("scaled_sum", 3, 0)
    assert kernel.registers > 0
    assert kernel.instructions["load global 32"] == 2
    assert (launch.threads, launch.grid) == (96, (4, 1, 1))
    assert not verdict.compile.findings


@pytest.mark.parametrize(
    ("source", "status", "words"),
    [
        (EXTENSION, Status.UNTRACEABLE, "native host code"),
        (EXTENSION.replace("y[i];", "z[i];"), Status.COMPILE_ERROR, 'identifier "z" is undefined'),
        (CUDA_CORE.replace("y[i];", "z[i];"), Status.COMPILE_ERROR, 'identifier "z" is undefined'),
        (CUDA_CORE.replace("block=96", "block=1500"), Status.OVER_LIMITS, "outside 1 to 1024"),
        (CUDA_CORE.replace("return out", "return x * 2.0 + y"), Status.REJECTED, "no custom kernel"),
    ],
    ids=["extension", "extension-error", "core-error", "block", "decoy"],
)
def test_what_does_not_pass(judge: Judge, source: str, status: Status, words: str) -> None:
    verdict = judge.judge(Candidate(source=source))
    assert verdict.status is status
    assert words in verdict.reason
