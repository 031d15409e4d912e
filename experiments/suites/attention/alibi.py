"""Attention with linear biases (ALiBi, Press et al. 2022), one slope a head, no mask."""

import math

import torch
from torch import nn

TITLE = "Attention with ALiBi bias"
PRECISION = "fp16"
LIBRARY = "forbidden"
PROMPT = """\
Please write a GPU attention kernel to support the ALiBi bias. Compute the slope of the head and the \
bias on the fly within the kernel. The complete code should be returned, including the necessary \
modifications.

def alibi(score, b, h, q_idx, kv_idx):
    slope = 2 ** (-8 * (h + 1) / num_heads)
    return score + slope * (kv_idx - q_idx)

A kernel that uses exp2 has scores in units of log2(e): scale the bias by 1.44269504 as well.
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

# 4 flops for each pair of a query and a key and each element of a head: the products with k and with v.
FLOPS = 4 * batch * heads * sequence * sequence * head_dim


def score_mod(
    score: torch.Tensor, b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor
) -> torch.Tensor:
    """The FlexAttention form of the bias."""
    slope = torch.exp2(-8.0 * (h + 1) / heads)
    return score + slope * (kv_idx - q_idx)


class Model(nn.Module):
    """softmax(q k^T / sqrt(d) + slope[h] (j - i)) v for query i, key j; slope[h] = 2^(-8 (h + 1) / heads)."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: (batch, heads, sequence, head_dim), one dtype. Returns the same shape and dtype."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
        position = torch.arange(q.shape[-2], device=q.device)
        head = torch.arange(1, q.shape[1] + 1, device=q.device, dtype=wide)
        slopes = torch.exp2(-8.0 * head / q.shape[1])
        scores = scores + slopes[:, None, None] * (position[None, :] - position[:, None])
        return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


class Flex(Model):
    """FlexAttention, compiled."""

    def __init__(self) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import flex_attention

        self.attend = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attend(q, k, v, score_mod=score_mod)
        return out


BASELINES = {
    "flex": Flex,
    "cudnn": "it takes biases in 16 bits, which is too few for ALiBi's: a row of heavy-tailed inputs is wrong",
}
BASELINE = "flex"


def get_inputs() -> list[torch.Tensor]:
    shape = (batch, heads, sequence, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    return [q, k, v]


def get_init_inputs() -> list[object]:
    return []
