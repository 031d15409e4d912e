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
    """Sets torch's process-wide switches as they were when the candidate called the library."""
    torch.backends.cuda.matmul.allow_tf32 = flags.allow_tf32
    torch.backends.cudnn.allow_tf32 = flags.cudnn_allow_tf32
    torch.backends.cudnn.benchmark = flags.cudnn_benchmark
    torch.use_deterministic_algorithms(flags.deterministic, warn_only=True)
