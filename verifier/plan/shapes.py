"""Fake results by shape alone, where an operator's own way to it costs seconds, asks for a GPU or does not exist."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._prims_common import suggest_memory_format


def result(op: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a composite operator that is kept whole returns; None where PyTorch's own rule serves."""
    rule = _RULES.get(op)
    return None if rule is None else rule(*args, **kwargs)


_CONVOLUTIONS = ("aten::conv2d", "aten::conv3d", "aten::convolution")


def layout(op: str, args: tuple[Any, ...], out: Any) -> Any:
    """A convolution's result as cuDNN lays it out: channels last where the input or the weight is."""
    if op not in _CONVOLUTIONS or out.dim() not in (4, 5) or out.device.type != "cuda" or out.dtype == torch.float64:
        return out
    last = torch.channels_last if out.dim() == 4 else torch.channels_last_3d
    if not torch.backends.cudnn.enabled or last not in (suggest_memory_format(a) for a in args[:2]):
        return out
    return torch.empty_like(out, memory_format=last)


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any = None, *_: Any,
               enable_gqa: bool = False, **_options: Any) -> Any:  # fmt: skip
    """A CUDA build would ask the device for a kernel. None where the shapes do not fit, so that torch says why."""
    groups = query.shape[-3] // max(1, key.shape[-3]) if enable_gqa and query.dim() == key.dim() == 4 else 1
    batch = (*key.shape[:-3], key.shape[-3] * groups) if groups > 1 else key.shape[:-2]
    same = query.shape[:-2] == batch and key.shape[:-2] == value.shape[:-2] and query.dtype == key.dtype == value.dtype
    if not same or query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        return None
    shape = (*query.shape[:-1], value.shape[-1])
    if query.dim() == 4 and mask is None and query.shape[-1] <= 256 and _flash(query) and shape == query.shape:
        return torch.empty_like(query)
    if query.dim() == 4 and groups == 1 and _efficient(query, value):
        return query.new_empty((shape[0], shape[2], shape[1], shape[3])).transpose(1, 2)
    return query.new_empty(shape)


def _flash(query: torch.Tensor) -> bool:
    """The kernel that keeps the query's layout."""
    return query.dtype in (torch.float16, torch.bfloat16) and bool(torch._C._get_flash_sdp_enabled())


def _efficient(query: torch.Tensor, value: torch.Tensor) -> bool:
    """The kernel that writes (batch, length, heads, width)."""
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    aligned = all(t.shape[-1] * t.element_size() % 16 == 0 for t in (query, value))
    return aligned and bool(torch._C._get_mem_efficient_sdp_enabled())


def _recurrent(data: torch.Tensor, hidden: Any, *rest: Any) -> Any:
    """A padded LSTM, GRU or RNN: taking it apart step by step would take seconds."""
    states = list(hidden) if isinstance(hidden, list | tuple) else [hidden]
    wide, batch_first = (2 if rest[5] else 1) * states[0].shape[-1], rest[6]
    if batch_first:  # computed step after step, then transposed
        output = data.new_empty((data.shape[1], data.shape[0], wide)).transpose(0, 1)
    else:
        output = data.new_empty((*data.shape[:-1], wide))
    return (output, *(torch.empty_like(state) for state in states))


def _cell(_data: torch.Tensor, hidden: Any, *_: Any) -> Any:
    if isinstance(hidden, list | tuple):
        return tuple(torch.empty_like(state) for state in hidden)
    return torch.empty_like(hidden)


def _ctc(log_probs: torch.Tensor, _targets: Any, lengths: Any, *rest: Any) -> torch.Tensor:
    """One loss per sample without a reduction (the fourth argument from the fifth on), else one in all."""
    reduction = rest[2] if len(rest) > 2 else 1
    return log_probs.new_empty(log_probs.shape[1:2] if reduction == 0 else ())


_RULES: dict[str, Callable[..., Any]] = {
    "aten::scaled_dot_product_attention": _attention,
    **{f"aten::{name}.input": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"aten::{name}_cell": _cell for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten::ctc_loss.IntList": _ctc,
    "aten::ctc_loss.Tensor": _ctc,
}
