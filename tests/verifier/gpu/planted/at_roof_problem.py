"""Scaled sum of two large vectors."""

import torch
from torch import nn

N = 67108864
TITLE = "Scaled sum"
WORKLOADS = [
    {"name": "small", "roles": ["small"], "constants": {"N": 3000}},
    {"name": "large", "roles": ["timed"], "constants": {"N": 67108864}},
]


class Model(nn.Module):
    def forward(self, x, y):
        return x * 2.0 + y


def get_inputs():
    return [torch.randn(N), torch.randn(N)]


def get_init_inputs():
    return []
