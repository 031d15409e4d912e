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
_OTHER = CUDA_CORE.replace("* 2.0f", "* 3.0f").split("Device().set")[0].split("CODE = ")[1]
FORGED = {
    "machine code": "cubin=other.cubin",
    "machine code and PTX": "cubin=other.cubin, ptx=other.ptx",
    "PTX": "ptx=module.compiled.ptx.replace('add', 'sub')",
}
"""What a file puts in place of what the compiler made."""
FORGERY = f"""import dataclasses
from cuda.core import Program, ProgramOptions
OTHER = {_OTHER}
def forged(compiled):
    module = compiled._module
    other = Program(OTHER, code_type="c++", options=ProgramOptions(arch="sm_90a")).compile("cubin")._module.compiled
    module.compiled = dataclasses.replace(module.compiled, HOW)
    return compiled
"""

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


@pytest.mark.parametrize("how", FORGED)
def test_code_that_its_source_does_not_compile_to_is_refused(judge: Judge, how: str) -> None:
    made = CUDA_CORE.replace("kernel = Program", "kernel = forged(Program").replace('("cubin")', '("cubin"))')
    verdict = judge.judge(Candidate(source=FORGERY.replace("HOW", FORGED[how]) + made))
    assert (verdict.status, verdict.stage) == (Status.REJECTED, Stage.AUDIT)
    assert "its source compiles to" in verdict.reason


def test_options_may_have_their_values_in_words_of_their_own(judge: Judge) -> None:
    source = """import cupy, torch
from torch import nn
CODE = 'extern "C" __global__ void k(const float* x, const float* y, float* o, int n) { int i = blockIdx.x * 96 + '
CODE += 'threadIdx.x; if (i < n) o[i] = x[i] * TWO + y[i]; }'
WORDS = ("-D", "TWO=2.0f", "-Xptxas", "-O2", "--maxrregcount", "64", "-std=c++17", "--use_fast_math")
kernel = cupy.RawKernel(CODE, "k", WORDS)
class ModelNew(nn.Module):
    def forward(self, x, y):
        o = torch.empty_like(x)
        kernel(((x.numel() + 95) // 96,), (96,), (x.data_ptr(), y.data_ptr(), o.data_ptr(), x.numel()))
        return o
"""
    assert judge.judge(Candidate(source=source)).status is Status.UNTESTED


def test_an_option_that_brings_in_code_from_elsewhere_is_refused(judge: Judge) -> None:
    made = CUDA_CORE.replace('arch="sm_90a"', 'arch="sm_90a", ptxas_options="--options-file=more.txt"')
    verdict = judge.judge(Candidate(source="open('more.txt', 'w').write('-O3')\n" + made))
    assert verdict.status is Status.REJECTED
    assert "the option `--options-file=more.txt` is not one that a candidate may give" in verdict.reason
