"""Product of two float32 matrices, TF32 allowed."""

import torch
from torch import nn

N = 4096
TITLE = "Matrix product"
PRECISION = "tf32"
WORKLOADS = [
    {"name": "small", "roles": ["small"], "constants": {"N": 128}},
    {"name": "large", "roles": ["timed"], "constants": {"N": 4096}},
]


class Model(nn.Module):
    def forward(self, a, b):
        return a @ b


def get_inputs():
    return [torch.randn(N, N), torch.randn(N, N)]


def get_init_inputs():
    return []
