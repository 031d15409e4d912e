"""The reference in two other precisions: float64 throughout, and the arithmetic that the problem's contract
allows.

`Float64` turns every cast and every new tensor of a reference into float64, so that `x.half()` or
`softmax(..., dtype=torch.float32)` inside `forward` does not lose what the expected value needs.
`RoundedOperands` rounds the fp32 operands of matrix products and convolutions to TF32, fp16, bf16 or fp8:
PyTorch's own error in the contract's class, on a machine that has no such hardware. It does not model narrow
accumulation. With `cut` it cuts them off instead, which is what tensor cores do to fp32 operands that nobody rounded:
Triton's default. On values of one sign all products are then too small together (2e-2 of the spread of a product of
1024 uniform numbers, where rounding loses 4e-4). Under fp16 and bf16, `cut` rounds what was multiplied by a constant,
as attention kernels do that scale queries before the product: large scores then lose what operands of 16 bits keep.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verifier.interpreter.arithmetic import round_to_tf32
from verifier.problem import Precision

_NARROW = frozenset({torch.float16, torch.bfloat16, torch.float32})
_CASTS = frozenset({torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16})


_SCALE = 3.0**-0.5
"""No power of two, so that what is multiplied by it must be rounded."""


class Float64(TorchFunctionMode):
    """While active, floating dtypes that a program names become float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].double()
        kwargs = {k: _widen(v) for k, v in (kwargs or {}).items()}
        return func(*(_widen(a) for a in args), **kwargs)


def _widen(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


_aten = torch.ops.aten
_PRODUCTS = frozenset(
    {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm, _aten.addbmm, _aten.mv, _aten.addmv, _aten.dot,
     _aten.convolution, _aten._convolution, _aten.linear, _aten.matmul, _aten._cudnn_rnn,
     _aten._scaled_dot_product_efficient_attention, _aten._scaled_dot_product_flash_attention_for_cpu}
)  # fmt: skip
"""Operators that multiply matrices; what is between two products of one operator is not rounded."""


class RoundedOperands(TorchDispatchMode):
    """While active, fp32 operands of products are rounded to `precision`, with `cut` as the module says. `products`
    counts them, `written` holds the addresses of the storages that an operator says it writes."""

    def __init__(self, precision: Precision, *, cut: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.precision, self.cut = precision, cut
        self.products = 0
        self.written: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing is compiled here, and the wrapper of True imports Dynamo, which takes 2 s."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _PRODUCTS:
            self.products += 1
            packed = 3 if func.overloadpacket is _aten._cudnn_rnn else -1  # weights once more, in one piece
            args = tuple(None if i == packed else self._round(a) for i, a in enumerate(args))
        if func._schema.is_mutable:
            self._note(func._schema.arguments, args, kwargs or {})
        return func(*args, **(kwargs or {}))

    def _note(self, said: Any, args: Any, kwargs: Any) -> None:
        given = [(a, args[i] if i < len(args) else kwargs.get(a.name)) for i, a in enumerate(said)]
        for argument, value in given:
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.written |= {t.untyped_storage().data_ptr() for t in tree_leaves(value) if isinstance(t, Tensor)}

    def _round(self, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [self._round(v) for v in value]
        if not isinstance(value, Tensor) or value.dtype != torch.float32 or value.dim() < 2:
            return value
        if not self.cut:
            return round_operand(value, self.precision)
        if self.precision is Precision.TF32:
            return cut_to_tf32(value)
        return round_operand(value * _SCALE, self.precision) / _SCALE


def cut_to_tf32(tensor: Tensor) -> Tensor:
    """fp32 `tensor` without the last 13 bits of its mantissas."""
    return (tensor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32)


def round_operand(tensor: Tensor, precision: Precision) -> Tensor:
    """fp32 `tensor` rounded to the operands of `precision`, as fp32."""
    if precision is Precision.TF32:
        return torch.from_numpy(round_to_tf32(tensor.numpy()))
    narrow = {
        Precision.FP16: torch.float16,
        Precision.BF16: torch.bfloat16,
        Precision.FP8: torch.float8_e4m3fn,
    }.get(precision)
    return tensor if narrow is None else tensor.to(narrow).float()
