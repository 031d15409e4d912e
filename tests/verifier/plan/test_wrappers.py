"""What stands for calls below torch's own functions, also where torch was built for GPUs and has them."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import torch
torch._C._cuda_getCurrentRawStream = lambda device: 1 / 0  # that of a CUDA build where no GPU may be used
from verifier.plan import wrappers
wrappers.install(7)
assert torch._C._cuda_getCurrentRawStream(0) == 7
reinterpreted = torch.ops.inductor._reinterpret_tensor(torch.arange(12.0)[2:], (2, 3), (4, 1), 1)
assert reinterpreted.tolist() == [[3, 4, 5], [7, 8, 9]]
torch.empty_strided = lambda *args, **kwargs: (args, kwargs)
made = torch._C._dynamo.guards._empty_strided_cuda((3,), (1,), torch.half)
assert made == (((3,), (1,)), {"dtype": torch.half, "device": "cuda"})
from triton._C.libtriton import nvidia
handle = nvidia.cublas.CublasLt(torch.empty(8))
try:
    handle.matmul()
except NotImplementedError as error:
    print(error)
"""


def test_they_are_answered_without_a_gpu() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "`matmul` of Triton's handle of cuBLAS cannot be in a plan; torch.matmul can\n"
