"""Normalised rows, scaled by their range."""

import torch
from torch import nn

ROWS = 512
N = 524288
TITLE = "Normalised rows"
WORKLOADS = [
    {"name": "small", "roles": ["small"], "constants": {"ROWS": 3, "N": 5000}},
    {"name": "large", "roles": ["timed"], "constants": {"ROWS": 512, "N": 524288}},
]


class Model(nn.Module):
    def forward(self, x):
        mean = x.mean(1, keepdim=True)
        deviation = ((x - mean) ** 2).mean(1, keepdim=True).sqrt()
        span = x.amax(1, keepdim=True) - x.amin(1, keepdim=True)
        return (x - mean) / (deviation + 1e-5) * span


def get_inputs():
    return [torch.randn(ROWS, N)]


def get_init_inputs():
    return []
