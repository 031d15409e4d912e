"""cuda.core: a cooperative launch whose blocks meet at a grid barrier."""

import torch
from cuda.core import Device, LaunchConfig, Program, ProgramOptions, launch
from torch import nn

INCLUDE = ["/usr/local/cuda/include", "/usr/local/cuda/include/cccl"]
CODE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void normalise(const float* x, float* y, float* parts, int n) {
    cg::grid_group grid = cg::this_grid();
    __shared__ float sums[256];
    float total = 0;
    for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) total += x[i];
    sums[threadIdx.x] = total;
    __syncthreads();
    for (int s = 128; s > 0; s >>= 1) {
        if (threadIdx.x < s) sums[threadIdx.x] += sums[threadIdx.x + s];
        __syncthreads();
    }
    if (threadIdx.x == 0) parts[blockIdx.x] = sums[0];
    grid.sync();
    float whole = 0;
    for (int b = 0; b < gridDim.x; b++) whole += parts[b];
    for (int i = blockIdx.x * 256 + threadIdx.x; i < n; i += gridDim.x * 256) y[i] = x[i] - whole / n;
}
"""


class Model(nn.Module):
    def forward(self, x):
        return x - x.mean()


class ModelNew(nn.Module):
    def __init__(self):
        super().__init__()
        Device().set_current()
        options = ProgramOptions(std="c++17", arch="sm_90a", include_path=INCLUDE)
        self.kernel = Program(CODE, code_type="c++", options=options).compile("cubin").get_kernel("normalise")

    def forward(self, x):
        y, parts = torch.empty_like(x), x.new_empty(128)
        config = LaunchConfig(grid=128, block=256, is_cooperative=True)
        stream = torch.cuda.current_stream()
        launch(stream, config, self.kernel, x.data_ptr(), y.data_ptr(), parts.data_ptr(), x.numel())
        return y


def get_inputs():
    return [torch.rand(777, 1001)]


def get_init_inputs():
    return []
