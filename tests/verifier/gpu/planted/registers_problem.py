"""Causal linear attention without normalisation."""

import torch
from torch import nn

HEADS = 2048
T = 256
TITLE = "Causal linear attention"
WORKLOADS = [
    {"name": "small", "roles": ["small"], "constants": {"HEADS": 2, "T": 24}},
    {"name": "large", "roles": ["timed"], "constants": {"HEADS": 2048, "T": 256}},
]


class Model(nn.Module):
    def forward(self, q, k, v):
        return (q @ k.transpose(1, 2)).tril() @ v


def get_inputs():
    return [torch.randn(HEADS, T, 128) for _ in range(3)]


def get_init_inputs():
    return []
