"""Library steps of a plan: an aten call from tagged arguments, under the flags that the candidate had set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verifier.plan.arguments import (
    Arg,
    BoolArg,
    ComplexArg,
    DeviceArg,
    DictArg,
    DTypeArg,
    EnumArg,
    FloatArg,
    IntArg,
    ListArg,
    NoneArg,
    StrArg,
    TensorArg,
)
from verifier.plan.schema import Flags
from verifier.specs import dtype_of


def operator(op: str) -> Any:
    """The overload that `aten::name.overload` names. Raises AttributeError where this torch has none."""
    name, _, overload = op.removeprefix("aten::").partition(".")
    return getattr(getattr(torch.ops.aten, name), overload or "default")


def decode(arg: Arg, value: Callable[[int], Tensor], device: torch.device) -> Any:
    """The Python argument; `value` gives the tensor of a plan value, `device` stands for "cuda"."""
    match arg:
        case TensorArg():
            return value(arg.value)
        case NoneArg():
            return None
        case BoolArg() | IntArg() | StrArg():
            return arg.v
        case FloatArg():
            return float(arg.v)
        case ComplexArg():
            return complex(arg.re, arg.im)
        case DTypeArg():
            return dtype_of(arg.v)
        case DeviceArg():
            return device if arg.v == "cuda" else torch.device("cpu")
        case EnumArg():
            return getattr(torch, arg.v)
        case ListArg():
            return [decode(item, value, device) for item in arg.items]
        case DictArg():
            return {key: decode(item, value, device) for key, item in arg.items.items()}


def apply_flags(flags: Flags) -> None:
    """Sets torch's process-wide switches as they were when the candidate called the library.

    TF32 is set through torch's newer interface (`fp32_precision`) only: the older one raises once both were used.
    """
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    cuda.matmul.fp32_precision = _precision(flags.allow_tf32)
    cudnn.conv.fp32_precision = _precision(flags.cudnn_allow_tf32)
    cudnn.rnn.fp32_precision = _precision(flags.rnn_allow_tf32)
    cuda.matmul.allow_fp16_reduced_precision_reduction = flags.fp16_reduction
    cuda.matmul.allow_bf16_reduced_precision_reduction = flags.bf16_reduction
    cuda.matmul.allow_fp16_accumulation = flags.fp16_accumulation
    cudnn.enabled, cudnn.benchmark = flags.cudnn_enabled, flags.cudnn_benchmark
    cudnn.deterministic = flags.cudnn_deterministic
    torch.use_deterministic_algorithms(flags.deterministic, warn_only=True)
    cuda.enable_math_sdp("math" in flags.attention)
    cuda.enable_flash_sdp("flash" in flags.attention)
    cuda.enable_mem_efficient_sdp("efficient" in flags.attention)
    cuda.enable_cudnn_sdp("cudnn" in flags.attention)
    cuda.allow_fp16_bf16_reduction_math_sdp(flags.math_attention_reduction)
    torch._C._set_sdp_priority_order([_ATTENTION.index(n) for n in flags.attention_order or ()] or _ATTENTION_ORDER)


_ATTENTION = ("math", "flash", "efficient", "cudnn", "overrideable")
"""Names by the number of torch.nn.attention.SDPBackend."""
_ATTENTION_ORDER = list(torch._C._get_sdp_priority_order())
"""The build's own."""


def _precision(tf32: bool) -> str:
    return "tf32" if tf32 else "ieee"
