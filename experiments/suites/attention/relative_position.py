"""Attention with a relative position added to every score: the problem whose prompt NVIDIA published."""

import math

import torch
from torch import nn

TITLE = "Attention with relative position encoding"
PRECISION = "fp16"
LIBRARY = "forbidden"
PROMPT = """\
Please write a GPU attention kernel to support relative position encodings. Implement the relative \
positional encoding on the fly within the kernel. The complete code should be returned, including \
the necessary modifications.

Use the following function to compute the relative positional encoding:

def relative_positional(score, b, h, q_idx, kv_idx):
    return score + (q_idx - kv_idx)

When implementing the kernel, keep in mind that a constant scaling factor 1.44269504 should be \
applied to the relative positional encoding due to qk_scale = sm_scale * 1.44269504. The PyTorch \
reference does not need to scale the relative positional encoding, but in the GPU kernel, use:

qk = qk * qk_scale + rel_pos * 1.44269504

Please provide the complete updated kernel code that incorporates these changes, ensuring that the \
relative positional encoding is applied efficiently within the kernel operations.
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
    """The FlexAttention form of the encoding."""
    return score + (q_idx - kv_idx)


class Model(nn.Module):
    """softmax(q k^T / sqrt(d) + (i - j)) v for query i and key j; no mask."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: (batch, heads, sequence, head_dim), one dtype. Returns the same shape and dtype."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
        position = torch.arange(q.shape[-2], device=q.device)
        scores = scores + (position[:, None] - position[None, :])
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


class Cudnn(Model):
    """cuDNN's attention; the encoding is a bias.

    A softmax does not see what is added to a whole row, so -j stands for i - j: what float16 rounds of it is
    beyond 2048, where the weights are zero.
    """

    bias: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        bias = -torch.arange(sequence).to(getattr(torch, dtype))
        self.register_buffer("bias", bias.expand(1, 1, 1, -1), persistent=False)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        bias = self.bias.expand(-1, -1, q.shape[-2], -1)
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


BASELINES = {"flex": Flex, "cudnn": Cudnn}
BASELINE = "flex"


def get_inputs() -> list[torch.Tensor]:
    shape = (batch, heads, sequence, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    return [q, k, v]


def get_init_inputs() -> list[object]:
    return []
