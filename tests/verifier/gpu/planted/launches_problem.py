"""Forty steps of a decay on a short vector."""

import torch
from torch import nn

N = 4096
TITLE = "Decay"
WORKLOADS = [{"name": "small", "roles": ["small", "timed"], "constants": {"N": 4096}}]


class Model(nn.Module):
    def forward(self, x):
        for _ in range(40):
            x = x * 0.99 + 0.01
        return x


def get_inputs():
    return [torch.randn(N)]


def get_init_inputs():
    return []
