"""Attention whose scores are capped smoothly at +-20 by tanh, as in Gemma 2 (there at 50).

The queries are four times wider than a normal draw, so that the cap bites: at unit width a kernel without it
would be nearly right.
"""

import math

import torch
from torch import nn

TITLE = "Attention with soft-capped scores"
PRECISION = "fp16"
LIBRARY = "forbidden"
PROMPT = """\
Please write a GPU attention kernel to support soft-capped scores. Apply the cap on the fly within \
the kernel, after the scale by 1/sqrt(d) and before the softmax. The complete code should be \
returned, including the necessary modifications.

def softcap(score, b, h, q_idx, kv_idx):
    return 20 * tanh(score / 20)

A kernel that uses exp2 applies the factor 1.44269504 after the cap, not before it.
"""
WORKLOADS = [
    {"name": "small", "roles": ["small"], "constants": {"batch": 2, "heads": 2, "sequence": 128}},
    {"name": "small_odd", "roles": ["small"], "constants": {"batch": 1, "heads": 3, "sequence": 100}},
    {
        "name": "small_bf16",
        "roles": ["small"],
        "constants": {"batch": 1, "heads": 2, "sequence": 160, "head_dim": 32, "dtype": "bfloat16"},
    },
    {"name": "check_odd", "roles": ["check"], "constants": {"batch": 2, "heads": 3, "sequence": 1000}},
    {"name": "d64_fp16", "roles": ["check", "timed"]},
    {"name": "d128_bf16", "roles": ["check", "timed"], "constants": {"head_dim": 128, "dtype": "bfloat16"}},
    {"name": "held_out", "roles": ["held_out"], "constants": {"batch": 2, "heads": 24, "sequence": 3072}},
]

batch = 4
heads = 16
sequence = 4096
head_dim = 64
dtype = "float16"
cap = 20.0

# 4 flops for each pair of a query and a key and each element of a head: the products with k and with v.
FLOPS = 4 * batch * heads * sequence * sequence * head_dim


def score_mod(
    score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
) -> torch.Tensor:
    """The FlexAttention form of the cap."""
    return torch.tanh(score / cap) * cap


class Model(nn.Module):
    """softmax(cap tanh(q k^T / (cap sqrt(d)))) v."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: (batch, heads, sequence, head_dim), one dtype. Returns the same shape and dtype."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
        scores = self.cap * torch.tanh(scores / self.cap)
        return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


class Flex(Model):
    """FlexAttention, compiled."""

    def __init__(self, cap: float) -> None:
        super().__init__(cap)
        from torch.nn.attention.flex_attention import flex_attention

        self.attend = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attend(q, k, v, score_mod=score_mod)
        return out


BASELINES = {"flex": Flex, "cudnn": "cuDNN's attention does not cap scores"}
BASELINE = "flex"


def get_inputs() -> list[torch.Tensor]:
    shape = (batch, heads, sequence, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    return [4.0 * q, k, v]


def get_init_inputs() -> list[object]:
    return [cap]
