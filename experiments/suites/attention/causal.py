"""Causal attention: a query sees its own position and those before it."""

import math

import torch
from torch import nn

TITLE = "Causal attention"
PRECISION = "fp16"
LIBRARY = "forbidden"
PROMPT = """\
Please write a GPU attention kernel to support causal masking. Apply the mask on the fly within the \
kernel and skip the blocks that it hides. The complete code should be returned, including the \
necessary modifications.

def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx
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

# 4 flops for each pair of a query and a key and each element of a head: the products with k and with v; the
# mask hides almost half of the pairs.
FLOPS = 2 * batch * heads * sequence * (sequence + 1) * head_dim


def mask_mod(b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    """The FlexAttention form of the mask."""
    return q_idx >= kv_idx


class Model(nn.Module):
    """softmax(mask(q k^T / sqrt(d))) v, where key j is hidden from query i if j > i."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: (batch, heads, sequence, head_dim), one dtype. Returns the same shape and dtype."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
        position = torch.arange(q.shape[-2], device=q.device)
        hidden = position[None, :] > position[:, None]
        scores = scores.masked_fill(hidden, -math.inf)
        return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


class Flex(Model):
    """FlexAttention, compiled; the mask's blocks are found once."""

    def __init__(self) -> None:
        super().__init__()
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        length, device = sequence, "cuda" if torch.cuda.is_available() else "cpu"
        self.attend = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")
        self.blocks = create_block_mask(mask_mod, None, None, length, length, device=device)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attend(q, k, v, block_mask=self.blocks)
        return out


class Cudnn(Model):
    """cuDNN's attention."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)


BASELINES = {"flex": Flex, "cudnn": Cudnn}
BASELINE = "flex"


def get_inputs() -> list[torch.Tensor]:
    shape = (batch, heads, sequence, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    return [q, k, v]


def get_init_inputs() -> list[object]:
    return []
