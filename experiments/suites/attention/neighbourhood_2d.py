"""Neighbourhood attention on an image with dilation (NATTEN, Hassani et al. 2023), the origin's figure 1.

The sequence is the image, row by row. With dilation d the image falls into d x d interleaved ones, and a
query sees only its own. There it sees a window x window square around itself; at a border the square is
shifted inwards, so that every query sees the same number of keys.
"""

import math

import torch
from torch import nn

TITLE = "2-D neighbourhood attention with dilation"
PRECISION = "fp16"
LIBRARY = "forbidden"
PROMPT = """\
Please write a GPU attention kernel to support 2-D neighbourhood attention with dilation. Apply the \
mask on the fly within the kernel and skip the blocks of keys that it hides. The complete code \
should be returned, including the necessary modifications.

The sequence is an image of height x width positions, row by row: row = index // width, column = \
index % width. Along each axis, a query at position p and a key at position t of an axis of length n \
see each other when

    p % dilation == t % dilation
    length = (n - p % dilation + dilation - 1) // dilation
    centre = min(max(p // dilation, window // 2), length - 1 - window // 2)
    abs(t // dilation - centre) <= window // 2

and a query attends to a key when this holds for rows and for columns.
"""
WORKLOADS = [
    {
        "name": "small",
        "roles": ["small"],
        "constants": {"batch": 2, "heads": 2, "height": 12, "width": 10, "window": 3, "dilation": 1},
    },
    {
        "name": "small_dilated",
        "roles": ["small"],
        "constants": {"batch": 1, "heads": 2, "height": 13, "width": 11, "window": 3},
    },
    {
        "name": "small_bf16",
        "roles": ["small"],
        "constants": {
            "batch": 1,
            "heads": 2,
            "height": 16,
            "width": 10,
            "window": 5,
            "head_dim": 32,
            "dtype": "bfloat16",
        },
    },
    {
        "name": "check_odd",
        "roles": ["check"],
        "constants": {"batch": 2, "heads": 3, "height": 33, "width": 29, "window": 5, "dilation": 3},
    },
    {"name": "d64_fp16", "roles": ["check", "timed"]},
    {
        "name": "d128_bf16",
        "roles": ["check", "timed"],
        "constants": {"dilation": 4, "head_dim": 128, "dtype": "bfloat16"},
    },
    {
        "name": "held_out",
        "roles": ["held_out"],
        "constants": {"batch": 2, "heads": 24, "height": 48, "width": 56, "dilation": 1},
    },
]

batch = 4
heads = 16
height = 64
width = 64
window = 7
dilation = 2
head_dim = 64
dtype = "float16"

# 4 flops for each element of a head and each pair of a query and a key that it sees.
FLOPS = 4 * batch * heads * height * width * window * window * head_dim


def _along(query: torch.Tensor, key: torch.Tensor, length: int) -> torch.Tensor:
    """Whether two positions of one axis see each other."""
    phase = query % dilation
    group = (length - phase + dilation - 1) // dilation
    centre = torch.minimum(torch.clamp(query // dilation, min=window // 2), group - 1 - window // 2)
    return (key % dilation == phase) & ((key // dilation - centre).abs() <= window // 2)


def mask_mod(b: torch.Tensor, h: torch.Tensor, q_idx: torch.Tensor, kv_idx: torch.Tensor) -> torch.Tensor:
    """The FlexAttention form of the mask."""
    rows = _along(q_idx // width, kv_idx // width, height)
    return rows & _along(q_idx % width, kv_idx % width, width)


class Model(nn.Module):
    """softmax(mask(q k^T / sqrt(d))) v over a dilated square of window x window positions."""

    def __init__(self, height: int, width: int, window: int, dilation: int) -> None:
        super().__init__()
        self.height, self.width, self.window, self.dilation = height, width, window, dilation

    def visible(self, length: int, device: torch.device) -> torch.Tensor:
        """(length, length), bool: whether the query of the row sees the key of the column along one axis."""
        position = torch.arange(length, device=device)
        phase, index = position % self.dilation, position // self.dilation
        members = (length - 1 - phase) // self.dilation + 1
        first = torch.minimum((index - self.window // 2).clamp(min=0), members - self.window)[:, None]
        in_square = (first <= index) & (index < first + self.window)
        return (phase[:, None] == phase) & in_square

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """q, k, v: (batch, heads, sequence, head_dim), one dtype. Returns the same shape and dtype."""
        wide = torch.promote_types(q.dtype, torch.float32)
        scores = torch.matmul(q.to(wide), k.to(wide).transpose(-2, -1)) / math.sqrt(q.shape[-1])
        rows, columns = self.visible(self.height, q.device), self.visible(self.width, q.device)
        seen = (rows[:, None, :, None] & columns[None, :, None, :]).reshape(scores.shape[-2:])
        scores = scores.masked_fill(~seen, -math.inf)
        return torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v)


class Flex(Model):
    """FlexAttention, compiled; the mask's blocks are found once."""

    def __init__(self, height: int, width: int, window: int, dilation: int) -> None:
        super().__init__(height, width, window, dilation)
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        length, device = height * width, "cuda" if torch.cuda.is_available() else "cpu"
        self.attend = torch.compile(flex_attention, mode="max-autotune-no-cudagraphs")
        self.blocks = create_block_mask(mask_mod, None, None, length, length, device=device)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.attend(q, k, v, block_mask=self.blocks)
        return out


BASELINES = {"flex": Flex, "cudnn": "cuDNN's attention takes a mask as a dense bias, which hides nothing from the work"}
BASELINE = "flex"


def get_inputs() -> list[torch.Tensor]:
    shape = (batch, heads, height * width, head_dim)
    q, k, v = (torch.randn(shape, dtype=getattr(torch, dtype)) for _ in range(3))
    return [q, k, v]


def get_init_inputs() -> list[object]:
    return [height, width, window, dilation]
